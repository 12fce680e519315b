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

/// What stands for a neighbour while it is one; none is 0.
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
/// numbers, as names are; what is rare comes behind them.
fn start(key: &ItemKey) -> u64 {
    const RARE: u64 = 15 << 60;
    let name = key.author.start();
    match key.kind {
        0 => name - (name >> 4),
        kind => RARE | u64::from(kind) << 52 | name >> 12,
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

    /// A neighbour, if it is one, said what is at a place. If that waits to be told, the neighbour need not hear it.
    pub fn heard_again(&mut self, place: usize, neighbour: Option<Number>) {
        if let (Some(waits), Some(neighbour)) = (&mut self.items.items_mut()[place].waits, neighbour) {
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
