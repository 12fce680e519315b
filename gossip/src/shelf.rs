//! Items by their keys, and which of them wait to be told on. In: items that were heard. Out: those of a key, an author or a
//! stretch of keys, and those that wait, in order.
//!
//! An item is one place in a sorted list, and is itself shared. What it waits for lies beside it: whoever hears of it again has
//! found its place already.

use std::{ops::Bound, sync::Arc};

use skein_protocol::{
    Instant, PeerId,
    wire::membership::{Heard, ItemKey},
};

use crate::sorted::Sorted;

#[derive(Clone, Debug)]
pub struct Kept {
    pub heard: Arc<Heard>,
    pub expires: Instant,
    pub waits: Option<Waits>,
}

/// Why an item is to be told on: something is new, or its numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    News,
    Numbers,
}

/// An item waits for others to leave with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    pub kind: Kind,
    pub said_by: SaidBy,
}

/// What stands for a neighbour, by its name: who leaves and comes again is the same. None is 0.
pub type Number = u32;

/// What was heard so often while it waited is not told on.
pub const HEARD: usize = 3;

/// Different neighbours who said an item while it waited, the first few: one alone must not silence what others wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaidBy([Number; HEARD]);

impl SaidBy {
    pub fn add(&mut self, neighbour: Number) {
        if !self.has(neighbour)
            && let Some(free) = self.0.iter_mut().find(|number| **number == 0)
        {
            *free = neighbour;
        }
    }

    pub fn has(&self, neighbour: Number) -> bool {
        self.0.contains(&neighbour)
    }

    pub fn is_everywhere(&self) -> bool {
        !self.has(0)
    }
}

/// What a key begins with, in the order of the keys. Offers, of which there are as many as peers, are spread over nearly all
/// numbers, as names are; what is rare lies behind them.
fn start(key: &ItemKey) -> u64 {
    const RARE: u64 = 0xff << 56;
    let name = key.author.start();
    match key.kind {
        0 => name - (name >> 8),
        kind => RARE | u64::from(kind) << 48 | name >> 16,
    }
}

#[derive(Debug, Default)]
pub struct Shelf {
    items: Sorted<Kept>,
    /// How many wait, by [`Kind`].
    waiting: [usize; 2],
}

impl Shelf {
    /// Where the item of a key is, or would be.
    pub fn find(&self, key: &ItemKey) -> Result<usize, usize> {
        self.items.find(start(key), |kept| kept.heard.key().cmp(key))
    }

    pub fn len(&self) -> usize {
        self.items.items().len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, key: &ItemKey) -> Option<&Kept> {
        self.find(key).ok().map(|place| self.at(place))
    }

    pub fn at(&self, place: usize) -> &Kept {
        &self.items.items()[place]
    }

    /// In the place of an older one of the same key, where [`Self::find`] found it.
    pub fn put(&mut self, place: Result<usize, usize>, kept: Kept) {
        if let Some(waits) = kept.waits {
            self.waiting[waits.kind as usize] += 1;
        }
        let before = self.items.put(place, start(&kept.heard.key()), kept);
        self.waits_no_more(before.as_ref());
    }

    pub fn remove(&mut self, key: &ItemKey) -> Option<Kept> {
        let removed = self.find(key).ok().map(|at| self.items.remove(at));
        self.waits_no_more(removed.as_ref());
        removed
    }

    fn waits_no_more(&mut self, kept: Option<&Kept>) {
        if let Some(waits) = kept.and_then(|kept| kept.waits) {
            self.waiting[waits.kind as usize] -= 1;
        }
    }

    /// A neighbour said what is at a place. If that waits to be told, the neighbour need not hear it.
    pub fn heard_again(&mut self, place: usize, neighbour: Number) {
        if let Some(waits) = &mut self.items.items_mut()[place].waits {
            waits.said_by.add(neighbour);
        }
    }

    /// How many wait.
    pub fn waiting(&self, kind: Kind) -> usize {
        self.waiting[kind as usize]
    }

    /// The places of all that wait, and who said it meanwhile. They wait no longer.
    pub fn take_waiting(&mut self, kind: Kind) -> Vec<(usize, SaidBy)> {
        let mut waiting = Vec::with_capacity(std::mem::take(&mut self.waiting[kind as usize]));
        for (place, kept) in self.items.items_mut().iter_mut().enumerate() {
            let waits = kept.waits.take_if(|waits| waits.kind == kind);
            waiting.extend(waits.map(|waits| (place, waits.said_by)));
        }
        waiting
    }

    pub fn last_key(&self) -> Option<ItemKey> {
        self.items.items().last().map(|kept| kept.heard.key())
    }

