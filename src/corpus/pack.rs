//! Which records stand in a sequence together. In: how long each record of a block is, in the order of an epoch. Out: packs, each
//! a list of stretches that fit into one sequence.
//!
//! First fit: a stretch goes into the first pack that has room for it, or begins one. Only the lengths of a block are looked
//! at, so any pack can be found without the rest of the data.

/// Records that are packed together. Larger blocks fill sequences a little better: first fit leaves a few percent empty as soon
/// as there are a few hundred.
pub(super) const BLOCK: u64 = 1024;

/// How long a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub tokens: u32,
    /// Tokens that are learned: the first token of a record cannot be, as nothing stands before it.
    pub learned: u32,
    /// The first token that is learned.
    pub first: u32,
}

/// `len` tokens of a record, from `from` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub record: u32,
    pub from: u32,
    pub len: u32,
}

impl Size {
    /// Of what is learned or not, token by token; nothing where nothing is learned.
    pub fn of(learned: &[bool]) -> Option<Size> {
        let first = learned.iter().skip(1).position(|learned| *learned)? + 1;
        let count = learned[first..].iter().filter(|learned| **learned).count();
        Some(Size { tokens: learned.len() as u32, learned: count as u32, first: first as u32 })
    }

    /// Whether a sequence that begins with this record reaches anything to learn: the last place of a sequence still learns the
    /// token after it.
    pub fn reaches(&self, sequence: usize) -> bool {
        self.first as usize <= sequence
    }
}

/// The packs of a block. `starts_max`: stretches of one pack, for where they begin is named in each frame of a micro-batch; one
/// stands in each. `splits`: what is longer than a sequence goes on in the next one; otherwise it is cut.
pub(super) fn plan(
    records: impl Iterator<Item = (u32, Size)>,
    sequence: usize,
    starts_max: usize,
    splits: bool,
) -> Vec<Vec<Stretch>> {
    let mut packs: Vec<Vec<Stretch>> = Vec::new();
    let mut room: Vec<u32> = Vec::new();
    for (record, size) in records.filter(|(_, size)| size.reaches(sequence)) {
        for stretch in stretches(record, size, sequence as u32, splits) {
            match room.iter().position(|room| *room >= stretch.len) {
                Some(pack) => {
                    packs[pack].push(stretch);
                    room[pack] -= stretch.len;
                    if packs[pack].len() >= starts_max {
                        room[pack] = 0;
                    }
                }
                None => {
                    packs.push(vec![stretch]);
                    room.push(if starts_max > 1 { sequence as u32 - stretch.len } else { 0 });
                }
            }
        }
    }
    packs
}

/// The last token of a record stands in no stretch of its own: nothing is learned after it.
fn stretches(record: u32, size: Size, sequence: u32, splits: bool) -> impl Iterator<Item = Stretch> {
    let count = if splits { size.tokens.saturating_sub(1).div_ceil(sequence).max(1) } else { 1 };
    (0..count).map(move |i| {
        let from = i * sequence;
        let len = (size.tokens - from).min(sequence);
        Stretch { record, from, len }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(tokens: &[u32]) -> impl Iterator<Item = (u32, Size)> {
        (0..).zip(tokens.iter().map(|tokens| Size { tokens: *tokens, learned: tokens - 1, first: 1 }))
    }

    fn lens(tokens: &[u32], splits: bool) -> Vec<Vec<u32>> {
        let packs = plan(sizes(tokens), 10, usize::MAX, splits);
        packs.iter().map(|pack| pack.iter().map(|stretch| stretch.len).collect()).collect()
    }

    #[test]
    fn a_stretch_goes_where_it_first_fits() {
        assert_eq!(lens(&[6, 5, 4, 3, 2, 10], false), [vec![6, 4], vec![5, 3, 2], vec![10]]);
    }

    #[test]
    fn a_long_record_is_cut_or_goes_on() {
        assert_eq!(lens(&[25, 4], false), [vec![10], vec![4]]);
        assert_eq!(lens(&[25, 4], true), [vec![10], vec![10], vec![5, 4]]);
        assert_eq!(lens(&[21], true), [vec![10], vec![10]], "its last token is learned and not read");
    }

    #[test]
    fn no_more_stand_together_than_a_frame_names() {
        let packs = |most| plan(sizes(&[2; 5]), 10, most, false).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(packs(5), [5]);
        assert_eq!(packs(2), [2, 2, 1]);
        assert_eq!((packs(1), packs(0)), (vec![1; 5], vec![1; 5]));
    }

    #[test]
    fn what_a_sequence_does_not_reach_stands_in_none() {
        let size = |first| Size { tokens: 30, learned: 5, first };
        assert_eq!(plan([(0, size(11)), (1, size(10))].into_iter(), 10, usize::MAX, false).len(), 1);
        assert_eq!(Size::of(&[true, false, false]), None);
        assert_eq!(Size::of(&[true, false, true, true]), Some(Size { tokens: 4, learned: 2, first: 2 }));
    }
}
