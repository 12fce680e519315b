//! Text from the live swarm, as far as the asker is concerned: which token comes next, when a session ends, and what happens when
//! a replica of it is lost.
//!
//! In: prompts, logits. Out: commands to the peer, tokens to whoever asked. A lost session is replayed from its tokens so far.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{Instant, PeerId};
use tokio::sync::mpsc;

pub use crate::talk::{Sampler, Sampling};

/// A session that was lost this often is given up.
const REPLAYS_MAX: u32 = 8;
/// The first replay waits this long, the second twice as long, and so on: the route must learn who is left.
const REPLAY_AFTER: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
pub struct Ask {
    /// At least one token.
    pub prompt: Vec<u32>,
    pub tokens_max: u32,
    pub sampling: Sampling,
    /// Tokens after which nothing is drawn.
    pub stop: Vec<u32>,
}

/// What the asker hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Who computes from here on, one peer a stage.
    Route(Vec<PeerId>),
    Token(u32),
    /// A replica was lost: the text so far was read again by others, whose weights may differ a little.
    Replayed,
    Ended(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Stop,
    Length,
    /// The model reads no further.
    Context,
    /// A stage has no replica (SK702), or replicas were lost too often.
    NoReplica,
}

/// What the driver does next for a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// A new session of the peer's with all of these tokens.
    Start {
        session: u64,
        tokens: Vec<u32>,
    },
    /// One more token of a session.
    Go {
        session: u64,
        token: u32,
    },
    Close {
        session: u64,
    },
}

struct Session {
    tokens: Vec<u32>,
    left: u32,
    sampler: Sampler,
    stop: Vec<u32>,
    replays: u32,
    reply: mpsc::UnboundedSender<Said>,
}

/// All sessions that were asked for here.
pub struct Sessions {
    open: BTreeMap<u64, Session>,
    /// Lost ones, and when they are replayed.
    lost: Vec<(Instant, Session)>,
    next: u64,
    context: usize,
}

impl Sessions {
    /// `context`: tokens that the model can read.
    pub fn new(context: usize) -> Self {
        Sessions { open: BTreeMap::new(), lost: Vec::new(), next: 0, context }
    }

    pub fn len(&self) -> usize {
        self.open.len() + self.lost.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn ask(&mut self, ask: Ask, reply: mpsc::UnboundedSender<Said>) -> Option<Next> {
        let end = |why| {
            let _ = reply.send(Said::Ended(why));
            None
        };
        // One token must fit behind it.
        if ask.prompt.is_empty() || ask.prompt.len() >= self.context {
            return end(Why::Context);
        }
        if ask.tokens_max == 0 {
            return end(Why::Length);
        }
        let session = Session {
            tokens: ask.prompt,
            left: ask.tokens_max,
            sampler: Sampler::new(ask.sampling),
            stop: ask.stop,
            replays: 0,
            reply,
        };
        Some(self.start(session))
    }

    /// The peer has chosen who computes a session.
    pub fn on_route(&mut self, number: u64, route: Vec<PeerId>) {
        if let Some(session) = self.open.get(&number) {
            // Whoever asked may be gone: the next token shows.
            let _ = session.reply.send(Said::Route(route));
        }
    }

    fn start(&mut self, session: Session) -> Next {
        self.next += 1;
        let tokens = session.tokens.clone();
        self.open.insert(self.next, session);
        Next::Start { session: self.next, tokens }
    }

    /// Logits of the last position, or the news that the session is lost. What to do follows.
    pub fn on_logits(&mut self, now: Instant, number: u64, logits: Option<&[f32]>) -> Option<Next> {
        let Some(mut session) = self.open.remove(&number) else {
            return logits.map(|_| Next::Close { session: number });
        };
        let Some(logits) = logits else {
            self.lose(now, session);
            return None;
        };
        let token = session.sampler.draw(logits);
        session.left -= 1;
        session.tokens.push(token);
        let heard = session.reply.send(Said::Token(token)).is_ok();
        let ended = if session.stop.contains(&token) {
            Some(Why::Stop)
        } else if session.left == 0 {
            Some(Why::Length)
        } else if session.tokens.len() >= self.context {
            Some(Why::Context)
        } else {
            None
        };
        if let Some(why) = ended {
            let _ = session.reply.send(Said::Ended(why));
        }
        if ended.is_some() || !heard {
            return Some(Next::Close { session: number });
        }
        self.open.insert(number, session);
        Some(Next::Go { session: number, token })
    }

    fn lose(&mut self, now: Instant, mut session: Session) {
        session.replays += 1;
        if session.replays > REPLAYS_MAX {
            let _ = session.reply.send(Said::Ended(Why::NoReplica));
        } else {
            self.lost.push((now + REPLAY_AFTER * session.replays, session));
        }
    }

    /// Sessions whose replay is due.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Next> {
        let due = self.lost.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>();
        let heard = due.into_iter().filter(|(_, session)| session.reply.send(Said::Replayed).is_ok());
        heard.collect::<Vec<_>>().into_iter().map(|(_, session)| self.start(session)).collect()
    }
}

