//! Reads a person's plain text into one ring of bytes. In: files and folders. Out: one [`Corpus`], or the first reason why not.
//!
//! Lines of JSON without a usable `text` are counted and left out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Corpus, CorpusError, Skipped,
    error::guess,
    parquet,
    paths::{self, has_extension},
    record::Columns,
};

/// What is read from a folder.
const KNOWN: [&str; 4] = ["txt", "md", "jsonl", "parquet"];
/// Between documents.
pub(super) const GAP: &[u8] = b"\n\n";

/// See [`Corpus::read`].
pub(super) fn read(paths: &[PathBuf]) -> Result<Corpus, CorpusError> {
    let mut reader = Reader::default();
    for file in paths::files(paths, &KNOWN)? {
        reader.file(&file)?;
    }
    if reader.bytes.is_empty() {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(CorpusError::Empty {
            paths: paths.join(", "),
            files: reader.files,
            records: reader.records,
            skipped: reader.skipped,
        });
    }
    Ok(Corpus::ring(reader.bytes, reader.documents, reader.skipped))
}

#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    files: u64,
    records: u64,
    documents: u64,
    skipped: Skipped,
}

impl Reader {
    fn file(&mut self, path: &Path) -> Result<(), CorpusError> {
        if parquet::is_parquet(path) {
            self.files += 1;
            let read = parquet::rows(path, &Columns::new(), &mut |_, object| {
                self.records += 1;
                self.text(object.get("text"));
                Ok(())
            });
            return match read {
                Err(CorpusError::Columns { .. }) => {
                    self.skipped.add("without `text`");
                    Ok(())
                }
                other => other,
            };
        }
        let bytes = fs::read(path).map_err(|source| CorpusError::Unreadable { path: path.to_path_buf(), source })?;
        self.files += 1;
        let text = std::str::from_utf8(&bytes).map_err(|error| not_utf8(path, &bytes, error.valid_up_to()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if has_extension(path, "jsonl") {
            text.lines().filter(|line| !line.trim().is_empty()).for_each(|line| self.record(line));
        } else {
            self.records += 1;
            self.document(text);
        }
        Ok(())
    }

    fn record(&mut self, line: &str) {
        self.records += 1;
        match serde_json::from_str::<serde_json::Value>(line) {
            Err(_) => self.skipped.add("not JSON"),
            Ok(value) => self.text(value.get("text")),
        }
    }

    fn text(&mut self, text: Option<&serde_json::Value>) {
        match text {
            None => self.skipped.add("without `text`"),
            Some(serde_json::Value::String(text)) => self.document(text),
            Some(_) => self.skipped.add("`text` not a string"),
        }
    }

    fn document(&mut self, text: &str) {
        let text = text.trim_matches(['\n', '\r']);
        if text.trim().is_empty() {
            return self.skipped.add("empty");
        }
        self.documents += 1;
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.extend_from_slice(GAP);
    }
}

fn not_utf8(path: &Path, bytes: &[u8], at: usize) -> CorpusError {
    let line = bytes[..at].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
    CorpusError::NotUtf8 { path: path.to_path_buf(), byte: bytes[at], offset: at as u64, line, guess: guess(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn read_folder(files: &[(&str, &[u8])]) -> Result<Corpus, CorpusError> {
        let dir = folder(files);
        read(&[dir.path().to_path_buf()])
    }

    #[test]
    fn a_folder_is_all_of_its_texts_in_the_order_of_their_names() {
        let corpus = read_folder(&[
            ("b.md", b"\xef\xbb\xbfsecond\n"),
            ("a.txt", b"first"),
            ("c/d.jsonl", b"{\"text\":\"third\"}\n\n{\"text\":\"fourth\"}\n{\"label\":1}\nno json\n{\"text\":7}\n{\"text\":\" \"}"),
            (".hidden.txt", b"no"),
            ("image.png", b"\x89PNG"),
        ])
        .unwrap();
        assert_eq!(corpus.preview(100), "first\n\nsecond\n\nthird\n\nfourth\n\n");
        assert_eq!(corpus.documents, 4);
        assert_eq!(corpus.skipped.to_string(), "1 `text` not a string, 1 empty, 1 not JSON, 1 without `text`");
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        match read_folder(&[("a.txt", b"one\ntw\xf6\n")]) {
            Err(CorpusError::NotUtf8 { byte: 0xf6, offset: 6, line: 2, guess, .. }) => {
                assert_eq!(guess, "Latin-1 or Windows-1252");
            }
            other => panic!("{other:?}"),
        }
        let dir = folder(&[("a.parquet", b"PAR1\xff\x00")]);
        assert!(matches!(read(&[dir.path().join("a.parquet")]), Err(CorpusError::Unreadable { .. })));
    }

    #[test]
    fn the_text_of_parquet_rows_is_read_like_that_of_lines() {
        use crate::corpus::parquet::tests::{Column, TEXT, write};
        let dir = folder(&[("b.txt", b"last")]);
        let columns = vec![Column::Numbers(&[1, 2]), Column::Texts(&["one", " "], None)];
        write(&dir.path().join("a.parquet"), TEXT, ::parquet::basic::Compression::SNAPPY, &[columns]);
        let corpus = read(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!((corpus.preview(100), corpus.documents), ("one\n\nlast\n\n".into(), 2));
    }

    #[test]
    fn nothing_usable_says_why() {
        match read_folder(&[("a.txt", b" \n"), ("b.jsonl", b"{}\n{}\n")]) {
            Err(CorpusError::Empty { files: 2, records: 3, skipped, .. }) => {
                assert_eq!(skipped.to_string(), "1 empty, 2 without `text`");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(read(&["does/not/exist".into()]), Err(CorpusError::Unreadable { .. })));
    }
}
