//! Where records begin in the packed sequences of a micro-batch.
//!
//! In: the places that a feeder's packing chose, or that a frame brought. Out: the same for whoever computes the micro-batch, checked
//! against its shape. It knows no record and no attention.

use std::{ops::Range, sync::Arc};

use super::limits::STARTS_MAX;

/// Places of tokens in `[micro_batch, sequence]` at which a record begins within a sequence, ascending. Where a sequence begins, a
/// record does anyway, and is not named. Empty: each sequence is one record. Clones share one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts(Arc<[u32]>);

/// Why places are none of a micro-batch: whoever sent them is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStarts {
    #[error("records begin at {count} places within sequences, more than {limit}")]
    TooMany { count: usize, limit: usize },
    #[error("a record begins at token {at}, after one that begins at {before}")]
    NotAscending { before: u32, at: u32 },
    #[error("a record begins at token {at} of {tokens}")]
    Beyond { at: u32, tokens: usize },
    #[error("a record begins at token {at}, where its sequence does")]
    OfSequence { at: u32 },
}

impl Starts {
    /// Of where records begin in each sequence, as places in that sequence; 0 is no news.
    pub fn of_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>, sequence: usize) -> Self {
        let rows = sequences.into_iter().enumerate();
        let places = rows
            .flat_map(|(row, starts)| starts.iter().filter(|at| **at > 0).map(move |at| (row * sequence) as u32 + at));
        Starts(places.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn places(&self) -> &[u32] {
        &self.0
    }

    /// Of a micro-batch of so many tokens, in sequences of `sequence`.
    ///
    /// # Errors
    /// Places that are not ascending, lie outside, are where a sequence begins, or are more than [`STARTS_MAX`].
    pub fn check(&self, tokens: usize, sequence: usize) -> Result<(), BadStarts> {
        if self.0.len() > STARTS_MAX {
            return Err(BadStarts::TooMany { count: self.0.len(), limit: STARTS_MAX });
        }
        if let Some(pair) = self.0.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(BadStarts::NotAscending { before: pair[0], at: pair[1] });
        }
        for &at in &*self.0 {
            if at as usize >= tokens {
                return Err(BadStarts::Beyond { at, tokens });
            }
            if (at as usize).is_multiple_of(sequence.max(1)) {
                return Err(BadStarts::OfSequence { at });
            }
        }
        Ok(())
    }

    /// Of some whole sequences of the micro-batch, given as their tokens.
    pub fn part(&self, tokens: Range<usize>) -> Self {
        let inside = self.0.iter().filter(|at| tokens.contains(&(**at as usize)));
        Starts(inside.map(|at| at - tokens.start as u32).collect())
    }
}

impl From<Vec<u32>> for Starts {
    fn from(places: Vec<u32>) -> Self {
        Starts(places.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_through_the_sequences_and_their_own_begins_are_not_named() {
        let starts = Starts::of_sequences([&[0, 3, 7][..], &[0], &[0, 1]], 8);
        assert_eq!(starts.places(), [3, 7, 17]);
        assert_eq!(starts.check(24, 8), Ok(()));
        assert_eq!(starts.part(8..24).places(), [9]);
        assert_eq!(starts.part(0..8).places(), [3, 7]);
        assert!(Starts::of_sequences([&[0][..], &[0]], 8).is_empty());
    }

    #[test]
    fn places_that_are_none_are_refused() {
        let check = |places: &[u32]| Starts::from(places.to_vec()).check(24, 8);
        assert_eq!(check(&[1, 9, 23]), Ok(()));
        assert_eq!(check(&[9, 1]), Err(BadStarts::NotAscending { before: 9, at: 1 }));
        assert_eq!(check(&[9, 9]), Err(BadStarts::NotAscending { before: 9, at: 9 }));
        assert_eq!(check(&[9, 24]), Err(BadStarts::Beyond { at: 24, tokens: 24 }));
        assert_eq!(check(&[u32::MAX]), Err(BadStarts::Beyond { at: u32::MAX, tokens: 24 }));
        assert_eq!(check(&[8]), Err(BadStarts::OfSequence { at: 8 }));
        assert_eq!(check(&[0]), Err(BadStarts::OfSequence { at: 0 }));
        let many = Starts::from((1..=STARTS_MAX as u32 + 1).collect::<Vec<_>>());
        assert!(matches!(many.check(1 << 20, 1 << 20), Err(BadStarts::TooMany { .. })));
        assert_eq!(Starts::default().check(0, 0), Ok(()));
    }
}
