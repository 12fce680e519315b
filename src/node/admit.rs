//! The gate: for peers, asked at their first words, and for bodies, asked before a body is read or memory is taken for it.
//! In: who comes from where; a frame's bytes, its lane, the body's length. Out: take it, or why not. It knows what the manifest says
//! of admission and of shapes, and how much the blob store may hold, and nothing of the flow.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use skein_pipeline::model::cost::stage_parameters;
use skein_protocol::{
    Lane, Manifest, PeerId, Stage,
    codec::coded_len_max,
    event::Severity,
    wire::{
        Frame, average, flow, generate, hello,
        limits::{BODY_MAX, CHUNK},
        state,
    },
};

use super::blobs::{Blobs, Room};
use crate::net::{Admit, Code, Verdict};

/// What a peer is told that finds no place in the run, or none for its network.
pub const FULL: &str = "the run is full";
pub const CROWDED: &str = "too many peers of one network are in the run";

/// Until a peer said which run it is in, its bodies are at most this long.
const STRANGER_MAX: u64 = 64 << 10;

/// Which body belongs to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    Exactly(u64),
    /// At least one byte, and a multiple of `unit`.
    AtMost {
        max: u64,
        unit: u64,
    },
}

impl Body {
    fn fits(self, len: u64) -> bool {
        match self {
            Body::None => len == 0,
            Body::Exactly(exact) => len == exact,
            Body::AtMost { max, unit } => len > 0 && len <= max && len.is_multiple_of(unit),
        }
    }
}

/// How a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub lane: Lane,
    pub body: Body,
}

/// What the manifest says about lengths.
#[derive(Clone, Debug)]
pub struct Shapes {
    manifest: Arc<Manifest>,
}

impl Shapes {
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Shapes { manifest }
    }

    /// The lane of a frame and the body that belongs to it; nothing for a stage that does not exist.
    pub fn of(&self, frame: &Frame) -> Option<Shape> {
        let with = |lane, body| Some(Shape { lane, body });
        let control = with(Lane::Control, Body::None);
        match frame {
            Frame::Hello(_) | Frame::Spread(_) => control,
            Frame::Flow(frame) => match frame {
                flow::Frame::Forward(forward) => with(Lane::Activation, self.body_into(forward.stage)?),
                flow::Frame::Labels(_) => with(Lane::Activation, Body::Exactly(self.tokens() * 4)),
                flow::Frame::Backward(returned) => {
                    self.exists(returned.stage)?;
                    with(Lane::Gradient, self.hidden())
                }
                flow::Frame::Accepted(_)
                | flow::Frame::Confirmed(_)
                | flow::Frame::Declined(_)
                | flow::Frame::Cancel(_)
                | flow::Frame::WantLabels(_)
                | flow::Frame::Finished(_)
                | flow::Frame::Ask(_)
                | flow::Frame::Void(_) => control,
            },
            Frame::Average(frame) => match frame {
                average::Frame::Tensors(terms) => {
                    self.exists(terms.name.stage)?;
                    // The difference in the averaging codec, the slow weights and the momentum: none is longer than f32.
                    let values = stage_parameters(&self.manifest, terms.name.stage);
                    with(Lane::Average, Body::AtMost { max: encoded_max(3 * values), unit: 1 })
                }
                average::Frame::Propose(_)
                | average::Frame::Agree(_)
                | average::Frame::Busy(_)
                | average::Frame::Ready(_)
                | average::Frame::Adopted(_)
                | average::Frame::Abort(_) => control,
            },
            Frame::State(frame) => match frame {
                state::Frame::Chunk(_) => with(Lane::Bulk, Body::AtMost { max: CHUNK, unit: 1 }),
                state::Frame::Want(_)
                | state::Frame::Is(_)
                | state::Frame::WantChunk(_)
                | state::Frame::None(_)
                | state::Frame::Thanks(_)
                | state::Frame::Keep(_) => control,
            },
            Frame::Generate(frame) => {
                let body = match frame {
                    generate::Frame::Infer(infer) => {
                        self.exists(infer.stage)?;
                        let model = &self.manifest.model.config;
                        let unit = if infer.stage == 0 { 4 } else { 4 * u64::from(model.hidden) };
                        Body::AtMost { max: unit * u64::from(model.context), unit }
                    }
                    generate::Frame::Logits(_) => Body::Exactly(4 * u64::from(self.manifest.model.config.vocab)),
                    generate::Frame::Lost(_) | generate::Frame::Close(_) => Body::None,
                };
                with(Lane::Generation, body)
            }
        }
    }

    fn exists(&self, stage: Stage) -> Option<()> {
        (stage < self.manifest.stages.count).then_some(())
    }

    fn tokens(&self) -> u64 {
        self.manifest.tokens_per_micro_batch()
    }

    fn body_into(&self, stage: Stage) -> Option<Body> {
        self.exists(stage)?;
        Some(if stage == 0 { Body::Exactly(self.tokens() * 4) } else { self.hidden() })
    }

    fn hidden(&self) -> Body {
        let values = self.tokens() * u64::from(self.manifest.model.config.hidden);
        Body::AtMost { max: encoded_max(values), unit: 1 }
    }
}

