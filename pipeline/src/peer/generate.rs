//! Text from the live swarm. One replica a stage is pinned for a session, so that cache and weights agree.
//!
//! In: frames, answers of the worker, losses. Out: logits to the asker, or the news that the session is lost: then whoever asked
//! replays the text so far in a new session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skein_protocol::{
    Blob, Instant, Lane, Manifest, PeerId, Stage,
    event::Severity,
    wire::{
        self,
        generate::{Frame, Infer, Session},
    },
};

#[cfg(doc)]
use crate::peer::io::Command;
use crate::{
    flow::{
        Desk,
        schedule::{Priority, Purpose},
        stage::release_done,
    },
    job::{Done, Job, Piece},
    model::cost,
    peer::io::Output,
};

/// Sessions that one peer serves at a time, over all its stages.
const SERVED_MAX: usize = 64;
/// A session without a piece for this long is closed, and one whose piece is on its way for this long is lost.
const IDLE: Duration = Duration::from_secs(120);

/// A session that was not gone on with for so long may lose its cache to others.
const LEFT_ALONE: Duration = Duration::from_secs(30);
/// A new session is taken where so many tokens more than it has still fit.
const ROOM_TOKENS: u64 = 256;

/// Asker, number, stage.
type Key = (PeerId, u64, Stage);

/// A session of mine.
#[derive(Debug)]
struct Asked {
    route: Vec<PeerId>,
    position: u32,
    /// Tokens of the piece that is on its way, and since when.
    piece: Option<(u32, Instant)>,
}

/// A session of somebody's at a stage of mine.
#[derive(Debug)]
struct Served {
    local: u64,
    infer: Infer,
    /// Who sends its pieces: an asker, or a replica of the stage before, whoever it says it asks for.
    from: PeerId,
    /// Input of the piece that the worker has.
    input: Option<Blob>,
    heard: Instant,
    /// The most that its cache ever held, with the piece that the worker has.
    tokens: u64,
}

#[derive(Debug)]
pub struct Generate {
    manifest: Arc<Manifest>,
    asked: BTreeMap<u64, Asked>,
    served: BTreeMap<Key, Served>,
    next_local: u64,
}

fn send(desk: &mut Desk<'_>, to: PeerId, frame: Frame, body: Option<Blob>) {
    desk.out.push(Output::Send { to, lane: Lane::Generation, frame: wire::Frame::Generate(frame), body });
}

/// What this peer has for sessions of others.
pub struct Means<'a> {
    /// Whether I serve a stage, and will go on to.
    pub serves: &'a dyn Fn(Stage) -> bool,
    /// Bytes that caches may take together.
    pub caches_max: u64,
}

