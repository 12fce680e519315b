//! From text to token ids. In: a model's `tokenizer.json`, or nothing, and then a token is a byte. Out: ids with the bytes
//! they stand for, and a [`Decoder`] for the way back.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use super::{
    decoder::Decoder,
    files::{CONFIG, Files, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TextError},
    guard::guarded,
};

/// What special tokens that are spelled out in a text are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Themselves: the text is our own, for instance of a chat template.
    Parse,
    /// Letters like all others: the text is a stranger's, and ends no turn by writing `</s>`. Added tokens that the tokenizer
    /// does not call special stay tokens.
    AsText,
}

/// Clones are one tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    kind: Kind,
    vocabulary: usize,
    bos: Option<u32>,
    /// What stands before a text of its own.
    opening: Vec<u32>,
    ends: Vec<u32>,
}

enum Kind {
    Bytes,
    File {
        parse: Box<tokenizers::Tokenizer>,
        /// The same, taking special tokens as text: a setting of the tokenizer rather than of a call. Made when first needed.
        as_text: OnceLock<Box<tokenizers::Tokenizer>>,
    },
}

impl Tokenizer {
    /// A token is a byte: 256 of them, and none special.
    pub fn bytes() -> Tokenizer {
        let inner = Inner { kind: Kind::Bytes, vocabulary: 256, bos: None, opening: vec![], ends: vec![] };
        Tokenizer { inner: Arc::new(inner) }
    }

    /// The tokenizer of a model's folder, or a tokenizer file.
    ///
    /// # Errors
    /// See [`TextError`]: none there, too large, or malformed.
    pub fn open(path: &Path) -> Result<Tokenizer, TextError> {
        Tokenizer::from_files(&Files::read(path)?)
    }

    /// # Errors
    /// `tokenizer.json` is missing, or one of the files is malformed.
    pub fn from_files(files: &Files) -> Result<Tokenizer, TextError> {
        let bytes = files.get(TOKENIZER).ok_or_else(|| TextError::NoTokenizer {
            folder: files.path(""),
            there: files.iter().map(|(name, _)| name.to_string()).collect(),
            hint: None,
        })?;
        let mut parse = parse(bytes).map_err(|reason| files.malformed(TOKENIZER, reason))?;
        // Both are settings of whoever saved the file: an id sequence of ours is as long as its text.
        parse.with_truncation(None).map_err(|error| files.malformed(TOKENIZER, error))?;
        parse.with_padding(None);
        let Some(highest) = parse.get_vocab(true).into_values().max() else {
            return Err(files.malformed(TOKENIZER, "its vocabulary is empty"));
        };
        let roles = Roles::read(files, &parse, highest)?;
        let opening = match (roles.add_bos, roles.bos) {
            (Some(true), Some(bos)) => vec![bos],
            (Some(_), _) => vec![],
            (None, _) => opening(&parse),
        };
        let vocabulary = highest as usize + 1;
        let kind = Kind::File { parse: Box::new(parse), as_text: OnceLock::new() };
        Ok(Tokenizer { inner: Arc::new(Inner { kind, vocabulary, bos: roles.bos, opening, ends: roles.ends }) })
    }

    /// Highest id, plus one.
    pub fn vocabulary(&self) -> usize {
        self.inner.vocabulary
    }

    /// Whether a token is a byte.
    pub fn is_bytes(&self) -> bool {
        matches!(self.inner.kind, Kind::Bytes)
    }

    /// Ids of `text`. With `opening` it starts as the model wants a text to start, often with a token of its own; a chat
    /// template writes that itself.
    ///
    /// # Errors
    /// The model has no token for a part of the text, and none for "unknown".
    pub fn encode(&self, text: &str, special: Special, opening: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = if opening { self.inner.opening.clone() } else { Vec::new() };
        match self.file(special) {
            None => ids.extend(text.bytes().map(u32::from)),
            Some(file) => ids.extend(guarded(|| file.encode_fast(text, false)).map_err(failed)?.get_ids()),
        }
        Ok(ids)
    }

