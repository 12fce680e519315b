//! Weights on their way: fetched by a joiner, served to one, or held for a stage that might lose its last replica; and what the
//! manifest names by its hash, from the shelf of one peer to that of another.
//!
//! In: state frames, losses, encoded states of the worker. Out: chunks, and facts for the peer ([`Fact`]). A state travels in
//! chunks of 4 MiB; four are on their way at a time. It knows no stage and no weights, only bytes with a root.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use skein_protocol::{
    Blob, Instant, Lane, PeerId, Stage, Version,
    hash::Digest,
    wire::{
        self,
        limits::{CHUNK, RATE_SHARED, STATE_MAX},
        state::{Chunk, Frame, Is, Purpose, Want, WantBlob},
    },
};

use crate::{flow::Desk, peer::io::Output};

/// Chunks asked for ahead.
const AHEAD: u32 = 4;
/// A transfer without a chunk for this long, beside the time that one takes on a slow link that is shared, is given up. A chunk
/// shares its uplink with training, and comes behind the one before it; who is gone is noticed long before. Whoever gave up sooner
/// would begin again and again, behind what is still on its way, and never get a state over a slow link.
const SILENCE: Duration = Duration::from_secs(30);
/// A donor that has not begun by then is given up. At a stage that holds everybody up, encoding waits behind much other work.
const BEGINNING: Duration = Duration::from_secs(300);
/// States that one peer serves at a time.
const SERVED_MAX: usize = 8;
/// Of them at most so many go to one peer: another finds room.
const SERVED_EACH: usize = 6;
/// Of all at most so many are blobs, which take long and can be had elsewhere, and so many for one peer.
const BLOBS_MAX: usize = 5;
const BLOBS_EACH: usize = 2;
/// A version that claims more rounds or steps than this is a lie; counters go on from it without overflow.
pub const COUNT_MAX: u32 = 1 << 30;
/// Requests that a peer invents for others to ask with have this bit: they never meet those that the others invent.
const INVENTED: u64 = 1 << 63;

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
    /// Somebody does not want any more what it asked for: an encoding that was not begun is not needed.
    Unwanted {
        from: PeerId,
        request: u64,
    },
    /// Somebody whom I asked to hold a snapshot does not.
    NotKept {
        by: PeerId,
        stage: Stage,
    },
    /// Somebody has all of the whole state that I served.
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
    what: What,
    /// Bytes that it has at most.
    most: u64,
    is: Option<Is>,
    parts: BTreeMap<u32, Blob>,
    /// The first chunk that was not asked for yet, and how many that were are still to come.
    asked: u32,
    coming: u32,
    heard: Instant,
}

/// What is fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// The state of a stage: this version, or the newest.
    State {
        stage: Stage,
        version: Option<Version>,
    },
    Blob(Digest),
}

impl What {
    fn is(self, is: &Is) -> bool {
        match self {
            What::State { stage, version } => {
                is.version.stage == stage && version.is_none_or(|wanted| wanted == is.version)
            }
            What::Blob(blob) => is.root == blob,
        }
    }

    /// Whether a snapshot of this stage is what is fetched.
    fn is_of(self, of: Stage) -> bool {
        matches!(self, What::State { stage, .. } if stage == of)
    }
}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Served {
    /// `whole`: everything that a replica needs, as opposed to what an export does.
    State {
        version: Version,
        whole: bool,
    },
    Blob,
}

