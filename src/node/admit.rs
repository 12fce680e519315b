//! The gate for bodies: asked before a body is read or memory is taken for it. In: a frame's bytes, its lane, the body's length.
//! Out: take it, or why not. It knows how frames travel and how much the blob store may hold, and nothing of the flow.

use std::{
    collections::BTreeSet,
    sync::{PoisonError, RwLock},
};

use skein_protocol::{
    Lane, PeerId,
    event::Severity,
    wire::{Frame, flow, hello, state},
};

use super::{
    blobs::{Blobs, Kind, Room},
    shapes::Shapes,
};
use crate::net::{Admit, Code, Verdict};

/// Until a peer said which run it is in, its bodies are at most this long.
const STRANGER_MAX: u64 = 64 << 10;

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
            Lane::Bulk => Room::Weights,
            _ => Room::Work,
        };
        if stranger || !self.blobs.has_room(len, room) {
            return Err((Code::Busy, None));
        }
        Ok(())
    }
}

/// What the body of a frame counts as while it lies here.
pub fn kind_of(frame: &Frame) -> Kind {
    match frame {
        Frame::State(state::Frame::Chunk(_)) => Kind::Weights,
        _ => Kind::Work,
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
    use std::sync::Arc;

    use bytes::Bytes;
    use skein_protocol::{
        Attempt, MicroBatchId, RunId, Stage, Utc,
        wire::{Starts, flow::Forward, limits::CHUNK},
    };

    use super::*;

    const FROM: PeerId = PeerId([7; 32]);

    fn gate(budget: u64) -> (Gate, Blobs) {
        let blobs = Blobs::new(budget, budget);
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
        let forward = Forward {
            id,
            attempt: Attempt::first(0),
            stage,
            samples: 0,
            close: false,
            hint: None,
            starts: Starts::default(),
            held_out: false,
        };
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
        blobs.put(Bytes::from(vec![0; 950]), Kind::Work);
        assert_eq!(gate.admit(FROM, Lane::Activation, &forward(0), 128), refused(Code::Busy, None));
        let id = MicroBatchId { feeder: FROM, incarnation: 1, step: 0, index: 0 };
        let labels = Frame::Flow(flow::Frame::Labels(id)).encode();
        assert_eq!(gate.admit(FROM, Lane::Activation, &labels, 128), Verdict::Take);
    }

    #[test]
    fn weights_on_their_way_leave_the_room_for_work_and_have_a_limit_of_their_own() {
        let (gate, blobs) = gate(1000);
        let chunk = Frame::State(state::Frame::Chunk(state::Chunk { request: 1, index: 0 }));
        blobs.put(Bytes::from(vec![0; 950]), kind_of(&chunk));
        let chunk = chunk.encode();
        assert_eq!(gate.admit(FROM, Lane::Activation, &forward(0), 128), Verdict::Take);
        assert_eq!(gate.admit(FROM, Lane::Bulk, &chunk, 50), Verdict::Take);
        assert_eq!(gate.admit(FROM, Lane::Bulk, &chunk, 51), refused(Code::Busy, None));
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
