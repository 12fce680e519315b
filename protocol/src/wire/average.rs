//! One averaging round between two replicas of a stage: agree, exchange, acknowledge, adopt.

use minicbor::{Decode, Encode};

use crate::id::Stage;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Frame {
    #[n(0)]
    Propose(#[n(0)] Terms),
    /// `round` is now the round that both will be at: the greater of both, plus one.
    #[n(1)]
    Agree(#[n(0)] Terms),
    /// In a round already, or not able to.
    #[n(2)]
    Busy(#[n(0)] Name),
    /// Body: the sender's differences and slow weights, encoded.
    #[n(3)]
    Tensors(#[n(0)] Terms),
    /// I have yours, and computed the result: adopt when you have, too.
    #[n(4)]
    Ready(#[n(0)] Name),
    /// I adopted.
    #[n(5)]
    Adopted(#[n(0)] Name),
    /// I rolled back.
    #[n(6)]
    Abort(#[n(0)] Name),
}

/// One attempt at a round. `session` is the proposer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Name {
    #[n(0)]
    pub stage: Stage,
    #[n(1)]
    pub session: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Terms {
    #[n(0)]
    pub name: Name,
    /// The sender's round (`Propose`), or the agreed one.
    #[n(1)]
    pub round: u32,
    /// Samples in the sender's difference.
    #[n(2)]
    pub samples: u64,
    /// The sender's own round before this one.
    #[n(3)]
    pub own_round: u32,
}