#[derive(Debug)]
struct Serve {
    what: Served,
    parts: Parts,
    /// A chunk is on its way, for all that is known.
    asked: bool,
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

/// What the manifest names by its hash, in chunks.
#[derive(Clone, Debug)]
struct Shelved {
    len: u64,
    parts: Vec<Blob>,
}

/// A part of a blob.
#[derive(Debug)]
struct Begun {
    len: u64,
    parts: BTreeMap<u32, Blob>,
}

#[derive(Debug, Default)]
pub struct Transfer {
    next: u64,
    /// By donor and request: two donors may invent the same one.
    fetches: BTreeMap<(PeerId, u64), Fetch>,
    serves: BTreeMap<(PeerId, u64), Serve>,
    held: BTreeMap<Stage, Held>,
    shelf: BTreeMap<Digest, Shelved>,
    /// Chunks of blobs that came from donors who went before the last: any donor's are the same.
    begun: BTreeMap<Digest, Begun>,
    /// Handles made by slicing live in a range of their own.
    next_slice: u64,
}

/// Ids of handles that the peer makes itself; the driver's own stay below.
pub const SLICE_BASE: u64 = 1 << 63;

/// How long the next chunk of so many bytes may take.
fn patience(len: u64) -> Duration {
    SILENCE + Duration::from_secs(len.min(CHUNK) / RATE_SHARED)
}

fn send(desk: &mut Desk<'_>, to: PeerId, lane: Lane, frame: Frame, body: Option<Blob>) {
    desk.out.push(Output::Send { to, lane, frame: wire::Frame::State(frame), body });
}

/// Whether what is said of a state can be true, whoever says it.
fn is_sane(is: &Is, most: u64) -> bool {
    let counts = is.version.round.max(is.version.own_step);
    is.len > 0 && is.len <= most.min(STATE_MAX) && counts <= COUNT_MAX
}

fn chunks(len: u64) -> u32 {
    u32::try_from(len.div_ceil(CHUNK)).unwrap_or(u32::MAX)
}

impl Transfer {
    // ---- fetching --------------------------------------------------------------------------------------------------------

    /// Asks `from` for the state of a stage, of at most `most` bytes. `ticket` comes back in the fact.
    #[allow(clippy::too_many_arguments)]
    pub fn fetch(
        &mut self,
        desk: &mut Desk<'_>,
        ticket: u64,
        from: PeerId,
        stage: Stage,
        purpose: Purpose,
        version: Option<Version>,
        most: u64,
    ) {
        let request = self.begin(desk.now, ticket, from, What::State { stage, version }, most);
        send(desk, from, Lane::Control, Frame::Want(Want { request, stage, purpose, version }), None);
    }

    /// Asks `from` for what has this hash, of at most `most` bytes. `ticket` comes back in the fact; only a driver can say whether
    /// the bytes have that hash.
    pub fn fetch_blob(&mut self, desk: &mut Desk<'_>, ticket: u64, from: PeerId, blob: Digest, most: u64) {
        let request = self.begin(desk.now, ticket, from, What::Blob(blob), most);
        send(desk, from, Lane::Control, Frame::WantBlob(WantBlob { request, blob }), None);
    }

    fn begin(&mut self, now: Instant, ticket: u64, from: PeerId, what: What, most: u64) -> u64 {
        self.next += 1;
        let fetch = Fetch { ticket, what, most, is: None, parts: BTreeMap::new(), asked: 0, coming: 0, heard: now };
        self.fetches.insert((from, self.next), fetch);
        self.next
    }

    /// Chunks that are here of a fetch, and how many it has; nothing before it began.
    pub fn progress(&self, ticket: u64) -> Option<(u32, u32)> {
        let fetch = self.fetches.values().find(|fetch| fetch.ticket == ticket)?;
        Some((fetch.parts.len() as u32, chunks(fetch.is.as_ref()?.len)))
    }

    pub fn partners(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.fetches.keys().chain(self.serves.keys()).map(|(peer, _)| *peer)
    }

    fn on_is(&mut self, desk: &mut Desk<'_>, from: PeerId, is: Is) -> Option<Fact> {
        let key = (from, is.request);
        let fetch = self.fetches.get_mut(&key).filter(|fetch| fetch.is.is_none())?;
        if !fetch.what.is(&is) || !is_sane(&is, fetch.most) {
            return self.give_up(desk, key, "it offered another state than was asked for");
        }
        fetch.heard = desk.now;
        if let What::Blob(blob) = fetch.what
            && let Some(begun) = self.begun.remove(&blob)
        {
            match begun.len == is.len {
                true => fetch.parts = begun.parts,
                false => desk.release_all(begun.parts.into_values()),
            }
        }
        fetch.is = Some(is);
        self.ask_ahead(desk, key);
        None
    }

    fn ask_ahead(&mut self, desk: &mut Desk<'_>, key: (PeerId, u64)) {
        let Some(fetch) = self.fetches.get_mut(&key) else { return };
        let Some(is) = &fetch.is else { return };
        let count = chunks(is.len);
        while fetch.asked < count && fetch.coming < AHEAD {
            let chunk = Chunk { request: key.1, index: fetch.asked };
            fetch.asked += 1;
            if !fetch.parts.contains_key(&chunk.index) {
                fetch.coming += 1;
                send(desk, key.0, Lane::Control, Frame::WantChunk(chunk), None);
            }
        }
    }