impl Generate {
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Generate { manifest, asked: BTreeMap::new(), served: BTreeMap::new(), next_local: 0 }
    }

    /// Bytes of all caches here.
    pub fn caches(&self) -> u64 {
        self.served.iter().map(|((.., stage), served)| self.bytes(*stage, served.tokens)).fold(0, u64::saturating_add)
    }

    fn bytes(&self, stage: Stage, tokens: u64) -> u64 {
        cost::cache_token_bytes(&self.manifest, stage).saturating_mul(tokens)
    }

    /// Makes room for `more` bytes of the session `key`, or takes nothing from anybody. What was not gone on with for long goes first. A
    /// session that goes on may also take the place of the newest of whoever's caches are the largest: what began before it then comes to
    /// its end. A new one waits elsewhere.
    fn make_room(&mut self, desk: &mut Desk<'_>, key: Key, from: PeerId, more: u64, most: u64) -> bool {
        let is_new = !self.served.contains_key(&key);
        let mut total = self.caches().saturating_add(more);
        let mut largest: BTreeMap<(PeerId, PeerId), u64> = [((key.0, from), more)].into();
        let mut idle: Vec<(Key, &Served)> = Vec::new();
        for (other, served) in &self.served {
            *largest.entry((other.0, served.from)).or_default() += self.bytes(other.2, served.tokens);
            if served.input.is_none() && *other != key {
                idle.push((*other, served));
            }
        }
        let mut gone = Vec::new();
        idle.sort_by_key(|(_, served)| served.heard);
        let (long, mut short): (Vec<_>, Vec<_>) =
            idle.into_iter().partition(|(_, served)| desk.now.since(served.heard) > LEFT_ALONE);
        for (other, served) in long {
            if total <= most {
                break;
            }
            total -= self.bytes(other.2, served.tokens).min(total);
            gone.push(other);
        }
        // The newest last.
        short.sort_by_key(|(_, served)| served.local);
        while total > most && !is_new {
            let most_of_all = largest.iter().max_by_key(|(who, bytes)| (**bytes, **who == (key.0, from)));
            let Some(who) = most_of_all.map(|(who, _)| *who) else { break };
            let newest = short.iter().rposition(|(other, served)| (other.0, served.from) == who);
            let mine = self.served.get(&key).map(|served| served.local).filter(|_| who == (key.0, from));
            match newest.filter(|at| mine.is_none_or(|mine| short[*at].1.local > mine)) {
                Some(at) => {
                    let (other, served) = short.remove(at);
                    let bytes = self.bytes(other.2, served.tokens);
                    largest.entry((other.0, served.from)).and_modify(|all| *all -= bytes.min(*all));
                    total -= bytes.min(total);
                    gone.push(other);
                }
                // It is itself the newest of those that take most, or theirs are all being computed.
                None if mine.is_some() => break,
                None => _ = largest.remove(&who),
            }
        }
        if total > most {
            return false;
        }
        for other in gone {
            if let Some(served) = self.served.get(&other) {
                send(desk, other.0, Frame::Lost(served.infer.session), None);
            }
            self.drop_served(desk, |key, _| *key == other);
        }
        true
    }

    /// Starts a session with its prompt. `last` is the last stage of the run. `without`, `apart`: see [`Command::Generate`].
    pub fn start(
        &mut self,
        desk: &mut Desk<'_>,
        number: u64,
        tokens: Blob,
        last: Stage,
        without: &[PeerId],
        apart: bool,
    ) {
        let choose = |stage| {
            let other = desk.route.choose(stage, None, without);
            other.or_else(|| desk.route.choose(stage, None, &[]))
        };
        let route: Option<Vec<PeerId>> = (0..=last).map(choose).collect();
        let route = route.filter(|route| !apart || route != without);
        match route {
            None => {
                desk.release(tokens);
                desk.out.push(Output::Generated { session: number, logits: None });
            }
            Some(route) => {
                self.asked.insert(number, Asked { route, position: 0, piece: None });
                self.next(desk, number, tokens);
            }
        }
    }

    /// Sends the next piece of a session.
    pub fn next(&mut self, desk: &mut Desk<'_>, number: u64, tokens: Blob) {
        let me = desk.me;
        let Some(asked) = self.asked.get_mut(&number) else {
            desk.release(tokens);
            return desk.out.push(Output::Generated { session: number, logits: None });
        };
        asked.piece = Some(((tokens.len / 4) as u32, desk.now));
        let session = Session { asker: me, number, position: asked.position };
        let infer = Infer { session, stage: 0, route: asked.route.clone() };
        send(desk, asked.route[0], Frame::Infer(infer), Some(tokens));
        desk.release(tokens);
    }

    pub fn close(&mut self, desk: &mut Desk<'_>, number: u64) {
        let Some(asked) = self.asked.remove(&number) else { return };
        let session = Session { asker: desk.me, number, position: asked.position };
        for peer in asked.route {
            send(desk, peer, Frame::Close(session), None);
        }
    }

    /// A session of mine cannot go on: its replicas are told, and whoever asked for it.
    fn lose(&mut self, desk: &mut Desk<'_>, number: u64) {
        if self.asked.contains_key(&number) {
            self.close(desk, number);
            desk.out.push(Output::Generated { session: number, logits: None });
        }
    }

    pub fn on_frame(&mut self, desk: &mut Desk<'_>, from: PeerId, frame: Frame, body: Option<Blob>, means: &Means<'_>) {
        match (frame, body) {
            (Frame::Infer(infer), Some(body)) => self.on_infer(desk, from, infer, body, means),
            (Frame::Logits(session), Some(body)) => self.on_logits(desk, from, session, body),
            (Frame::Lost(session), body) => {
                desk.release_all(body);
                let asked = self.asked.get(&session.number).is_some_and(|asked| asked.route.contains(&from));
                if session.asker == desk.me && asked {
                    self.lose(desk, session.number);
                }
            }
            (Frame::Close(session), body) => {
                desk.release_all(body);
                self.drop_served(desk, |(asker, number, _), _| *asker == from && *number == session.number);
            }
            (Frame::Infer(_) | Frame::Logits(_), None) => {}
        }
    }

    fn on_infer(&mut self, desk: &mut Desk<'_>, from: PeerId, infer: Infer, body: Blob, means: &Means<'_>) {
        // A piece comes from its asker, then from the replica of the stage before.
        let sender = match infer.stage.checked_sub(1) {
            None => Some(&infer.session.asker),
            Some(before) => infer.route.get(usize::from(before)),
        };
        if sender != Some(&from) {
            desk.release(body);
            let why = "a piece of somebody else's session".to_string();
            return desk.out.push(Output::Blame { peer: from, severity: Severity::Odd, why });
        }
        let key = (infer.session.asker, infer.session.number, infer.stage);
        let mine = infer.route.get(usize::from(infer.stage)) == Some(&desk.me) && (means.serves)(infer.stage);
        let new = !self.served.contains_key(&key);
        // A cache begins at position 0: a later piece without one was lost with a restart.
        let broken = new && (infer.session.position != 0 || self.served.len() >= SERVED_MAX);
        let busy = self.served.get(&key).is_some_and(|served| served.input.is_some());
        let width = if infer.stage == 0 { 1 } else { u64::from(self.manifest.model.config.hidden) };
        let tokens = u64::from(infer.session.position).saturating_add(body.len / (4 * width));
        let before = self.served.get(&key).map_or(0, |served| served.tokens);
        let left = u64::from(self.manifest.model.config.context).saturating_sub(tokens);
        let room = if new { ROOM_TOKENS.min(left) } else { 0 };
        let more = self.bytes(infer.stage, tokens.saturating_sub(before).saturating_add(room));
        let takes = mine && !broken && !busy;
        if !takes || !self.make_room(desk, key, from, more, means.caches_max) {
            desk.release(body);
            return send(desk, infer.session.asker, Frame::Lost(infer.session), None);
        }
        self.next_local += 1;
        let (next_local, now) = (self.next_local, desk.now);
        let served = self.served.entry(key).or_insert_with(|| Served {
            local: next_local,
            infer: infer.clone(),
            from,
            input: None,
            heard: now,
            tokens,
        });
        (served.heard, served.tokens) = (now, served.tokens.max(tokens));
        served.input = Some(body);
        let (stage, position) = (infer.stage, infer.session.position);
        served.infer = infer;
        let session = served.local;
        let job = Job::Infer {
            stage,
            pieces: vec![Piece { session, position, tokens: (tokens - u64::from(position)) as u32, input: body }],
        };
        desk.jobs.push(Priority::Infer, job, Purpose::Infer { stage, session });
    }

    /// The worker has done what it had of a stage: one job at a time.
    pub fn on_done(&mut self, desk: &mut Desk<'_>, stage: Stage, done: Done) {
        let outputs = match done {
            Done::Inferred { outputs } => outputs,
            done => {
                release_done(desk, done);
                let waits = |session| desk.jobs.has(|purpose| *purpose == Purpose::Infer { stage, session });
                let had = self.served.iter().filter(|((.., at), served)| *at == stage && served.input.is_some());
                let had = had.map(|(_, served)| served.local).filter(|local| !waits(*local));
                had.map(|local| (local, Err(String::new()))).collect()
            }
        };
        for (local, output) in outputs {
            self.on_piece(desk, stage, local, output);
        }
    }

    fn on_piece(&mut self, desk: &mut Desk<'_>, stage: Stage, local: u64, output: Result<Blob, String>) {
        let Some(served) = self.served.values_mut().find(|served| served.local == local) else {
            return desk.release_all(output);
        };
        desk.release_all(served.input.take());
        let infer = served.infer.clone();
        let Ok(output) = output else {
            return send(desk, infer.session.asker, Frame::Lost(infer.session), None);
        };
        match infer.route.get(usize::from(stage) + 1) {
            Some(next) => {
                let onward = Infer { stage: stage + 1, ..infer.clone() };
                send(desk, *next, Frame::Infer(onward), Some(output));
            }
            None => send(desk, infer.session.asker, Frame::Logits(infer.session), Some(output)),
        }
        desk.release(output);
    }

    fn on_logits(&mut self, desk: &mut Desk<'_>, from: PeerId, session: Session, body: Blob) {
        let mine = session.asker == desk.me;
        let asked = self
            .asked
            .get_mut(&session.number)
            .filter(|asked| mine && asked.position == session.position && asked.route.last() == Some(&from));
        let Some(asked) = asked else { return desk.release(body) };
        let Some((piece, _)) = asked.piece.take() else { return desk.release(body) };
        asked.position += piece;
        desk.out.push(Output::Generated { session: session.number, logits: Some(body) });
    }

    pub fn on_lost(&mut self, desk: &mut Desk<'_>, peer: PeerId) {
        let mine: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| asked.route.contains(&peer)).map(|(n, _)| *n).collect();
        for number in mine {
            self.lose(desk, number);
        }
        self.drop_served(desk, |(asker, ..), _| *asker == peer);
    }

    /// This peer leaves: whoever has a session here hears it at once, and goes on elsewhere.
    pub fn refuse_all(&mut self, desk: &mut Desk<'_>) {
        for (asker, session) in self.served.iter().map(|((asker, ..), served)| (*asker, served.infer.session)) {
            send(desk, asker, Frame::Lost(session), None);
        }
        self.drop_served(desk, |_, _| true);
    }

    /// A fence: what was on its way to me was not heard.
    pub fn on_fenced(&mut self, desk: &mut Desk<'_>) {
        for session in std::mem::take(&mut self.asked).into_keys() {
            desk.out.push(Output::Generated { session, logits: None });
        }
    }

    /// A piece, or an answer, did not leave for `peer`: the lane is full.
    pub fn on_congested(&mut self, desk: &mut Desk<'_>, peer: PeerId) {
        let unsent = |asked: &Asked| asked.piece.is_some() && asked.route.first() == Some(&peer);
        let mine: Vec<u64> = self.asked.iter().filter(|(_, asked)| unsent(asked)).map(|(n, _)| *n).collect();
        for number in mine {
            self.lose(desk, number);
        }
        let next = |stage: Stage, served: &Served| served.infer.route.get(usize::from(stage) + 1).copied();
        for ((asker, _, stage), served) in &self.served {
            if served.input.is_none() && next(*stage, served) == Some(peer) && *asker != peer {
                send(desk, *asker, Frame::Lost(served.infer.session), None);
            }
        }
        self.drop_served(desk, |(asker, _, stage), served| {
            served.input.is_none() && next(*stage, served).unwrap_or(*asker) == peer
        });
    }

    pub fn on_tick(&mut self, desk: &mut Desk<'_>) {
        let now = desk.now;
        let late = |asked: &Asked| asked.piece.is_some_and(|(_, at)| now.since(at) > IDLE);
        let mine: Vec<u64> = self.asked.iter().filter(|(_, asked)| late(asked)).map(|(n, _)| *n).collect();
        for number in mine {
            self.lose(desk, number);
        }
        self.drop_served(desk, |_, served| now.since(served.heard) > IDLE);
    }

    fn drop_served(&mut self, desk: &mut Desk<'_>, unwanted: impl Fn(&(PeerId, u64, Stage), &Served) -> bool) {
        let keys: Vec<_> = self.served.iter().filter(|(k, s)| unwanted(k, s)).map(|(k, _)| *k).collect();
        for key in keys {
            let Some(served) = self.served.remove(&key) else { continue };
            let (stage, session) = (key.2, served.local);
            desk.jobs.cancel(|purpose| *purpose == Purpose::Infer { stage, session });
            desk.release_all(served.input);
            desk.jobs.push(Priority::Weights, Job::InferClose { stage, session }, Purpose::Forget);
        }
    }

    /// Who computes a session of mine, one peer a stage.
    pub fn route(&self, number: u64) -> Option<&[PeerId]> {
        self.asked.get(&number).map(|asked| asked.route.as_slice())
    }

    pub fn partners(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.asked.values().flat_map(|asked| asked.route.iter().copied())
    }
}
