//! Answers computed together. In: sessions as they come. Out: one more token of each at every step.
//!
//! A new session joins between two steps. Prompts are read in pieces, of all sessions together at most [`PREFILL_MAX`] tokens a
//! step, so that whoever is being answered goes on. What a session holds is dropped at the step after its reader left.

use std::{collections::BTreeMap, ops::Range, sync::mpsc};

use skein_pipeline::exact::{Engine, Piece, StageInput};

use super::session::Session;

/// Tokens of prompts that are read in one step.
const PREFILL_MAX: usize = 256;

/// What answers may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Answered together.
    pub sessions_max: usize,
    /// That wait beyond these.
    pub waiting_max: usize,
    /// Keys and values of all sessions. One session alone may have more.
    pub cache_bytes_max: u64,
}

impl Limits {
    pub fn places(&self) -> usize {
        self.sessions_max.saturating_add(self.waiting_max)
    }
}

pub(super) struct Batch {
    engine: Box<dyn Engine>,
    limits: Limits,
    /// Keys and values of one position.
    bytes_of_token: u64,
    /// In the order in which they came.
    waiting: Vec<Session>,
    /// With the key of the engine's session.
    active: Vec<(u64, Session)>,
    next: u64,
}

impl Batch {
    pub fn new(engine: Box<dyn Engine>, limits: Limits) -> Self {
        let config = &engine.model().config;
        let values = u64::from(config.layers) * 2 * u64::from(config.kv_heads) * config.head() as u64;
        Batch { bytes_of_token: 4 * values, engine, limits, waiting: Vec::new(), active: Vec::new(), next: 0 }
    }

    /// Until nobody can ask any more and everything is answered.
    pub fn run(mut self, asks: &mpsc::Receiver<Session>) {
        loop {
            if self.is_idle() {
                match asks.recv() {
                    Ok(session) => self.push(session),
                    Err(mpsc::RecvError) => return,
                }
            }
            self.waiting.extend(asks.try_iter());
            self.turn();
        }
    }

    pub fn push(&mut self, session: Session) {
        self.waiting.push(session);
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// One step of every session that is answered.
    pub fn turn(&mut self) {
        self.sweep();
        self.admit();
        self.step();
    }

    /// Drops what nobody waits for.
    fn sweep(&mut self) {
        self.waiting.retain(|session| !session.is_left());
        for (key, _) in self.active.extract_if(.., |(_, session)| session.is_left()) {
            self.engine.drop_session(key);
        }
    }

    /// Lets in whoever there is room for. First comes the owner of the fewest answers under way, then who came first; who is
    /// first and does not fit waits for room, and all others with it.
    fn admit(&mut self) {
        while self.active.len() < self.limits.sessions_max {
            let mut answered: BTreeMap<u64, usize> = BTreeMap::new();
            self.active.iter().for_each(|(_, session)| *answered.entry(session.owner).or_default() += 1);
            let of = |session: &Session| answered.get(&session.owner).copied().unwrap_or(0);
            let first = self.waiting.iter().enumerate().min_by_key(|(at, session)| (of(session), *at));
            let Some((at, session)) = first else { return };
            let used: u64 = self.active.iter().map(|(_, session)| self.bytes(session)).sum();
            if !self.active.is_empty() && used + self.bytes(session) > self.limits.cache_bytes_max {
                return;
            }
            let session = self.waiting.remove(at);
            self.next += 1;
            self.active.push((self.next, session));
        }
    }

    fn bytes(&self, session: &Session) -> u64 {
        session.tokens_max() as u64 * self.bytes_of_token
    }

    fn step(&mut self) {
        let (mut room, mut plan): (usize, Vec<(usize, Range<usize>)>) = (PREFILL_MAX, Vec::new());
        for (at, (_, session)) in self.active.iter().enumerate() {
            let range = session.unread(room);
            room -= if range.len() > 1 { range.len() } else { 0 };
            if !range.is_empty() {
                plan.push((at, range));
            }
        }
        let pieces: Vec<Piece<'_>> = plan
            .iter()
            .map(|(at, range)| {
                let (session, state) = &self.active[*at];
                let input = StageInput::Tokens(state.tokens(range.clone()));
                Piece { session: *session, position: range.start, input }
            })
            .collect();
        let answers = self.engine.infer_all(&pieces);
        let mut over = Vec::new();
        for ((at, range), logits) in plan.into_iter().zip(answers) {
            if self.active[at].1.on_read(range.end, logits) {
                over.push(at);
            }
        }
        for at in over.into_iter().rev() {
            let (key, _) = self.active.remove(at);
            self.engine.drop_session(key);
        }
    }
}
