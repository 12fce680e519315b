//! Text from the live swarm, as far as the asker is concerned: which token comes next, when a session ends, and what happens when
//! a replica of it is lost.
//!
//! In: prompts, logits. Out: commands to the peer, tokens to whoever asked. A lost session is replayed from its tokens so far. One
//! whose next token is late is replayed elsewhere beside it, before anybody knows whether its replicas are dead or only slow: what
//! comes first counts.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{Instant, PeerId};
use tokio::sync::mpsc;

use crate::talk::sampler;
pub use crate::talk::{Sampler, Sampling, Taste};

/// A session that was lost this often is given up.
const REPLAYS_MAX: u32 = 8;
/// The first replay waits this long, the second twice as long, and so on: the route must learn who is left.
const REPLAY_AFTER: Duration = Duration::from_millis(300);

/// A token is late after this, or after so many times as long as tokens took so far.
const LATE_MIN: Duration = Duration::from_millis(400);
const LATE: u32 = 6;
/// Each time that the late one came first after all, it gets twice as long, so often.
const DOUBLED_MAX: u32 = 6;
/// After so many tokens in time it gets half as long again.
const IN_TIME: u32 = 8;
/// So many are started beside late ones at a time: one slow peer has many late ones at once.
const RIVALS_MAX: usize = 4;

#[derive(Clone, Debug)]
pub struct Ask {
    /// At least one token.
    pub prompt: Vec<u32>,
    pub tokens_max: u32,
    pub sampling: Sampling,
    pub taste: Taste,
    /// Tokens after which nothing is drawn.
    pub stop: Vec<u32>,
    /// Only the first so many are drawn: a vocabulary may be padded.
    pub vocabulary: usize,
    /// With each token its probability, and so many of the likeliest instead.
    pub logprobs: Option<u8>,
}

impl Ask {
    /// Everything as it usually is.
    pub fn new(prompt: Vec<u32>, tokens_max: u32, sampling: Sampling) -> Self {
        let (taste, stop, vocabulary) = (Taste::default(), Vec::new(), usize::MAX);
        Ask { prompt, tokens_max, sampling, taste, stop, vocabulary, logprobs: None }
    }
}

/// The natural logarithms of probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Odds {
    pub this: f32,
    /// The likeliest, the first first.
    pub top: Vec<(u32, f32)>,
}

/// What the asker hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Who computes from here on, one peer a stage.
    Route(Vec<PeerId>),
    /// The odds where they were asked for.
    Token(u32, Option<Odds>),
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
    /// A new session of the peer's with all of these tokens, by others than these where there are others.
    Start {
        session: u64,
        tokens: Vec<u32>,
        without: Vec<PeerId>,
        /// Not by exactly these.
        apart: bool,
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
    vocabulary: usize,
    logprobs: Option<u8>,
    replays: u32,
    reply: mpsc::UnboundedSender<Said>,
    /// Who computes it.
    route: Vec<PeerId>,
    /// Since when its next token is awaited.
    since: Instant,
    /// That is the first of this session of the peer's, for which all tokens are read.
    begins: bool,
    /// How long tokens take that are not the first.
    usual: Option<Duration>,
    /// How often a late token came first after all.
    doubled: u32,
    /// Tokens that came in time since.
    in_time: u32,
    rival: Rival,
}

/// The session that was started beside a late one.
#[derive(Debug, Default)]
enum Rival {
    #[default]
    None,
    /// By these.
    Under { number: u64, route: Vec<PeerId> },
    /// It was lost: this token is awaited as it is.
    Lost,
}

impl Session {
    /// When another is started beside it.
    fn late(&self) -> Option<Instant> {
        let usual = self.usual.filter(|_| !self.begins && matches!(self.rival, Rival::None))?;
        Some(self.since + (usual * LATE).max(LATE_MIN) * (1 << self.doubled.min(DOUBLED_MAX)))
    }
}

/// All sessions that were asked for here.
pub struct Sessions {
    open: BTreeMap<u64, Session>,
    /// Beside which session each was started.
    rivals: BTreeMap<u64, u64>,
    /// Lost ones, and when they are replayed.
    lost: Vec<(Instant, Session)>,
    next: u64,
    context: usize,
}

