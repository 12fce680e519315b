//! Where the records of a person's data lie. In: files. Out: [`Index`]: for each record its file, its place in it, and a hash.
//!
//! Every file is read once from beginning to end, a record at a time, and none is kept: data may be larger than memory. A
//! record is read again when it is needed. A long text is cut into parts between its lines, and each part is a record.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    error::{CorpusError, Skipped, guess},
    parquet::{self, Spool},
    paths,
    record::{Columns, Kind, Record, Wrong},
};

/// A text is read in parts of at most this many bytes: a few thousand tokens, which are tokenized again whenever one sequence of
/// them is needed.
const PART: usize = 16 << 10;
/// The longest line that is read as one record.
const LINE_MAX: u64 = 64 << 20;

/// What is read from files, and how strictly.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    pub columns: Columns,
    pub kind: Option<Kind>,
    pub skip_bad: bool,
}

#[derive(Debug)]
pub(super) struct Index {
    pub files: Vec<PathBuf>,
    pub entries: Vec<Entry>,
    pub kind: Kind,
    pub columns: Columns,
    /// Of files whose records cannot be read again from where they stand, and which files these are.
    spool: Option<Spool>,
    spooled: BTreeSet<u32>,
    /// Documents and lines, before anything was left out.
    pub seen: u64,
    pub duplicates: u64,
    pub skipped: Skipped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    file: u32,
    /// From 1; of Parquet the row.
    pub line: u64,
    /// In the file, or in the spool.
    offset: u64,
    len: u32,
    /// Of the text that is there, where it is not the whole.
    part: Option<Range<u32>>,
    /// Whether a text ends here; all others are whole.
    pub is_end: bool,
    pub key: u64,
}

impl Index {
    /// # Errors
    /// A file that cannot be read, a record that is none (unless they are skipped), or nothing at all.
    pub fn build(paths: &[PathBuf], terms: &Terms) -> Result<Index, CorpusError> {
        let mut builder = Builder::new(terms);
        for file in paths::files(paths, paths::all())? {
            builder.file(file)?;
        }
        let Builder { files, entries, kind: Some(kind), .. } = builder else {
            return Err(builder.empty(paths));
        };
        if entries.is_empty() {
            return Err(Builder { files, entries, ..builder }.empty(paths));
        }
        let Builder { mut spool, spooled, seen, duplicates, skipped, .. } = builder;
        if let Some(spool) = &mut spool {
            spool.flush().map_err(unspooled)?;
        }
        Ok(Index { files, entries, kind, columns: terms.columns.clone(), spool, spooled, seen, duplicates, skipped })
    }

    /// Reads a record again.
    ///
    /// # Errors
    /// The file is gone, or is another one by now.
    pub fn read(&self, entry: &Entry) -> Result<Record, CorpusError> {
        let path = self.path(entry);
        let bytes = self.bytes(entry).map_err(|source| CorpusError::Unreadable { path: path.into(), source })?;
        let record = self.parse(entry, bytes).filter(|record| record.key() == entry.key);
        record.ok_or_else(|| CorpusError::Changed { path: path.into(), line: entry.line })
    }

    pub fn path(&self, entry: &Entry) -> &Path {
        &self.files[entry.file as usize]
    }

