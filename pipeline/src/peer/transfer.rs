//! Weights on their way: fetched by a joiner, served to one, or held for a stage that might lose its last replica.
//!
//! In: state frames, losses, encoded states of the worker. Out: chunks, and facts for the peer ([`Fact`]). A state travels in
//! chunks of 4 MiB; four are on their way at a time. It knows no stage and no weights, only bytes with a root.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{
    Blob, Instant, Lane, PeerId, Stage, Version,
    hash::Digest,
    wire::{
        self,
        limits::{CHUNK, STATE_MAX},
        state::{Chunk, Frame, Is, Purpose, Want},
    },
};

use crate::{flow::Desk, peer::io::Output};

/// Chunks asked for ahead.
const AHEAD: u32 = 4;
/// A transfer without a chunk for this long is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// States that one peer serves at a time.
const SERVED_MAX: usize = 8;
/// Snapshots held for others.
const HELD_MAX: usize = 64;

/// What became of a transfer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// All parts are here, unchecked: the worker compares the root. They are the peer's to release.
    Fetched {
        ticket: u64,
        from: PeerId,
        version: Version,
        root: Digest,
        parts: Vec<Blob>,
        len: u64,
    },
    Failed {
        ticket: u64,
        from: PeerId,
        why: String,
    },
    /// Somebody wants the state of a stage that I serve: encode it, then call `serve`.
    Wanted {
        from: PeerId,
        request: u64,
        stage: Stage,
        purpose: Purpose,
    },
    /// Somebody has all of the state that I served.
    Copied {
        to: PeerId,
        version: Version,
    },
    /// Somebody asks me to hold a snapshot; answered by `keep` when there is room.
    KeepAsked {
        from: PeerId,
        is: Is,
    },
}

#[derive(Debug)]
struct Fetch {
    ticket: u64,
    from: PeerId,
    stage: Stage,
    wanted: Option<Version>,
    is: Option<Is>,
    parts: BTreeMap<u32, Blob>,
    asked: u32,
    heard: Instant,
}

#[derive(Debug)]
struct Serve {
    version: Version,
    parts: Parts,
    heard: Instant,
}

/// Bytes of a state: one blob that is sliced, or the chunks as they came (not mine to release).
#[derive(Debug)]
enum Parts {
    Whole(Blob),
    Held(Vec<Blob>),
}

/// A snapshot of a stage that this peer holds for the swarm.
#[derive(Clone, Debug)]
pub struct Held {
    pub version: Version,
    pub root: Digest,
    pub len: u64,
    parts: Vec<Blob>,
}

#[derive(Debug, Default)]
pub struct Transfer {
    next: u64,
    fetches: BTreeMap<u64, Fetch>,
    serves: BTreeMap<(PeerId, u64), Serve>,
    held: BTreeMap<Stage, Held>,
    /// Handles made by slicing live in a range of their own.
    next_slice: u64,
}

/// Ids of handles that the peer makes itself; the driver's own stay below.
pub const SLICE_BASE: u64 = 1 << 63;

fn send(desk: &mut Desk<'_>, to: PeerId, lane: Lane, frame: Frame, body: Option<Blob>) {
    desk.out.push(Output::Send { to, lane, frame: wire::Frame::State(frame), body });
}

fn chunks(len: u64) -> u32 {
    u32::try_from(len.div_ceil(CHUNK)).unwrap_or(u32::MAX)
}

impl Transfer {
    // ---- fetching --------------------------------------------------------------------------------------------------------

    /// Asks `from` for the state of a stage. `ticket` comes back in the fact.
    pub fn fetch(
        &mut self,
        desk: &mut Desk<'_>,
        ticket: u64,
        from: PeerId,
        stage: Stage,
        purpose: Purpose,
        version: Option<Version>,
    ) {
        self.next += 1;
        let request = self.next;
        let fetch =
            Fetch { ticket, from, stage, wanted: version, is: None, parts: BTreeMap::new(), asked: 0, heard: desk.now };
        self.fetches.insert(request, fetch);
        send(desk, from, Lane::Control, Frame::Want(Want { request, stage, purpose, version }), None);
    }