    fn on_chunk(&mut self, desk: &mut Desk<'_>, from: PeerId, chunk: Chunk, body: Blob) -> Option<Fact> {
        let key = (from, chunk.request);
        let Some(fetch) = self.fetches.get_mut(&key) else {
            desk.release(body);
            return None;
        };
        let len = fetch.is.as_ref().map_or(0, |is| is.len);
        let expected = len.saturating_sub(u64::from(chunk.index) * CHUNK).min(CHUNK);
        if chunk.index >= fetch.asked || body.len != expected || fetch.parts.contains_key(&chunk.index) {
            desk.release(body);
            return self.give_up(desk, key, "a chunk of a wrong length");
        }
        fetch.parts.insert(chunk.index, body);
        fetch.coming = fetch.coming.saturating_sub(1);
        fetch.heard = desk.now;
        if fetch.parts.len() as u32 == chunks(len) {
            let fetch = self.fetches.remove(&key)?;
            let is = fetch.is?;
            send(desk, from, Lane::Control, Frame::Thanks(chunk.request), None);
            let parts = fetch.parts.into_values().collect();
            return Some(Fact::Fetched {
                ticket: fetch.ticket,
                from,
                version: is.version,
                root: is.root,
                parts,
                len: is.len,
            });
        }
        self.ask_ahead(desk, key);
        None
    }

    fn fail(&mut self, desk: &mut Desk<'_>, key: (PeerId, u64), why: &str) -> Option<Fact> {
        let fetch = self.fetches.remove(&key)?;
        match (fetch.what, fetch.is) {
            (What::Blob(blob), Some(is)) if !self.begun.contains_key(&blob) => {
                self.begun.insert(blob, Begun { len: is.len, parts: fetch.parts });
            }
            _ => desk.release_all(fetch.parts.into_values()),
        }
        Some(Fact::Failed { ticket: fetch.ticket, from: key.0, why: why.into() })
    }

    /// As `fail`, and the donor hears that it may drop the state.
    fn give_up(&mut self, desk: &mut Desk<'_>, key: (PeerId, u64), why: &str) -> Option<Fact> {
        let fact = self.fail(desk, key, why)?;
        send(desk, key.0, Lane::Control, Frame::None(key.1), None);
        Some(fact)
    }

    /// Forgets what was begun of a blob that nobody wants any more.
    pub fn forget(&mut self, desk: &mut Desk<'_>, blob: Digest) {
        if let Some(begun) = self.begun.remove(&blob) {
            desk.release_all(begun.parts.into_values());
        }
    }

    /// Ends a fetch that nobody waits for any more; its ticket never comes back.
    pub fn cancel(&mut self, desk: &mut Desk<'_>, ticket: u64) {
        let found = self.fetches.iter().find(|(_, fetch)| fetch.ticket == ticket).map(|(key, _)| *key);
        if let Some(key) = found {
            self.give_up(desk, key, "nobody waits for it");
        }
    }

    // ---- serving ---------------------------------------------------------------------------------------------------------

    /// Whether another state may be served to `to`, while those for `pending` are being encoded.
    pub fn has_room(&self, to: PeerId, pending: &[PeerId]) -> bool {
        let to_all = || self.serves.keys().map(|(to, _)| to).chain(pending);
        to_all().count() < SERVED_MAX && to_all().filter(|other| **other == to).count() < SERVED_EACH
    }

