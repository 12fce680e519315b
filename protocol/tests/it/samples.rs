//! One value of every frame, and as many more as a seed gives.

use minicbor::bytes::ByteVec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_protocol::{
    PeerId,
    hash::Digest,
    id::{Attempt, MicroBatchId, Version},
    key::{Key, Signed},
    time::Utc,
    wire::{Frame, average, flow, generate, hello, membership, spread, state},
};

/// Frames there are: [`frame`] takes a number below this.
pub const FRAMES: usize = 39;

pub struct Draw(ChaCha8Rng);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(ChaCha8Rng::seed_from_u64(seed))
    }

    fn u64(&mut self) -> u64 {
        // Numbers of every length, since CBOR writes them in 1 to 9 bytes.
        let bits = self.0.random_range(0..=64u32);
        if bits == 0 { 0 } else { self.0.random::<u64>() >> (64 - bits) }
    }

    fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    fn u16(&mut self) -> u16 {
        self.u64() as u16
    }

    fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most + 1);
        (0..len).map(|_| self.0.random()).collect()
    }

    fn hash(&mut self) -> [u8; 32] {
        self.0.random()
    }

    fn peer(&mut self) -> PeerId {
        PeerId(self.hash())
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Draw) -> T) -> Option<T> {
        self.0.random_bool(0.5).then(|| make(self))
    }

    fn list<T>(&mut self, most: usize, make: impl Fn(&mut Draw) -> T) -> Vec<T> {
        let len = self.below(most + 1);
        (0..len).map(|_| make(self)).collect()
    }

    pub fn id(&mut self) -> MicroBatchId {
        MicroBatchId { feeder: self.peer(), incarnation: self.u32(), step: self.u32(), index: self.u16() }
    }

    fn attempt(&mut self) -> Attempt {
        let first = Attempt::first(self.below(256) as u8);
        (0..self.below(6)).fold(first, |attempt, _| attempt.hop(self.below(256) as u8))
    }

    fn version(&mut self) -> Version {
        Version {
            stage: self.u16(),
            peer: self.peer(),
            incarnation: self.u32(),
            round: self.u32(),
            own_step: self.u32(),
        }
    }

    fn about(&mut self) -> flow::About {
        flow::About { id: self.id(), attempt: self.attempt(), stage: self.u16() }
    }

    fn accepted(&mut self) -> flow::Accepted {
        let next = self.maybe(Draw::peer);
        flow::Accepted { id: self.id(), attempt: self.attempt(), stage: self.u16(), next }
    }

    fn returned(&mut self) -> flow::Returned {
        let hop = |draw: &mut Draw| flow::Hop { stage: draw.u16(), peer: draw.peer(), incarnation: draw.u32() };
        flow::Returned {
            id: self.id(),
            attempt: self.attempt(),
            stage: self.u16(),
            path: self.list(4, hop),
            loss: self.u32() as f32 / 1000.0,
            tokens: self.u32(),
            waited_us: self.u64(),
        }
    }

    fn name(&mut self) -> average::Name {
        average::Name { stage: self.u16(), session: self.u64() }
    }

    fn terms(&mut self) -> average::Terms {
        average::Terms { name: self.name(), round: self.u32(), samples: self.u64(), own_round: self.u32() }
    }

    fn session(&mut self) -> generate::Session {
        generate::Session { asker: self.peer(), number: self.u64(), position: self.u32() }
    }

    fn is(&mut self) -> state::Is {
        state::Is { request: self.u64(), version: self.version(), len: self.u64(), root: Digest(self.hash()) }
    }

    fn item_key(&mut self) -> membership::ItemKey {
        membership::ItemKey { kind: self.below(3) as u8, author: self.peer(), subject: self.u16() }
    }

    fn stamp(&mut self) -> membership::Stamp {
        membership::Stamp { incarnation: self.u32(), sequence: self.u32() }
    }

    pub fn item(&mut self) -> membership::Item {
        let what = match self.below(3) {
            0 => {
                let states = [membership::State::Joining, membership::State::Serving, membership::State::Draining];
                let stage = |draw: &mut Draw| membership::StageOffer {
                    stage: draw.u16(),
                    state: states[draw.below(3)],
                    round: draw.u32(),
                    own_step: draw.u32(),
                    speed_milli: draw.u64(),
                    carries_milli: draw.u64(),
                };
                let address = |draw: &mut Draw| format!("/ip4/192.0.2.{}/udp/4747/quic-v1", draw.below(256));
                membership::What::Offer(membership::Offer {
                    stages: self.list(4, stage),
                    addresses: self.list(membership::ADDRESSES_MAX, address),
                    disk: self.u64(),
                })
            }
            1 => membership::What::Progress(membership::Progress {
                low: self.u64(),
                above: self.bytes(40).into(),
                samples: self.u64(),
                loss_milli: self.maybe(Draw::u64),
                held_out_milli: self.maybe(Draw::u64),
                open: self.u32(),
            }),
            _ => membership::What::Held(membership::Held {
                version: self.version(),
                root: Digest(self.hash()),
                len: self.u64(),
            }),
        };
        membership::Item {
            run: Digest(self.hash()),
            stamp: self.stamp(),
            made_at: Utc(self.u64() >> 1),
            life_ms: self.u32(),
            what,
        }
    }

    pub fn signed(&mut self) -> Signed {
        let key = Key::from_secret(self.hash());
        self.item().sign(&key)
    }
}