    pub fn is_fetching(&self, ticket: u64) -> bool {
        self.fetches.values().any(|fetch| fetch.ticket == ticket)
    }

    pub fn partners(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.fetches.values().map(|fetch| fetch.from).chain(self.serves.keys().map(|(peer, _)| *peer))
    }

    fn on_is(&mut self, desk: &mut Desk<'_>, from: PeerId, is: Is) -> Option<Fact> {
        let fetch = self.fetches.get_mut(&is.request).filter(|fetch| fetch.from == from && fetch.is.is_none())?;
        let fits = is.len > 0 && is.len <= STATE_MAX && is.version.stage == fetch.stage;
        if !fits || fetch.wanted.is_some_and(|wanted| wanted != is.version) {
            return self.fail(desk, is.request, "it offered another state than was asked for");
        }
        fetch.heard = desk.now;
        let request = is.request;
        fetch.is = Some(is);
        self.ask_ahead(desk, request);
        None
    }

    fn ask_ahead(&mut self, desk: &mut Desk<'_>, request: u64) {
        let Some(fetch) = self.fetches.get_mut(&request) else { return };
        let Some(is) = &fetch.is else { return };
        let count = chunks(is.len);
        while fetch.asked < count && fetch.asked < fetch.parts.len() as u32 + AHEAD {
            let chunk = Chunk { request, index: fetch.asked };
            fetch.asked += 1;
            send(desk, fetch.from, Lane::Control, Frame::WantChunk(chunk), None);
        }
    }

    fn on_chunk(&mut self, desk: &mut Desk<'_>, from: PeerId, chunk: Chunk, body: Blob) -> Option<Fact> {
        let Some(fetch) = self.fetches.get_mut(&chunk.request).filter(|fetch| fetch.from == from) else {
            desk.release(body);
            return None;
        };
        let len = fetch.is.as_ref().map_or(0, |is| is.len);
        let expected = len.saturating_sub(u64::from(chunk.index) * CHUNK).min(CHUNK);
        if chunk.index >= fetch.asked || body.len != expected || fetch.parts.contains_key(&chunk.index) {
            desk.release(body);
            return self.fail(desk, chunk.request, "a chunk of a wrong length");
        }
        fetch.parts.insert(chunk.index, body);
        fetch.heard = desk.now;
        if fetch.parts.len() as u32 == chunks(len) {
            let fetch = self.fetches.remove(&chunk.request)?;
            let is = fetch.is?;
            send(desk, from, Lane::Control, Frame::Thanks(chunk.request), None);
            let parts = fetch.parts.into_values().collect();
            let (ticket, from) = (fetch.ticket, fetch.from);
            return Some(Fact::Fetched { ticket, from, version: is.version, root: is.root, parts, len: is.len });
        }
        self.ask_ahead(desk, chunk.request);
        None
    }

    fn fail(&mut self, desk: &mut Desk<'_>, request: u64, why: &str) -> Option<Fact> {
        let fetch = self.fetches.remove(&request)?;
        desk.release_all(fetch.parts.into_values());
        Some(Fact::Failed { ticket: fetch.ticket, from: fetch.from, why: why.into() })
    }

    // ---- serving ---------------------------------------------------------------------------------------------------------

    fn on_want(&mut self, desk: &mut Desk<'_>, from: PeerId, want: Want) -> Option<Fact> {
        let full = self.serves.len() >= SERVED_MAX && !self.serves.contains_key(&(from, want.request));
        if full {
            send(desk, from, Lane::Control, Frame::None(want.request), None);
            return None;
        }
        match want.version {
            None => {
                let Want { request, stage, purpose, .. } = want;
                Some(Fact::Wanted { from, request, stage, purpose })
            }
            Some(version) => {
                if let Some(serve) = self.serves.get_mut(&(from, want.request)) {
                    // I offered it for keeping under this request.
                    serve.heard = desk.now;
                    return None;
                }
                match self.held.get(&want.stage).filter(|held| held.version == version) {
                    None => send(desk, from, Lane::Control, Frame::None(want.request), None),
                    Some(held) => {
                        let is = Is { request: want.request, version, len: held.len, root: held.root };
                        let parts = Parts::Held(held.parts.clone());
                        self.serves.insert((from, want.request), Serve { version, parts, heard: desk.now });
                        send(desk, from, Lane::Control, Frame::Is(is), None);
                    }
                }
                None
            }
        }
    }

