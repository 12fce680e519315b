//! What is kept under the name of a peer, in one sorted list. In: the beginning of a name, and how an item compares with what is
//! looked for. Out: where it is.
//!
//! Everybody keeps what everybody says, so what one item takes counts, and what a search reads: beginnings of names lie beside
//! each other, and hardly ever do two begin alike. Names are keys, evenly spread, so a search begins where a name would be, and
//! reads a few beside it.

use std::cmp::Ordering;

/// The first step from there; the next ones double, so that whoever makes up names does not make searches long.
const NEAR: usize = 8;

#[derive(Debug)]
pub struct Sorted<T> {
    starts: Vec<u64>,
    items: Vec<T>,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted { starts: Vec::new(), items: Vec::new() }
    }
}

impl<T> Sorted<T> {
    /// Where the item is that `compare` finds equal, or would be: `start` is the beginning of its key, in the order of the keys.
    pub fn find(&self, start: u64, compare: impl Fn(&T) -> Ordering) -> Result<usize, usize> {
        let mut place = self.first_from(start);
        while self.starts.get(place) == Some(&start) {
            match compare(&self.items[place]) {
                Ordering::Less => place += 1,
                Ordering::Equal => return Ok(place),
                Ordering::Greater => break,
            }
        }
        Err(place)
    }

    /// Where the first beginning is that is not below `start`.
    fn first_from(&self, start: u64) -> usize {
        let starts = &self.starts[..];
        let guess = ((u128::from(start) * starts.len() as u128) >> 64) as usize;
        let (mut low, mut high, mut step) = (0, starts.len(), NEAR);
        if starts.get(guess).is_some_and(|other| *other < start) {
            low = guess + 1;
            while let Some(other) = starts.get(low + step) {
                if *other >= start {
                    high = low + step;
                    break;
                }
                (low, step) = (low + step + 1, step * 2);
            }
        } else {
            high = guess;
            while let Some(before) = high.checked_sub(step) {
                if starts[before] < start {
                    low = before + 1;
                    break;
                }
                (high, step) = (before, step * 2);
            }
        }
        low + starts[low..high].partition_point(|other| *other < start)
    }

    /// In the place of an older one of the same key, which is given back, or where [`Self::find`] found that it belongs.
    pub fn put(&mut self, place: Result<usize, usize>, start: u64, item: T) -> Option<T> {
        match place {
            Ok(at) => Some(std::mem::replace(&mut self.items[at], item)),
            Err(at) => {
                // It grows by little: there are as many of these lists as peers.
                if self.items.len() == self.items.capacity() {
                    let more = 8 + self.items.len() / 8;
                    self.items.reserve_exact(more);
                    self.starts.reserve_exact(more);
                }
                self.items.insert(at, item);
                self.starts.insert(at, start);
                None
            }
        }
    }

    pub fn remove(&mut self, at: usize) -> T {
        self.starts.remove(at);
        self.items.remove(at)
    }

    /// In the order of their keys.
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// The same, to be changed in all but their keys: they are not put in order again.
    pub fn items_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_begin_alike_are_told_apart() {
        let mut sorted = Sorted::default();
        let find = |sorted: &Sorted<(u64, u8)>, key: (u64, u8)| sorted.find(key.0, |item| item.cmp(&key));
        for key in [(5, 2), (1, 0), (5, 1), (9, 0), (5, 3)] {
            let place = find(&sorted, key);
            assert_eq!(sorted.put(place, key.0, key), None);
        }
        assert_eq!(sorted.items(), [(1, 0), (5, 1), (5, 2), (5, 3), (9, 0)]);
        assert_eq!((find(&sorted, (5, 2)), find(&sorted, (5, 0)), find(&sorted, (6, 0))), (Ok(2), Err(1), Err(4)));
        assert_eq!(sorted.put(Ok(2), 5, (5, 2)), Some((5, 2)));
        assert_eq!(sorted.remove(1), (5, 1));
        assert_eq!((find(&sorted, (5, 2)), find(&sorted, (9, 0))), (Ok(1), Ok(3)));
    }

    #[test]
    fn many_that_begin_alike_are_found_from_either_side() {
        let start = |number: u64| (number / 20) << 60;
        let mut sorted = Sorted::default();
        let find = |sorted: &Sorted<u64>, number: u64| sorted.find(start(number), |other| other.cmp(&number));
        for number in 0..60 {
            let place = find(&sorted, number);
            assert_eq!((place, sorted.put(place, start(number), number)), (Err(number as usize), None));
        }
        assert!((0..60).all(|number| find(&sorted, number) == Ok(number as usize)));
    }

    #[test]
    fn names_are_found_however_they_are_spread() {
        let even = (0..300u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let few = (0..3u64).map(|n| n << 62);
        for names in
            [even.collect::<Vec<_>>(), (0..300).collect(), (u64::MAX - 300..=u64::MAX).collect(), few.collect()]
        {
            let mut sorted = Sorted::default();
            for name in &names {
                let place = sorted.find(*name, |other: &u64| other.cmp(name));
                assert_eq!((place.is_err(), sorted.put(place, *name, *name)), (true, None));
            }
            assert!(sorted.items().is_sorted());
            for (place, name) in sorted.items().iter().enumerate() {
                assert_eq!(sorted.find(*name, |other| other.cmp(name)), Ok(place));
            }
            for name in [0, 150, 1 << 32, u64::MAX / 2, u64::MAX] {
                let place = sorted.find(name, |other| other.cmp(&name)).unwrap_or_else(|place| place);
                assert_eq!(place, sorted.items().partition_point(|other| *other < name));
            }
        }
    }
}
