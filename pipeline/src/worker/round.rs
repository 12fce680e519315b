//! What averaging holds beside an engine: slow weights, outer momentum, and the tensors of the round in the air.
//!
//! In: the engine's parameters, the partner's bytes. Out: bytes for the partner, and new parameters when a round is adopted.
//! Nothing changes before `adopt`, so a round can be rolled back at any moment.

use std::ops::Range;

use skein_gossip::kernel::{
    clip::{self, Clipped},
    noloco::{self, Rule, Side},
};
use skein_protocol::{
    codec::{self, BadTensor},
    run::{Averaging, Codec, Robust},
};

use super::{bad, failed};
use crate::job::{Done, RoundPartner};

/// The tensors that a round began with, as the partner sees them.
struct Frozen {
    theta: Vec<f32>,
    /// theta - phi, after its codec.
    d: Vec<f32>,
    /// What its codec loses of that; it stays in theta when the round is adopted, and so is in the next difference.
    kept: Option<Vec<f32>>,
}

struct Prepared {
    phi: Vec<f32>,
    momentum: Vec<f32>,
    /// The partner's phi as it is: my difference is not in it.
    copied: bool,
}

pub struct Rounds {
    phi: Vec<f32>,
    momentum: Vec<f32>,
    frozen: Option<Frozen>,
    prepared: Option<Prepared>,
}

/// The momentum travels only so that both sides can say how far apart the round leaves them; a byte a value is plenty, and so
/// are this many values of it, evenly spread.
const MOMENTUM: Codec = Codec::Int8;
const SAMPLE: usize = 1 << 16;

impl Rounds {
    pub fn fresh(phi: Vec<f32>) -> Self {
        let momentum = vec![0.0; phi.len()];
        Rounds::new(phi, momentum)
    }

    pub fn new(phi: Vec<f32>, momentum: Vec<f32>) -> Self {
        Rounds { phi, momentum, frozen: None, prepared: None }
    }

    /// Slow weights and outer momentum.
    pub fn tensors(&self) -> (&[f32], &[f32]) {
        (&self.phi, &self.momentum)
    }

    /// Freezes `theta` for a round. Returns d in `codec`, phi in f32 and a sample of the momentum: three lengths (u64,
    /// little-endian), then three coded tensors. `fed_back`: what the codec loses of d stays in theta.
    pub fn freeze(&mut self, theta: &[f32], codec: Codec, fed_back: bool) -> Result<Vec<u8>, Done> {
        let d: Vec<f32> = theta.iter().zip(&self.phi).map(|(theta, phi)| theta - phi).collect();
        codec::gate(&d).map_err(|error| Done::NotFinite { why: error.to_string() })?;
        let coded = codec::encode(&d, codec, false);
        // My own difference counts as the partner sees it, so that both compute the same mean.
        let mut kept = None;
        let d = match codec {
            Codec::F32 => d,
            _ => {
                kept = fed_back.then_some(d);
                codec::decode(&coded, theta.len(), &[codec]).map_err(|error| failed(error.to_string()))?
            }
        };
        if let Some(kept) = &mut kept {
            kept.iter_mut().zip(&d).for_each(|(kept, d)| *kept -= d);
        }
        self.frozen = Some(Frozen { theta: theta.to_vec(), d, kept });
        self.prepared = None;
        let momentum = codec::encode(&Sampling::of(self.phi.len()).take(&self.momentum), MOMENTUM, false);
        let phi = codec::encode(&[], Codec::F32, false).len() + 4 * self.phi.len();
        let mut out = Vec::with_capacity(24 + coded.len() + phi + momentum.len());
        [coded.len(), phi, momentum.len()].iter().for_each(|len| out.extend_from_slice(&(*len as u64).to_le_bytes()));
        out.extend_from_slice(&coded);
        append_f32(&self.phi, &mut out);
        out.extend_from_slice(&momentum);
        Ok(out)
    }

