//! Text from the live swarm: one replica a stage, pinned for a session, so that cache and weights agree.

use minicbor::{Decode, Encode};

use super::limits::{self, STAGES_MAX};
use crate::id::{PeerId, Stage};

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Frame {
    /// Body: token ids (u32) to stage 0, f32 hidden states to the others. The last stage answers the asker.
    #[n(0)]
    Infer(#[n(0)] Infer),
    /// Body: f32 logits of the last position.
    #[n(1)]
    Logits(#[n(0)] Session),
    /// This session cannot go on here: its cache is gone, or the stage is not served.
    #[n(2)]
    Lost(#[n(0)] Session),
    /// The session is over: drop its cache.
    #[n(3)]
    Close(#[n(0)] Session),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct Session {
    #[n(0)]
    pub asker: PeerId,
    #[n(1)]
    pub number: u64,
    /// Position of the first token of this piece.
    #[n(2)]
    pub position: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Infer {
    #[n(0)]
    pub session: Session,
    #[n(1)]
    pub stage: Stage,
    /// One replica a stage, from stage 0.
    #[n(2)]
    #[cbor(encode_with = "limits::encode_list", decode_with = "peers")]
    pub route: Vec<PeerId>,
}

fn peers<'b, Ctx>(d: &mut minicbor::Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<PeerId>, minicbor::decode::Error> {
    limits::list::<Ctx, PeerId, STAGES_MAX>(d, ctx)
}