/// Bytes of `values` numbers in any codec.
fn encoded_max(values: u64) -> u64 {
    coded_len_max(values).min(BODY_MAX)
}

/// How many others may take part, as the manifest says. Each peer counts whom it knows, so in the moment in which several come
/// at once a few more may slip in at different doors. The owner, its delegates and listed members always find a place.
pub struct Admission {
    manifest: Arc<Manifest>,
    /// Connected peers and the network that each comes from: nothing for private addresses, and behind a relay, which hides it.
    networks: BTreeMap<PeerId, Option<IpAddr>>,
    /// Those of them that were admitted on their present connection.
    admitted: BTreeSet<PeerId>,
}

impl Admission {
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Admission { manifest, networks: BTreeMap::new(), admitted: BTreeSet::new() }
    }

    /// A peer is connected, from this network now.
    pub fn up(&mut self, peer: PeerId, network: Option<IpAddr>) {
        self.networks.insert(peer, network);
    }

    pub fn lost(&mut self, peer: PeerId) {
        self.networks.remove(&peer);
        self.admitted.remove(&peer);
    }

    /// A peer wants to take part. `members` are those whose offers are known: they have their places.
    ///
    /// # Errors
    /// What it is told.
    pub fn admit(&mut self, peer: PeerId, members: impl Iterator<Item = PeerId>) -> Result<(), &'static str> {
        if !self.has_a_place(&peer) && !self.admitted.contains(&peer) {
            self.judge(peer, members)?;
        }
        self.admitted.insert(peer);
        Ok(())
    }

    fn judge(&self, peer: PeerId, members: impl Iterator<Item = PeerId>) -> Result<(), &'static str> {
        let limits = &self.manifest.admission;
        if let Some(network) = self.network(&peer) {
            let same = |other: &&PeerId| self.network(other) == Some(network) && !self.has_a_place(other);
            if self.admitted.iter().filter(same).count() >= limits.per_subnet_max as usize {
                return Err(CROWDED);
            }
        }
        let known: BTreeSet<PeerId> = members.chain(self.admitted.iter().copied()).collect();
        // This peer is one, too.
        if !known.contains(&peer) && known.len() + 1 >= limits.peers_max as usize {
            return Err(FULL);
        }
        Ok(())
    }

    fn network(&self, peer: &PeerId) -> Option<IpAddr> {
        self.networks.get(peer).copied().flatten()
    }

    fn has_a_place(&self, peer: &PeerId) -> bool {
        let Manifest { run, admission, .. } = &*self.manifest;
        run.owner == *peer || run.delegates.contains(peer) || admission.members.contains(peer)
    }
}

/// The node's side of [`Admit`]. One for the network, shared with the driver.
pub struct Gate {
    blobs: Blobs,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Nothing while only an invite is known: then no body is wanted at all.
    shapes: Option<Shapes>,
    /// Peers that said hello in this run on their present connection.
    greeted: BTreeSet<PeerId>,
}

impl Gate {
    pub fn new(blobs: Blobs) -> Self {
        Gate { blobs, inner: RwLock::default() }
    }

