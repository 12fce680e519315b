//! What averaging holds beside an engine: slow weights, outer momentum, and the tensors of the round in the air.
//!
//! In: the engine's parameters, the partner's bytes. Out: bytes for the partner, and new parameters when a round is adopted.
//! Nothing changes before `adopt`, so a round can be rolled back at any moment.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use skein_gossip::kernel::{
    clip::{Accepted, Sizes},
    noloco::{self, Rule},
};
use skein_protocol::{
    codec::{BadTensor, Gate, PIECE},
    run::{Averaging, Codec, Robust},
};

use super::{
    bad,
    body::{self, Body, Pair, Sampling, Tensors, read_round},
    failed,
};
use crate::job::{Done, RoundPartner};

/// What a round began with.
struct Frozen {
    theta: Arc<Vec<f32>>,
    /// What the partner gets, from which both sides take my difference and my slow weights, so that both compute one mean.
    body: Bytes,
    codec: Codec,
}

impl Frozen {
    /// Adds to `theta` what the codec lost of the difference to `phi`.
    fn add_lost(&self, phi: &[f32], theta: &mut [f32]) -> Result<(), BadTensor> {
        let mine = Body::open(&self.body, phi.len(), self.codec)?;
        let mut d = [0.0; PIECE];
        for (number, theta) in theta.chunks_mut(PIECE).enumerate() {
            let (at, d) = (number * PIECE, &mut d[..theta.len()]);
            mine.d.piece(at, d)?;
            let lost = self.theta[at..].iter().zip(&phi[at..]).zip(&*d).map(|((theta, phi), d)| theta - phi - d);
            theta.iter_mut().zip(lost).for_each(|(theta, lost)| *theta += lost);
        }
        Ok(())
    }
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

    /// Freezes `theta` for a round. Returns the body that the partner gets.
    pub fn freeze(&mut self, theta: Arc<Vec<f32>>, codec: Codec) -> Result<Bytes, Done> {
        let body = body::write(&theta, &self.phi, &self.momentum, codec);
        let body = Bytes::from(body.map_err(|error| Done::NotFinite { why: error.to_string() })?);
        self.frozen = Some(Frozen { theta, body: body.clone(), codec });
        self.prepared = None;
        Ok(body)
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
        let values = self.phi.len();
        let sampling = Sampling::of(values);
        if partner.copy {
            let [_, phi, _] = read_round(tensors, values, frozen.codec).map_err(bad)?;
            let before = noloco::disagreement(&sampling.take(&self.phi), &sampling.take(&phi));
            self.prepared = Some(Prepared { momentum: vec![0.0; values], phi, copied: true });
            return Ok(Done::Prepared { before, after: 0.0 });
        }
        let mine = Body::open(&frozen.body, values, frozen.codec).map_err(|error| failed(error.to_string()))?;
        let pair = Pair { mine, theirs: Body::open(tensors, values, frozen.codec).map_err(bad)? };
        let step = Step::new(averaging, partner);
        let mut sizes = vec![Sizes::default(); if step.clips { blocks.len() } else { 0 }];
        let samples = pair.judge(|at, mine, theirs| {
            for (sizes, block) in sizes.iter_mut().zip(blocks) {
                let part = within(block, at, mine.d.len());
                sizes.add(mine.side(part.clone(), 0), theirs.side(part, 0));
            }
        });
        let [mine_sampled, theirs_sampled] = samples.map_err(bad)?;
        let accepted: Vec<Accepted> =
            sizes.iter().map(|sizes| sizes.accepted(partner.my_samples, partner.their_samples)).collect();
        let (mut phi, mut momentum) = (Vec::with_capacity(values), Vec::with_capacity(values));
        let mut gate = Gate::default();
        let stepped = pair.each(|at, mine, theirs| {
            let piece = at..at + mine.d.len();
            phi.extend_from_slice(&self.phi[piece.clone()]);
            momentum.extend_from_slice(&self.momentum[piece.clone()]);
            for (accepted, block) in accepted.iter().zip(blocks) {
                accept(accepted, mine, theirs, within(block, at, mine.d.len()));
            }
            step.run(mine, theirs, &mut momentum[piece.clone()], &mut phi[piece.clone()]);
            gate.add(&phi[piece]);
        });
        stepped.map_err(bad)?;
        gate.verdict().map_err(|error| Done::NotFinite { why: error.to_string() })?;
        let before = noloco::disagreement(&mine_sampled.phi, &theirs_sampled.phi);
        let blocks: Vec<_> = blocks.iter().map(|block| sampling.range(block)).collect();
        let there = step.there().sampled(theirs_sampled, mine_sampled, pair.theirs.momentum, &blocks);
        let after = noloco::disagreement(&sampling.take(&phi), &there);
        self.prepared = Some(Prepared { phi, momentum, copied: false });
        Ok(Done::Prepared { before, after })
    }