    /// The encoded state that `Fact::Wanted` asked for; the blob becomes the transfer's.
    pub fn serve(&mut self, desk: &mut Desk<'_>, to: PeerId, request: u64, version: Version, blob: Blob, root: Digest) {
        let serve = Serve { version, parts: Parts::Whole(blob), heard: desk.now };
        if let Some(old) = self.serves.insert((to, request), serve) {
            old.parts.release(desk);
        }
        send(desk, to, Lane::Control, Frame::Is(Is { request, version, len: blob.len, root }), None);
    }

    pub fn refuse(&mut self, desk: &mut Desk<'_>, to: PeerId, request: u64) {
        send(desk, to, Lane::Control, Frame::None(request), None);
    }

    fn on_want_chunk(&mut self, desk: &mut Desk<'_>, from: PeerId, chunk: Chunk) {
        let Some(serve) = self.serves.get_mut(&(from, chunk.request)) else {
            return send(desk, from, Lane::Control, Frame::None(chunk.request), None);
        };
        serve.heard = desk.now;
        match &serve.parts {
            Parts::Whole(blob) => {
                let offset = u64::from(chunk.index) * CHUNK;
                if offset >= blob.len {
                    return;
                }
                self.next_slice += 1;
                let new = Blob { id: SLICE_BASE + self.next_slice, len: (blob.len - offset).min(CHUNK) };
                desk.out.push(Output::Slice { blob: *blob, offset, new });
                send(desk, from, Lane::Bulk, Frame::Chunk(chunk), Some(new));
                desk.release(new);
            }
            Parts::Held(parts) => {
                if let Some(part) = parts.get(chunk.index as usize) {
                    send(desk, from, Lane::Bulk, Frame::Chunk(chunk), Some(*part));
                }
            }
        }
    }

    // ---- holding ---------------------------------------------------------------------------------------------------------

    /// Asks `to` to hold a snapshot; the blob becomes the transfer's.
    pub fn offer(&mut self, desk: &mut Desk<'_>, to: PeerId, version: Version, blob: Blob, root: Digest) {
        self.next += 1;
        // Requests that I invent for others to ask with have the high bit: they never meet theirs.
        let request = self.next | 1 << 63;
        self.serves.insert((to, request), Serve { version, parts: Parts::Whole(blob), heard: desk.now });
        send(desk, to, Lane::Control, Frame::Keep(Is { request, version, len: blob.len, root }), None);
    }

    /// Takes what `from` offered.
    pub fn keep(&mut self, desk: &mut Desk<'_>, ticket: u64, from: PeerId, is: Is) {
        if is.len == 0 || is.len > STATE_MAX || self.held.len() >= HELD_MAX {
            return self.refuse(desk, from, is.request);
        }
        let request = is.request;
        let fetch = Fetch {
            ticket,
            from,
            stage: is.version.stage,
            wanted: Some(is.version),
            is: Some(is),
            parts: BTreeMap::new(),
            asked: 0,
            heard: desk.now,
        };
        self.fetches.insert(request, fetch);
        self.ask_ahead(desk, request);
    }

    /// Holds a fetched snapshot, in the place of an older one of the same stage.
    pub fn hold(&mut self, desk: &mut Desk<'_>, version: Version, root: Digest, len: u64, parts: Vec<Blob>) {
        if let Some(old) = self.held.insert(version.stage, Held { version, root, len, parts }) {
            self.serves.retain(|_, serve| serve.version != old.version);
            desk.release_all(old.parts);
        }
    }