    /// From now on bodies are taken, as this manifest says.
    pub fn open(&self, shapes: Shapes) {
        self.write().shapes = Some(shapes);
    }

    /// What a peer said about itself, and that it is gone.
    pub fn heard(&self, from: PeerId, frame: &hello::Frame, run: skein_protocol::RunId) {
        match frame {
            hello::Frame::Hello(hello) if hello.run == run => self.write().greeted.insert(from),
            hello::Frame::Hello(_) | hello::Frame::Goodbye => self.write().greeted.remove(&from),
            _ => false,
        };
    }

    pub fn lost(&self, peer: PeerId) {
        self.write().greeted.remove(&peer);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, from: PeerId, lane: Lane, frame: &[u8], len: u64) -> Result<(), (Code, Option<Severity>)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(shapes) = &inner.shapes else { return Err((Code::NotWanted, None)) };
        let frame = Frame::decode(frame).map_err(|_| (Code::Malformed, Some(Severity::Hostile)))?;
        let shape = shapes.of(&frame).ok_or((Code::Malformed, Some(Severity::Wrong)))?;
        if shape.lane != lane || !shape.body.fits(len) {
            return Err((Code::Malformed, Some(Severity::Wrong)));
        }
        let stranger = !inner.greeted.contains(&from) && len > STRANGER_MAX;
        let room = match lane {
            Lane::Gradient => Room::Relief,
            Lane::Activation if matches!(frame, Frame::Flow(flow::Frame::Labels(_))) => Room::Relief,
            _ => Room::Work,
        };
        if stranger || !self.blobs.has_room(len, room) {
            return Err((Code::Busy, None));
        }
        Ok(())
    }
}

