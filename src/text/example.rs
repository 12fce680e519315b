//! Something to learn from: token ids, and for each whether it is learned or only read. In: a text, or a prompt and its
//! completion. Out: [`Example`]; conversations are made into one by [`super::chat`].

use std::{ops::Range, slice};

use super::{
    files::TextError,
    tokenizer::{Special, Tokenizer},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    pub tokens: Vec<u32>,
    /// For each token whether it is learned: whether the model is to say it where it stands.
    pub learned: Vec<bool>,
}

/// A stretch of an example, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    pub learned: bool,
}

impl Example {
    /// A text that is learned from its beginning to its end. `ends`: it is followed by the token that ends a text, where the
    /// model has one; a part of a longer text is not.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn text(tokenizer: &Tokenizer, text: &str, ends: bool) -> Result<Example, TextError> {
        let tokens = tokenizer.encode(text, Special::Parse, false)?;
        let learned = vec![true; tokens.len()];
        let mut example = Example { tokens, learned };
        example.open(tokenizer);
        if ends {
            example.close(tokenizer);
        }
        Ok(example)
    }

    /// A prompt that is read and a completion that is learned, with the end of the text.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn completion(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<Example, TextError> {
        let text = format!("{prompt}{completion}");
        let span = prompt.len()..text.len();
        let mut example = Example::marked(tokenizer, &text, slice::from_ref(&span))?;
        example.open(tokenizer);
        example.close(tokenizer);
        Ok(example)
    }

    /// Puts before it what the model wants a text to start with, unless the text writes that out itself.
    fn open(&mut self, tokenizer: &Tokenizer) {
        let opening = tokenizer.opening();
        if !self.tokens.starts_with(opening) {
            self.tokens.splice(..0, opening.iter().copied());
            self.learned.splice(..0, opening.iter().map(|_| false));
        }
    }

    /// Puts after it the token that ends a text, unless the text writes that out itself. It is learned.
    fn close(&mut self, tokenizer: &Tokenizer) {
        let end = tokenizer.ends().first().copied().filter(|end| self.tokens.last() != Some(end));
        self.tokens.extend(end);
        self.learned.resize(self.tokens.len(), true);
    }

    /// The tokens of a whole text, learned where they hold a byte of `spans`: ascending, and apart from each other. The text is
    /// tokenized as one, as it will be when the model reads it. A token over the border of a span says something of it and is
    /// learned, unless it is a special token that only swallows the space after it.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn marked(tokenizer: &Tokenizer, text: &str, spans: &[Range<usize>]) -> Result<Example, TextError> {
        let mut example = Example::default();
        let mut at = 0;
        for (token, of) in tokenizer.encode_spans(text, Special::Parse)? {
            while spans.get(at).is_some_and(|span| span.end <= of.start) {
                at += 1;
            }
            let learned = spans.get(at).is_some_and(|span| {
                let inside = span.start <= of.start;
                inside || (of.end > span.start && !tokenizer.is_special(token))
            });
            example.tokens.push(token);
            example.learned.push(learned);
        }
        Ok(example)
    }

    /// Tokens that are learned.
    pub fn learned_count(&self) -> usize {
        self.learned.iter().filter(|learned| **learned).count()
    }

    /// The text as stretches of what is learned and what is only read, special tokens and all, up to `bytes_max` bytes.
    pub fn pieces(&self, tokenizer: &Tokenizer, bytes_max: usize) -> Vec<Piece> {
        let mut decoder = tokenizer.decoder(false);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut bytes = 0;
        for (token, learned) in self.tokens.iter().zip(&self.learned) {
            let text = decoder.push(*token);
            bytes += text.len();
            match pieces.last_mut() {
                Some(last) if last.learned == *learned => last.text.push_str(&text),
                _ => pieces.push(Piece { text, learned: *learned }),
            }
            if bytes >= bytes_max {
                return pieces;
            }
        }
        if let Some(last) = pieces.last_mut() {
            last.text.push_str(&decoder.finish());
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::Files;

    #[test]
    fn a_completion_is_learned_and_its_prompt_is_read() {
        let tokenizer = Tokenizer::bytes();
        let example = Example::completion(&tokenizer, "é:", " ok").unwrap();
        assert_eq!(example.tokens, "é: ok".bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(example.learned, [false, false, false, true, true, true]);
        let pieces = [Piece { text: "é:".into(), learned: false }, Piece { text: " ok".into(), learned: true }];
        assert_eq!(example.pieces(&tokenizer, 100), pieces);
        assert_eq!(example.learned_count(), 3);
        assert_eq!(example.pieces(&tokenizer, 1)[0].text, "é", "cut between characters");
    }

    #[test]
    fn a_text_that_writes_out_its_begin_and_end_has_them_once() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden/sentence-piece");
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let plain = Example::text(&tokenizer, "the stone", true).unwrap();
        assert_eq!((plain.tokens[0], plain.tokens.last()), (1, Some(&2)));
        assert_eq!(Example::text(&tokenizer, "<s>the stone</s>", true).unwrap().tokens, plain.tokens);
        assert_eq!(
            Example::text(&tokenizer, "the stone", false).unwrap().tokens,
            plain.tokens[..plain.tokens.len() - 1]
        );
        let completion = Example::completion(&tokenizer, "the", " stone").unwrap();
        assert_eq!(completion.tokens, plain.tokens);
        assert!(!completion.learned[0] && completion.learned.ends_with(&[true]));
    }

    #[test]
    fn a_special_token_that_swallows_a_space_is_not_learned_for_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden/sentence-piece");
        let text = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
        let token = r#""content":"<|im_end|>","single_word":false,"lstrip":false,"rstrip":"#;
        assert!(text.contains(&format!("{token}false")));
        let text = text.replace(&format!("{token}false"), &format!("{token}true"));
        let files = Files::new("a peer", [("tokenizer.json".to_string(), text.into_bytes())]).unwrap();
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let text = "the<|im_end|> stone";
        let border = text.find(' ').unwrap();
        let spans = tokenizer.encode_spans(text, Special::Parse).unwrap();
        let at = spans.iter().position(|(id, _)| tokenizer.is_special(*id)).unwrap();
        assert_eq!(spans[at].1.end, border + 1, "it has the space");
        let example = Example::marked(&tokenizer, text, slice::from_ref(&(border..text.len()))).unwrap();
        assert!(
            example.learned[..=at].iter().all(|learned| !learned)
                && example.learned[at + 1..].iter().all(|learned| *learned)
        );
        assert!(example.learned.len() > at + 1);
    }
}
