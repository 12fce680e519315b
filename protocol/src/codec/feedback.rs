//! Error feedback: what a codec lost of one tensor of a stream is added to the next (EF-SGD, arXiv 1901.09847; 1-bit SGD).
//!
//! In: the tensors of one stream, coded. Out: what the next one carries besides. Sound where the receiver adds the tensors up, as
//! averaging does with the differences of a replica: then what is lost now arrives later, and sums differ by one residual, however
//! many tensors there were. Activations and their gradients are no such stream: each belongs to other samples, its receiver
//! uses it once, and what was lost of one is noise in the next.

/// The residual of one stream.
#[derive(Clone, Debug, Default)]
pub struct Feedback {
    residual: Vec<f32>,
}

/// The largest residual that is carried, relative to the tensor it is added to (root mean squares): a stream that falls
/// silent must not be spoken over by what it said long ago.
const SHARE_MAX: f64 = 4.0;

impl Feedback {
    /// Adds what is owed. A stream of another length begins anew.
    pub fn add_to(&mut self, tensor: &mut [f32]) {
        if self.residual.len() != tensor.len() {
            self.residual.clear();
        }
        let size = |values: &[f32]| values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        let (owed, said) = (size(&self.residual), size(tensor));
        // The comparison is false for a residual that is not a number.
        let share = if owed <= SHARE_MAX * said { 1.0 } else { (SHARE_MAX * said / owed) as f32 };
        if share.is_finite() && share > 0.0 {
            tensor.iter_mut().zip(&self.residual).for_each(|(v, owed)| *v += share * owed);
        }
    }

    /// What of `tensor` (with what was added to it) did not get into `decoded`.
    pub fn of(mut tensor: Vec<f32>, decoded: &[f32]) -> Self {
        tensor.iter_mut().zip(decoded).for_each(|(v, decoded)| *v -= decoded);
        Feedback { residual: tensor }
    }

    /// The stream begins anew: its tensors are no longer sums with those before.
    pub fn reset(&mut self) {
        self.residual.clear();
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        4 * self.residual.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::{
            decode, encode,
            tests::{error, normal},
        },
        run::Codec,
    };

    /// Relative error of the sum of `rounds` tensors that have a common part.
    fn lost_of_the_sum(codec: Codec, rounds: u64, fed_back: bool) -> f64 {
        const N: usize = 2048;
        let mut feedback = Feedback::default();
        let (mut whole, mut arrived) = (vec![0.0; N], vec![0.0; N]);
        let common = normal(99, N);
        for round in 0..rounds {
            let mut tensor: Vec<f32> = normal(round, N).iter().zip(&common).map(|(a, b)| a + b).collect();
            whole.iter_mut().zip(&tensor).for_each(|(sum, v)| *sum += v);
            if fed_back {
                feedback.add_to(&mut tensor);
            }
            let decoded = decode(&encode(&tensor, codec, false), N, &[codec]).unwrap();
            arrived.iter_mut().zip(&decoded).for_each(|(sum, v)| *sum += v);
            feedback = Feedback::of(tensor, &decoded);
        }
        error(&whole, &arrived)
    }

    #[test]
    fn what_is_lost_of_a_sum_does_not_grow_with_it() {
        for codec in [Codec::Int4, Codec::Sparse] {
            let (fed, lost) = (lost_of_the_sum(codec, 40, true), lost_of_the_sum(codec, 40, false));
            assert!(fed < lost / 2.0, "{codec:?}: {fed} with feedback, {lost} without");
            let (short, long) = (lost_of_the_sum(codec, 10, true), lost_of_the_sum(codec, 80, true));
            assert!(long < short / 3.0, "{codec:?}: {short} of ten, {long} of eighty");
        }
    }

    #[test]
    fn a_stream_of_another_length_or_one_that_was_reset_owes_nothing() {
        let mut feedback = Feedback::of(vec![1.0, 2.0], &[0.5, 2.0]);
        assert_eq!(feedback.held(), 8);
        let mut other = [1.0; 3];
        feedback.add_to(&mut other);
        assert_eq!((other, feedback.held()), ([1.0; 3], 0));
        feedback = Feedback::of(vec![1.0, 2.0], &[0.5, 2.0]);
        feedback.reset();
        let mut next = [1.0; 2];
        feedback.add_to(&mut next);
        assert_eq!(next, [1.0; 2]);
    }

    #[test]
    fn what_is_owed_is_bounded_by_what_is_said() {
        let mut feedback = Feedback::of(vec![100.0, 0.0], &[0.0, 0.0]);
        let mut next = [0.0, 1.0];
        feedback.add_to(&mut next);
        assert!((next[0] - 4.0).abs() < 1e-5 && next[1] == 1.0, "{next:?}");
        feedback = Feedback::of(vec![f32::NAN, 0.0], &[0.0, 0.0]);
        let mut next = [0.0, 1.0];
        feedback.add_to(&mut next);
        assert_eq!(next, [0.0, 1.0], "a residual that is not a number is not added");
    }
}