    /// In the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.items.items().iter()
    }

    /// Those behind a key, in order.
    pub fn behind(&self, key: Bound<ItemKey>) -> impl Iterator<Item = &Kept> {
        let from = match key {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.find(&key).unwrap_or_else(|at| at),
            Bound::Excluded(key) => self.find(&key).map_or_else(|at| at, |at| at + 1),
        };
        self.items.items()[from..].iter()
    }

    /// All of one author.
    pub fn of(&self, author: PeerId, kinds: impl Iterator<Item = u8>) -> impl Iterator<Item = &Kept> {
        kinds.flat_map(move |kind| {
            let first = ItemKey { kind, author, subject: 0 };
            let is_of = move |kept: &&Kept| kept.heard.author() == author && kept.heard.key().kind == kind;
            self.behind(Bound::Included(first)).take_while(is_of)
        })
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::{
        Utc, Version,
        hash::Digest,
        key::Signed,
        wire::membership::{Held, Item, Offer, Stamp, What},
    };

    use super::*;

    fn key(kind: u8, author: u64, subject: u16) -> ItemKey {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&author.to_be_bytes());
        ItemKey { kind, author: PeerId(name), subject }
    }

    /// An offer of an author, or what it holds of a stage.
    fn kept(author: u64, of: Option<u16>, waits: Option<Kind>) -> Kept {
        let held = |stage| Held { version: Version { stage, ..Version::default() }, root: Digest([0; 32]), len: 1 };
        let what = of.map_or(What::Offer(Offer::default()), |stage| What::Held(held(stage)));
        let stamp = Stamp { incarnation: 1, sequence: 1 };
        let item = Item { run: Digest([0; 32]), stamp, made_at: Utc(0), life_ms: 1, what };
        let signed = Signed { body: Default::default(), by: key(0, author, 0).author, signature: [0; 64] };
        let waits = waits.map(|kind| Waits { kind, said_by: SaidBy::default() });
        Kept { heard: Arc::new(Heard { signed: Arc::new(signed), item }), expires: Instant::ZERO, waits }
    }

    fn put(shelf: &mut Shelf, kept: Kept) {
        let place = shelf.find(&kept.heard.key());
        shelf.put(place, kept);
    }

    #[test]
    fn beginnings_are_in_the_order_of_the_keys() {
        let authors = [0, 1, 15, 16, 255, 256, 257, 1 << 40, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        let keys: Vec<ItemKey> = [0, 1, 2, 255]
            .into_iter()
            .flat_map(|kind| {
                authors.into_iter().flat_map(move |author| [0, 7].map(|subject| key(kind, author, subject)))
            })
            .collect();
        assert!(keys.is_sorted() && keys.iter().map(start).is_sorted());
    }

    #[test]
    fn several_of_one_author_are_told_apart() {
        let mut shelf = Shelf::default();
        for author in [5, 1, 9] {
            (0..20).rev().for_each(|stage| put(&mut shelf, kept(author, Some(stage), None)));
            put(&mut shelf, kept(author, None, None));
        }
        assert!(shelf.iter().map(|kept| kept.heard.key()).is_sorted());
        assert!((0..20).all(|stage| shelf.get(&key(2, 5, stage)).is_some()) && shelf.get(&key(2, 5, 20)).is_none());
        assert_eq!((shelf.len(), shelf.of(key(0, 5, 0).author, 0..3).count()), (63, 21));
    }

    #[test]
    fn those_that_wait_are_counted_whatever_becomes_of_them() {
        let mut shelf = Shelf::default();
        let count = |shelf: &Shelf| [Kind::News, Kind::Numbers].map(|kind| shelf.waiting(kind));
        put(&mut shelf, kept(1, None, Some(Kind::News)));
        put(&mut shelf, kept(2, None, Some(Kind::Numbers)));
        put(&mut shelf, kept(3, None, None));
        assert_eq!(count(&shelf), [1, 1]);
        put(&mut shelf, kept(1, None, Some(Kind::News)));
        put(&mut shelf, kept(2, None, Some(Kind::News)));
        put(&mut shelf, kept(3, None, Some(Kind::Numbers)));
        assert_eq!(count(&shelf), [2, 1]);
        shelf.remove(&key(0, 2, 0));
        assert_eq!(count(&shelf), [1, 1]);
        shelf.heard_again(0, 4);
        shelf.heard_again(0, 4);
        let told = shelf.take_waiting(Kind::News);
        assert!(told.len() == 1 && told[0].0 == 0 && told[0].1.has(4) && !told[0].1.is_everywhere());
        assert_eq!((count(&shelf), shelf.take_waiting(Kind::News).len()), ([0, 1], 0));
        shelf.heard_again(0, 4);
        assert_eq!(shelf.take_waiting(Kind::Numbers).len(), 1);
        assert_eq!(count(&shelf), [0, 0]);
    }
}