    fn bytes(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        if let Some(spool) = self.spool.as_ref().filter(|_| self.spooled.contains(&entry.file)) {
            return spool.read(entry.offset, entry.len as usize);
        }
        let mut file = File::open(self.path(entry))?;
        file.seek(SeekFrom::Start(entry.offset))?;
        let mut bytes = vec![0; entry.len as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn parse(&self, entry: &Entry, bytes: Vec<u8>) -> Option<Record> {
        if !paths::is_lines(self.path(entry)) && !self.spooled.contains(&entry.file) {
            return Some(Record::Text(String::from_utf8(bytes).ok()?));
        }
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let (_, record) = Record::read(value.as_object()?, &self.columns, Some(self.kind)).ok()?;
        match (record, &entry.part) {
            (Record::Text(text), Some(part)) => {
                text.get(part.start as usize..part.end as usize).map(|part| Record::Text(part.into()))
            }
            (record, _) => Some(record),
        }
    }
}

struct Builder<'a> {
    terms: &'a Terms,
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    kind: Option<Kind>,
    keys: HashSet<u64>,
    spool: Option<Spool>,
    spooled: BTreeSet<u32>,
    seen: u64,
    duplicates: u64,
    skipped: Skipped,
}

impl<'a> Builder<'a> {
    fn new(terms: &'a Terms) -> Self {
        let kind = terms.kind;
        Builder {
            terms,
            files: vec![],
            entries: vec![],
            kind,
            keys: HashSet::new(),
            spool: None,
            spooled: BTreeSet::new(),
            seen: 0,
            duplicates: 0,
            skipped: Skipped::default(),
        }
    }

    fn empty(&self, paths: &[PathBuf]) -> CorpusError {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        CorpusError::Empty {
            paths: paths.join(", "),
            files: self.files.len() as u64,
            records: self.seen,
            skipped: self.skipped.clone(),
        }
    }

    fn file(&mut self, path: PathBuf) -> Result<(), CorpusError> {
        self.files.push(path.clone());
        if parquet::is_parquet(&path) {
            return match self.rows(&path) {
                Err(error @ CorpusError::Unreadable { .. }) => self.bad(error, "unreadable Parquet files"),
                Err(error @ CorpusError::Columns { .. }) => self.bad(error, "without known columns"),
                Err(error @ CorpusError::Record { .. }) => self.bad(error, "unreadable rows"),
                other => other,
            };
        }
        let unreadable = |source| CorpusError::Unreadable { path: path.clone(), source };
        let mut reader = BufReader::with_capacity(1 << 16, File::open(&path).map_err(unreadable)?);
        let begins = reader.fill_buf().map_err(unreadable)?;
        let mark = if begins.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 };
        reader.consume(mark);
        let offset = mark as u64;
        if paths::is_lines(&path) { self.lines(&path, reader, offset) } else { self.text(&path, reader, offset) }
    }

    /// Of Parquet.
    fn rows(&mut self, path: &Path) -> Result<(), CorpusError> {
        self.spooled.insert(self.files.len() as u32 - 1);
        let mut spool = match self.spool.take() {
            Some(spool) => spool,
            None => Spool::new().map_err(unspooled)?,
        };
        let terms = self.terms;
        let read = parquet::rows(path, &terms.columns, &mut |row, object| {
            self.seen += 1;
            let bytes = serde_json::to_vec(&object).expect("plain data");
            if bytes.len() as u64 >= LINE_MAX {
                return self.bad(wrong(path, row, "it is longer than 64 MiB".into()), "longer than 64 MiB");
            }
            let offset = spool.push(&bytes).map_err(unspooled)?;
            self.object(path, row, offset, bytes.len(), &object)
        });
        self.spool = Some(spool);
        read
    }