    fn on_want(&mut self, desk: &mut Desk<'_>, from: PeerId, want: Want) -> Option<Fact> {
        if !self.has_room(from, &[]) && !self.serves.contains_key(&(from, want.request)) {
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
                        let what = Served::State { version, whole: true };
                        let serve = Serve { what, parts, asked: false, heard: desk.now };
                        self.serves.insert((from, want.request), serve);
                        send(desk, from, Lane::Control, Frame::Is(is), None);
                    }
                }
                None
            }
        }
    }

    fn on_want_blob(&mut self, desk: &mut Desk<'_>, from: PeerId, WantBlob { request, blob }: WantBlob) {
        let blobs = |of: Option<PeerId>| {
            let serves = self
                .serves
                .iter()
                .filter(|((to, _), serve)| serve.what == Served::Blob && of.is_none_or(|of| of == *to));
            serves.count()
        };
        let room = self.has_room(from, &[])
            && blobs(None) < BLOBS_MAX
            && blobs(Some(from)) < BLOBS_EACH
            && !self.serves.contains_key(&(from, request));
        match self.shelf.get(&blob).filter(|_| room) {
            None => self.refuse(desk, from, request),
            Some(shelved) => {
                let (len, parts) = (shelved.len, Parts::Held(shelved.parts.clone()));
                self.serves.insert((from, request), Serve { what: Served::Blob, parts, asked: false, heard: desk.now });
                let version = Version::default();
                send(desk, from, Lane::Control, Frame::Is(Is { request, version, len, root: blob }), None);
            }
        }
    }

    /// The encoded state that `Fact::Wanted` asked for, whole or for an export; the blob becomes the transfer's.
    #[allow(clippy::too_many_arguments)]
    pub fn serve(
        &mut self,
        desk: &mut Desk<'_>,
        to: PeerId,
        request: u64,
        version: Version,
        whole: bool,
        blob: Blob,
        root: Digest,
    ) {
        let serve =
            Serve { what: Served::State { version, whole }, parts: Parts::Whole(blob), asked: false, heard: desk.now };
        if let Some(old) = self.serves.insert((to, request), serve) {
            old.parts.release(desk);
        }
        send(desk, to, Lane::Control, Frame::Is(Is { request, version, len: blob.len, root }), None);
    }

    /// Whether somebody is fetching a state from me: whoever stops asking for chunks is not for long.
    pub fn is_serving(&self) -> bool {
        self.serving() > 0
    }

    /// States that others are fetching from me. Whoever fetches a blob finds another who has it, and goes on where it was.
    pub fn serving(&self) -> usize {
        self.serves.values().filter(|serve| serve.what != Served::Blob).count()
    }

    pub fn refuse(&mut self, desk: &mut Desk<'_>, to: PeerId, request: u64) {
        send(desk, to, Lane::Control, Frame::None(request), None);
    }

    fn on_want_chunk(&mut self, desk: &mut Desk<'_>, from: PeerId, chunk: Chunk) {
        let Some(serve) = self.serves.get_mut(&(from, chunk.request)) else {
            return send(desk, from, Lane::Control, Frame::None(chunk.request), None);
        };
        let offset = u64::from(chunk.index) * CHUNK;
        if offset >= serve.parts.len() {
            return;
        }
        (serve.heard, serve.asked) = (desk.now, true);
        match &serve.parts {
            Parts::Whole(blob) => {
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
        let request = self.next | INVENTED;
        let what = Served::State { version, whole: true };
        self.serves.insert((to, request), Serve { what, parts: Parts::Whole(blob), asked: false, heard: desk.now });
        send(desk, to, Lane::Control, Frame::Keep(Is { request, version, len: blob.len, root }), None);
    }

    /// Whether somebody fetches, or is asked to, what I want to be held.
    pub fn is_offering(&self) -> bool {
        self.serves.keys().any(|(_, request)| request & INVENTED != 0)
    }

    /// Takes what `from` offered, of at most `most` bytes. False: it was refused, and `ticket` never comes back.
    pub fn keep(&mut self, desk: &mut Desk<'_>, ticket: u64, from: PeerId, is: Is, most: u64) -> bool {
        let key = (from, is.request);
        let stage = is.version.stage;
        // One snapshot of a stage at a time is on its way here.
        let coming =
            self.fetches.iter().any(|((_, request), fetch)| request & INVENTED != 0 && fetch.what.is_of(stage));
        if coming || is.request & INVENTED == 0 || !is_sane(&is, most) {
            self.refuse(desk, from, is.request);
            return false;
        }
        let (what, parts, heard) = (What::State { stage, version: Some(is.version) }, BTreeMap::new(), desk.now);
        let fetch = Fetch { ticket, what, most, is: Some(is), parts, asked: 0, coming: 0, heard };
        self.fetches.insert(key, fetch);
        self.ask_ahead(desk, key);
        true
    }

    /// Bytes of the snapshots that this peer holds, and of those on their way to it.
    pub fn held_bytes(&self) -> u64 {
        let held = self.held.values().map(|held| held.len);
        let kept = self.fetches.iter().filter(|((_, request), _)| request & INVENTED != 0);
        let coming = kept.filter_map(|(_, fetch)| fetch.is.as_ref()).map(|is| is.len);
        held.chain(coming).fold(0, u64::saturating_add)
    }

    /// Holds a fetched snapshot, in the place of an older one of the same stage.
    pub fn hold(&mut self, desk: &mut Desk<'_>, version: Version, root: Digest, len: u64, parts: Vec<Blob>) {
        if let Some(old) = self.held.insert(version.stage, Held { version, root, len, parts }) {
            self.serves.retain(|_, serve| !serve.is_of(old.version) || matches!(serve.parts, Parts::Whole(_)));
            desk.release_all(old.parts);
        }
    }

    /// No longer holds a snapshot of a stage: its bytes are not what they were said to be.
    pub fn discard(&mut self, desk: &mut Desk<'_>, stage: Stage) {
        if let Some(held) = self.held.remove(&stage) {
            self.serves.retain(|_, serve| !serve.is_of(held.version) || matches!(serve.parts, Parts::Whole(_)));
            desk.release_all(held.parts);
        }
    }

    /// Holds a snapshot whose bytes lie in one blob, which becomes the transfer's.
    pub fn hold_whole(&mut self, desk: &mut Desk<'_>, version: Version, root: Digest, blob: Blob) {
        let parts = self.cut(desk, blob);
        self.hold(desk, version, root, blob.len, parts);
    }

    /// The chunks of a blob in its place.
    fn cut(&mut self, desk: &mut Desk<'_>, blob: Blob) -> Vec<Blob> {
        let slice = |index: u32| {
            let offset = u64::from(index) * CHUNK;
            let id = SLICE_BASE + self.next_slice + 1 + u64::from(index);
            let new = Blob { id, len: (blob.len - offset).min(CHUNK) };
            desk.out.push(Output::Slice { blob, offset, new });
            new
        };
        let parts: Vec<Blob> = (0..chunks(blob.len)).map(slice).collect();
        self.next_slice += parts.len() as u64;
        desk.release(blob);
        parts
    }

    // ---- the shelf -------------------------------------------------------------------------------------------------------

    /// Has what has this hash on the shelf, for good: others may fetch it.
    pub fn shelve(&mut self, desk: &mut Desk<'_>, blob: Digest, parts: Vec<Blob>) {
        let len = parts.iter().map(|part| part.len).sum();
        match self.shelf.entry(blob) {
            Entry::Vacant(entry) => _ = entry.insert(Shelved { len, parts }),
            Entry::Occupied(_) => desk.release_all(parts),
        }
    }

    /// As `shelve`, of one handle.
    pub fn shelve_whole(&mut self, desk: &mut Desk<'_>, blob: Digest, bytes: Blob) {
        let parts = self.cut(desk, bytes);
        self.shelve(desk, blob, parts);
    }

    /// Bytes on the shelf, and of what is begun.
    pub fn shelved_bytes(&self) -> u64 {
        let begun = self.begun.values().flat_map(|begun| begun.parts.values()).map(|part| part.len);
        self.shelf.values().map(|shelved| shelved.len).chain(begun).fold(0, u64::saturating_add)
    }

    /// Where it lies on the shelf, in order: handles that stay the transfer's.
    pub fn shelved(&self, blob: Digest) -> Option<&[Blob]> {
        self.shelf.get(&blob).map(|shelved| &shelved.parts[..])
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
            Frame::WantBlob(want) => {
                self.on_want_blob(desk, from, want);
                None
            }
            Frame::Is(is) => self.on_is(desk, from, is),
            Frame::WantChunk(chunk) => {
                self.on_want_chunk(desk, from, chunk);
                None
            }
            Frame::Chunk(_) => None,
            // Both sides count their requests from one on: what I asked for comes first.
            Frame::None(request) => {
                self.fail(desk, (from, request), "it has none").or_else(|| self.on_unwanted(desk, from, request))
            }
            Frame::Thanks(request) => {
                let version = match self.serves.get(&(from, request)).map(|serve| serve.what) {
                    Some(Served::State { version, whole: true }) => Some(version),
                    Some(Served::State { .. } | Served::Blob) | None => None,
                };
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
        let fetches: Vec<_> = self.fetches.keys().filter(|(from, _)| *from == peer).copied().collect();
        fetches.into_iter().filter_map(|key| self.fail(desk, key, "the connection was lost")).collect()
    }

    /// This peer hears again. What a donor said to it meanwhile is gone: a state that had not begun may never begin.
    pub fn on_incarnated(&mut self, desk: &mut Desk<'_>) -> Vec<Fact> {
        let open: Vec<_> = self.fetches.iter().filter(|(_, f)| f.is.is_none()).map(|(key, _)| *key).collect();
        open.into_iter().filter_map(|key| self.give_up(desk, key, "this peer was silent meanwhile")).collect()
    }

    /// A chunk to this peer was not taken: too much of this lane waits for it already. Of several states it is one of that which
    /// was asked for last.
    pub fn on_congested(&mut self, desk: &mut Desk<'_>, to: PeerId) -> Option<Fact> {
        let mine = self.serves.range((to, 0)..=(to, u64::MAX));
        let (_, request) = mine.max_by_key(|(_, serve)| serve.heard).map(|(key, _)| *key)?;
        self.on_chunk_refused(desk, to, request)
    }

    /// A chunk of this request does not come to `to`. Whoever waits for it would wait in vain, and hears at once that this state
    /// does not come.
    pub fn on_chunk_refused(&mut self, desk: &mut Desk<'_>, to: PeerId, request: u64) -> Option<Fact> {
        // Once for all chunks of it that are on their way.
        self.serves.get(&(to, request))?;
        send(desk, to, Lane::Control, Frame::None(request), None);
        self.on_unwanted(desk, to, request)
    }

    fn on_unwanted(&mut self, desk: &mut Desk<'_>, from: PeerId, request: u64) -> Option<Fact> {
        let offered = self.serves.get(&(from, request)).filter(|_| request & INVENTED != 0);
        let stage = offered.and_then(|serve| serve.version()).map(|version| version.stage);
        self.drop_serve(desk, (from, request));
        Some(match stage {
            Some(stage) => Fact::NotKept { by: from, stage },
            None => Fact::Unwanted { from, request },
        })
    }

    pub fn on_tick(&mut self, desk: &mut Desk<'_>) -> Vec<Fact> {
        let now = desk.now;
        let silent = |serve: &Serve| now.since(serve.heard) > serve.patience();
        let serves: Vec<_> = self.serves.iter().filter(|(_, serve)| silent(serve)).map(|(key, _)| *key).collect();
        for key in serves {
            self.drop_serve(desk, key);
        }
        let late: Vec<_> = self.fetches.iter().filter_map(|(key, fetch)| Some((*key, fetch.late(now)?))).collect();
        late.into_iter().filter_map(|(key, why)| self.give_up(desk, key, &why)).collect()
    }
}

impl Serve {
    /// Whoever fetches says nothing while what it asked for is on its way.
    fn patience(&self) -> Duration {
        if self.asked { patience(self.parts.len()) } else { SILENCE }
    }

    fn version(&self) -> Option<Version> {
        match self.what {
            Served::State { version, .. } => Some(version),
            Served::Blob => None,
        }
    }

    fn is_of(&self, version: Version) -> bool {
        self.version() == Some(version)
    }
}

impl Fetch {
    /// Why it is given up, if it is.
    fn late(&self, now: Instant) -> Option<String> {
        let (patience, what) = match &self.is {
            None => (BEGINNING, "it did not begin"),
            Some(is) => (patience(is.len), "no chunk"),
        };
        (now.since(self.heard) > patience).then(|| format!("{what} for {} s", patience.as_secs()))
    }
}

impl Parts {
    fn len(&self) -> u64 {
        match self {
            Parts::Whole(blob) => blob.len,
            Parts::Held(parts) => parts.iter().map(|part| part.len).sum(),
        }
    }

    fn release(self, desk: &mut Desk<'_>) {
        if let Parts::Whole(blob) = self {
            desk.release(blob);
        }
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::{Outbox, rng::Streams};

    use super::*;
    use crate::flow::{route::Route, schedule::Schedule, uplink::Uplink};

    const ME: PeerId = PeerId([1; 32]);
    const OTHER: PeerId = PeerId([2; 32]);

    struct World {
        transfer: Transfer,
        jobs: Schedule,
        route: Route,
    }

    impl World {
        fn new() -> Self {
            let route = Route::new(ME, &Streams::new(1, ME), false);
            World { transfer: Transfer::default(), jobs: Schedule::default(), route }
        }

        /// What `act` says to others, after so many seconds.
        fn at<R>(&mut self, seconds: u64, act: impl FnOnce(&mut Transfer, &mut Desk<'_>) -> R) -> (R, Vec<Frame>) {
            let mut out = Outbox::new();
            let now = Instant::ZERO + Duration::from_secs(seconds);
            let mut desk = Desk {
                now,
                me: ME,
                out: &mut out,
                jobs: &mut self.jobs,
                route: &mut self.route,
                uplink: &mut Uplink::default(),
            };
            let did = act(&mut self.transfer, &mut desk);
            let mut said = Vec::new();
            while let Some(output) = out.pop() {
                if let Output::Send { to: OTHER, frame: wire::Frame::State(frame), .. } = output {
                    said.push(frame);
                }
            }
            (did, said)
        }

        fn fetch(&mut self) -> u64 {
            let fetch = |transfer: &mut Transfer, desk: &mut Desk<'_>| {
                transfer.fetch(desk, 7, OTHER, 0, Purpose::Serve, None, 1 << 30);
            };
            match self.at(0, fetch).1[..] {
                [Frame::Want(Want { request, .. })] => request,
                ref said => panic!("{said:?}"),
            }
        }
    }

    fn failed(why: &str) -> Vec<Fact> {
        vec![Fact::Failed { ticket: 7, from: OTHER, why: why.into() }]
    }

    #[test]
    fn a_donor_may_take_long_to_begin_and_not_long_between_two_chunks() {
        let mut world = World::new();
        let request = world.fetch();
        assert_eq!(world.at(299, Transfer::on_tick), (vec![], vec![]));
        let is = Is { request, version: Version::default(), len: 2 * CHUNK, root: Digest::default() };
        let (_, said) = world.at(299, |transfer, desk| transfer.on_frame(desk, OTHER, Frame::Is(is), None));
        assert_eq!(said.len(), 2, "both chunks are asked for");
        assert_eq!(world.at(299 + 164, Transfer::on_tick), (vec![], vec![]));
        assert_eq!(world.at(299 + 165, Transfer::on_tick), (failed("no chunk for 164 s"), vec![Frame::None(request)]));
    }

    #[test]
    fn whoever_fetches_over_a_slow_link_is_served_until_it_can_have_it() {
        let mut world = World::new();
        let whole = || Parts::Whole(Blob { id: 1, len: CHUNK });
        for request in [3, 4] {
            let serve = Serve { what: Served::Blob, parts: whole(), asked: false, heard: Instant::ZERO };
            world.transfer.serves.insert((OTHER, request), serve);
        }
        let ask = |index: u32| Frame::WantChunk(Chunk { request: 3, index });
        world.at(0, |transfer, desk| transfer.on_frame(desk, OTHER, ask(0), None));
        let serving = |world: &mut World, at: u64| {
            world.at(at, Transfer::on_tick);
            world.transfer.serves.len()
        };
        assert_eq!((serving(&mut world, 30), serving(&mut world, 31)), (2, 1), "one has asked for nothing");
        world.at(100, |transfer, desk| transfer.on_frame(desk, OTHER, ask(1), None));
        assert_eq!((serving(&mut world, 164), serving(&mut world, 165)), (1, 0), "there is no second chunk");
    }

    #[test]
    fn a_donor_that_never_begins_is_told_that_nobody_waits() {
        let mut world = World::new();
        let request = world.fetch();
        assert_eq!(
            world.at(301, Transfer::on_tick),
            (failed("it did not begin for 300 s"), vec![Frame::None(request)])
        );
        // The other side of that word: what waits for the worker is not needed.
        let none = |transfer: &mut Transfer, desk: &mut Desk<'_>| transfer.on_frame(desk, OTHER, Frame::None(9), None);
        assert_eq!(world.at(302, none).0, Some(Fact::Unwanted { from: OTHER, request: 9 }));
    }

    #[test]
    fn a_blob_goes_on_at_another_donor_where_the_first_left_off() {
        const THIRD: PeerId = PeerId([3; 32]);
        let (mut world, blob) = (World::new(), Digest([8; 32]));
        let mut out = Outbox::new();
        let is = |request| Is { request, version: Version::default(), len: 6 * CHUNK, root: blob };
        let mut act = |seconds: u64, act: &mut dyn FnMut(&mut Transfer, &mut Desk<'_>)| {
            let now = Instant::ZERO + Duration::from_secs(seconds);
            let World { transfer, jobs, route } = &mut world;
            let mut desk = Desk { now, me: ME, out: &mut out, jobs, route, uplink: &mut Uplink::default() };
            act(transfer, &mut desk);
            let (mut asked, mut released) = (Vec::new(), 0);
            while let Some(output) = out.pop() {
                match output {
                    Output::Send { frame: wire::Frame::State(Frame::WantChunk(chunk)), .. } => asked.push(chunk.index),
                    Output::Release { .. } => released += 1,
                    _ => {}
                }
            }
            (asked, released)
        };
        let chunk = |from, request, index| {
            move |transfer: &mut Transfer, desk: &mut Desk<'_>| {
                let body = Blob { id: u64::from(index) + 10, len: CHUNK };
                transfer.on_frame(desk, from, Frame::Chunk(Chunk { request, index }), Some(body));
            }
        };
        act(0, &mut |transfer, desk| transfer.fetch_blob(desk, 7, OTHER, blob, 1 << 30));
        act(0, &mut |transfer, desk| drop(transfer.on_frame(desk, OTHER, Frame::Is(is(1)), None)));
        act(1, &mut chunk(OTHER, 1, 0));
        act(1, &mut chunk(OTHER, 1, 2));
        assert_eq!(act(2, &mut |transfer, desk| drop(transfer.on_lost(desk, OTHER))), (vec![], 0), "its chunks stay");
        act(3, &mut |transfer, desk| transfer.fetch_blob(desk, 8, THIRD, blob, 1 << 30));
        let (asked, _) = act(3, &mut |transfer, desk| drop(transfer.on_frame(desk, THIRD, Frame::Is(is(2)), None)));
        assert_eq!(asked, [1, 3, 4, 5], "only what is missing");
        act(4, &mut |transfer, desk| transfer.cancel(desk, 8));
        assert_eq!(act(4, &mut |transfer, desk| transfer.forget(desk, blob)), (vec![], 2), "nobody wants it any more");
    }

    #[test]
    fn a_chunk_that_cannot_be_sent_ends_the_state_at_once() {
        let mut world = World::new();
        let blob = Blob { id: 5, len: CHUNK };
        world.at(0, |transfer, desk| {
            for request in [3, 4] {
                transfer.serve(desk, OTHER, request, Version::default(), true, blob, Digest::default());
            }
        });
        let chunk = Frame::WantChunk(Chunk { request: 3, index: 0 });
        world.at(1, |transfer, desk| transfer.on_frame(desk, OTHER, chunk, None));
        let (_, said) = world.at(1, |transfer, desk| transfer.on_congested(desk, OTHER));
        assert_eq!((said, world.transfer.serving()), (vec![Frame::None(3)], 1));
    }

    #[test]
    fn a_chunk_that_finds_no_room_ends_its_state_and_no_fetch_of_the_same_number() {
        let mut world = World::new();
        let request = world.fetch();
        let (kept, blob) = (INVENTED | 1, Blob { id: 5, len: CHUNK });
        world.at(0, |transfer, desk| {
            transfer.serve(desk, OTHER, request, Version::default(), true, blob, Digest::default());
            let serve = Serve {
                what: Served::State { version: Version::default(), whole: true },
                parts: Parts::Whole(blob),
                asked: true,
                heard: desk.now,
            };
            transfer.serves.insert((OTHER, kept), serve);
        });
        let mut refused = |request| world.at(1, |transfer, desk| transfer.on_chunk_refused(desk, OTHER, request));
        let unwanted = Fact::Unwanted { from: OTHER, request };
        assert_eq!(refused(request), (Some(unwanted), vec![Frame::None(request)]));
        assert_eq!(refused(request), (None, vec![]), "it was told with the first");
        assert_eq!(refused(kept).0, Some(Fact::NotKept { by: OTHER, stage: 0 }), "another is asked to keep it");
        assert_eq!((world.transfer.serving(), world.transfer.fetches.len()), (0, 1));
    }

    #[test]
    fn one_peer_does_not_get_all_the_states_that_are_served() {
        let mut world = World::new();
        let serve = |transfer: &mut Transfer, desk: &mut Desk<'_>| {
            for request in 0..SERVED_EACH as u64 - 1 {
                let blob = Blob { id: request, len: 1 };
                transfer.serve(desk, OTHER, request, Version::default(), true, blob, Digest::default());
            }
        };
        world.at(0, serve);
        let another = PeerId([3; 32]);
        let room = |to: PeerId, pending: &[PeerId]| world.transfer.has_room(to, pending);
        assert_eq!((room(OTHER, &[]), room(OTHER, &[OTHER]), room(OTHER, &[another])), (true, false, true));
        assert_eq!((room(another, &[OTHER; 2]), room(another, &[OTHER; 3])), (true, false));
    }
}
