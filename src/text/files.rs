//! The small files beside a model's weights that are about text. In: a folder, or the bytes that a peer sent. Out: [`Files`],
//! none larger than it may be.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use minicbor::{Decoder, Encoder};
use serde_json::Value;
use skein_protocol::hash::{self, Digest};

/// The file that holds the whole tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const CONFIG: &str = "config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
pub(super) const TEMPLATE_JSON: &str = "chat_template.json";

/// What is read, and the most bytes each may have. The largest tokenizers in use have 260 000 tokens in 33 MB; a configuration
/// that lists a thousand added tokens has 200 kB.
const KNOWN: [(&str, u64); 7] = [
    (TOKENIZER, 64 << 20),
    (TOKENIZER_CONFIG, 4 << 20),
    (SPECIAL_TOKENS, 1 << 20),
    (GENERATION_CONFIG, 1 << 20),
    (CONFIG, 1 << 20),
    (TEMPLATE, 1 << 20),
    (TEMPLATE_JSON, 1 << 20),
];

/// How many of a folder's files an error names.
const NAMED_MAX: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{} holds no tokenizer.json{}", folder.display(), listed(there, hint))]
    NoTokenizer { folder: PathBuf, there: Vec<String>, hint: Option<&'static str> },
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} has {got} bytes; at most {limit} are read", path.display())]
    TooLarge { path: PathBuf, got: u64, limit: u64 },
    #[error("{} is malformed: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error("this text cannot be tokenized: {reason}")]
    Encode { reason: String },
}

fn listed(there: &[String], hint: &Option<&'static str>) -> String {
    let files = if there.is_empty() { String::new() } else { format!("; it holds {}", there.join(", ")) };
    files + &hint.map_or(String::new(), |hint| format!("; {hint}"))
}