    /// The new parameters of the prepared round: what was trained while it was in the air is kept. `fed_back`: what the codec lost
    /// of my difference stays in theta, and so is in the next difference. Once they are in use the round is [`taken`](Self::taken).
    pub fn adopted(&self, theta: &Arc<Vec<f32>>, fed_back: bool) -> Result<Vec<f32>, Done> {
        let (Some(frozen), Some(prepared)) = (&self.frozen, &self.prepared) else {
            return Err(failed("no round is prepared"));
        };
        let mut new = prepared.phi.clone();
        if !Arc::ptr_eq(theta, &frozen.theta) {
            let since = theta.iter().zip(&*frozen.theta).map(|(now, then)| now - then);
            new.iter_mut().zip(since).for_each(|(new, since)| *new += since);
        }
        if fed_back && !prepared.copied {
            frozen.add_lost(&self.phi, &mut new).map_err(|error| failed(error.to_string()))?;
        }
        Ok(new)
    }

    /// Slow weights and momentum become those of the prepared round.
    pub fn taken(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            (self.phi, self.momentum) = (prepared.phi, prepared.momentum);
        }
        self.frozen = None;
    }

    /// Bytes of the round in the air: what was frozen, which a step of the engine leaves to the round alone, and what is
    /// prepared.
    pub fn open_bytes(&self) -> u64 {
        let frozen = self.frozen.as_ref().map_or(0, |frozen| 4 * frozen.theta.len() + frozen.body.len());
        let prepared = self.prepared.as_ref().map_or(0, |prepared| 4 * (prepared.phi.len() + prepared.momentum.len()));
        (frozen + prepared) as u64
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

/// One side's step of a round.
#[derive(Clone, Copy)]
struct Step {
    rule: Rule,
    clips: bool,
    /// Own samples, and the other's.
    samples: [u64; 2],
    first: bool,
}

impl Step {
    fn new(averaging: &Averaging, partner: &RoundPartner) -> Step {
        let clips = match averaging.robust {
            Robust::Clip => true,
            Robust::None | Robust::CenteredClip | Robust::Trimmed => false,
        };
        Step {
            rule: Rule { alpha: averaging.alpha as f32, beta: averaging.beta as f32, gamma: averaging.gamma as f32 },
            clips,
            samples: [partner.my_samples, partner.their_samples],
            first: partner.first,
        }
    }

    /// The other side's step.
    fn there(self) -> Step {
        let [mine, theirs] = self.samples;
        Step { samples: [theirs, mine], first: !self.first, ..self }
    }

    /// Steps `phi` and `momentum` of a side that is `own` to the other one.
    fn run(&self, own: &Tensors, other: &Tensors, momentum: &mut [f32], phi: &mut [f32]) {
        let [mine, theirs] = self.samples;
        let (own, other) = (own.side(0..phi.len(), mine), other.side(0..phi.len(), theirs));
        let (first, second) = if self.first { (own, other) } else { (other, own) };
        noloco::step(self.rule, first, second, self.first, momentum, phi);
    }

    /// What the step leaves of a sample of slow weights: enough to say how far apart both sides are.
    fn sampled(&self, own: Tensors, mut other: Tensors, mut momentum: Vec<f32>, blocks: &[Range<usize>]) -> Vec<f32> {
        let [mine, theirs] = self.samples;
        for block in blocks.iter().filter(|_| self.clips) {
            let mut sizes = Sizes::default();
            sizes.add(own.side(block.clone(), mine), other.side(block.clone(), theirs));
            accept(&sizes.accepted(mine, theirs), &own, &mut other, block.clone());
        }
        let mut phi = own.phi.clone();
        self.run(&own, &other, &mut momentum, &mut phi);
        phi
    }
}

/// Scales down what a side does not accept of the other's part of a block.
fn accept(accepted: &Accepted, own: &Tensors, other: &mut Tensors, part: Range<usize>) {
    accepted.apply(&own.phi[part.clone()], &mut other.phi[part.clone()], &mut other.d[part]);
}

/// The part of a block that lies in the piece of `len` values from number `at` on, as a part of the piece.
fn within(block: &Range<usize>, at: usize, len: usize) -> Range<usize> {
    let inside = |number: usize| number.clamp(at, at + len) - at;
    inside(block.start)..inside(block.end)
}

#[cfg(test)]
mod tests {
    use skein_gossip::kernel::noloco::Side;
    use skein_protocol::{Blob, codec, run::preset};

    use super::*;

    impl Rounds {
        fn adopt(&mut self, theta: &Arc<Vec<f32>>, fed_back: bool) -> Result<Vec<f32>, Done> {
            let new = self.adopted(theta, fed_back);
            self.taken();
            new
        }
    }

    fn weights(value: f32) -> Arc<Vec<f32>> {
        Arc::new(vec![value; 64])
    }

    /// phi after a round of equal samples with a partner whose weights are `theirs`, mine having moved by 0.1 since the last one.
    fn phi_after(robust: Robust, theirs: f32) -> f32 {
        let averaging = Averaging { robust, codec: Codec::F32, ..preset("demo").expect("a preset").averaging };
        let mut mine = Rounds::fresh(vec![1.0; 64]);
        mine.freeze(weights(1.1), averaging.codec).unwrap();
        let tensors = Rounds::fresh(vec![1.0; 64]).freeze(weights(theirs), averaging.codec).unwrap();
        let partner = RoundPartner {
            tensors: Blob { id: 1, len: tensors.len() as u64 },
            my_samples: 10,
            their_samples: 10,
            first: true,
            copy: false,
        };
        mine.prepare(&averaging, &[0..32, 32..64], &partner, &tensors).unwrap();
        mine.adopt(&weights(1.1), false).unwrap()[0]
    }

    fn wave(values: usize, shift: usize) -> Vec<f32> {
        (0..values).map(|i| (((i + shift) * 37 % 1009) as f32 - 500.0) / 300.0).collect()
    }

    /// Both sides of a round of `values` numbers that have nothing in common, and their slow weights after it.
    fn meet(averaging: &Averaging, values: usize, moved: f32, blocks: &[Range<usize>]) -> ([Bytes; 2], [Vec<f32>; 2]) {
        let mut sides = [3, 500].map(|shift| Rounds::new(wave(values, shift), wave(values, 2 * shift)));
        let thetas = [1.0, moved].map(|by| Arc::new(wave(values, 9).iter().map(|v| by * v).collect::<Vec<f32>>()));
        let bodies = [0, 1].map(|side| sides[side].freeze(thetas[side].clone(), averaging.codec).unwrap());
        for side in [0, 1] {
            let tensors = Blob { id: 1, len: bodies[1 - side].len() as u64 };
            let partner = RoundPartner { tensors, my_samples: 8, their_samples: 8, first: side == 0, copy: false };
            sides[side].prepare(averaging, blocks, &partner, &bodies[1 - side]).unwrap();
            sides[side].adopt(&thetas[side], false).unwrap();
        }
        (bodies, sides.map(|side| side.phi))
    }

    #[test]
    fn a_round_in_pieces_is_the_round_of_whole_tensors() {
        let demo = preset("demo").expect("a preset").averaging;
        for codec in codec::ALL {
            let averaging = Averaging { robust: Robust::None, codec, ..demo.clone() };
            let values = 3 * PIECE + 77;
            let (bodies, phi) = meet(&averaging, values, 1.1, std::slice::from_ref(&(0..values)));
            let [[d_a, phi_a, _], [d_b, phi_b, _]] = bodies.map(|body| read_round(&body, values, codec).unwrap());
            let (a, b) = (Side { phi: &phi_a, d: &d_a, samples: 8 }, Side { phi: &phi_b, d: &d_b, samples: 8 });
            let rule =
                Rule { alpha: averaging.alpha as f32, beta: averaging.beta as f32, gamma: averaging.gamma as f32 };
            for (side, shift) in [(0, 3), (1, 500)] {
                let (mut whole, mut momentum) = (wave(values, shift), wave(values, 2 * shift));
                noloco::step(rule, a, b, side == 0, &mut momentum, &mut whole);
                assert_eq!(phi[side], whole, "{codec:?}, side {side}");
            }
        }
    }

    #[test]
    fn what_the_codec_of_slow_weights_loses_moves_the_mean_of_both_nowhere() {
        let demo = preset("demo").expect("a preset").averaging;
        let averaging = Averaging { robust: Robust::None, codec: Codec::Bf16, alpha: 0.0, beta: 0.0, ..demo };
        let (_, phi) = meet(&averaging, 1000, 1.0, std::slice::from_ref(&(0..1000)));
        for (i, (before_a, before_b)) in wave(1000, 3).iter().zip(wave(1000, 500)).enumerate() {
            assert!((phi[0][i] + phi[1][i] - before_a - before_b).abs() < 1e-6, "value {i}");
        }
    }

    #[test]
    fn a_block_that_lies_in_several_pieces_is_clipped_as_one() {
        let demo = preset("demo").expect("a preset").averaging;
        let averaging = Averaging { robust: Robust::Clip, codec: Codec::F32, ..demo };
        let values = 2 * PIECE + 500;
        let blocks = [0..PIECE + 100, PIECE + 100..values];
        let (_, phi) = meet(&averaging, values, 1e3, &blocks);
        let size = |phi: &[f32], block: &Range<usize>| {
            let before = wave(values, 3);
            let moved = phi[block.clone()].iter().zip(&before[block.clone()]).map(|(now, then)| now - then);
            (moved.map(|v| v * v).sum::<f32>() / block.len() as f32).sqrt()
        };
        for block in &blocks {
            // A few of the first side's own steps, which are of about 1 each; without the bound it would be hundreds.
            assert!((0.5..8.0).contains(&size(&phi[0], block)), "{}", size(&phi[0], block));
        }
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
            let before = Arc::new(theta.clone());
            if rolled_back {
                sides.iter_mut().for_each(|side| drop(side.freeze(before.clone(), codec).unwrap()));
                sides.iter_mut().for_each(Rounds::roll_back);
            }
            let bodies = [0, 1].map(|side| sides[side].freeze(before.clone(), codec).unwrap());
            for (side, first) in [(0, true), (1, false)] {
                let theirs = &bodies[1 - side];
                let tensors = Blob { id: 1, len: theirs.len() as u64 };
                let partner = RoundPartner { tensors, my_samples: 1, their_samples: 1, first, copy: false };
                sides[side].prepare(&averaging, &[0..256, 256..512], &partner, theirs).unwrap();
                theta = sides[side].adopt(&before, fed_back).unwrap();
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
