//! The loss of a training that nobody ran: an estimate, and to be called one wherever it is shown.
//!
//! In: sizes of model and batch, and what happened in each interval (tokens, how many of them count, how stale they were). Out:
//! a loss an interval. It knows no peer and no stage.
//!
//! L(N, D) = 1.69 + 406 / N^0.34 + 411 / D^0.28 for N parameters and D tokens (Hoffmann et al., "Training compute-optimal large
//! language models", 2022, the parametric fit), where D counts tokens at their worth:
//! - *Batch*: far above the critical batch tokens are wasted. Reaching a loss takes 1 + B / B(L) times the tokens, with
//!   B(L) = 2e8 / L^(1/0.21) tokens (Kaplan et al., "Scaling laws for neural language models", 2020, section 5.1).
//! - *Staleness*: a gradient that is t own steps old is added with the weight (1 + t)^-1/2, and counts as so much of its tokens.
//!   Nobody has measured this beside the law above: it is the product's own weight, taken for its worth.
//! - Tokens whose gradients perished or were refused count for nothing.
//!
//! The law was fitted to models of 70 M parameters and more, on English text in sub-word tokens; for a small model of bytes only
//! its shape means anything. The loss is in nats a token, and never above that of a uniform guess.

use crate::outcome::{Sample, Totals};

const IRREDUCIBLE: f64 = 1.69;
const OF_PARAMETERS: (f64, f64) = (406.0, 0.34);
const OF_TOKENS: (f64, f64) = (411.0, 0.28);
/// Tokens of the critical batch at a loss of 1, and the power with which it grows as the loss falls.
const CRITICAL: (f64, f64) = (2e8, 1.0 / 0.21);
/// An interval's worth depends on the loss in it: so many times the answer is put in again.
const PASSES: usize = 3;

/// What is remarked wherever a loss of this file is shown.
pub const REMARK: &str = "The loss is an estimate: a published law over parameters and tokens, with stale and excess tokens \
                          counted at less; nothing was trained.";

/// The law without any penalty. `tokens` may be 0: then the loss is infinite.
pub fn law(parameters: f64, tokens: f64) -> f64 {
    let part = |(factor, power): (f64, f64), of: f64| factor / libm::pow(of, power);
    IRREDUCIBLE + part(OF_PARAMETERS, parameters) + part(OF_TOKENS, tokens)
}

/// Tokens of a batch above which more of them help little, at this loss.
pub fn critical_batch(loss: f64) -> f64 {
    CRITICAL.0 / libm::pow(loss, CRITICAL.1)
}

/// What one token of a batch is worth: 1 / (1 + B / B(L)).
pub fn worth_in_batch(batch: f64, loss: f64) -> f64 {
    1.0 / (1.0 + batch / critical_batch(loss))
}

/// What one token is worth whose gradient is added `steps` own steps late.
pub fn worth_when_stale(steps: f64) -> f64 {
    1.0 / (1.0 + steps).sqrt()
}

/// A training whose loss is followed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    parameters: f64,
    /// Of a uniform guess over the vocabulary.
    guess: f64,
    /// Tokens at their worth, so far.
    tokens: f64,
}

/// What happened in one interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub tokens: f64,
    /// Part of them whose gradients are in the weights or in an open sum: 0 to 1.
    pub added: f64,
    /// Own steps that their gradients were late.
    pub staleness: f64,
    /// Tokens of one step of all replicas together.
    pub batch: f64,
}

impl Curve {
    pub fn new(parameters: u64, vocabulary: u64) -> Self {
        Curve { parameters: parameters as f64, guess: libm::log(vocabulary.max(2) as f64), tokens: 0.0 }
    }

    pub fn loss(&self) -> f64 {
        law(self.parameters, self.tokens).min(self.guess)
    }

    /// Counts an interval; its mean loss. The mean of a convex fall is taken in its middle.
    pub fn pass(&mut self, interval: Interval) -> f64 {
        let counted = interval.tokens * interval.added * worth_when_stale(interval.staleness);
        let before = *self;
        let mut middle = before.loss();
        for _ in 0..PASSES {
            let worth = counted * worth_in_batch(interval.batch, middle);
            middle = Curve { tokens: before.tokens + worth / 2.0, ..before }.loss();
            self.tokens = before.tokens + worth;
        }
        middle
    }
}