/// The text files of one model, by name.
#[derive(Clone, Debug)]
pub struct Files {
    /// Where they are from, for errors: a folder, or words about a peer.
    origin: PathBuf,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Files {
    /// What there is in a folder. `path` may also be a tokenizer file itself, whatever its name: then its folder is read, and
    /// the file in place of the folder's `tokenizer.json`.
    ///
    /// # Errors
    /// No tokenizer, a file that cannot be read, or one that is too large.
    pub fn read(path: &Path) -> Result<Files, TextError> {
        let unreadable = |source| TextError::Unreadable { path: path.to_path_buf(), source };
        let is_folder = fs::metadata(path).map_err(unreadable)?.is_dir();
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        let mut files = BTreeMap::new();
        for (name, limit) in KNOWN {
            let file = if name == TOKENIZER && !is_folder { path.to_path_buf() } else { folder.join(name) };
            if let Some(bytes) = read_up_to(&file, limit)? {
                files.insert(name, bytes);
            }
        }
        let files = Files { origin: folder.to_path_buf(), files };
        if files.get(TOKENIZER).is_none() { Err(no_tokenizer(folder)) } else { Ok(files) }
    }

    /// From bytes, for instance of a peer. Names that are not about text are left out.
    ///
    /// # Errors
    /// A file that is too large.
    pub fn new(origin: &str, bytes: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Files, TextError> {
        let mut files = BTreeMap::new();
        for (name, bytes) in bytes {
            if let Some((known, limit)) = KNOWN.into_iter().find(|(known, _)| *known == name) {
                let got = bytes.len() as u64;
                if got > limit {
                    return Err(TextError::TooLarge { path: Path::new(origin).join(known), got, limit });
                }
                files.insert(known, bytes);
            }
        }
        Ok(Files { origin: origin.into(), files })
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// Each file's name and bytes, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.as_slice()))
    }

    /// As peers give them to each other: CBOR, a map of names and bytes. Equal where every file is equal, wherever they lie.
    pub fn archive(&self) -> Vec<u8> {
        let mut out = Encoder::new(Vec::new());
        let written = out
            .map(self.files.len() as u64)
            .and_then(|out| self.iter().try_fold(out, |out, (name, bytes)| out.str(name)?.bytes(bytes)));
        written.map(drop).expect("a vector takes what is written");
        out.into_writer()
    }

    /// # Errors
    /// Bytes that are no archive, and a file that is too large.
    pub fn from_archive(origin: &str, archive: &[u8]) -> Result<Files, TextError> {
        let malformed = |error: minicbor::decode::Error| TextError::Malformed {
            path: origin.into(),
            reason: format!("no archive of text files: {error}"),
        };
        let mut from = Decoder::new(archive);
        let entries = from.map_iter::<&str, &minicbor::bytes::ByteSlice>().map_err(malformed)?;
        // What is there is read in place: a lie about its number or its length ends it.
        let entries =
            entries.take(KNOWN.len()).map(|entry| entry.map(|(name, bytes)| (name.to_string(), bytes.to_vec())));
        Files::new(origin, entries.collect::<Result<Vec<_>, _>>().map_err(malformed)?)
    }

    /// By which a manifest names them.
    pub fn digest(&self) -> Digest {
        hash::blob(&[&self.archive()])
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.origin.join(name)
    }

    pub(super) fn malformed(&self, name: &str, reason: impl ToString) -> TextError {
        TextError::Malformed { path: self.path(name), reason: reason.to_string() }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, TextError> {
        self.get(name).map(|bytes| std::str::from_utf8(bytes).map_err(|error| self.malformed(name, error))).transpose()
    }

    /// A JSON object.
    pub(super) fn json(&self, name: &str) -> Result<Option<Value>, TextError> {
        let Some(bytes) = self.get(name) else { return Ok(None) };
        match serde_json::from_slice(bytes) {
            Ok(value @ Value::Object(_)) => Ok(Some(value)),
            Ok(_) => Err(self.malformed(name, "it is no JSON object")),
            Err(error) => Err(self.malformed(name, error)),
        }
    }

    /// The special tokens that have a role, such as `bos_token`, by this role. `tokenizer_config.json` decides, the older map
    /// of special tokens fills what it leaves open.
    pub(super) fn special_tokens(&self) -> Result<BTreeMap<String, String>, TextError> {
        let mut tokens = BTreeMap::new();
        for name in [TOKENIZER_CONFIG, SPECIAL_TOKENS] {
            let Some(Value::Object(map)) = self.json(name)? else { continue };
            for (role, value) in map {
                let content = value.get("content").unwrap_or(&value).as_str();
                if let Some(content) = content.filter(|_| role.ends_with("_token")) {
                    tokens.entry(role).or_insert_with(|| content.to_string());
                }
            }
        }
        Ok(tokens)
    }
}

/// Nothing where there is no such file.
fn read_up_to(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TextError> {
    let unreadable = |source| TextError::Unreadable { path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let got = file.metadata().map_err(unreadable)?.len();
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let got = got.max(bytes.len() as u64);
    if got > limit { Err(TextError::TooLarge { path: path.to_path_buf(), got, limit }) } else { Ok(Some(bytes)) }
}

fn no_tokenizer(folder: &Path) -> TextError {
    let mut there: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    there.sort();
    let has = |name: &str| there.iter().any(|file| file == name);
    let hint = if has("tokenizer.model") || has("spiece.model") {
        Some(
            "the SentencePiece model can be converted: python -c \"from transformers import AutoTokenizer as T; \
             T.from_pretrained('.').save_pretrained('.')\"",
        )
    } else if has("vocab.json") && has("merges.txt") {
        Some(
            "vocab.json and merges.txt can be converted: python -c \"from transformers import AutoTokenizer as T; \
             T.from_pretrained('.').save_pretrained('.')\"",
        )
    } else {
        None
    };
    there.truncate(NAMED_MAX);
    TextError::NoTokenizer { folder: folder.to_path_buf(), there, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_tokenizer_says_what_is_there_and_how_to_convert_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.model"), b"\x0a").unwrap();
        fs::write(dir.path().join("config.json"), b"{}").unwrap();
        match Files::read(dir.path()) {
            Err(TextError::NoTokenizer { there, hint: Some(hint), .. }) => {
                assert_eq!(there, ["config.json", "tokenizer.model"]);
                assert!(hint.contains("save_pretrained"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TOKENIZER), b"{}").unwrap();
        File::create(dir.path().join(TEMPLATE)).unwrap().set_len((1 << 20) + 1).unwrap();
        assert!(matches!(Files::read(dir.path()), Err(TextError::TooLarge { limit: 0x10_0000, got: 0x10_0001, .. })));
        let sent = [(CONFIG.to_string(), vec![b' '; (1 << 20) + 1])];
        assert!(matches!(Files::new("a peer", sent), Err(TextError::TooLarge { .. })));
    }

    #[test]
    fn a_tokenizer_of_another_name_stands_for_that_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TOKENIZER), b"{}").unwrap();
        fs::write(dir.path().join("other.json"), b"{\"other\":1}").unwrap();
        let files = Files::read(&dir.path().join("other.json")).unwrap();
        assert_eq!(files.get(TOKENIZER), Some(&b"{\"other\":1}"[..]));
        assert_ne!(files.digest(), Files::read(dir.path()).unwrap().digest());
    }

    #[test]
    fn special_tokens_are_strings_or_objects_and_the_configuration_decides() {
        let files = Files::new(
            "here",
            [
                (
                    TOKENIZER_CONFIG.to_string(),
                    br#"{"bos_token":{"content":"<s>"},"pad_token":null,"add_bos_token":true}"#.to_vec(),
                ),
                (SPECIAL_TOKENS.to_string(), br#"{"bos_token":"<no>","eos_token":"</s>"}"#.to_vec()),
            ],
        )
        .unwrap();
        let tokens: Vec<(String, String)> = files.special_tokens().unwrap().into_iter().collect();
        assert_eq!(tokens, [("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
    }
}
