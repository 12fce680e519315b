//! Items by their keys. In: items that were heard. Out: those of a key, an author or a stretch of keys, in order.
//!
//! An item is one place in a sorted list, and is itself shared.

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
}

/// The beginning of a key, in its order.
fn start(key: &ItemKey) -> u64 {
    let mut bytes = [0; 8];
    bytes[0] = key.kind;
    bytes[1..].copy_from_slice(&key.author.0[..7]);
    u64::from_be_bytes(bytes)
}

#[derive(Debug, Default)]
pub struct Shelf {
    items: Sorted<Kept>,
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
        self.items.put(place, start(&kept.heard.key()), kept);
    }

    pub fn remove(&mut self, key: &ItemKey) -> Option<Kept> {
        self.find(key).ok().map(|at| self.items.remove(at))
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
