//! Weights of a stage from one peer to another: to a joiner that asks, or to a keeper that is asked to hold a snapshot.

use minicbor::{Decode, Encode};

use crate::{
    hash::Digest,
    id::{Stage, Version},
};

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Frame {
    /// Give me the state of this stage. `request` is mine and comes back in every answer.
    #[n(0)]
    Want(#[n(0)] Want),
    #[n(1)]
    Is(#[n(0)] Is),
    #[n(2)]
    WantChunk(#[n(0)] Chunk),
    /// Body: bytes `index * CHUNK ..` of the state.
    #[n(3)]
    Chunk(#[n(0)] Chunk),
    /// I have none, or no longer that one.
    #[n(4)]
    None(#[n(0)] u64),
    /// I have all of it: release what you hold for me.
    #[n(5)]
    Thanks(#[n(0)] u64),
    /// Would you hold a snapshot? Answered by `Want` with its version, or by `None`.
    #[n(6)]
    Keep(#[n(0)] Is),
    /// Give me what the manifest names by this hash: the frozen weights of a stage, a tokenizer. Answered as `Want`, with the hash
    /// as root.
    #[n(7)]
    WantBlob(#[n(0)] WantBlob),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Purpose {
    /// Everything a replica needs to serve: parameters, slow weights, momenta, optimizer state, counters.
    #[n(0)]
    Serve,
    /// Parameters (theta) only, for an export.
    #[n(1)]
    Export,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Want {
    #[n(0)]
    pub request: u64,
    #[n(1)]
    pub stage: Stage,
    #[n(2)]
    pub purpose: Purpose,
    /// This version and no other (a held snapshot); nothing: the newest.
    #[n(3)]
    pub version: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct WantBlob {
    #[n(0)]
    pub request: u64,
    #[n(1)]
    pub blob: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Is {
    #[n(0)]
    pub request: u64,
    #[n(1)]
    pub version: Version,
    #[n(2)]
    pub len: u64,
    /// Its last 32 bytes: the hash of all before them. Of a blob: its hash.
    #[n(3)]
    pub root: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Chunk {
    #[n(0)]
    pub request: u64,
    #[n(1)]
    pub index: u32,
}
