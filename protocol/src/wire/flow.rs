//! One micro-batch on its way through the stages and back.
//!
//! The *holder* of an id (its feeder, or the replica of the stage before) offers it to a replica of the next stage; that one
//! accepts and names its own next hop; the holder confirms, and only then does the replica send on. See `architecture.md` 5.

use minicbor::{Decode, Encode};

use super::{
    Starts,
    limits::{self, STAGES_MAX, STARTS_MAX},
};
use crate::{
    id::{Attempt, Incarnation, MicroBatchId, PeerId, Stage},
    unset,
};

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Frame {
    /// Body: token ids (u32, little endian) to stage 0, encoded activations to the others.
    #[n(0)]
    Forward(#[n(0)] Forward),
    /// I hold it, and `next` is where I will send it; nothing for the last stage, or while nobody serves the next one.
    #[n(1)]
    Accepted(#[n(0)] Accepted),
    /// I know your next hop: send on.
    #[n(2)]
    Confirmed(#[n(0)] Accepted),
    /// Not taken; nothing is kept.
    #[n(3)]
    Declined(#[n(0)] Declined),
    /// Drop it unless it is confirmed: it went to somebody else.
    #[n(4)]
    Cancel(#[n(0)] About),
    /// The last stage needs the labels of an id; to its feeder.
    #[n(5)]
    WantLabels(#[n(0)] MicroBatchId),
    /// Body: token ids (u32, little endian), one a position.
    #[n(6)]
    Labels(#[n(0)] MicroBatchId),
    /// Body: encoded gradient of the receiver's output.
    #[n(7)]
    Backward(#[n(0)] Returned),
    /// Stage 0 to the feeder: the id is through. No body.
    #[n(8)]
    Finished(#[n(0)] Returned),
    /// Is this still alive with you? Answered by `Accepted`, by the gradient, or by `Declined::Unknown`.
    #[n(9)]
    Ask(#[n(0)] About),
    /// To the feeder: a value in this id is not finite; it cannot be finished.
    #[n(10)]
    Void(#[n(0)] Void),
}

impl Frame {
    /// The id whose activations or gradient the body of this frame is, and the receiver's stage; nothing: it has another body or
    /// none.
    pub fn body_of(&self) -> Option<About> {
        match self {
            Frame::Forward(Forward { id, attempt, stage, .. })
            | Frame::Backward(Returned { id, attempt, stage, .. }) => {
                Some(About { id: *id, attempt: attempt.clone(), stage: *stage })
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Forward {
    #[n(0)]
    pub id: MicroBatchId,
    #[n(1)]
    pub attempt: Attempt,
    /// The receiver's stage.
    #[n(2)]
    pub stage: Stage,
    /// Samples of the whole run that the feeder knew to be completed when it minted the id.
    #[n(3)]
    pub samples: u64,
    /// Last of its step (lock-step: the receiver steps when it has added this one and all before it).
    #[n(4)]
    pub close: bool,
    /// A replica of the stage after the receiver's that may already hold this id: to be tried first.
    #[n(5)]
    pub hint: Option<PeerId>,
    /// Places of tokens in `[micro_batch, sequence]`, each above the one before, at which a record begins other than where its
    /// sequence begins: no token looks back beyond the begin of its record. Empty: each sequence is one record.
    #[n(6)]
    #[cbor(encode_with = "put_starts", decode_with = "take_starts", is_nil = "Starts::is_empty", nil = "no_starts")]
    pub starts: Starts,
    /// Of data that is held out: its loss is told, and its gradient is of weight 0 at every stage.
    #[n(7)]
    #[cbor(with = "unset", has_nil)]
    pub held_out: bool,
}

fn put_starts<Ctx, W: minicbor::encode::Write>(
    starts: &Starts,
    e: &mut minicbor::Encoder<W>,
    ctx: &mut Ctx,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    limits::encode_list(starts.places(), e, ctx)
}

fn take_starts<'b, Ctx>(d: &mut minicbor::Decoder<'b>, ctx: &mut Ctx) -> Result<Starts, minicbor::decode::Error> {
    limits::list::<Ctx, u32, STARTS_MAX>(d, ctx).map(Starts::from)
}

fn no_starts() -> Option<Starts> {
    Some(Starts::default())
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Accepted {
    #[n(0)]
    pub id: MicroBatchId,
    #[n(1)]
    pub attempt: Attempt,
    #[n(2)]
    pub stage: Stage,
    #[n(3)]
    pub next: Option<PeerId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct About {
    #[n(0)]
    pub id: MicroBatchId,
    #[n(1)]
    pub attempt: Attempt,
    #[n(2)]
    pub stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Declined {
    #[n(0)]
    pub id: MicroBatchId,
    #[n(1)]
    pub attempt: Attempt,
    #[n(2)]
    pub stage: Stage,
    #[n(3)]
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Why {
    /// No room now.
    #[n(0)]
    Busy,
    /// I do not serve this stage (any more, or yet).
    #[n(1)]
    NotServing,
    /// A newer attempt of this id is here.
    #[n(2)]
    Superseded,
    /// The id is completed, or its feeder is gone.
    #[n(3)]
    Over,
    /// I know nothing of this id.
    #[n(4)]
    Unknown,
    /// The values are not finite, or absurdly large.
    #[n(5)]
    NotFinite,
}

/// Who computed an id at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[cbor(array)]
pub struct Hop {
    #[n(0)]
    pub stage: Stage,
    #[n(1)]
    pub peer: PeerId,
    #[n(2)]
    pub incarnation: Incarnation,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Returned {
    #[n(0)]
    pub id: MicroBatchId,
    #[n(1)]
    pub attempt: Attempt,
    /// The receiver's stage (0 for the feeder).
    #[n(2)]
    pub stage: Stage,
    /// Who computed it, from the last stage to the sender's.
    #[n(3)]
    #[cbor(encode_with = "limits::encode_list", decode_with = "hops")]
    pub path: Vec<Hop>,
    /// Sum of the loss over `tokens`, nats.
    #[n(4)]
    pub loss: f32,
    #[n(5)]
    pub tokens: u32,
    /// Microseconds that it waited for a worker, at all stages so far.
    #[n(6)]
    pub waited_us: u64,
}

fn hops<'b, Ctx>(d: &mut minicbor::Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<Hop>, minicbor::decode::Error> {
    limits::list::<Ctx, Hop, STAGES_MAX>(d, ctx)
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Void {
    #[n(0)]
    pub id: MicroBatchId,
    #[n(1)]
    pub stage: Stage,
}