    /// Holds a snapshot whose bytes lie in one blob, which becomes the transfer's.
    pub fn hold_whole(&mut self, desk: &mut Desk<'_>, version: Version, root: Digest, blob: Blob) {
        let mut parts = Vec::new();
        for index in 0..chunks(blob.len) {
            let offset = u64::from(index) * CHUNK;
            self.next_slice += 1;
            let new = Blob { id: SLICE_BASE + self.next_slice, len: (blob.len - offset).min(CHUNK) };
            desk.out.push(Output::Slice { blob, offset, new });
            parts.push(new);
        }
        desk.release(blob);
        self.hold(desk, version, root, blob.len, parts);
    }

    pub fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    pub fn held_of(&self, stage: Stage) -> Option<&Held> {
        self.held.get(&stage)
    }

    /// Handles of a held snapshot, still the transfer's.
    pub fn held_parts(&self, stage: Stage) -> Vec<Blob> {
        self.held.get(&stage).map(|held| held.parts.clone()).unwrap_or_default()
    }

    // ---- frames and ends -------------------------------------------------------------------------------------------------

    pub fn on_frame(&mut self, desk: &mut Desk<'_>, from: PeerId, frame: Frame, body: Option<Blob>) -> Option<Fact> {
        match (frame, body) {
            (Frame::Chunk(chunk), Some(body)) => self.on_chunk(desk, from, chunk, body),
            (frame, body) => {
                desk.release_all(body);
                self.on_small(desk, from, frame)
            }
        }
    }

    fn on_small(&mut self, desk: &mut Desk<'_>, from: PeerId, frame: Frame) -> Option<Fact> {
        match frame {
            Frame::Want(want) => self.on_want(desk, from, want),
            Frame::Is(is) => self.on_is(desk, from, is),
            Frame::WantChunk(chunk) => {
                self.on_want_chunk(desk, from, chunk);
                None
            }
            Frame::Chunk(_) => None,
            Frame::None(request) => {
                self.drop_serve(desk, (from, request));
                let mine = self.fetches.get(&request).is_some_and(|fetch| fetch.from == from);
                if mine { self.fail(desk, request, "it has none") } else { None }
            }
            Frame::Thanks(request) => {
                let version = self.serves.get(&(from, request)).map(|serve| serve.version);
                self.drop_serve(desk, (from, request));
                version.map(|version| Fact::Copied { to: from, version })
            }
            Frame::Keep(is) => Some(Fact::KeepAsked { from, is }),
        }
    }

    fn drop_serve(&mut self, desk: &mut Desk<'_>, key: (PeerId, u64)) {
        if let Some(serve) = self.serves.remove(&key) {
            serve.parts.release(desk);
        }
    }

    pub fn on_lost(&mut self, desk: &mut Desk<'_>, peer: PeerId) -> Vec<Fact> {
        let serves: Vec<_> = self.serves.keys().filter(|(to, _)| *to == peer).copied().collect();
        for key in serves {
            self.drop_serve(desk, key);
        }
        let fetches: Vec<u64> = self.fetches.iter().filter(|(_, f)| f.from == peer).map(|(r, _)| *r).collect();
        fetches.into_iter().filter_map(|request| self.fail(desk, request, "the connection was lost")).collect()
    }

    pub fn on_tick(&mut self, desk: &mut Desk<'_>) -> Vec<Fact> {
        let now = desk.now;
        let silent = |heard: Instant| now.since(heard) > SILENCE;
        let serves: Vec<_> = self.serves.iter().filter(|(_, s)| silent(s.heard)).map(|(key, _)| *key).collect();
        for key in serves {
            self.drop_serve(desk, key);
        }
        let fetches: Vec<u64> = self.fetches.iter().filter(|(_, f)| silent(f.heard)).map(|(r, _)| *r).collect();
        fetches.into_iter().filter_map(|request| self.fail(desk, request, "no chunk for 10 s")).collect()
    }
}

impl Parts {
    fn release(self, desk: &mut Desk<'_>) {
        if let Parts::Whole(blob) = self {
            desk.release(blob);
        }
    }
}
