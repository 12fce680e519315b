//! Which token comes next. In: logits, and how to choose. Out: one token, or the probabilities of some.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

/// Of a large vocabulary so many of the likeliest are put in order first: mostly they are all that is needed.
const HEAD: usize = 1024;

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0: always the likeliest.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability; 1: all.
    pub top_p: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.8, top_p: 0.95, seed: 0 }
    }
}

/// What else decides, where a program asks for it. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taste {
    /// Only so many of the likeliest; 0: all.
    pub top_k: u32,
    /// Taken from a token's logit for each time that it was drawn before.
    pub frequency_penalty: f32,
    /// Taken once if it was drawn before.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub bias: BTreeMap<u32, f32>,
}

/// Draws tokens from logits. Equal seeds and logits give equal tokens.
pub struct Sampler {
    sampling: Sampling,
    taste: Taste,
    /// How often each was drawn.
    drawn: BTreeMap<u32, u32>,
    rng: StdRng,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Self {
        Sampler::with(sampling, Taste::default())
    }

    pub fn with(sampling: Sampling, taste: Taste) -> Self {
        Sampler { sampling, taste, drawn: BTreeMap::new(), rng: StdRng::seed_from_u64(sampling.seed) }
    }

    /// The next token. Logits that are not finite are never drawn; with none that is, token 0.
    pub fn draw(&mut self, logits: &[f32]) -> u32 {
        let logits = self.adjusted(logits);
        let token = self.choose(&logits);
        if self.taste.frequency_penalty != 0.0 || self.taste.presence_penalty != 0.0 {
            *self.drawn.entry(token).or_default() += 1;
        }
        token
    }

    fn adjusted<'a>(&self, logits: &'a [f32]) -> Cow<'a, [f32]> {
        if self.taste.bias.is_empty() && self.drawn.is_empty() {
            return Cow::Borrowed(logits);
        }
        let mut logits = logits.to_vec();
        for (token, bias) in &self.taste.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, times) in &self.drawn {
            logits[*token as usize] -= self.taste.frequency_penalty * *times as f32 + self.taste.presence_penalty;
        }
        Cow::Owned(logits)
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&i| logits[i as usize].is_finite()).collect();
        let Some(best) = order.iter().copied().min_by(|a, b| likelier(logits, *a, *b)) else { return 0 };
        if self.sampling.temperature <= 0.0 {
            return best;
        }
        let mut sorted = sort_head(logits, &mut order);
        if self.taste.top_k > 0 {
            if sorted < self.taste.top_k as usize {
                sorted = sort_all(logits, &mut order);
            }
            order.truncate(self.taste.top_k as usize);
            sorted = sorted.min(order.len());
        }
        let top = logits[best as usize];
        let weight = |i: u32| f64::from((logits[i as usize] - top) / self.sampling.temperature).exp();
        let total: f64 = order.iter().map(|i| weight(*i)).sum();
        // The smallest set of the likeliest whose probability reaches top_p.
        let wanted = total * f64::from(self.sampling.top_p.clamp(0.0, 1.0));
        let (mut kept, mut sum) = (0, 0.0);
        while kept < order.len() && (sum < wanted || kept == 0) {
            if kept == sorted {
                sorted = sort_all(logits, &mut order);
            }
            sum += weight(order[kept]);
            kept += 1;
        }
        let mut at = self.rng.random_range(0.0..1.0) * sum;
        for token in &order[..kept] {
            at -= weight(*token);
            if at < 0.0 {
                return *token;
            }
        }
        order[kept - 1]
    }
}

