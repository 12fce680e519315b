//! Items by their keys. In: items that were heard. Out: those of a key, an author or a stretch of keys, in order.
//!
//! Everybody keeps what everybody says, so what one item takes counts: it is one place in a sorted list, and the item itself is
//! shared.

use std::{cmp::Ordering, ops::Bound, sync::Arc};

use skein_protocol::{
    Instant, PeerId,
    wire::membership::{Heard, ItemKey},
};

#[derive(Clone, Debug)]
pub struct Kept {
    /// The beginning of the key, in its order: few searches have to look at the items.
    start: u64,
    pub heard: Arc<Heard>,
    pub expires: Instant,
}

impl Kept {
    pub fn new(heard: Arc<Heard>, expires: Instant) -> Self {
        Kept { start: start(&heard.key()), heard, expires }
    }
}

fn start(key: &ItemKey) -> u64 {
    let mut bytes = [0; 8];
    bytes[0] = key.kind;
    bytes[1..].copy_from_slice(&key.author.0[..7]);
    u64::from_be_bytes(bytes)
}

#[derive(Debug, Default)]
pub struct Shelf {
    items: Vec<Kept>,
}

impl Shelf {
    /// Where the item of a key is, or would be.
    pub fn find(&self, key: &ItemKey) -> Result<usize, usize> {
        // Hardly ever do two begin alike, but for what one author holds.
        let start = start(key);
        let mut place = self.items.partition_point(|kept| kept.start < start);
        while let Some(kept) = self.items.get(place).filter(|kept| kept.start == start) {
            match kept.heard.key().cmp(key) {
                Ordering::Less => place += 1,
                Ordering::Equal => return Ok(place),
                Ordering::Greater => break,
            }
        }
        Err(place)
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn get(&self, key: &ItemKey) -> Option<&Kept> {
        self.find(key).ok().map(|at| &self.items[at])
    }

    pub fn at(&self, place: usize) -> &Kept {
        &self.items[place]
    }

    /// In the place of an older one of the same key, where [`Self::find`] found it.
    pub fn put(&mut self, place: Result<usize, usize>, kept: Kept) {
        match place {
            Ok(at) => self.items[at] = kept,
            Err(at) => {
                // It grows by little: there are as many of these lists as peers.
                if self.items.len() == self.items.capacity() {
                    self.items.reserve_exact(8 + self.items.len() / 8);
                }
                self.items.insert(at, kept);
            }
        }
    }

    pub fn remove(&mut self, key: &ItemKey) -> Option<Kept> {
        self.find(key).ok().map(|at| self.items.remove(at))
    }

    pub fn last_key(&self) -> Option<ItemKey> {
        self.items.last().map(|kept| kept.heard.key())
    }

    /// In the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.items.iter()
    }

    /// Those behind a key, in order.
    pub fn behind(&self, key: Bound<ItemKey>) -> impl Iterator<Item = &Kept> {
        let from = match key {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.find(&key).unwrap_or_else(|at| at),
            Bound::Excluded(key) => self.find(&key).map_or_else(|at| at, |at| at + 1),
        };
        self.items[from..].iter()
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