impl Sessions {
    /// `context`: tokens that the model can read.
    pub fn new(context: usize) -> Self {
        Sessions { open: BTreeMap::new(), rivals: BTreeMap::new(), lost: Vec::new(), next: 0, context }
    }

    pub fn len(&self) -> usize {
        self.open.len() + self.lost.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn ask(&mut self, now: Instant, ask: Ask, reply: mpsc::UnboundedSender<Said>) -> Option<Next> {
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
            sampler: Sampler::with(ask.sampling, ask.taste),
            stop: ask.stop,
            vocabulary: ask.vocabulary,
            logprobs: ask.logprobs,
            replays: 0,
            reply,
            route: Vec::new(),
            since: now,
            begins: true,
            usual: None,
            doubled: 0,
            in_time: 0,
            rival: Rival::None,
        };
        Some(self.start(now, session))
    }

    /// The peer has chosen who computes a session.
    pub fn on_route(&mut self, number: u64, route: Vec<PeerId>) {
        if let Some(session) = self.open.get_mut(&number) {
            session.route = route.clone();
            // Whoever asked may be gone: the next token shows.
            let _ = session.reply.send(Said::Route(route));
        } else if let Some(session) = self.rivals.get(&number).and_then(|beside| self.open.get_mut(beside)) {
            session.rival = Rival::Under { number, route };
        }
    }

    fn start(&mut self, now: Instant, mut session: Session) -> Next {
        self.next += 1;
        (session.since, session.begins, session.rival) = (now, true, Rival::None);
        // Not by those who lost it, as far as there are others.
        let (tokens, without) = (session.tokens.clone(), std::mem::take(&mut session.route));
        self.open.insert(self.next, session);
        Next::Start { session: self.next, tokens, without, apart: false }
    }

    /// What was started beside a late session is the session from now on.
    fn take_over(&mut self, rival: u64, mut session: Session) -> Session {
        self.rivals.remove(&rival);
        if let Rival::Under { route, .. } = std::mem::take(&mut session.rival) {
            session.route = route.clone();
            let _ = session.reply.send(Said::Replayed);
            let _ = session.reply.send(Said::Route(route));
        }
        session.begins = true;
        session
    }

