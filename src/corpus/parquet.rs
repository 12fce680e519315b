//! Rows of Parquet files as objects with named columns, like lines of JSON. In: a file. Out: its rows one by one, of those columns that
//! a record can have; and a [`Spool`], from which a row is read again.
//!
//! A page of Parquet is unpacked as a whole, so a row in the middle costs all before it. Records are read in the order of a seed:
//! their rows are therefore written once, as lines of JSON, to a temporary file without a name, and lie there until the run ends.

use std::{
    env,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
    schema::types::Type,
};
use serde_json::{Map, Value};

use super::{error::CorpusError, paths, record::Columns};

/// At both ends of a file.
const MAGIC: &[u8; 4] = b"PAR1";
/// Columns that a record may be made of.
const KNOWN: [&str; 10] = [
    "text",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "messages",
    "conversations",
    "system",
    "history",
];
/// Written to the spool at a time.
const PENDING: usize = 1 << 20;

/// By its extension, or its first bytes where it has another.
pub(super) fn is_parquet(path: &Path) -> bool {
    if paths::has_extension(path, "parquet") {
        return true;
    }
    // What comes through a pipe comes once.
    if !path.is_file() {
        return false;
    }
    let mut begin = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *MAGIC
}

/// Hands over each row, counted from 1.
///
/// # Errors
/// No Parquet file, one that is damaged, packed in a way that is not read, or whatever `each` says.
pub(super) fn rows(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(u64, Map<String, Value>) -> Result<(), CorpusError>,
) -> Result<(), CorpusError> {
    let unreadable = |source| CorpusError::Unreadable { path: path.into(), source };
    let file = File::open(path).map_err(unreadable)?;
    let damaged = |error: ParquetError| unreadable(io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema();
    let wanted = wanted(schema, columns);
    if wanted.is_empty() {
        let found = schema.get_fields().iter().map(|field| field.name().to_string()).collect();
        return Err(CorpusError::Columns { path: path.into(), line: 1, found });
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(wanted).build().map_err(damaged)?;
    for (row, found) in (1..).zip(reader.get_row_iter(Some(projection)).map_err(damaged)?) {
        let broken =
            |error: ParquetError| CorpusError::Record { path: path.into(), line: row, reason: error.to_string() };
        each(row, object(found.map_err(broken)?))?;
    }
    Ok(())
}

/// The fields of the schema that a record may be made of: others, pictures say, are not even read.
fn wanted(schema: &Type, columns: &Columns) -> Vec<Arc<Type>> {
    let known = |name: &str| KNOWN.contains(&name) || columns.values().any(|own| own == name);
    schema.get_fields().iter().filter(|field| known(field.name())).cloned().collect()
}

fn object(row: Row) -> Map<String, Value> {
    let mut object = Map::new();
    for (name, field) in row.into_columns() {
        let value = match value(field) {
            // A conversation is often kept as the JSON that it was.
            Value::String(text) if text.starts_with('[') && !is_text(&name) => match serde_json::from_str(&text) {
                Ok(list @ Value::Array(_)) => list,
                _ => Value::String(text),
            },
            value => value,
        };
        object.insert(name, value);
    }
    object
}

/// Columns whose strings are what they are.
fn is_text(name: &str) -> bool {
    ["text", "prompt", "completion", "instruction", "input", "output", "system"].contains(&name)
}

fn value(field: Field) -> Value {
    match field {
        Field::Str(text) => text.into(),
        // Some writers do not say that a column is text.
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => value.into(),
        Field::Double(value) => value.into(),
        Field::Group(row) => {
            Value::Object(row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        _ => Value::Null,
    }
}

/// Rows as lines of JSON, in a file that is gone with the program.
#[derive(Debug)]
pub(super) struct Spool {
    file: Mutex<File>,
    pending: Vec<u8>,
    /// Bytes in the file.
    written: u64,
}

impl Spool {
    /// # Errors
    /// No temporary file can be made.
    pub fn new() -> io::Result<Spool> {
        // Where nobody says otherwise, on a disk: many systems keep the common place for small files in memory.
        let large = Path::new("/var/tmp");
        let file = match env::var_os("TMPDIR") {
            None if large.is_dir() => tempfile::tempfile_in(large).or_else(|_| tempfile::tempfile())?,
            _ => tempfile::tempfile()?,
        };
        Ok(Spool { file: Mutex::new(file), pending: Vec::new(), written: 0 })
    }

    /// Where the row lies.
    ///
    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, row: &[u8]) -> io::Result<u64> {
        let offset = self.written + self.pending.len() as u64;
        self.pending.extend_from_slice(row);
        if self.pending.len() >= PENDING {
            self.flush()?;
        }
        Ok(offset)
    }

    /// After the last row.
    ///
    /// # Errors
    /// The disk is full.
    pub fn flush(&mut self) -> io::Result<()> {
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&self.pending)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// # Errors
    /// The disk fails.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use parquet::{
        basic::Compression,
        data_type::{ByteArray, ByteArrayType, Int32Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };

    use super::*;
    use crate::corpus::index::{Index, Terms};

    /// A column: its values, and for lists the levels of definition and repetition.
    pub enum Column<'a> {
        Texts(&'a [&'a str], Option<(&'a [i16], &'a [i16])>),
        Numbers(&'a [i32]),
    }

    /// Each of `groups` becomes a row group.
    pub fn write(path: &Path, schema: &str, packed: Compression, groups: &[Vec<Column<'_>>]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(packed).build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        for columns in groups {
            let mut group = writer.next_row_group().unwrap();
            for column in columns {
                let mut into = group.next_column().unwrap().unwrap();
                match column {
                    Column::Texts(texts, levels) => {
                        let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
                        let (defined, repeated) = levels.unzip();
                        into.typed::<ByteArrayType>().write_batch(&texts, defined, repeated).unwrap();
                    }
                    Column::Numbers(numbers) => {
                        into.typed::<Int32Type>().write_batch(numbers, None, None).unwrap();
                    }
                }
                into.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    pub const TEXT: &str = "message m { required int32 n; required binary text (UTF8); }";
    const CHAT: &str = "message m { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } }";

    fn plain(index: &Index) -> Vec<String> {
        index.entries.iter().map(|entry| index.read(entry).unwrap().plain()).collect()
    }

    fn built(paths: &[PathBuf], terms: &Terms) -> Result<Index, CorpusError> {
        Index::build(paths, terms)
    }

    #[test]
    fn rows_are_records_in_their_order_however_they_are_packed() {
        let gzip = Compression::GZIP(Default::default());
        for packed in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, Compression::ZSTD(Default::default())] {
            let dir = tempfile::tempdir().unwrap();
            let groups = [
                vec![Column::Numbers(&[1, 2]), Column::Texts(&["one", "two"], None)],
                vec![Column::Numbers(&[3, 4, 5]), Column::Texts(&["three", " ", "one"], None)],
            ];
            write(&dir.path().join("b.parquet"), TEXT, packed, &groups);
            std::fs::write(dir.path().join("a.jsonl"), "{\"text\":\"zero\"}\n").unwrap();
            std::fs::write(dir.path().join("c.txt"), "last").unwrap();
            let index = built(&[dir.path().into()], &Terms::default()).unwrap();
            assert_eq!(plain(&index), ["zero", "one", "two", "three", "last"]);
            assert_eq!(index.entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [1, 1, 2, 3, 1]);
            assert_eq!((index.seen, index.duplicates, index.skipped.to_string().as_str()), (7, 1, "1 empty"));
            let moved = dir.path().join("without an extension");
            std::fs::rename(dir.path().join("b.parquet"), &moved).unwrap();
            assert_eq!(plain(&built(&[moved], &Terms::default()).unwrap()), ["one", "two", "three"]);
        }
    }

    #[test]
    fn conversations_are_lists_of_structs_or_json() {
        let dir = tempfile::tempdir().unwrap();
        let (list, json) = (dir.path().join("list.parquet"), dir.path().join("json.parquet"));
        // Two turns in the first row, one in the second.
        let levels: (&[i16], &[i16]) = (&[4, 4, 4], &[0, 1, 0]);
        let columns = vec![
            Column::Texts(&["user", "assistant", "user"], Some(levels)),
            Column::Texts(&["hi", "hello", "bye"], Some(levels)),
        ];
        write(&list, CHAT, Compression::SNAPPY, &[columns]);
        let index = built(&[list], &Terms::default()).unwrap();
        assert_eq!(plain(&index), ["hi\nhello", "bye"]);
        let texts = [r#"[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]"#];
        let schema = "message m { required binary messages (UTF8); }";
        write(&json, schema, Compression::SNAPPY, &[vec![Column::Texts(&texts, None)]]);
        assert_eq!(plain(&built(&[json], &Terms::default()).unwrap()), ["hi\nhello"]);
    }

    #[test]
    fn prompts_with_completions_and_long_texts_are_read_as_from_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let schema =
            "message m { required binary prompt (UTF8); required binary completion (UTF8); required int32 n; }";
        let columns = vec![Column::Texts(&["2+2="], None), Column::Texts(&["4"], None), Column::Numbers(&[1])];
        write(&path, schema, Compression::SNAPPY, &[columns]);
        assert_eq!(plain(&built(std::slice::from_ref(&path), &Terms::default()).unwrap()), ["2+2=4"]);
        let long: String = (0..9000).map(|i| format!("line {i}\n")).collect();
        write(&path, TEXT, Compression::SNAPPY, &[vec![Column::Numbers(&[1]), Column::Texts(&[&long], None)]]);
        let index = built(&[path], &Terms::default()).unwrap();
        assert!(index.entries.len() > 3);
        assert_eq!(plain(&index).concat(), long);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_file_and_row_or_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let one = std::slice::from_ref(&path);
        let skip = Terms { skip_bad: true, ..Terms::default() };
        let schema = "message m { required int32 n; optional binary text (UTF8); }";
        let columns = vec![Column::Numbers(&[1, 2]), Column::Texts(&["one"], Some((&[1, 0], &[0, 0])))];
        write(&path, schema, Compression::SNAPPY, &[columns]);
        let told = built(one, &Terms::default()).unwrap_err().to_string();
        assert!(told.contains("a.parquet:2 has none of the known columns"), "{told}");
        let index = built(one, &skip).unwrap();
        assert_eq!(
            (plain(&index), index.skipped.to_string().as_str()),
            (vec!["one".into()], "1 without known columns")
        );
        write(&path, "message m { required int32 n; }", Compression::SNAPPY, &[vec![Column::Numbers(&[1])]]);
        assert!(matches!(built(one, &Terms::default()), Err(CorpusError::Columns { found, .. }) if found == ["n"]));
        for damage in [&b"PAR1"[..], b"PAR1\xff\xff\xff\xffPAR1", b"no such thing, but long enough to look"] {
            std::fs::write(&path, damage).unwrap();
            assert!(matches!(built(one, &Terms::default()), Err(CorpusError::Unreadable { .. })));
            assert!(matches!(built(one, &skip), Err(CorpusError::Empty { skipped, .. }) if skipped.total() == 1));
        }
    }
}