    /// Computes what the round would leave here; changes nothing. `blocks` are the stage's, whose sizes are bounded apart.
    pub fn prepare(
        &mut self,
        averaging: &Averaging,
        blocks: &[Range<usize>],
        partner: &RoundPartner,
        tensors: &[u8],
    ) -> Result<Done, Done> {
        let Some(frozen) = &self.frozen else { return Err(failed("no round is open")) };
        let theirs = read_round(tensors, self.phi.len(), averaging.codec).map_err(bad)?;
        let [their_d, their_phi, their_momentum] = theirs;
        let sampling = Sampling::of(self.phi.len());
        let before = noloco::disagreement(&sampling.take(&self.phi), &sampling.take(&their_phi));
        if partner.copy {
            let momentum = vec![0.0; their_phi.len()];
            self.prepared = Some(Prepared { phi: their_phi, momentum, copied: true });
            return Ok(Done::Prepared { before, after: 0.0 });
        }
        let rule = Rule { alpha: averaging.alpha as f32, beta: averaging.beta as f32, gamma: averaging.gamma as f32 };
        let mine = Side { phi: &self.phi, d: &frozen.d, samples: partner.my_samples };
        let theirs = Side { phi: &their_phi, d: &their_d, samples: partner.their_samples };
        // One side's step, with what it accepts of the other.
        let step =
            |own: Side<'_>, other: Side<'_>, own_is_first: bool, mut momentum: Vec<f32>, blocks: &[Range<usize>]| {
                let clipped = match averaging.robust {
                    Robust::Clip => clip::partner(own, other, blocks),
                    Robust::None | Robust::CenteredClip | Robust::Trimmed => None,
                };
                let other = clipped.as_ref().map_or(other, |Clipped { phi, d }| Side { phi, d, ..other });
                let (first, second) = if own_is_first { (own, other) } else { (other, own) };
                let mut phi = vec![0.0; momentum.len()];
                noloco::step(rule, first, second, own_is_first, &mut momentum, &mut phi);
                Prepared { phi, momentum, copied: false }
            };
        let here = step(mine, theirs, partner.first, self.momentum.clone(), blocks);
        codec::gate(&here.phi).map_err(|error| Done::NotFinite { why: error.to_string() })?;
        // What the round leaves there is computed where its momentum is known: enough to say how far apart both are.
        let [my_phi, my_d, phi, d] = [mine.phi, mine.d, theirs.phi, theirs.d].map(|tensor| sampling.take(tensor));
        let mine = Side { phi: &my_phi, d: &my_d, ..mine };
        let theirs = Side { phi: &phi, d: &d, ..theirs };
        let blocks: Vec<_> = blocks.iter().map(|block| sampling.range(block)).collect();
        let there = step(theirs, mine, !partner.first, their_momentum, &blocks);
        let after = noloco::disagreement(&sampling.take(&here.phi), &there.phi);
        self.prepared = Some(here);
        Ok(Done::Prepared { before, after })
    }

    /// Takes the prepared round. Returns the new parameters: what was trained while the round was in the air is kept.
    pub fn adopt(&mut self, theta: &[f32]) -> Result<Vec<f32>, Done> {
        let (Some(frozen), Some(prepared)) = (self.frozen.take(), self.prepared.take()) else {
            return Err(failed("no round is prepared"));
        };
        let since = theta.iter().zip(&frozen.theta).map(|(now, then)| now - then);
        let mut theta: Vec<f32> = prepared.phi.iter().zip(since).map(|(phi, since)| phi + since).collect();
        if let Some(kept) = frozen.kept.filter(|_| !prepared.copied) {
            theta.iter_mut().zip(&kept).for_each(|(theta, kept)| *theta += kept);
        }
        self.phi = prepared.phi;
        self.momentum = prepared.momentum;
        Ok(theta)
    }

    /// Bytes of the round in the air.
    pub fn open_bytes(&self) -> u64 {
        let kept = |frozen: &Frozen| frozen.kept.as_ref().map_or(0, Vec::len);
        let frozen = self.frozen.as_ref().map_or(0, |frozen| frozen.theta.len() + frozen.d.len() + kept(frozen));
        let prepared = self.prepared.as_ref().map_or(0, |prepared| prepared.phi.len() + prepared.momentum.len());
        4 * (frozen + prepared) as u64
    }

    pub fn roll_back(&mut self) {
        self.frozen = None;
        self.prepared = None;
    }

    /// phi <- theta, m <- 0.
    pub fn alone(&mut self, theta: &[f32]) {
        self.phi.copy_from_slice(theta);
        self.momentum.fill(0.0);
        self.roll_back();
    }
}

/// Which values of a tensor are in a sample: every so many, from the first.
#[derive(Clone, Copy)]
struct Sampling {
    every: usize,
}

impl Sampling {
    /// Of tensors of so many values: all of them, up to [`SAMPLE`].
    fn of(values: usize) -> Sampling {
        Sampling { every: values.div_ceil(SAMPLE).max(1) }
    }

    fn len(self, values: usize) -> usize {
        values.div_ceil(self.every)
    }

    fn take(self, tensor: &[f32]) -> Vec<f32> {
        tensor.iter().step_by(self.every).copied().collect()
    }

    /// Where the values of a block lie in the sample.
    fn range(self, block: &Range<usize>) -> Range<usize> {
        self.len(block.start)..self.len(block.end)
    }
}

/// As `codec::encode` in f32, without a copy of its own of what are the most bytes of a round.
fn append_f32(values: &[f32], out: &mut Vec<u8>) {
    out.extend_from_slice(&codec::encode(&[], Codec::F32, false));
    let mut bytes = [0; 4 << 10];
    for piece in values.chunks(1 << 10) {
        let bytes = &mut bytes[..4 * piece.len()];
        bytes.as_chunks_mut::<4>().0.iter_mut().zip(piece).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        out.extend_from_slice(bytes);
    }
}

