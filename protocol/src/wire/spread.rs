//! Passing signed items on: what I have, what I want, the items.

use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::{
    limits,
    membership::{ItemKey, Stamp},
};
use crate::key::Signed;

/// Entries of one digest, and keys of one want.
pub const KEYS_MAX: usize = 512;
/// Items of one frame.
pub const ITEMS_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Frame {
    /// Items are pushed when they are new, and sent when they are wanted.
    #[n(0)]
    Items(#[n(0)] Items),
    /// All that I have between two keys; whoever has newer or other there sends it, whoever has older asks.
    #[n(1)]
    Digest(#[n(0)] Digest),
    #[n(2)]
    Want(#[n(0)] Want),
}

impl Frame {
    /// About as many bytes as it takes.
    pub(super) fn about_bytes(&self) -> usize {
        let of_list = match self {
            Frame::Items(items) => items.items.iter().map(|item| item.body.len() + 112).sum(),
            Frame::Digest(digest) => digest.entries.len() * 52 + 96,
            Frame::Want(want) => want.keys.len() * 44,
        };
        of_list + 32
    }
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Items {
    /// Shared by all copies: an item is kept, sent and sent on.
    #[n(0)]
    #[cbor(encode_with = "encode_items", decode_with = "items_list")]
    pub items: Vec<Arc<Signed>>,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Digest {
    #[n(0)]
    #[cbor(encode_with = "limits::encode_list", decode_with = "entries_list")]
    pub entries: Vec<Entry>,
    /// The entries tell of keys above this one; nothing: from the first. What lies outside is not missing.
    #[n(1)]
    pub after: Option<ItemKey>,
    /// The greatest key that the entries tell of; nothing: to the last.
    #[n(2)]
    pub until: Option<ItemKey>,
}

impl Digest {
    /// Whether an item of `key` would be among the entries if the sender had it.
    pub fn tells_of(&self, key: &ItemKey) -> bool {
        self.after.is_none_or(|after| after < *key) && self.until.is_none_or(|until| *key <= until)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Entry {
    #[n(0)]
    pub key: ItemKey,
    #[n(1)]
    pub stamp: Stamp,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Want {
    #[n(0)]
    #[cbor(encode_with = "limits::encode_list", decode_with = "keys_list")]
    pub keys: Vec<ItemKey>,
}

fn encode_items<Ctx, W: minicbor::encode::Write>(
    items: &[Arc<Signed>],
    e: &mut minicbor::Encoder<W>,
    ctx: &mut Ctx,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    e.array(items.len() as u64)?;
    items.iter().try_for_each(|item| item.as_ref().encode(e, ctx))
}

fn items_list<'b, Ctx>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut Ctx,
) -> Result<Vec<Arc<Signed>>, minicbor::decode::Error> {
    Ok(limits::list::<Ctx, Signed, ITEMS_MAX>(d, ctx)?.into_iter().map(Arc::new).collect())
}

fn entries_list<'b, Ctx>(d: &mut minicbor::Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<Entry>, minicbor::decode::Error> {
    limits::list::<Ctx, Entry, KEYS_MAX>(d, ctx)
}

fn keys_list<'b, Ctx>(d: &mut minicbor::Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<ItemKey>, minicbor::decode::Error> {
    limits::list::<Ctx, ItemKey, KEYS_MAX>(d, ctx)
}
