//! Which files a person means. In: files, folders, and patterns with `*`, `?` and `**`. Out: files, in the order of their names.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::error::CorpusError;

/// Folders inside folders are followed this deep, so that a loop of links ends.
const DEPTH_MAX: usize = 32;

/// What is read from a folder. A file that is named itself is read whatever its extension: as plain text, unless it is known.
const KNOWN: [&str; 5] = ["txt", "md", "jsonl", "ndjson", "parquet"];

/// Every file once, even where two patterns match it.
pub(super) fn files(paths: &[PathBuf], known: &[&str]) -> Result<Vec<PathBuf>, CorpusError> {
    let mut files = Vec::new();
    for path in paths {
        for path in matched(path)? {
            collect(&path, known, 0, &mut files).map_err(|(path, source)| CorpusError::Unreadable { path, source })?;
        }
    }
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

/// All that are known.
pub(super) fn all() -> &'static [&'static str] {
    &KNOWN
}

/// The path itself, where there is such a file; otherwise what it matches as a pattern.
fn matched(path: &Path) -> Result<Vec<PathBuf>, CorpusError> {
    let Some(pattern) = path.to_str().filter(|text| text.contains(['*', '?', '['])) else {
        return Ok(vec![path.to_path_buf()]);
    };
    if path.exists() {
        return Ok(vec![path.to_path_buf()]);
    }
    let malformed = |reason: String| CorpusError::Pattern { pattern: pattern.into(), reason };
    // As a shell: `*` stands for no hidden file.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let found = glob::glob_with(pattern, options).map_err(|error| malformed(error.to_string()))?;
    let found: Result<Vec<PathBuf>, _> = found.collect();
    let found = found.map_err(|error| CorpusError::Unreadable {
        path: error.path().to_path_buf(),
        source: io::Error::new(error.error().kind(), error.to_string()),
    })?;
    if found.is_empty() { Err(malformed("no file matches it".into())) } else { Ok(found) }
}

/// The file itself, or the readable files of a folder in the order of their names; hidden ones are not looked at.
fn collect(path: &Path, known: &[&str], depth: usize, files: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
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
        if !hidden && (entry.is_dir() || known.iter().any(|known| has_extension(&entry, known))) {
            collect(&entry, known, depth + 1, files)?;
        }
    }
    Ok(())
}

/// Whether a file is read as one object a line. `.json` is only read where it is named: folders have others of that name.
pub(super) fn is_lines(path: &Path) -> bool {
    ["jsonl", "ndjson", "json"].iter().any(|known| has_extension(path, known))
}

pub(super) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_files_and_folders_and_each_file_comes_once() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "b.md", "c.png", "deep/er/d.txt", "deep/e.jsonl", ".hidden.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let names = |patterns: &[&str]| -> Vec<String> {
            let paths: Vec<PathBuf> = patterns.iter().map(|pattern| dir.path().join(pattern)).collect();
            let files = files(&paths, all()).unwrap();
            files.iter().map(|file| file.strip_prefix(dir.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(names(&[""]), ["a.txt", "b.md", "deep/e.jsonl", "deep/er/d.txt"]);
        assert_eq!(names(&["*.txt"]), ["a.txt"]);
        assert_eq!(names(&["**/*.txt", "a.txt"]), ["a.txt", "deep/er/d.txt"]);
        assert_eq!(names(&["d*"]), ["deep/e.jsonl", "deep/er/d.txt"]);
        assert_eq!(names(&["?.png"]), ["c.png"], "what is named is read");
        let none = files(&[dir.path().join("*.csv")], all());
        assert!(matches!(none, Err(CorpusError::Pattern { .. })), "{none:?}");
        fs::write(dir.path().join("[1].txt"), "x").unwrap();
        assert_eq!(names(&["[1].txt"]), ["[1].txt"]);
    }
}