    /// Ids of `text`, each with the bytes of `text` that it stands for. Tokens that share a character have all of it; one that
    /// stands for nothing in the text has an empty range.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_spans(&self, text: &str, special: Special) -> Result<Vec<(u32, Range<usize>)>, TextError> {
        let Some(file) = self.file(special) else {
            return Ok(text.bytes().enumerate().map(|(i, byte)| (u32::from(byte), i..i + 1)).collect());
        };
        let encoding = guarded(|| file.encode(text, false)).map_err(failed)?;
        let spans = encoding.get_offsets().iter().map(|(start, end)| *start..*end);
        Ok(encoding.get_ids().iter().copied().zip(spans).collect())
    }

    /// Tokens that end a text or a turn; the first ends a text. Empty for bytes.
    pub fn ends(&self) -> &[u32] {
        &self.inner.ends
    }

    /// The token that begins a text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// Text of one token in the middle of others: with its leading space, and `U+FFFD` for a part of a character.
    pub fn token_text(&self, token: u32) -> String {
        match &self.inner.kind {
            Kind::Bytes => String::from_utf8_lossy(&[u8::try_from(token).unwrap_or(0xff)]).into_owned(),
            // Where it follows itself it follows something, and a decoder that strips the start of a text strips the first.
            Kind::File { .. } => {
                let one = self.decode(&[token], false);
                let two = self.decode(&[token, token], false);
                two.strip_prefix(&one).map(str::to_string).unwrap_or(one)
            }
        }
    }

    /// What a text of its own starts with: often the token that begins a text, or nothing.
    pub fn opening(&self) -> &[u32] {
        &self.inner.opening
    }

    /// Whether a token is a mark of the model rather than text.
    pub fn is_special(&self, token: u32) -> bool {
        match &self.inner.kind {
            Kind::Bytes => false,
            Kind::File { parse, .. } => {
                parse.get_added_vocabulary().get_added_tokens_decoder().get(&token).is_some_and(|added| added.special)
            }
        }
    }

    /// Text of a whole sequence. Ids beyond the vocabulary have none.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        match &self.inner.kind {
            Kind::Bytes => {
                let bytes: Vec<u8> = tokens.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Kind::File { parse, .. } => guarded(|| parse.decode(tokens, skip_special)).unwrap_or_default(),
        }
    }

    /// Turns ids into text as they come; `skip_special` leaves special tokens out.
    pub fn decoder(&self, skip_special: bool) -> Decoder {
        Decoder::new(self.clone(), skip_special)
    }

    pub(super) fn knows(&self, token: u32) -> bool {
        match &self.inner.kind {
            Kind::Bytes => token < 256,
            Kind::File { parse, .. } => parse.id_to_token(token).is_some(),
        }
    }

    fn file(&self, special: Special) -> Option<&tokenizers::Tokenizer> {
        let Kind::File { parse, as_text } = &self.inner.kind else { return None };
        Some(match special {
            Special::Parse => parse,
            Special::AsText => as_text.get_or_init(|| {
                let mut copy = parse.clone();
                copy.set_encode_special_tokens(true);
                copy
            }),
        })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tokenizer({})",
            if self.is_bytes() { "bytes".into() } else { format!("{} tokens", self.vocabulary()) }
        )
    }
}

/// The crate panics at JSON that breaks off, so it sees only what is JSON.
fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|error| error.to_string())?;
    guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
}

fn failed(reason: String) -> TextError {
    TextError::Encode { reason }
}

/// What the file's own post-processor puts before a text.
fn opening(tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    let encoded = |special| guarded(|| tokenizer.encode_fast("a", special));
    let (Ok(with), Ok(without)) = (encoded(true), encoded(false)) else { return vec![] };
    let (with, without) = (with.get_ids(), without.get_ids());
    let at = with.windows(without.len().max(1)).position(|window| window == without);
    at.map_or(vec![], |at| with[..at].to_vec())
}

/// Which ids begin and end a text, from all the places where models say so.
struct Roles {
    bos: Option<u32>,
    ends: Vec<u32>,
    add_bos: Option<bool>,
}

