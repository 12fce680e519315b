//! From token ids to text, piece by piece. In: one id at a time. Out: text as soon as its characters are whole.
//!
//! What a token reads as depends on the one before it: a leading space is dropped at the start of a text, a character is spread
//! over several tokens. So a short window of tokens is decoded again with each new one, and what has been given out already is
//! cut off. The window never grows beyond a bound, so a text takes time in proportion to its length.

use super::tokenizer::Tokenizer;

/// Tokens that are waited for until a character is whole. One takes at most four; more happens only where each token holds the
/// end of one character and the beginning of the next, or the bytes are no text.
const WAIT_MAX: usize = 24;

pub struct Decoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// `before` tokens whose text is out, and those that came since.
    window: Vec<u32>,
    before: usize,
    /// The window's text that is out.
    out: String,
    /// Of the byte tokenizer: the beginning of a character.
    held: Vec<u8>,
}

impl Decoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Decoder { tokenizer, skip_special, window: vec![], before: 0, out: String::new(), held: vec![] }
    }

    /// Text that is whole after one more token. Bytes that cannot be part of any character become `U+FFFD`.
    pub fn push(&mut self, token: u32) -> String {
        if self.tokenizer.is_bytes() {
            return self.push_byte(token);
        }
        if !self.tokenizer.knows(token) || (self.skip_special && self.tokenizer.is_special(token)) {
            return String::new();
        }
        self.window.push(token);
        let text = self.tokenizer.decode(&self.window, false);
        let whole = text.trim_end_matches('\u{fffd}').len();
        if whole == text.len() || self.window.len() - self.before >= WAIT_MAX {
            return self.turn(text);
        }
        let piece = text[..whole].strip_prefix(&self.out).unwrap_or_default().to_string();
        self.out.push_str(&piece);
        piece
    }

    /// What is held at the end, as it is.
    pub fn finish(mut self) -> String {
        if !self.held.is_empty() {
            return "\u{fffd}".into();
        }
        if self.window.len() == self.before {
            return String::new();
        }
        let text = self.tokenizer.decode(&self.window, false);
        self.turn(text)
    }

    /// Gives out all of the window's `text`; the tokens that came last are what the next window begins with. Byte tokens that
    /// turn out to be no text change what the window read as before: then the new ones are read alone.
    fn turn(&mut self, text: String) -> String {
        let piece = match text.strip_prefix(&self.out) {
            Some(piece) => piece.to_string(),
            None => self.tokenizer.decode(&self.window[self.before..], false),
        };
        self.window.drain(..self.before);
        self.before = self.window.len();
        self.out = self.tokenizer.decode(&self.window, false);
        piece
    }

    fn push_byte(&mut self, token: u32) -> String {
        match u8::try_from(token) {
            Ok(byte) => self.held.push(byte),
            Err(_) => self.held.extend_from_slice("\u{fffd}".as_bytes()),
        }
        let mut text = String::new();
        while !self.held.is_empty() {
            match std::str::from_utf8(&self.held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(std::str::from_utf8(&self.held[..valid]).expect("valid up to here"));
                    self.held.drain(..valid);
                    match error.error_len() {
                        None => break,
                        Some(bad) => {
                            text.push('\u{fffd}');
                            self.held.drain(..bad);
                        }
                    }
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::Special;

    fn open(name: &str) -> Tokenizer {
        Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden").join(name)).unwrap()
    }

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut decoder = tokenizer.decoder(false);
        let mut pieces: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
        pieces.push(decoder.finish());
        pieces
    }

    #[test]
    fn bytes_come_out_as_whole_characters() {
        let tokenizer = Tokenizer::bytes();
        let pieces = streamed(&tokenizer, &tokenizer.encode("aé☂", Special::Parse, false).unwrap());
        assert_eq!(pieces, ["a", "", "é", "", "", "☂", ""]);
        assert_eq!(
            streamed(&tokenizer, &[0xff, 0xc3, 0x61, 300, 0xe2]),
            ["\u{fffd}", "", "\u{fffd}a", "\u{fffd}", "", "\u{fffd}"]
        );
    }

    #[test]
    fn no_tokenizer_gives_out_half_a_character() {
        let text = "the 😀 日本 e\u{301} ünd 👩‍👩‍👧";
        for name in ["byte-level", "sentence-piece"] {
            let tokenizer = open(name);
            let ids = tokenizer.encode(text, Special::Parse, false).unwrap();
            let pieces = streamed(&tokenizer, &ids);
            assert_eq!(pieces.concat(), text, "{name}");
            assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{name}: {pieces:?}");
            assert!(pieces.iter().filter(|piece| piece.is_empty()).count() > 5, "{name}: {pieces:?}");
        }
    }

    #[test]
    fn the_space_before_a_word_is_dropped_at_the_start_only() {
        for name in ["sentence-piece", "unigram"] {
            let tokenizer = open(name);
            let ids = tokenizer.encode("and and and", Special::Parse, false).unwrap();
            let mut decoder = tokenizer.decoder(true);
            let text: String = ids.iter().map(|id| decoder.push(*id)).collect();
            assert_eq!(text, "and and and", "{name}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hold_up_what_follows() {
        for (name, byte) in [("byte-level", "À"), ("sentence-piece", "<0xFF>")] {
            let tokenizer = open(name);
            let bad =
                (0..tokenizer.vocabulary() as u32).find(|id| tokenizer.token_text(*id) == "\u{fffd}").expect(byte);
            let mut ids = vec![bad; 500];
            ids.extend(tokenizer.encode("and so on", Special::Parse, false).unwrap());
            let mut decoder = tokenizer.decoder(false);
            let pieces: Vec<String> = ids
                .iter()
                .map(|id| {
                    assert!(decoder.window.len() <= 2 * WAIT_MAX);
                    decoder.push(*id)
                })
                .collect();
            let text = pieces.concat();
            assert!(text.ends_with("and so on") && text.starts_with('\u{fffd}'), "{name}: {text}");
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_say_nothing() {
        let tokenizer = open("sentence-piece");
        let ids = tokenizer.encode("and and", Special::Parse, false).unwrap();
        let mixed: Vec<u32> = ids.iter().flat_map(|id| [*id, 1_000_000]).collect();
        assert_eq!(streamed(&tokenizer, &mixed).concat(), "and and");
    }
}