/// The likelier first, of equals the smaller id.
fn likelier(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Brings the likeliest to the front, in order. How many those are.
fn sort_head(logits: &[f32], order: &mut [u32]) -> usize {
    let order = match order.len() > HEAD {
        true => order.select_nth_unstable_by(HEAD, |a, b| likelier(logits, *a, *b)).0,
        false => order,
    };
    order.sort_unstable_by(|a, b| likelier(logits, *a, *b));
    order.len()
}

fn sort_all(logits: &[f32], order: &mut [u32]) -> usize {
    order.sort_unstable_by(|a, b| likelier(logits, *a, *b));
    order.len()
}

/// The probability of `token` and of the `top` likeliest tokens, as natural logarithms.
pub(crate) fn logprobs(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&i| logits[i as usize].is_finite()).collect();
    let Some(best) = order.iter().map(|i| logits[*i as usize]).max_by(f32::total_cmp) else {
        return (f32::NEG_INFINITY, Vec::new());
    };
    let total: f64 = order.iter().map(|i| f64::from(logits[*i as usize] - best).exp()).sum();
    let of = |token: u32| (f64::from(logits[token as usize] - best) - total.ln()) as f32;
    let sorted = sort_head(logits, &mut order);
    let top = order[..sorted.min(top)].iter().map(|token| (*token, of(*token))).collect();
    (of(token), top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32, seed: u64) -> Sampling {
        Sampling { temperature, top_p, seed }
    }

    fn draws(mut sampler: Sampler, logits: &[f32], times: usize) -> Vec<u32> {
        (0..times).map(|_| sampler.draw(logits)).collect()
    }

    #[test]
    fn cold_is_the_likeliest_and_of_equals_the_first() {
        let mut cold = Sampler::new(sampling(0.0, 1.0, 1));
        assert_eq!(cold.draw(&[0.0, 2.0, 2.0, 1.0]), 1);
        assert_eq!(cold.draw(&[f32::NAN, f32::INFINITY, -1.0]), 2);
        assert_eq!(cold.draw(&[]), 0);
    }

    #[test]
    fn only_so_many_of_the_likeliest() {
        let taste = Taste { top_k: 2, ..Taste::default() };
        let drawn = draws(Sampler::with(sampling(5.0, 1.0, 3), taste), &[1.0, 0.9, 0.8, 0.7], 200);
        assert!(drawn.contains(&0) && drawn.contains(&1) && drawn.iter().all(|token| *token < 2));
    }

    #[test]
    fn a_bias_forbids_and_forces() {
        let taste = |token, bias| Taste { bias: [(token, bias)].into(), ..Taste::default() };
        assert_eq!(Sampler::with(sampling(0.0, 1.0, 1), taste(0, -100.0)).draw(&[3.0, 2.0]), 1);
        assert_eq!(draws(Sampler::with(sampling(1.0, 1.0, 1), taste(1, 100.0)), &[3.0, 2.0], 20), [1; 20]);
        assert_eq!(Sampler::with(sampling(0.0, 1.0, 1), taste(9, 100.0)).draw(&[3.0, 2.0]), 0);
    }

    #[test]
    fn penalties_count_what_was_drawn() {
        let taste = Taste { frequency_penalty: 0.4, ..Taste::default() };
        assert_eq!(draws(Sampler::with(sampling(0.0, 1.0, 1), taste), &[1.0, 0.5, 0.0], 5), [0, 0, 1, 0, 1]);
        let taste = Taste { presence_penalty: 0.6, ..Taste::default() };
        assert_eq!(draws(Sampler::with(sampling(0.0, 1.0, 1), taste), &[1.0, 0.5, 0.0], 3), [0, 1, 0]);
    }

    #[test]
    fn a_large_vocabulary_draws_as_if_all_of_it_were_in_order() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 / 2500.0).collect();
        for top_p in [0.1, 0.9, 1.0] {
            let drawn = draws(Sampler::new(sampling(1.0, top_p, 7)), &logits, 300);
            assert_eq!(drawn, draws(Sampler::new(sampling(1.0, top_p, 7)), &logits, 300));
            let least = drawn.iter().map(|token| logits[*token as usize]).fold(f32::MAX, f32::min);
            assert_eq!(least > 1.5, top_p == 0.1, "{top_p} {least}");
        }
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 2.0, 3.0, f32::NAN];
        let total: f32 = logits[..3].iter().map(|x| x.exp()).sum();
        let (this, top) = logprobs(&logits, 0, 2);
        assert!((this - (1.0f32.exp() / total).ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 1]);
        assert!((top[0].1 - (3.0f32.exp() / total).ln()).abs() < 1e-6);
    }

    #[test]
    fn draws_are_repeatable_and_follow_the_probabilities() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 3 };
        let logits = [0.0f32, 3f32.ln(), f32::NAN, f32::NEG_INFINITY];
        let draw = || {
            let mut sampler = Sampler::new(sampling);
            (0..4000).map(|_| sampler.draw(&logits)).collect::<Vec<u32>>()
        };
        let drawn = draw();
        assert_eq!(drawn, draw());
        let ones = drawn.iter().filter(|token| **token == 1).count();
        assert!((2800..3200).contains(&ones), "{ones} of 4000 for three quarters");
        assert!(drawn.iter().all(|token| *token < 2));
    }

    #[test]
    fn top_p_cuts_the_tail_and_never_everything() {
        let logits = [0.0f32, 2.0, 1.0];
        for (top_p, allowed) in [(0.0, vec![1]), (0.6, vec![1]), (0.8, vec![1, 2]), (1.0, vec![0, 1, 2])] {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p, seed: 1 });
            let mut drawn: Vec<u32> = (0..500).map(|_| sampler.draw(&logits)).collect();
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn, allowed, "top_p {top_p}");
        }
        assert_eq!(Sampler::new(Sampling::default()).draw(&[f32::NAN]), 0);
    }
}