impl Roles {
    /// Ids that the tokenizer does not reach are those of another model.
    fn read(files: &Files, tokenizer: &tokenizers::Tokenizer, highest: u32) -> Result<Roles, TextError> {
        let names: BTreeMap<String, String> = files.special_tokens()?;
        let named = |role: &str| names.get(role).and_then(|name| tokenizer.token_to_id(name));
        let configs = [files.json(GENERATION_CONFIG)?, files.json(CONFIG)?];
        let listed = |key: &str| -> Vec<u32> {
            let values = configs.iter().flatten().filter_map(|config| config.get(key));
            values.flat_map(ids).filter(|id| *id <= highest).collect()
        };
        let mut ends: Vec<u32> = named("eos_token").into_iter().collect();
        for id in listed("eos_token_id") {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        let begins = listed("bos_token_id");
        let add_bos = files.json(TOKENIZER_CONFIG)?.and_then(|config| config.get("add_bos_token")?.as_bool());
        Ok(Roles { bos: named("bos_token").or(begins.first().copied()), ends, add_bos })
    }
}

/// One id or a list of them; what is neither says nothing.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden").join(name)
    }

    fn with(name: &str, more: &[(&str, &str)]) -> Result<Tokenizer, TextError> {
        let files = Files::read(&folder(name))?;
        let kept =
            files.iter().filter(|(name, _)| *name == TOKENIZER).map(|(name, bytes)| (name.to_string(), bytes.to_vec()));
        let more = more.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec()));
        Tokenizer::from_files(&Files::new("a peer", kept.chain(more))?)
    }

    #[test]
    fn ends_are_collected_from_every_place_that_names_one() {
        let tokenizer = Tokenizer::open(&folder("sentence-piece")).unwrap();
        assert_eq!(tokenizer.bos(), Some(1));
        assert_eq!(tokenizer.ends()[0], 2);
        assert_eq!(tokenizer.ends().len(), 2);
        let places = [
            (TOKENIZER_CONFIG, r#"{"eos_token":"<|im_end|>"}"#),
            (GENERATION_CONFIG, r#"{"eos_token_id":[2,2,7,151643]}"#),
            (CONFIG, r#"{"eos_token_id":9,"bos_token_id":1}"#),
        ];
        let tokenizer = with("sentence-piece", &places).unwrap();
        assert_eq!(tokenizer.ends()[1..], [2, 7, 9]);
        assert_eq!(tokenizer.bos(), Some(1));
        assert_eq!(with("sentence-piece", &[]).unwrap().ends(), [0u32; 0]);
    }

    #[test]
    fn the_configuration_says_whether_a_text_is_opened() {
        let opened = |config| {
            let tokenizer = with("sentence-piece", &[(TOKENIZER_CONFIG, config)]).unwrap();
            tokenizer.encode("the", Special::Parse, true).unwrap()[0] == 1
        };
        assert!(opened("{}"), "the file's own post-processor opens it");
        assert!(!opened(r#"{"add_bos_token":false,"bos_token":"<s>"}"#));
        assert!(opened(r#"{"add_bos_token":true,"bos_token":"<s>"}"#));
    }

    #[test]
    fn malformed_files_are_named_with_the_reason() {
        for (name, text) in [(TOKENIZER_CONFIG, "{"), (GENERATION_CONFIG, "[]"), (CONFIG, "\u{0}")] {
            match with("byte-level", &[(name, text)]) {
                Err(TextError::Malformed { path, reason }) => {
                    assert!(path.ends_with(name) && !reason.is_empty(), "{path:?} {reason}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        for text in ["", "{}", "[]", r#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#] {
            let files = Files::new("a peer", [(TOKENIZER.to_string(), text.as_bytes().to_vec())]).unwrap();
            assert!(matches!(Tokenizer::from_files(&files), Err(TextError::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn a_token_alone_keeps_its_leading_space() {
        for name in ["byte-level", "sentence-piece", "unigram"] {
            let tokenizer = Tokenizer::open(&folder(name)).unwrap();
            let ids = tokenizer.encode("and the", Special::Parse, false).unwrap();
            let texts: Vec<String> = ids.iter().map(|id| tokenizer.token_text(*id)).collect();
            assert_eq!(texts.concat().trim_start(), "and the", "{name}: {texts:?}");
            assert_eq!(tokenizer.token_text(u32::MAX), "");
        }
        assert_eq!(Tokenizer::bytes().token_text(0xe9), "\u{fffd}");
        assert_eq!(Tokenizer::bytes().token_text(65), "A");
    }

    #[test]
    fn a_file_whose_parts_do_not_fit_together_stops_nothing() {
        let tampered = |find: &str, put: &str| {
            let files = Files::read(&folder("sentence-piece")).unwrap();
            let text = files.text(TOKENIZER).unwrap().unwrap();
            assert!(text.contains(find));
            let sent = [(TOKENIZER.to_string(), text.replacen(find, put, 1).into_bytes())];
            Tokenizer::from_files(&Files::new("a peer", sent).unwrap())
        };
        let no_opening = tampered(r#""special_tokens":{"<s>":"#, r#""special_tokens":{"<t>":"#);
        assert!(no_opening.is_err() || no_opening.unwrap().opening().is_empty());
        let too_far = tampered(r#""stop":0"#, r#""stop":4000000000"#).unwrap();
        assert!(too_far.decode(&[300, 301], false).len() < 10);
    }

    #[test]
    fn a_file_that_was_tampered_with_is_an_error_or_works() {
        let files = Files::read(&folder("byte-level")).unwrap();
        let whole = files.get(TOKENIZER).unwrap();
        for i in 0..100 {
            let mut bytes = whole.to_vec();
            let at = i * 7919 % bytes.len();
            bytes[at] = b"0\"{}[],x"[i % 8];
            let sent = Files::new("a peer", [(TOKENIZER.to_string(), bytes)]).unwrap();
            if let Ok(tokenizer) = Tokenizer::from_files(&sent) {
                let ids = tokenizer.encode("the stone <s> 😀", Special::Parse, true).unwrap_or_default();
                tokenizer.decode(&ids, false);
            }
        }
    }
}