    fn lines(&mut self, path: &Path, mut reader: impl BufRead, mut offset: u64) -> Result<(), CorpusError> {
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let read = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes);
            let read = read.map_err(|source| CorpusError::Unreadable { path: path.into(), source })? as u64;
            match read {
                0 => break,
                LINE_MAX => return Err(wrong(path, line, "it is longer than 64 MiB".into())),
                _ => self.line(path, line, offset, &bytes)?,
            }
            offset += read;
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, line: u64, offset: u64, bytes: &[u8]) -> Result<(), CorpusError> {
        if bytes.trim_ascii().is_empty() {
            return Ok(());
        }
        self.seen += 1;
        if let Err(error) = std::str::from_utf8(bytes) {
            let at = error.valid_up_to();
            return self.bad(not_utf8(path, bytes, at, offset, line), "not UTF-8");
        }
        let object = match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return self.bad(wrong(path, line, not_an_object(bytes)), "not an object"),
            Err(error) => return self.bad(wrong(path, line, not_json(&error, bytes)), "not JSON"),
        };
        self.object(path, line, offset, bytes.len(), &object)
    }

    /// One that lies at `offset` in `len` bytes.
    fn object(
        &mut self,
        path: &Path,
        line: u64,
        offset: u64,
        len: usize,
        object: &Map<String, Value>,
    ) -> Result<(), CorpusError> {
        match Record::read(object, &self.terms.columns, self.kind) {
            Ok((kind, record)) => {
                self.kind = Some(kind);
                let whole = Entry {
                    file: self.files.len() as u32 - 1,
                    line,
                    offset,
                    len: len as u32,
                    part: None,
                    is_end: true,
                    key: 0,
                };
                self.keep(whole, record);
                Ok(())
            }
            Err(Wrong::Empty) => {
                self.skipped.add("empty");
                Ok(())
            }
            Err(Wrong::Columns(found)) => {
                self.bad(CorpusError::Columns { path: path.into(), line, found }, "without known columns")
            }
            Err(Wrong::Mixed(kind)) => {
                let before = self.kind.map_or("", Kind::name);
                self.bad(CorpusError::Mixed { path: path.into(), line, got: kind.name(), before }, "of another kind")
            }
            Err(Wrong::Reason(reason)) => self.bad(wrong(path, line, reason.into()), reason),
        }
    }

    /// A record as a whole, or a long text in parts.
    fn keep(&mut self, whole: Entry, record: Record) {
        match record {
            Record::Text(text) if text.len() > PART => {
                let mut from = 0;
                while from < text.len() {
                    let len = cut(&text.as_bytes()[from..], true);
                    let (part, is_end) = (&text[from..from + len], from + len == text.len());
                    let key = Record::Text(part.into()).key();
                    let range = from as u32..(from + len) as u32;
                    self.push(Entry { part: Some(range), is_end, key, ..whole.clone() }, part, true);
                    from += len;
                }
            }
            record => {
                let key = record.key();
                self.push(Entry { key, ..whole }, "whole", false);
            }
        }
    }

    /// A part of a text is kept even where it equals another one: the text would not be whole.
    fn push(&mut self, entry: Entry, text: &str, is_part: bool) {
        if text.trim().is_empty() {
            self.skipped.add("empty");
        } else if is_part || self.keys.insert(entry.key) {
            self.entries.push(entry);
        } else {
            self.duplicates += 1;
        }
    }

    /// A file that is one text.
    fn text(&mut self, path: &Path, mut reader: impl Read, mut offset: u64) -> Result<(), CorpusError> {
        self.seen += 1;
        match self.kind {
            None => self.kind = Some(Kind::Text),
            Some(Kind::Text) => {}
            Some(kind) => {
                let (got, before) = (Kind::Text.name(), kind.name());
                return self.bad(CorpusError::Mixed { path: path.into(), line: 1, got, before }, "of another kind");
            }
        }
        let (begin, mut held, mut line) = (offset, Vec::new(), 1);
        loop {
            let room = 2 * PART - held.len();
            let read = reader.by_ref().take(room as u64).read_to_end(&mut held);
            let read = read.map_err(|source| CorpusError::Unreadable { path: path.into(), source })?;
            let at_end = read < room;
            let len = cut(&held, at_end);
            let part = match std::str::from_utf8(&held[..len]) {
                Ok(part) => part,
                Err(error) => {
                    let at = error.valid_up_to();
                    return self.bad(not_utf8(path, &held, at, offset, line), "not UTF-8");
                }
            };
            let is_end = at_end && len == held.len();
            let entry = Entry {
                file: self.files.len() as u32 - 1,
                line,
                offset,
                len: len as u32,
                part: None,
                is_end,
                key: Record::Text(part.into()).key(),
            };
            self.push(entry, part, !(is_end && offset == begin));
            if is_end {
                return Ok(());
            }
            line += held[..len].iter().filter(|byte| **byte == b'\n').count() as u64;
            offset += len as u64;
            held.drain(..len);
        }
    }

    fn bad(&mut self, error: CorpusError, reason: &'static str) -> Result<(), CorpusError> {
        if !self.terms.skip_bad {
            return Err(error);
        }
        self.skipped.add(reason);
        Ok(())
    }
}