/// The `n`-th kind of frame with contents of `draw`.
pub fn frame(n: usize, draw: &mut Draw) -> Frame {
    let bytes = |draw: &mut Draw| ByteVec::from(draw.bytes(60));
    match n {
        0 => Frame::Hello(hello::Frame::Hello(hello::Hello {
            run: Digest(draw.hash()),
            protocol: draw.u16(),
            incarnation: draw.u32(),
            utc: Utc(draw.u64() >> 1),
            token: draw.maybe(bytes),
        })),
        1 => Frame::Hello(hello::Frame::WantManifest(Digest(draw.hash()))),
        2 => Frame::Hello(hello::Frame::Manifest(bytes(draw))),
        3 => Frame::Hello(hello::Frame::Unknown(Digest(draw.hash()))),
        4 => Frame::Hello(hello::Frame::Fence(draw.u32())),
        5 => Frame::Hello(hello::Frame::Goodbye),
        6 => Frame::Spread(spread::Frame::Items(spread::Items { items: draw.list(2, |draw| draw.signed().into()) })),
        7 => {
            let entry = |draw: &mut Draw| spread::Entry { key: draw.item_key(), stamp: draw.stamp() };
            let entries = vec![entry(draw), entry(draw)];
            let (after, until) = (draw.maybe(Draw::item_key), draw.maybe(Draw::item_key));
            Frame::Spread(spread::Frame::Digest(spread::Digest { entries, after, until }))
        }
        8 => Frame::Spread(spread::Frame::Want(spread::Want { keys: draw.list(5, Draw::item_key) })),
        9 => Frame::Flow(flow::Frame::Forward(flow::Forward {
            id: draw.id(),
            attempt: draw.attempt(),
            stage: draw.u16(),
            samples: draw.u64(),
            close: draw.below(2) == 1,
            held_out: draw.below(2) == 1,
            hint: draw.maybe(Draw::peer),
            starts: draw.maybe(|draw| draw.list(5, Draw::u32)).unwrap_or_default().into(),
        })),
        10 => Frame::Flow(flow::Frame::Accepted(draw.accepted())),
        11 => Frame::Flow(flow::Frame::Confirmed(draw.accepted())),
        12 => {
            use flow::Why::{Busy, NotFinite, NotServing, Over, Superseded, Unknown};
            let whys = [Busy, NotServing, Superseded, Over, Unknown, NotFinite];
            let flow::About { id, attempt, stage } = draw.about();
            Frame::Flow(flow::Frame::Declined(flow::Declined { id, attempt, stage, why: whys[draw.below(6)] }))
        }
        13 => Frame::Flow(flow::Frame::Cancel(draw.about())),
        14 => Frame::Flow(flow::Frame::WantLabels(draw.id())),
        15 => Frame::Flow(flow::Frame::Labels(draw.id())),
        16 => Frame::Flow(flow::Frame::Backward(draw.returned())),
        17 => Frame::Flow(flow::Frame::Finished(draw.returned())),
        18 => Frame::Flow(flow::Frame::Ask(draw.about())),
        19 => Frame::Flow(flow::Frame::Void(flow::Void { id: draw.id(), stage: draw.u16() })),
        20 => Frame::Average(average::Frame::Propose(draw.terms())),
        21 => Frame::Average(average::Frame::Agree(draw.terms())),
        22 => Frame::Average(average::Frame::Busy(draw.name())),
        23 => Frame::Average(average::Frame::Tensors(draw.terms())),
        24 => Frame::Average(average::Frame::Ready(draw.name())),
        25 => Frame::Average(average::Frame::Adopted(draw.name())),
        26 => Frame::Average(average::Frame::Abort(draw.name())),
        27 => {
            let purposes = [state::Purpose::Serve, state::Purpose::Export];
            Frame::State(state::Frame::Want(state::Want {
                request: draw.u64(),
                stage: draw.u16(),
                purpose: purposes[draw.below(2)],
                version: draw.maybe(Draw::version),
            }))
        }
        28 => Frame::State(state::Frame::Is(draw.is())),
        29 => Frame::State(state::Frame::WantChunk(state::Chunk { request: draw.u64(), index: draw.u32() })),
        30 => Frame::State(state::Frame::Chunk(state::Chunk { request: draw.u64(), index: draw.u32() })),
        31 => Frame::State(state::Frame::None(draw.u64())),
        32 => Frame::State(state::Frame::Thanks(draw.u64())),
        33 => Frame::State(state::Frame::Keep(draw.is())),
        34 => Frame::Generate(generate::Frame::Infer(generate::Infer {
            session: draw.session(),
            stage: draw.u16(),
            route: draw.list(4, Draw::peer),
        })),
        35 => Frame::Generate(generate::Frame::Logits(draw.session())),
        36 => Frame::Generate(generate::Frame::Lost(draw.session())),
        37 => Frame::Generate(generate::Frame::Close(draw.session())),
        _ => Frame::State(state::Frame::WantBlob(state::WantBlob { request: draw.u64(), blob: Digest(draw.hash()) })),
    }
}

/// The `Flow Forward` of a seed, of a micro-batch whose records begin at these places.
pub fn packed(seed: u64, places: Vec<u32>) -> Frame {
    let Frame::Flow(flow::Frame::Forward(forward)) = frame(9, &mut Draw::new(seed)) else {
        unreachable!("9 is a forward")
    };
    Frame::Flow(flow::Frame::Forward(flow::Forward { starts: places.into(), held_out: false, ..forward }))
}