/// Fills in the losses of a series, and the first, the last and the reference: the same tokens, each added at once.
/// `batch(sample)`: tokens of one step of all replicas together.
pub fn follow(curve: Curve, series: &mut [Sample], totals: &mut Totals, batch: impl Fn(&Sample) -> f64) {
    let (mut curve, mut reference) = (curve, curve);
    for sample in series.iter_mut().filter(|sample| sample.tokens > 0) {
        let ideal = Interval { tokens: sample.tokens as f64, added: 1.0, staleness: 0.0, batch: batch(sample) };
        let staleness = f64::from(sample.staleness_p50);
        sample.loss = Some(curve.pass(Interval { added: sample.goodput.clamp(0.0, 1.0), staleness, ..ideal }));
        reference.pass(ideal);
        totals.loss_first = totals.loss_first.or(sample.loss);
    }
    if totals.loss_first.is_some() {
        (totals.loss_last, totals.loss_reference) = (Some(curve.loss()), Some(reference.loss()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-3
    }

    #[test]
    fn the_law_gives_the_published_model_its_loss() {
        // 70e9 parameters and 1.4e12 tokens: 1.69 + 0.0832 + 0.1634.
        let loss = law(70e9, 1.4e12);
        assert!((loss - 1.936).abs() < 2e-3, "{loss}");
        // Ten times the tokens take 10^0.28 of what tokens add.
        let part = |tokens| law(1e300, tokens) - IRREDUCIBLE;
        assert!(near(part(1e9) / part(1e10), 1.905_46));
    }

    #[test]
    fn at_the_critical_batch_a_token_is_worth_half() {
        assert!(near(critical_batch(1.0), 2e8));
        assert!(near(worth_in_batch(critical_batch(3.0), 3.0), 0.5));
        assert!(critical_batch(2.0) > critical_batch(3.0), "it grows as the loss falls");
        assert_eq!((worth_when_stale(0.0), worth_when_stale(3.0)), (1.0, 0.5));
    }

    #[test]
    fn it_begins_at_a_guess_and_only_falls() {
        let mut curve = Curve::new(100_000_000, 32_000);
        assert_eq!(curve.loss(), libm::log(32_000.0));
        let interval = Interval { tokens: 1e6, added: 1.0, staleness: 1.0, batch: 1e4 };
        let mut last = f64::INFINITY;
        for _ in 0..100 {
            let loss = curve.pass(interval);
            assert!(loss <= last && loss >= curve.loss(), "{loss} after {last}");
            last = loss;
        }
        assert!(last < 6.0);
    }

    #[test]
    fn small_intervals_come_to_the_same_as_large_ones() {
        let whole = |parts: u32| {
            let mut curve = Curve::new(100_000_000, 32_000);
            let tokens = 1e9 / f64::from(parts);
            (0..parts).for_each(|_| {
                curve.pass(Interval { tokens, added: 1.0, staleness: 0.0, batch: 1e5 });
            });
            curve.loss()
        };
        assert!((whole(10) - whole(1000)).abs() < 0.02, "{} {}", whole(10), whole(1000));
    }

    #[test]
    fn stale_perished_and_excess_tokens_make_the_loss_higher_and_the_reference_has_none() {
        let sample = Sample { tokens: 1_000_000, goodput: 1.0, ..Sample::default() };
        let last = |sample: Sample, batch: f64| {
            let (mut series, mut totals) = (vec![sample; 50], Totals::default());
            follow(Curve::new(10_000_000, 32_000), &mut series, &mut totals, |_| batch);
            assert!(series.iter().all(|sample| sample.loss.is_some()));
            (totals.loss_last.unwrap(), totals.loss_reference.unwrap())
        };
        let (best, reference) = last(sample.clone(), 1e4);
        assert_eq!(best, reference);
        for worse in [Sample { goodput: 0.5, ..sample.clone() }, Sample { staleness_p50: 4, ..sample.clone() }] {
            let (loss, same) = last(worse, 1e4);
            assert!(loss > best && same == reference);
        }
        let (loss, reference_too) = last(sample, 1e8);
        assert!(loss > best && reference_too == loss, "the reference has the same batch");
    }

    #[test]
    fn without_tokens_there_is_no_loss() {
        let (mut series, mut totals) = (vec![Sample::default(); 3], Totals::default());
        follow(Curve::new(10, 10), &mut series, &mut totals, |_| 1.0);
        assert_eq!((series[0].loss, totals.loss_first, totals.loss_last), (None, None, None));
    }
}
