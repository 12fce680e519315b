//! Signed items that peers pass on for each other: offers, progress of feeders, held snapshots.
//!
//! An item says when it was made and how long it lives; of one (kind, author, subject) the highest (incarnation, sequence) is true.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use minicbor::{Decode, Encode, bytes::ByteVec};

use super::limits::{self, STAGES_MAX};
use crate::{
    hash::Digest,
    id::{Incarnation, PeerId, RunId, Stage, Version},
    key::{Key, Signed},
    time::Utc,
};

/// Domain of an item's signature.
pub const ITEM: &str = "skein item 1";
/// Bytes of one encoded item.
pub const ITEM_MAX: usize = 6 << 10;
/// Addresses in an offer, and bytes of each.
pub const ADDRESSES_MAX: usize = 8;
pub const ADDRESS_MAX: usize = 256;
/// Bytes of a progress bitmap.
pub const BITMAP_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Item {
    #[n(0)]
    pub run: RunId,
    #[n(1)]
    pub stamp: Stamp,
    #[n(2)]
    pub made_at: Utc,
    #[n(3)]
    pub life_ms: u32,
    #[n(4)]
    pub what: What,
}

/// Which of two items about the same is the newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct Stamp {
    #[n(0)]
    pub incarnation: Incarnation,
    #[n(1)]
    pub sequence: u32,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum What {
    #[n(0)]
    Offer(#[n(0)] Offer),
    #[n(1)]
    Progress(#[n(0)] Progress),
    #[n(2)]
    Held(#[n(0)] Held),
}

/// What an item is about: one author has one offer, one progress, and one held snapshot a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct ItemKey {
    #[n(0)]
    pub kind: u8,
    #[n(1)]
    pub author: PeerId,
    #[n(2)]
    pub subject: u16,
}

/// What a replica serves, how fast, and where it is reached.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Offer {
    #[n(0)]
    #[cbor(encode_with = "limits::encode_list", decode_with = "stage_offers")]
    pub stages: Vec<StageOffer>,
    /// Multiaddr text.
    #[n(1)]
    #[cbor(encode_with = "limits::encode_list", decode_with = "address_list")]
    pub addresses: Vec<String>,
    /// Bytes of disk left for snapshots of others.
    #[n(2)]
    pub disk: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct StageOffer {
    #[n(0)]
    pub stage: Stage,
    #[n(1)]
    pub state: State,
    #[n(2)]
    pub round: u32,
    #[n(3)]
    pub own_step: u32,
    /// Thousandths of a micro-batch a second of busy time; 0 = not measured yet.
    #[n(4)]
    pub speed_milli: u64,
    /// The same of what its uplink carries; 0 = not known.
    #[n(5)]
    pub carries_milli: u64,
}

impl Offer {
    /// The stages that it serves, each with its pace: device and uplink are there for all of them, alike.
    pub fn paces(&self) -> impl Iterator<Item = (Stage, f64)> {
        let serving = self.stages.iter().filter(|of| of.state == State::Serving);
        let count = serving.clone().count() as f64;
        serving.map(move |of| (of.stage, of.pace() / count))
    }
}

impl StageOffer {
    /// Micro-batches a second of its device; 0 = unknown.
    pub fn speed(&self) -> f64 {
        self.speed_milli as f64 / 1e3
    }

    /// Micro-batches a second that come and go if its peer does nothing else: the least of its device and its uplink; 0 = unknown.
    pub fn pace(&self) -> f64 {
        let milli = if self.carries_milli > 0 { self.speed_milli.min(self.carries_milli) } else { self.speed_milli };
        milli as f64 / 1e3
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum State {
    #[n(0)]
    Joining,
    #[n(1)]
    Serving,
    #[n(2)]
    Draining,
}

/// What a feeder has behind it. All ids below `low` are over, and so are the set bits above it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Progress {
    #[n(0)]
    pub low: u64,
    #[n(1)]
    pub above: ByteVec,
    /// Samples completed by this feeder since the run began: it only grows.
    #[n(2)]
    pub samples: u64,
    /// Thousandths of a nat, smoothed; nothing before the first.
    #[n(3)]
    pub loss_milli: Option<u64>,
    /// Ids minted and not over.
    #[n(4)]
    pub open: u32,
    /// Of data that is held out, as `loss_milli`.
    #[n(5)]
    pub held_out_milli: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Held {
    #[n(0)]
    pub version: Version,
    #[n(1)]
    pub root: Digest,
    #[n(2)]
    pub len: u64,
}

impl Item {
    pub fn key(&self, author: PeerId) -> ItemKey {
        let (kind, subject) = match &self.what {
            What::Offer(_) => (0, 0),
            What::Progress(_) => (1, 0),
            What::Held(held) => (2, held.version.stage),
        };
        ItemKey { kind, author, subject }
    }

    pub fn sign(&self, key: &Key) -> Signed {
        key.sign(ITEM, minicbor::to_vec(self).expect("writing to a Vec cannot fail"))
    }

    /// Reads and verifies an item.
    pub fn open(signed: &Signed) -> Option<Item> {
        Item::peek(signed).filter(|_| signed.verify(ITEM))
    }

    /// Reads an item without verifying it: enough to see that it is nothing new, which costs a thousandth of a signature.
    pub fn peek(signed: &Signed) -> Option<Item> {
        let item: Item = super::exact(&signed.body, ITEM_MAX).ok()?;
        let fits = match &item.what {
            What::Offer(_) | What::Held(_) => true,
            What::Progress(progress) => progress.above.len() <= BITMAP_MAX,
        };
        fits.then_some(item)
    }
}

/// An item that was read, beside the exact bytes that its author signed. All who keep it share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    pub signed: Arc<Signed>,
    pub item: Item,
}

impl Heard {
    /// Reads an item without verifying it.
    pub fn peek(signed: Arc<Signed>) -> Option<Heard> {
        Some(Heard { item: Item::peek(&signed)?, signed })
    }

    pub fn author(&self) -> PeerId {
        self.signed.by
    }

    pub fn key(&self) -> ItemKey {
        self.item.key(self.signed.by)
    }
}

/// Items whose signatures held, for many peers in one process: each would find and read the same, and the arithmetic is most of
/// their work. Without a memory (the default) every signature is checked.
#[derive(Clone, Debug, Default)]
pub struct Seals(Option<Arc<Mutex<BySignature>>>);

/// By the beginning of the signature: of two that begin alike the later one is remembered.
type BySignature = BTreeMap<u64, Arc<Heard>>;

/// Items that are remembered.
const SEALS: usize = 1 << 14;

impl Seals {
    /// What one peer checked, those with a copy of this need not.
    pub fn remembered() -> Self {
        Seals(Some(Arc::default()))
    }

    /// What was read of exactly these bytes when their signature was found to hold.
    pub fn known(&self, signed: &Signed) -> Option<Arc<Heard>> {
        let known = self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |heard: &&Arc<Heard>| std::ptr::eq(&*heard.signed, signed) || *heard.signed == *signed;
        known.get(&start(signed)).filter(is_it).cloned()
    }

    /// The signature of an item holds.
    pub fn remember(&self, heard: &Arc<Heard>) {
        let Some(known) = &self.0 else { return };
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SEALS {
            known.clear();
        }
        known.insert(start(&heard.signed), heard.clone());
    }
}

fn start(signed: &Signed) -> u64 {
    u64::from_be_bytes(*signed.signature.first_chunk().expect("a signature is longer"))
}

fn stage_offers<'b, Ctx>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut Ctx,
) -> Result<Vec<StageOffer>, minicbor::decode::Error> {
    limits::list::<Ctx, StageOffer, STAGES_MAX>(d, ctx)
}

fn address_list<'b, Ctx>(d: &mut minicbor::Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<String>, minicbor::decode::Error> {
    let list = limits::list::<Ctx, &str, ADDRESSES_MAX>(d, ctx)?;
    if list.iter().any(|address| address.len() > ADDRESS_MAX) {
        return Err(minicbor::decode::Error::message("an address of more than 256 bytes"));
    }
    Ok(list.into_iter().map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_read_only_with_its_authors_signature() {
        let key = Key::from_secret([1; 32]);
        let item = Item {
            run: Digest([2; 32]),
            stamp: Stamp { incarnation: 1, sequence: 2 },
            made_at: Utc(3),
            life_ms: 4,
            what: What::Offer(Offer { stages: vec![], addresses: vec!["/ip4/127.0.0.1".into()], disk: 5 }),
        };
        let signed = item.sign(&key);
        assert_eq!(Item::open(&signed), Some(item));
        let mut forged = signed;
        forged.by = Key::from_secret([2; 32]).peer();
        assert_eq!(Item::open(&forged), None);
    }

    #[test]
    fn a_peer_has_a_part_of_its_pace_for_each_stage_that_it_serves() {
        let of = |stage, state, speed_milli, carries_milli| StageOffer {
            stage,
            state,
            round: 0,
            own_step: 0,
            speed_milli,
            carries_milli,
        };
        let stages = vec![
            of(0, State::Serving, 4000, 0),
            of(1, State::Joining, 0, 0),
            of(2, State::Serving, 3000, 1000),
            of(3, State::Draining, 8000, 0),
        ];
        let offer = Offer { stages, ..Offer::default() };
        assert_eq!(offer.paces().collect::<Vec<_>>(), [(0, 2.0), (2, 0.5)]);
        assert_eq!(Offer::default().paces().count(), 0);
    }

    #[test]
    fn what_is_remembered_holds_for_nothing_else() {
        let seals = Seals::remembered();
        let key = Key::from_secret([1; 32]);
        let what = What::Offer(Offer::default());
        let item = Item { run: Digest([2; 32]), stamp: Stamp::default(), made_at: Utc(3), life_ms: 4, what };
        let signed = Arc::new(item.sign(&key));
        assert_eq!(seals.known(&signed), None);
        let heard = Arc::new(Heard::peek(signed.clone()).unwrap());
        seals.remember(&heard);
        assert_eq!(seals.known(&signed), Some(heard));
        let mut other = Signed::clone(&signed);
        other.body = b"another body".to_vec().into();
        assert_eq!(seals.known(&other), None);
    }
}