/// Where the first part of `bytes` ends: all of it, if it is short enough and nothing follows; otherwise after an empty line, a
/// line, a word, or a character, the best there is in the second half of a part.
fn cut(bytes: &[u8], at_end: bool) -> usize {
    if at_end && bytes.len() <= PART {
        return bytes.len();
    }
    let head = &bytes[..bytes.len().min(PART)];
    let half = head.len() / 2;
    let after = |mark: &[u8]| head.windows(mark.len()).rposition(|window| window == mark).map(|at| at + mark.len());
    let found = [&b"\n\n"[..], b"\n", b" "].into_iter().find_map(|mark| after(mark).filter(|at| *at > half));
    found.unwrap_or_else(|| {
        let back = head.iter().rev().take(4).position(|byte| *byte & 0xc0 != 0x80).map_or(0, |back| back + 1);
        // Before the last character's first byte: it may be cut off. Never nothing.
        if head.len() > back { head.len() - back } else { head.len() }
    })
}

fn unspooled(source: io::Error) -> CorpusError {
    CorpusError::Unreadable { path: "a temporary file for the rows of Parquet files".into(), source }
}

fn wrong(path: &Path, line: u64, reason: String) -> CorpusError {
    CorpusError::Record { path: path.into(), line, reason }
}

fn not_json(error: &serde_json::Error, bytes: &[u8]) -> String {
    let list = if bytes.trim_ascii_start().starts_with(b"[") { "; a list has to be one object a line" } else { "" };
    format!("it is not JSON at column {}{list}", error.column())
}

fn not_an_object(bytes: &[u8]) -> String {
    let list = bytes.trim_ascii_start().starts_with(b"[");
    (if list { "it is a list; it has to be one object a line" } else { "it is no JSON object" }).into()
}

