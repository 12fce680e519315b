//! One answer under way in a [`Batch`](super::batch::Batch). In: logits of its last token. Out: what its reader hears.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use skein_pipeline::exact::EngineError;
use tokio::sync::mpsc;

use super::{
    ask::{Ask, End, Likely, Piece, Said, Token, Trouble, Why},
    sampler::{self, Sampler},
    stops::Stops,
};
use crate::text::{Decoder, Tokenizer};

pub(super) struct Session {
    pub owner: u64,
    /// The prompt, and what was drawn.
    tokens: Vec<u32>,
    /// How many of them the engine has read.
    read: usize,
    prompt: usize,
    left: u32,
    /// Tokens that it can have in the end.
    context: usize,
    tokenizer: Tokenizer,
    sampler: Sampler,
    decoder: Decoder,
    stops: Stops,
    logprobs: Option<u8>,
    /// Tokens whose text is held back.
    held: Vec<Token>,
    reply: mpsc::UnboundedSender<Said>,
    _place: Place,
}

/// One of the places that a backend has for answers, taken until this is dropped.
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// Nothing when `most` are taken.
    pub fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Place> {
        let more = |now: usize| (now < most).then_some(now + 1);
        taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Place(taken.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Session {
    /// `tokens`: the prompt, at least one and fewer than `context`.
    pub fn new(
        ask: Ask,
        tokens: Vec<u32>,
        tokenizer: Tokenizer,
        context: usize,
        reply: mpsc::UnboundedSender<Said>,
        place: Place,
    ) -> Self {
        Session {
            owner: ask.owner,
            read: 0,
            prompt: tokens.len(),
            left: ask.tokens_max.unwrap_or(u32::MAX),
            tokens,
            context,
            sampler: Sampler::with(ask.sampling, ask.taste),
            decoder: tokenizer.decoder(true),
            tokenizer,
            stops: Stops::new(ask.stops),
            logprobs: ask.logprobs,
            held: Vec::new(),
            reply,
            _place: place,
        }
    }

    /// Nobody reads the answer.
    pub fn is_left(&self) -> bool {
        self.reply.is_closed()
    }

    /// Tokens that it may have in the end.
    pub fn tokens_max(&self) -> usize {
        (self.tokens.len().saturating_add(self.left as usize)).min(self.context)
    }

    /// What the engine has not read, where it lies; at most `most` of it where that is more than one.
    pub fn unread(&self, most: usize) -> Range<usize> {
        let unread = self.tokens.len() - self.read;
        self.read..self.read + if unread == 1 { 1 } else { unread.min(most) }
    }

    pub fn tokens(&self, range: Range<usize>) -> &[u32] {
        &self.tokens[range]
    }

    /// The engine has read up to `end`. Whether the answer is over.
    pub fn on_read(&mut self, end: usize, logits: Result<Vec<f32>, EngineError>) -> bool {
        let logits = match logits {
            Ok(logits) => logits,
            Err(error) => return self.fail(Trouble::Engine(error.to_string())),
        };
        self.read = end;
        if self.read < self.tokens.len() {
            return false;
        }
        if self.left == 0 {
            return self.end(Why::Length);
        }
        // A vocabulary may be padded: rows of the head that stand for nothing are not drawn.
        let logits = &logits[..logits.len().min(self.tokenizer.vocabulary())];
        let token = self.sampler.draw(logits);
        self.tokens.push(token);
        self.left -= 1;
        if self.tokenizer.ends().contains(&token) {
            return self.end(Why::Stop);
        }
        if let Some(top) = self.logprobs {
            let token = self.token(logits, token, top.into());
            self.held.push(token);
        }
        let (text, stopped) = self.stops.push(&self.decoder.push(token));
        self.say(text);
        if stopped {
            return self.close(Why::Stop);
        }
        match (self.left == 0, self.tokens.len() >= self.context) {
            (true, _) => self.end(Why::Length),
            (_, true) => self.end(Why::Context),
            _ => false,
        }
    }

    fn token(&self, logits: &[f32], token: u32, top: usize) -> Token {
        let (this, top) = sampler::logprobs(logits, token, top);
        let likely = |id: u32, logprob: f32| Likely { id, text: self.tokenizer.token_text(id), logprob };
        Token { this: likely(token, this), top: top.into_iter().map(|(id, logprob)| likely(id, logprob)).collect() }
    }

    fn say(&mut self, text: String) {
        if !text.is_empty() {
            let tokens = std::mem::take(&mut self.held);
            let _ = self.reply.send(Said::Piece(Piece { text, tokens }));
        }
    }

    /// What was held back, and the end.
    fn end(&mut self, why: Why) -> bool {
        let rest = std::mem::replace(&mut self.decoder, self.tokenizer.decoder(true)).finish();
        let (mut text, stopped) = self.stops.push(&rest);
        if !stopped {
            text += &self.stops.finish();
        }
        self.say(text);
        self.close(if stopped { Why::Stop } else { why })
    }

    fn close(&mut self, why: Why) -> bool {
        if !self.held.is_empty() {
            let tokens = std::mem::take(&mut self.held);
            let _ = self.reply.send(Said::Piece(Piece { text: String::new(), tokens }));
        }
        let tokens = (self.tokens.len() - self.prompt) as u64;
        let _ = self.reply.send(Said::End(End { why, prompt_tokens: self.prompt as u64, tokens }));
        true
    }

    pub fn fail(&mut self, trouble: Trouble) -> bool {
        let _ = self.reply.send(Said::Failed(trouble));
        true
    }
}