/// A partner's d (in `codec`) and phi, of `values` numbers each, and a sample of its momentum.
///
/// # Errors
/// Anything but that, to the last byte. No more is allocated than these tensors take, whatever the lengths say.
pub fn read_round(bytes: &[u8], values: usize, codec: Codec) -> Result<[Vec<f32>; 3], BadTensor> {
    let wanted = codec::coded_len_max(values as u64);
    let short = BadTensor::Length { got: bytes.len() as u64, wanted };
    let (lengths, mut rest) = bytes.split_at_checked(24).ok_or(short.clone())?;
    let mut tensors = [const { Vec::new() }; 3];
    let kinds = [(codec, values), (Codec::F32, values), (MOMENTUM, Sampling::of(values).len(values))];
    for ((length, tensor), (codec, values)) in lengths.as_chunks::<8>().0.iter().zip(&mut tensors).zip(kinds) {
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short.clone())?;
        let (coded, left) = rest.split_at_checked(length).ok_or(short.clone())?;
        *tensor = codec::decode(coded, values, &[codec])?;
        rest = left;
    }
    match rest.is_empty() {
        true => Ok(tensors),
        false => Err(short),
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::{Blob, run::preset};

    use super::*;

    /// phi after a round of equal samples with a partner whose weights are `theirs`, mine having moved by 0.1 since the last one.
    fn phi_after(robust: Robust, theirs: f32) -> f32 {
        let averaging = Averaging { robust, codec: Codec::F32, ..preset("demo").expect("a preset").averaging };
        let mut mine = Rounds::fresh(vec![1.0; 64]);
        mine.freeze(&[1.1; 64], averaging.codec, false).unwrap();
        let tensors = Rounds::fresh(vec![1.0; 64]).freeze(&[theirs; 64], averaging.codec, false).unwrap();
        let partner = RoundPartner {
            tensors: Blob { id: 1, len: tensors.len() as u64 },
            my_samples: 10,
            their_samples: 10,
            first: true,
            copy: false,
        };
        mine.prepare(&averaging, &[0..32, 32..64], &partner, &tensors).unwrap();
        mine.adopt(&[1.1; 64]).unwrap()[0]
    }

    /// How far phi is from what it should be after `rounds` that each moved by the same, relative to one such move.
    fn drift(rounds: u32, codec: Codec, fed_back: bool, rolled_back: bool) -> f32 {
        let (robust, demo) = (Robust::None, preset("demo").expect("a preset").averaging);
        let averaging = Averaging { robust, codec, alpha: 0.0, beta: 1.0, ..demo };
        let moved: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut sides = [(); 2].map(|()| Rounds::fresh(vec![0.0; 512]));
        let mut theta = vec![0.0; 512];
        for _ in 0..rounds {
            theta.iter_mut().zip(&moved).for_each(|(theta, moved)| *theta += moved);
            if rolled_back {
                sides.iter_mut().for_each(|side| drop(side.freeze(&theta, codec, fed_back).unwrap()));
                sides.iter_mut().for_each(Rounds::roll_back);
            }
            let bodies = [0, 1].map(|side| sides[side].freeze(&theta, codec, fed_back).unwrap());
            let before = theta.clone();
            for (side, first) in [(0, true), (1, false)] {
                let theirs = &bodies[1 - side];
                let tensors = Blob { id: 1, len: theirs.len() as u64 };
                let partner = RoundPartner { tensors, my_samples: 1, their_samples: 1, first, copy: false };
                sides[side].prepare(&averaging, &[0..256, 256..512], &partner, theirs).unwrap();
                theta = sides[side].adopt(&before).unwrap();
            }
        }
        let size = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let off = size(&mut sides[0].phi.iter().zip(&moved).map(|(phi, moved)| phi - rounds as f32 * moved));
        off / size(&mut moved.iter().copied())
    }

    #[test]
    fn what_a_codec_loses_of_one_difference_arrives_with_the_next() {
        for codec in [Codec::Int4, Codec::Sparse] {
            let (fed, lost) = (drift(40, codec, true, false), drift(40, codec, false, false));
            assert!(fed < lost / 4.0, "{codec:?}: {fed} with feedback, {lost} without");
            assert!(fed < 6.0, "{codec:?}: a residual, however many rounds: {fed}");
        }
    }

    #[test]
    fn a_round_that_was_rolled_back_owes_nothing() {
        for codec in [Codec::Int4, Codec::Sparse] {
            let (straight, again) = (drift(10, codec, true, false), drift(10, codec, true, true));
            assert_eq!(straight.to_bits(), again.to_bits(), "{codec:?}");
        }
    }

    #[test]
    fn clip_bounds_what_a_partner_does_and_leaves_an_honest_one_alone() {
        let honest = [Robust::Clip, Robust::None].map(|robust| phi_after(robust, 1.2));
        assert_eq!(honest[0].to_bits(), honest[1].to_bits());
        assert!(phi_after(Robust::None, 1e3) > 1e2, "without it a partner may do anything");
        // Half of beta times (0.1 + 4 * 0.1).
        assert!(
            (phi_after(Robust::Clip, 1e3) - 1.0 - 0.5 * 0.7 * 0.5).abs() < 1e-4,
            "{}",
            phi_after(Robust::Clip, 1e3)
        );
    }
}