/// f32 logits as they travel; nothing when the length is not whole.
pub fn logits_of(bytes: &[u8]) -> Option<Vec<f32>> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return None;
    }
    Some(bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(prompt: &[u32], tokens_max: u32) -> Ask {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 1 };
        Ask { prompt: prompt.to_vec(), tokens_max, sampling, stop: vec![9] }
    }

    fn all(reply: &mut mpsc::UnboundedReceiver<Said>) -> Vec<Said> {
        std::iter::from_fn(|| reply.try_recv().ok()).collect()
    }

    /// Logits that want `token`.
    fn wants(token: usize) -> Vec<f32> {
        (0..10).map(|i| if i == token { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn a_session_goes_token_by_token_and_ends_at_its_length() {
        let mut sessions = Sessions::new(100);
        let (reply, mut said) = mpsc::unbounded_channel();
        let start = sessions.ask(ask(&[1, 2], 2), reply);
        assert_eq!(start, Some(Next::Start { session: 1, tokens: vec![1, 2] }));
        assert_eq!(sessions.on_logits(Instant(1), 1, Some(&wants(5))), Some(Next::Go { session: 1, token: 5 }));
        assert_eq!(sessions.on_logits(Instant(1), 1, Some(&wants(6))), Some(Next::Close { session: 1 }));
        assert_eq!(all(&mut said), [Said::Token(5), Said::Token(6), Said::Ended(Why::Length)]);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_lost_session_is_replayed_with_its_tokens_and_given_up_in_the_end() {
        let mut sessions = Sessions::new(100);
        let (reply, mut said) = mpsc::unbounded_channel();
        sessions.ask(ask(&[1], 5), reply);
        sessions.on_logits(Instant(1), 1, Some(&wants(5)));
        assert_eq!(sessions.on_logits(Instant(1), 1, None), None);
        assert_eq!(sessions.on_tick(Instant(1)), [], "not at once");
        let mut now = Instant(1) + REPLAY_AFTER;
        assert_eq!(sessions.on_tick(now), [Next::Start { session: 2, tokens: vec![1, 5] }]);
        for session in 2..=u64::from(REPLAYS_MAX) {
            sessions.on_logits(now, session, None);
            now += Duration::from_secs(10);
            assert_eq!(sessions.on_tick(now).len(), 1);
        }
        sessions.on_logits(now, u64::from(REPLAYS_MAX) + 1, None);
        assert!(sessions.is_empty());
        let said = all(&mut said);
        assert_eq!(said[..2], [Said::Token(5), Said::Replayed]);
        assert_eq!(said.last(), Some(&Said::Ended(Why::NoReplica)));
    }

    #[test]
    fn the_stop_token_and_the_context_end_it_too() {
        let mut sessions = Sessions::new(3);
        let (reply, mut said) = mpsc::unbounded_channel();
        sessions.ask(ask(&[1], 50), reply.clone());
        sessions.on_logits(Instant(1), 1, Some(&wants(9)));
        sessions.ask(ask(&[1, 1], 50), reply.clone());
        sessions.on_logits(Instant(1), 2, Some(&wants(5)));
        assert_eq!(sessions.ask(ask(&[1; 4], 50), reply), None);
        let ends: Vec<Said> = all(&mut said).into_iter().filter(|said| matches!(said, Said::Ended(_))).collect();
        assert_eq!(ends, [Said::Ended(Why::Stop), Said::Ended(Why::Context), Said::Ended(Why::Context)]);
    }

    #[test]
    fn an_asker_that_left_costs_nothing_more() {
        let mut sessions = Sessions::new(100);
        let (reply, said) = mpsc::unbounded_channel();
        sessions.ask(ask(&[1], 5), reply);
        drop(said);
        assert_eq!(sessions.on_logits(Instant(1), 1, Some(&wants(5))), Some(Next::Close { session: 1 }));
    }
}
