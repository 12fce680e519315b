//! The first words on a connection, and the manifest for those who only hold an invite.

use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::{
    id::{Incarnation, RunId},
    time::Utc,
};

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Frame {
    /// Who I am in which run. Everything else is refused until it was said.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// I know a run only by its hash.
    #[n(1)]
    WantManifest(#[n(0)] RunId),
    /// The signed manifest, encoded (`SignedManifest`); whoever asked checks hash and signature.
    #[n(2)]
    Manifest(#[n(0)] ByteVec),
    /// I am not in this run.
    #[n(3)]
    Unknown(#[n(0)] RunId),
    /// You were declared dead in this incarnation, and work of yours went to somebody else: drop it and start a new one.
    #[n(4)]
    Fence(#[n(0)] Incarnation),
    /// I leave now, in good order.
    #[n(5)]
    Goodbye,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Hello {
    #[n(0)]
    pub run: RunId,
    #[n(1)]
    pub protocol: u16,
    #[n(2)]
    pub incarnation: Incarnation,
    /// The sender's clock, compared with ours.
    #[n(3)]
    pub utc: Utc,
    /// Reserved for the admission token of an invite, encoded: none is sent, and none is looked at.
    #[n(4)]
    pub token: Option<ByteVec>,
}