impl Admit for Gate {
    fn admit(&self, from: PeerId, lane: Lane, frame: &[u8], body_len: u64) -> Verdict {
        match self.judge(from, lane, frame, body_len) {
            Ok(()) => Verdict::Take,
            Err((code, severity)) => Verdict::Refuse { code, severity },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use skein_protocol::{Attempt, MicroBatchId, RunId, Utc, wire::flow::Forward};

    const FROM: PeerId = PeerId([7; 32]);

    fn gate(budget: u64) -> (Gate, Blobs) {
        let blobs = Blobs::new(budget);
        let gate = Gate::new(blobs.clone());
        // 2 x 16 tokens of 32 numbers, two stages.
        gate.open(Shapes::new(Arc::new(super::super::sample_manifest(2))));
        gate.heard(FROM, &hello(), RunId::default());
        (gate, blobs)
    }

    fn hello() -> hello::Frame {
        let hello = hello::Hello { run: RunId::default(), protocol: 1, incarnation: 1, utc: Utc(0), token: None };
        hello::Frame::Hello(hello)
    }

    fn forward(stage: Stage) -> Vec<u8> {
        let id = MicroBatchId { feeder: FROM, incarnation: 1, step: 0, index: 0 };
        let forward = Forward { id, attempt: Attempt::first(0), stage, samples: 0, close: false, hint: None };
        Frame::Flow(flow::Frame::Forward(forward)).encode()
    }

    fn refused(code: Code, severity: Option<Severity>) -> Verdict {
        Verdict::Refuse { code, severity }
    }

    #[test]
    fn a_body_is_as_long_as_the_manifest_says() {
        let (gate, _) = gate(1 << 30);
        let wrong = refused(Code::Malformed, Some(Severity::Wrong));
        let ask = |stage, len| gate.admit(FROM, Lane::Activation, &forward(stage), len);
        assert_eq!(ask(0, 2 * 16 * 4), Verdict::Take);
        assert_eq!(ask(0, 2 * 16 * 4 - 4), wrong);
        assert_eq!(ask(1, 2 * 16 * 32 * 4), Verdict::Take);
        assert_eq!(ask(1, 2 * 16 * 32 * 8), wrong);
        assert_eq!(ask(1, 0), wrong);
        assert_eq!(ask(2, 128), wrong, "there is no such stage");
        assert_eq!(gate.admit(FROM, Lane::Control, &forward(0), 128), wrong, "another lane");
    }

    fn admission(peers_max: u32, per_subnet_max: u32) -> Admission {
        let mut manifest = super::super::sample_manifest(1);
        (manifest.admission.peers_max, manifest.admission.per_subnet_max) = (peers_max, per_subnet_max);
        Admission::new(Arc::new(manifest))
    }

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn a_full_run_admits_its_members_and_its_owner_and_nobody_else() {
        let mut admission = admission(3, 16);
        let owner = super::super::sample_manifest(1).run.owner;
        // I am the first, and two are known by their offers.
        let members = [peer(10), peer(11)];
        for newcomer in [peer(12), peer(13)] {
            assert_eq!(admission.admit(newcomer, members.into_iter()), Err(FULL));
        }
        for known in [peer(10), peer(11), owner] {
            assert_eq!(admission.admit(known, members.into_iter()), Ok(()));
        }
        // One left, and its offer is forgotten: its place is free.
        admission.lost(peer(10));
        admission.lost(owner);
        assert_eq!(admission.admit(peer(12), [peer(11)].into_iter()), Ok(()));
        assert_eq!(admission.admit(peer(12), members.into_iter()), Ok(()), "it said hello again");
        assert_eq!(admission.admit(peer(13), [peer(11)].into_iter()), Err(FULL));
    }

    #[test]
    fn one_network_gets_only_so_many_places_and_private_ones_are_no_network() {
        let mut admission = admission(1000, 2);
        let network = Some(IpAddr::from([203, 0, 113, 0]));
        for n in 10..20 {
            admission.up(peer(n), network);
            admission.up(peer(n + 10), None);
        }
        let mut come = |n| admission.admit(peer(n), [].into_iter());
        assert_eq!([come(10), come(11), come(12)], [Ok(()), Ok(()), Err(CROWDED)]);
        assert!((20..30).all(|n| come(n).is_ok()));
        admission.lost(peer(10));
        assert_eq!(admission.admit(peer(13), [].into_iter()), Ok(()));
        // Who moved to the network counts there.
        admission.up(peer(20), network);
        admission.lost(peer(11));
        assert_eq!(admission.admit(peer(14), [].into_iter()), Err(CROWDED));
    }

    #[test]
    fn frames_without_a_body_get_none_and_noise_is_hostile() {
        let (gate, _) = gate(1 << 30);
        let goodbye = Frame::Hello(hello::Frame::Goodbye).encode();
        assert_eq!(gate.admit(FROM, Lane::Control, &goodbye, 1), refused(Code::Malformed, Some(Severity::Wrong)));
        let noise = gate.admit(FROM, Lane::Control, &[0xff, 0, 1], 1);
        assert_eq!(noise, refused(Code::Malformed, Some(Severity::Hostile)));
    }

    #[test]
    fn a_full_store_is_busy_for_work_and_open_for_relief() {
        let (gate, blobs) = gate(1000);
        blobs.put(Bytes::from(vec![0; 950]));
        assert_eq!(gate.admit(FROM, Lane::Activation, &forward(0), 128), refused(Code::Busy, None));
        let id = MicroBatchId { feeder: FROM, incarnation: 1, step: 0, index: 0 };
        let labels = Frame::Flow(flow::Frame::Labels(id)).encode();
        assert_eq!(gate.admit(FROM, Lane::Activation, &labels, 128), Verdict::Take);
    }

    #[test]
    fn a_stranger_waits_until_its_hello_and_nobody_is_heard_before_the_manifest() {
        let (gate, blobs) = gate(1 << 30);
        let chunk = Frame::State(state::Frame::Chunk(state::Chunk { request: 1, index: 0 })).encode();
        assert_eq!(gate.admit(FROM, Lane::Bulk, &chunk, CHUNK), Verdict::Take);
        gate.lost(FROM);
        assert_eq!(gate.admit(FROM, Lane::Bulk, &chunk, CHUNK), refused(Code::Busy, None));
        let closed = Gate::new(blobs);
        assert_eq!(closed.admit(FROM, Lane::Bulk, &chunk, 1), refused(Code::NotWanted, None));
    }
}
