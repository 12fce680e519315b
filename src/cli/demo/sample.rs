//! Text from the swarm, before training and after it. In: how a document of the corpus begins. Out: a few sentences.

use std::time::Duration;

use futures::future::join_all;
use skein_protocol::Manifest;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    corpus::Corpus,
    node::{
        Order,
        generate::{Ask, Said, Sampling},
    },
    text::{Special, Tokenizer},
};

/// What has come by then is the sample.
const PATIENCE: Duration = Duration::from_secs(8);
/// Tokens: three sentences of a fable, more or less.
const LENGTH: usize = 192;
const SENTENCES: usize = 3;
/// Texts whose words are counted: one has some forty words, whose share of known ones is off by a tenth by chance alone.
const TEXTS: u64 = 4;
/// Words of the corpus are those of its beginning: all of the fables, enough of a library.
const WORDS_OF: usize = 2_000_000;
/// Colder repeats itself, hotter invents words that the model does not mean.
const TEMPERATURE: f32 = 0.5;
const TOP_P: f32 = 0.9;

/// How text is asked for: the same way before and after.
pub struct Voice<'a> {
    corpus: &'a Corpus,
    prompt: String,
    /// Tokens that training reads at a time. The model has not learned what comes after so many.
    sequence: usize,
    seed: u64,
}

pub struct Spoken {
    /// The first of the texts.
    pub text: String,
    /// Share of the words of all texts that are words of the corpus.
    pub known_words: Option<f64>,
}

impl Voice<'_> {
    pub fn of<'a>(corpus: &'a Corpus, manifest: &Manifest, seed: u64) -> Voice<'a> {
        Voice { corpus, prompt: opening(corpus), sequence: manifest.train.sequence as usize, seed }
    }

    /// The word that the text goes on from, as a person would type it.
    pub fn first_word(&self) -> &str {
        self.prompt.trim_start()
    }

    /// Texts from the live swarm, all at once; what there is of them after a few seconds.
    pub async fn speak(&self, orders: &mpsc::Sender<Order>) -> Spoken {
        let until = Instant::now() + PATIENCE;
        let texts = join_all((0..TEXTS).map(|number| self.text(orders, number, until))).await;
        let said: Vec<&str> = texts.iter().map(String::as_str).collect();
        let known_words = self.corpus.known_words(&said, WORDS_OF);
        Spoken { text: sentences(&format!("{}{}", self.first_word(), texts[0])), known_words }
    }

    /// How the text with `number` goes on from the prompt.
    async fn text(&self, orders: &mpsc::Sender<Order>, number: u64, until: Instant) -> String {
        let prompt = ids_of(&self.prompt);
        let mut tokens = prompt.clone();
        while tokens.len() < LENGTH {
            let before = tokens.len();
            // What training never read together is not read together here: it goes on from the last half.
            let read = before.min(self.sequence / 2).max(1);
            let tokens_max = (self.sequence - read).min(LENGTH - before).max(1) as u32;
            let seed = self.seed ^ number << 32 ^ before as u64;
            let sampling = Sampling { temperature: TEMPERATURE, top_p: TOP_P, seed };
            let ask = Ask::new(tokens[before - read..].to_vec(), tokens_max, sampling);
            let _ = timeout_at(until, piece(orders, ask, &mut tokens)).await;
            if tokens.len() == before {
                break;
            }
        }
        text_of(&tokens[prompt.len()..])
    }
}

async fn piece(orders: &mpsc::Sender<Order>, ask: Ask, tokens: &mut Vec<u32>) {
    let (reply, mut said) = mpsc::unbounded_channel();
    if orders.send(Order::Generate { ask, reply }).await.is_err() {
        return;
    }
    while let Some(word) = said.recv().await {
        match word {
            Said::Token(token, _) => tokens.push(token),
            Said::Route(_) | Said::Replayed => {}
            Said::Ended(_) => break,
        }
    }
}

/// What stands between two documents, and the first word of the first.
fn opening(corpus: &Corpus) -> String {
    let head = corpus.preview(64);
    let word = head.trim_start().split(char::is_whitespace).next().unwrap_or_default();
    format!("\n\n{word} ")
}

/// The demo's model reads bytes.
fn ids_of(text: &str) -> Vec<u32> {
    Tokenizer::bytes().encode(text, Special::AsText, false).unwrap_or_default()
}

fn text_of(tokens: &[u32]) -> String {
    let mut decoder = Tokenizer::bytes().decoder(true);
    let text: String = tokens.iter().map(|token| decoder.push(*token)).collect();
    text + &decoder.finish()
}

/// Up to the end of a sentence, if one ends in the second half; at most three.
fn sentences(text: &str) -> String {
    let ends: Vec<usize> = text
        .char_indices()
        .filter(|(i, sign)| matches!(sign, '.' | '!' | '?') && text[i + 1..].starts_with(char::is_whitespace))
        .map(|(i, _)| i + 1)
        .take(SENTENCES)
        .collect();
    match ends.last() {
        Some(end) if *end >= text.len() / 2 => text[..*end].to_string(),
        _ => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_begins_after_an_empty_line_with_its_first_word() {
        assert_eq!(opening(&Corpus::fables(1, 1_000)), "\n\nA ");
        assert_eq!(opening(&Corpus::from_text("  Once upon a time")), "\n\nOnce ");
    }

    #[test]
    fn a_sample_ends_with_a_sentence_where_it_can() {
        assert_eq!(
            sentences("A fox came by. It sat down. It ran away. It c"),
            "A fox came by. It sat down. It ran away."
        );
        assert_eq!(sentences("One. Two. Three. Four. Five"), "One. Two. Three.");
        assert_eq!(sentences("A. then nothing ends for long"), "A. then nothing ends for long");
        assert_eq!(sentences("xq\u{fffd}.z"), "xq\u{fffd}.z");
        assert_eq!(text_of(&ids_of("aé")), "aé");
    }
}