    /// Logits of the last position, or the news that the session is lost. What to do follows.
    pub fn on_logits(&mut self, now: Instant, number: u64, logits: Option<&[f32]>) -> Vec<Next> {
        let mut next = Vec::new();
        let mut session = match (self.rivals.get(&number).copied(), logits) {
            (Some(late), Some(_)) => {
                let Some(session) = self.open.remove(&late) else { return vec![Next::Close { session: number }] };
                next.push(Next::Close { session: late });
                self.take_over(number, session)
            }
            (Some(late), None) => {
                self.rivals.remove(&number);
                // There is nobody else, or nobody with room: it gets more time.
                if let Some(session) = self.open.get_mut(&late) {
                    session.rival = Rival::Lost;
                    session.doubled += 1;
                }
                return next;
            }
            (None, _) => match self.open.remove(&number) {
                Some(session) => session,
                None => return logits.map(|_| Next::Close { session: number }).into_iter().collect(),
            },
        };
        let Some(logits) = logits else {
            self.lose(now, session);
            return next;
        };
        if let Rival::Under { number: rival, .. } = std::mem::take(&mut session.rival) {
            self.rivals.remove(&rival);
            next.push(Next::Close { session: rival });
            session.doubled += 1;
            session.in_time = 0;
        }
        if !session.begins {
            let took = now.since(session.since);
            session.usual = Some(session.usual.map_or(took, |usual| (usual * 7 + took) / 8));
            session.in_time += 1;
            if session.in_time.is_multiple_of(IN_TIME) {
                session.doubled = session.doubled.saturating_sub(1);
            }
        }
        session.replays = 0;
        (session.since, session.begins) = (now, false);
        let logits = &logits[..logits.len().min(session.vocabulary)];
        let token = session.sampler.draw(logits);
        let odds = session.logprobs.map(|top| {
            let (this, top) = sampler::logprobs(logits, token, top.into());
            Odds { this, top }
        });
        session.left -= 1;
        session.tokens.push(token);
        let heard = session.reply.send(Said::Token(token, odds)).is_ok();
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
            next.push(Next::Close { session: number });
            return next;
        }
        self.open.insert(number, session);
        next.push(Next::Go { session: number, token });
        next
    }

    fn lose(&mut self, now: Instant, mut session: Session) {
        session.replays += 1;
        if let Rival::Under { number, .. } = session.rival {
            let session = self.take_over(number, session);
            self.open.insert(number, session);
            return;
        }
        if session.replays > REPLAYS_MAX {
            let _ = session.reply.send(Said::Ended(Why::NoReplica));
        } else {
            self.lost.push((now + REPLAY_AFTER * session.replays, session));
        }
    }

    /// When there is something to do though nothing is heard.
    pub fn deadline(&self) -> Option<Instant> {
        let replays = self.lost.iter().map(|(at, _)| *at);
        let late = self.open.values().filter(|_| self.rivals.len() < RIVALS_MAX).filter_map(Session::late);
        late.chain(replays).min()
    }

    /// Sessions whose replay is due, and what is started beside late ones.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Next> {
        let due = self.lost.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>();
        let heard = due.into_iter().filter(|(_, session)| session.reply.send(Said::Replayed).is_ok());
        let replayed = heard.collect::<Vec<_>>();
        let mut next: Vec<Next> = replayed.into_iter().map(|(_, session)| self.start(now, session)).collect();
        for (late, session) in &mut self.open {
            if self.rivals.len() < RIVALS_MAX && session.late().is_some_and(|at| at <= now) {
                self.next += 1;
                self.rivals.insert(self.next, *late);
                session.rival = Rival::Under { number: self.next, route: Vec::new() };
                let (tokens, without) = (session.tokens.clone(), session.route.clone());
                next.push(Next::Start { session: self.next, tokens, without, apart: true });
            }
        }
        next
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
        Ask { stop: vec![9], ..Ask::new(prompt.to_vec(), tokens_max, sampling) }
    }

    fn all(reply: &mut mpsc::UnboundedReceiver<Said>) -> Vec<Said> {
        std::iter::from_fn(|| reply.try_recv().ok()).collect()
    }

    /// Logits that want `token`.
    fn wants(token: usize) -> Vec<f32> {
        (0..10).map(|i| if i == token { 1.0 } else { 0.0 }).collect()
    }

    fn start_of(session: u64, tokens: &[u32], without: &[u8]) -> Next {
        Next::Start { session, tokens: tokens.to_vec(), without: peers(without), apart: !without.is_empty() }
    }

    fn peers(of: &[u8]) -> Vec<PeerId> {
        of.iter().map(|of| PeerId([*of; 32])).collect()
    }

    fn at(ms: u64) -> Instant {
        Instant(1) + Duration::from_millis(ms)
    }

    /// A session by 1 and 2 that has said two tokens, 20 ms each, and is late with its third.
    fn late() -> (Sessions, mpsc::UnboundedReceiver<Said>) {
        let mut sessions = Sessions::new(100);
        let (reply, said) = mpsc::unbounded_channel();
        sessions.ask(at(0), ask(&[1], 5), reply);
        sessions.on_route(1, peers(&[1, 2]));
        sessions.on_logits(at(100), 1, Some(&wants(5)));
        assert_eq!(sessions.deadline(), None, "nobody knows yet what is late");
        sessions.on_logits(at(120), 1, Some(&wants(6)));
        assert_eq!(sessions.deadline(), Some(at(120) + LATE_MIN));
        assert_eq!(sessions.on_tick(at(500)), []);
        assert_eq!(sessions.on_tick(at(520)), [start_of(2, &[1, 5, 6], &[1, 2])]);
        assert_eq!(sessions.on_tick(at(2000)), [], "one at a time");
        (sessions, said)
    }

    #[test]
    fn a_late_token_may_come_from_others_first() {
        for is_lost_before in [false, true] {
            let (mut sessions, mut said) = late();
            sessions.on_route(2, peers(&[1, 3]));
            if is_lost_before {
                assert_eq!(sessions.on_logits(at(530), 1, None), []);
                assert_eq!(sessions.on_tick(at(5000)), [], "it goes on already");
            }
            let next = sessions.on_logits(at(540), 2, Some(&wants(7)));
            let go = Next::Go { session: 2, token: 7 };
            assert_eq!(next, if is_lost_before { vec![go] } else { vec![Next::Close { session: 1 }, go] });
            let told = [Said::Replayed, Said::Route(peers(&[1, 3])), Said::Token(7, None)];
            assert_eq!(all(&mut said)[3..], told);
            // What the late one says now is nobody's, and the new one may be late in its turn.
            assert_eq!(sessions.on_logits(at(545), 1, Some(&wants(8))), [Next::Close { session: 1 }]);
            assert_eq!(sessions.on_tick(at(541) + LATE_MIN), [start_of(3, &[1, 5, 6, 7], &[1, 3])]);
            assert_eq!((sessions.len(), sessions.rivals.len()), (1, 1));
        }
    }

    #[test]
    fn a_late_token_that_comes_after_all_ends_what_was_started_beside_it() {
        let (mut sessions, mut said) = late();
        sessions.on_route(2, peers(&[3, 4]));
        let next = sessions.on_logits(at(540), 1, Some(&wants(7)));
        assert_eq!(next, [Next::Close { session: 2 }, Next::Go { session: 1, token: 7 }]);
        assert_eq!(sessions.on_logits(at(541), 2, Some(&wants(8))), [Next::Close { session: 2 }]);
        assert!(!all(&mut said).contains(&Said::Replayed));
        // It gets more time from now on, and took longer than before.
        let usual = (Duration::from_millis(20) * 7 + Duration::from_millis(420)) / 8;
        assert_eq!(sessions.deadline(), Some(at(540) + (usual * LATE).max(LATE_MIN) * 2));
    }

    #[test]
    fn nothing_is_started_beside_a_late_token_where_there_is_nobody_else() {
        let (mut sessions, _said) = late();
        assert_eq!(sessions.on_logits(at(521), 2, None), []);
        assert_eq!((sessions.deadline(), sessions.rivals.len()), (None, 0));
        assert_eq!(sessions.on_logits(at(900), 1, Some(&wants(7))), [Next::Go { session: 1, token: 7 }]);
        let usual = (Duration::from_millis(20) * 7 + Duration::from_millis(780)) / 8;
        assert_eq!(sessions.deadline(), Some(at(900) + usual * LATE * 2), "it gets more time");
    }

    #[test]
    fn one_slow_peer_does_not_have_everything_begun_again_at_once() {
        let mut sessions = Sessions::new(100);
        let mut readers = Vec::new();
        for number in 1..=10 {
            let (reply, said) = mpsc::unbounded_channel();
            readers.push(said);
            sessions.ask(at(0), ask(&[1], 90), reply);
            sessions.on_route(number, peers(&[1, 2]));
            sessions.on_logits(at(10), number, Some(&wants(5)));
            sessions.on_logits(at(20), number, Some(&wants(5)));
        }
        assert_eq!(sessions.on_tick(at(1000)).len(), RIVALS_MAX);
        assert_eq!((sessions.on_tick(at(1001)), sessions.deadline()), (vec![], None));
        // Another may follow where one is over; and who is in time is soon trusted less again.
        sessions.on_logits(at(1002), 11, Some(&wants(5)));
        assert_eq!(sessions.on_tick(at(1003)).len(), 1);
        sessions.on_logits(at(1004), 2, Some(&wants(5)));
        assert_eq!(sessions.open[&2].doubled, 1);
        for i in 0..u64::from(IN_TIME) {
            sessions.on_logits(at(1005 + i), 2, Some(&wants(5)));
        }
        assert_eq!(sessions.open[&2].doubled, 0);
    }

    #[test]
    fn a_session_goes_token_by_token_and_ends_at_its_length() {
        let mut sessions = Sessions::new(100);
        let (reply, mut said) = mpsc::unbounded_channel();
        let start = sessions.ask(Instant(1), ask(&[1, 2], 2), reply);
        assert_eq!(start, Some(start_of(1, &[1, 2], &[])));
        assert_eq!(sessions.on_logits(Instant(1), 1, Some(&wants(5))), [Next::Go { session: 1, token: 5 }]);
        assert_eq!(sessions.on_logits(Instant(1), 1, Some(&wants(6))), [Next::Close { session: 1 }]);
        assert_eq!(all(&mut said), [Said::Token(5, None), Said::Token(6, None), Said::Ended(Why::Length)]);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_lost_session_is_replayed_with_its_tokens_and_given_up_in_the_end() {
        let mut sessions = Sessions::new(100);
        let (reply, mut said) = mpsc::unbounded_channel();
        sessions.ask(Instant(1), ask(&[1], 5), reply);
        sessions.on_logits(Instant(1), 1, Some(&wants(5)));
        assert_eq!(sessions.on_logits(Instant(1), 1, None), []);
        assert_eq!(sessions.on_tick(Instant(1)), [], "not at once");
        let mut now = Instant(1) + REPLAY_AFTER;
        assert_eq!(sessions.on_tick(now), [start_of(2, &[1, 5], &[])]);
        for session in 2..=u64::from(REPLAYS_MAX) {
            sessions.on_logits(now, session, None);
            now += Duration::from_secs(10);
            assert_eq!(sessions.on_tick(now).len(), 1);
        }
        sessions.on_logits(now, u64::from(REPLAYS_MAX) + 1, None);
        assert!(sessions.is_empty());
        let said = all(&mut said);
        assert_eq!(said[..2], [Said::Token(5, None), Said::Replayed]);
        assert_eq!(said.last(), Some(&Said::Ended(Why::NoReplica)));
    }

    #[test]
    fn odds_come_with_tokens_and_taste_decides() {
        let mut sessions = Sessions::new(100);
        let (reply, mut said) = mpsc::unbounded_channel();
        let taste = Taste { bias: [(3, 100.0), (8, 200.0)].into(), ..Taste::default() };
        let asked = Ask { taste, vocabulary: 8, logprobs: Some(2), ..ask(&[1], 1) };
        sessions.ask(Instant(1), asked, reply);
        sessions.on_logits(Instant(1), 1, Some(&wants(5)));
        let heard = all(&mut said);
        let Said::Token(3, Some(odds)) = &heard[0] else { panic!("{heard:?}") };
        // By the model itself: of eight tokens one is e times as likely as the others, which are alike.
        let rest = -(7.0 + 1f32.exp()).ln();
        assert_eq!((odds.top[0].0, odds.top[1].0), (5, 0));
        assert!((odds.this - rest).abs() < 1e-6 && (odds.top[0].1 - rest - 1.0).abs() < 1e-6, "{odds:?}");
    }

    #[test]
    fn the_stop_token_and_the_context_end_it_too() {
        let mut sessions = Sessions::new(3);
        let (reply, mut said) = mpsc::unbounded_channel();
        sessions.ask(Instant(1), ask(&[1], 50), reply.clone());
        sessions.on_logits(Instant(1), 1, Some(&wants(9)));
        sessions.ask(Instant(1), ask(&[1, 1], 50), reply.clone());
        sessions.on_logits(Instant(1), 2, Some(&wants(5)));
        assert_eq!(sessions.ask(Instant(1), ask(&[1; 4], 50), reply), None);
        let ends: Vec<Said> = all(&mut said).into_iter().filter(|said| matches!(said, Said::Ended(_))).collect();
        assert_eq!(ends, [Said::Ended(Why::Stop), Said::Ended(Why::Context), Said::Ended(Why::Context)]);
    }

    #[test]
    fn an_asker_that_left_costs_nothing_more() {
        let mut sessions = Sessions::new(100);
        let (reply, said) = mpsc::unbounded_channel();
        sessions.ask(Instant(1), ask(&[1], 5), reply);
        drop(said);
        assert_eq!(sessions.on_logits(Instant(1), 1, Some(&wants(5))), [Next::Close { session: 1 }]);
    }
}