fn not_utf8(path: &Path, bytes: &[u8], at: usize, offset: u64, line: u64) -> CorpusError {
    CorpusError::NotUtf8 {
        path: path.into(),
        byte: bytes[at],
        offset: offset + at as u64,
        line: line + bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64,
        guess: guess(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn build(files: &[(&str, &[u8])], terms: &Terms) -> (tempfile::TempDir, Result<Index, CorpusError>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let index = Index::build(&[dir.path().to_path_buf()], terms);
        (dir, index)
    }

    fn failure(files: &[(&str, &[u8])]) -> CorpusError {
        build(files, &Terms::default()).1.unwrap_err()
    }

    const LINES: &[u8] = b"\xef\xbb\xbf{\"text\":\"one\"}\r\n\n{\"text\":\"two\"}\n{\"text\":\"one\"}\n{\"text\":\" \"}\n{\"text\":\"last\"}";

    #[test]
    fn records_are_read_again_from_their_places() {
        let (_dir, index) = build(&[("a.jsonl", LINES), ("b.txt", b"three\n")], &Terms::default());
        let index = index.unwrap();
        let texts: Vec<String> = index.entries.iter().map(|entry| index.read(entry).unwrap().plain()).collect();
        assert_eq!(texts, ["one", "two", "last", "three\n"]);
        assert_eq!(index.entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [1, 3, 6, 1]);
        assert_eq!((index.seen, index.duplicates, index.skipped.to_string().as_str()), (6, 1, "1 empty"));
    }

    #[test]
    fn a_long_text_comes_in_parts_that_are_all_of_it() {
        let text: String = (0..9000).map(|i| format!("line {i} é\n{}", if i % 7 == 0 { "\n" } else { "" })).collect();
        let unbroken = "é".repeat(PART);
        let json = serde_json::json!({ "text": text }).to_string();
        for (name, bytes, whole) in [
            ("a.txt", text.as_bytes(), &text),
            ("a.txt", unbroken.as_bytes(), &unbroken),
            ("a.jsonl", json.as_bytes(), &text),
        ] {
            let (_dir, index) = build(&[(name, bytes)], &Terms::default());
            let index = index.unwrap();
            let parts: Vec<String> = index.entries.iter().map(|entry| index.read(entry).unwrap().plain()).collect();
            assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= PART));
            assert_eq!(&parts.concat(), whole);
            let lined = parts[..parts.len() - 1].iter().all(|part| part.ends_with("\n\n"));
            assert_eq!(lined, whole == &text);
            let ends = index.entries.iter().filter(|entry| entry.is_end).count();
            assert_eq!(ends, 1);
        }
    }

    #[test]
    fn a_bad_line_is_named_and_can_be_skipped() {
        match failure(&[("a.jsonl", b"{\"text\":\"a\"}\n\n{\"text\":")]) {
            CorpusError::Record { line: 3, reason, .. } => assert!(reason.contains("column 8"), "{reason}"),
            other => panic!("{other:?}"),
        }
        match failure(&[("a.jsonl", b"{\"text\":\"a\"}\n{\"body\":\"a\"}")]) {
            CorpusError::Columns { line: 2, found, .. } => assert_eq!(found, ["body"]),
            other => panic!("{other:?}"),
        }
        match failure(&[("a.jsonl", b"{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}")]) {
            CorpusError::Mixed { line: 2, before: "plain text", .. } => {}
            other => panic!("{other:?}"),
        }
        match failure(&[("a.jsonl", b"{\"text\":\"\xf6\"}")]) {
            CorpusError::NotUtf8 { line: 1, offset: 9, byte: 0xf6, .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(failure(&[("a.jsonl", b"{\"text\":7}")]), CorpusError::Record { line: 1, .. }));
        assert!(matches!(failure(&[("a.parquet", b"PAR1")]), CorpusError::Unreadable { .. }));
        match failure(&[("a.jsonl", b"[{\"text\":\"a\"}]")]) {
            CorpusError::Record { reason, .. } => assert!(reason.contains("one object a line"), "{reason}"),
            other => panic!("{other:?}"),
        }
        let lines =
            b"{\n{\"text\":\"a\"}\n{\"text\":7}\n{}\n3\n{\"text\":\"\xf6\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n";
        let (_dir, index) = build(&[("a.jsonl", lines)], &Terms { skip_bad: true, ..Terms::default() });
        let index = index.unwrap();
        assert_eq!(index.entries.len(), 1);
        assert_eq!(
            index.skipped.to_string(),
            "1 `text` not a string, 1 not JSON, 1 not UTF-8, 1 not an object, 1 of another kind, 1 without known columns"
        );
    }

    #[test]
    fn nothing_to_learn_from_says_what_was_looked_at() {
        match failure(&[("a.txt", b" \n"), ("b.jsonl", b"{\"text\":\"\"}\n")]) {
            CorpusError::Empty { files: 2, records: 2, skipped, .. } => assert_eq!(skipped.total(), 2),
            other => panic!("{other:?}"),
        }
        assert!(matches!(failure(&[]), CorpusError::Empty { files: 0, .. }));
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_noticed() {
        let (dir, index) = build(&[("a.jsonl", LINES)], &Terms::default());
        let index = index.unwrap();
        fs::write(dir.path().join("a.jsonl"), String::from_utf8_lossy(LINES).replace("two", "toe")).unwrap();
        assert!(index.read(&index.entries[0]).is_ok());
        assert!(matches!(index.read(&index.entries[1]), Err(CorpusError::Changed { line: 3, .. })));
        fs::write(dir.path().join("a.jsonl"), "").unwrap();
        assert!(matches!(index.read(&index.entries[1]), Err(CorpusError::Unreadable { .. })));
    }
}
