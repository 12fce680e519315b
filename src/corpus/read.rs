//! Reads a person's text. In: files and folders. Out: one [`Corpus`], or the first reason why not.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::Corpus;

/// Folders inside folders are followed this deep, so that a loop of links ends.
const DEPTH_MAX: usize = 32;
/// Between documents.
const GAP: &[u8] = b"\n\n";

#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not UTF-8: byte {byte:#04x} at {offset}", path.display())]
    NotUtf8 {
        path: PathBuf,
        byte: u8,
        offset: u64,
        /// From 1.
        line: u64,
        guess: &'static str,
    },
    #[error("{paths} holds nothing to learn from")]
    Empty { paths: String, files: u64, records: u64, skipped: Skipped },
}

/// Records that were left out, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped(pub BTreeMap<&'static str, u64>);

impl Skipped {
    fn add(&mut self, reason: &'static str) {
        *self.0.entry(reason).or_default() += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none left out");
        }
        for (i, (reason, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {reason}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// See [`Corpus::read`].
pub(super) fn read(paths: &[PathBuf]) -> Result<Corpus, CorpusError> {
    let mut reader = Reader::default();
    for path in paths {
        let mut files = Vec::new();
        collect(path, 0, &mut files).map_err(|(path, source)| CorpusError::Unreadable { path, source })?;
        for file in files {
            reader.file(&file)?;
        }
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
    Ok(Corpus { bytes: reader.bytes, documents: reader.documents, skipped: reader.skipped })
}

/// The file itself, or the readable files of a folder in the order of their names; hidden ones are not looked at.
fn collect(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
    let fail = |source| (path.to_path_buf(), source);
    if !fs::metadata(path).map_err(fail)?.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(fail)?;
    entries.sort();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && (entry.is_dir() || has_known_extension(&entry)) {
            collect(&entry, depth + 1, files)?;
        }
    }
    Ok(())
}

fn has_known_extension(path: &Path) -> bool {
    ["txt", "md", "jsonl"].iter().any(|known| has_extension(path, known))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
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
            Ok(value) => match value.get("text") {
                None => self.skipped.add("without `text`"),
                Some(serde_json::Value::String(text)) => self.document(text),
                Some(_) => self.skipped.add("`text` not a string"),
            },
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

/// What a file that is no UTF-8 most likely is, by its first bytes.
fn guess(bytes: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 7] = [
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PAR1", "Parquet"),
        (b"%PDF", "PDF"),
        (b"PK\x03\x04", "zip"),
    ];
    match KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => name,
        None if bytes.contains(&0) => "binary data",
        None => "Latin-1 or Windows-1252",
    }
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
        match read(&[dir.path().join("a.parquet")]) {
            Err(CorpusError::NotUtf8 { guess, .. }) => assert_eq!(guess, "Parquet"),
            other => panic!("{other:?}"),
        }
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

    #[test]
    fn a_preview_is_cut_between_characters() {
        assert_eq!(Corpus::from_text("aé").preview(2), "a");
    }
}
