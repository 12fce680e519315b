//! The last part of a job: its result becomes the bytes that travel. In: what a worker left, in the order of the jobs. Out: what
//! the peer is told.
//!
//! It is apart from the worker so that a driver may do it beside the next job. It knows no engine; the state that it keeps,
//! what codecs did to the tensors before, is its own.

use std::collections::BTreeMap;

use skein_protocol::{Stage, codec::Gain};

use super::Blobs;
use crate::job::{Coding, Done};

/// What is left of a job whose stage is free for the next one.
#[derive(Debug)]
pub enum Left {
    Nothing(Done),
    Encoding(Unencoded),
}

/// A result for the next hop.
#[derive(Debug)]
pub struct Unencoded {
    pub(super) stage: Stage,
    pub(super) values: Vec<f32>,
    pub(super) coding: Coding,
    pub(super) what: What,
}

/// Which way it goes, and what is told beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    Output,
    Gradient { loss: f32, tokens: u32 },
}

/// Memory of a result that was encoded, for the stage that made it.
#[derive(Debug)]
pub struct Spare {
    pub(super) stage: Stage,
    pub(super) values: Vec<f32>,
}

/// Encodes the results of one worker. What it learned of a stage's tensors stays when the stage is made anew: they are alike.
#[derive(Debug, Default)]
pub struct Encoder {
    stages: BTreeMap<Stage, Gains>,
}

/// What codecs and zstd do to what goes to the next stage, and to what goes back to the one before.
#[derive(Debug, Default)]
struct Gains {
    forward: Gain,
    backward: Gain,
}

impl Encoder {
    /// Ends a job. Its bytes lie under a new handle; the memory of its values is for [`Worker::reuse`](super::Worker::reuse).
    pub fn finish(&mut self, left: Left, blobs: &mut dyn Blobs) -> (Done, Option<Spare>) {
        let Unencoded { stage, values, coding, what } = match left {
            Left::Nothing(done) => return (done, None),
            Left::Encoding(unencoded) => unencoded,
        };
        let gains = self.stages.entry(stage).or_default();
        let gain = match what {
            What::Output => &mut gains.forward,
            What::Gradient { .. } => &mut gains.backward,
        };
        let (mut bytes, raw) = (Vec::new(), 4 * values.len() as u64);
        let encoded = gain.encode(&values, coding.codec, coding.zstd, &mut bytes);
        let sample = gain.sample(coding.codec);
        let spare = Some(Spare { stage, values });
        if let Err(error) = encoded {
            return (Done::NotFinite { why: error.to_string() }, spare);
        }
        let blob = blobs.put(bytes.into());
        let done = match what {
            What::Output => Done::Forwarded { output: blob, coding, raw, sample },
            What::Gradient { loss, tokens } => Done::Backed { gradient: Some(blob), coding, raw, sample, loss, tokens },
        };
        (done, spare)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skein_protocol::{Blob, codec, run::Codec};

    use super::*;

    #[derive(Default)]
    struct Kept(Vec<Bytes>);

    impl Blobs for Kept {
        fn get(&self, blob: Blob) -> Option<Bytes> {
            self.0.get(blob.id as usize).cloned()
        }

        fn put(&mut self, bytes: Bytes) -> Blob {
            let blob = Blob { id: self.0.len() as u64, len: bytes.len() as u64 };
            self.0.push(bytes);
            blob
        }
    }

    fn left(stage: Stage, values: Vec<f32>, zstd: bool, what: What) -> Left {
        Left::Encoding(Unencoded { stage, values, coding: Coding { codec: Codec::Int8, zstd }, what })
    }

    /// How many of 32 tensors travel packed.
    fn packed(values: impl Fn(u32) -> f32, zstd: bool) -> usize {
        let (mut encoder, mut kept) = (Encoder::default(), Kept::default());
        for n in 0..32 {
            let tensor: Vec<f32> = (0..2048).map(|i| values(n * 2048 + i)).collect();
            let (done, spare) = encoder.finish(left(0, tensor, zstd, What::Output), &mut kept);
            assert!(matches!(done, Done::Forwarded { raw: 8192, .. }), "{done:?}");
            assert_eq!(spare.map(|spare| spare.values.len()), Some(2048));
        }
        kept.0.iter().filter(|bytes| codec::codec_of(bytes).unwrap().1).count()
    }

    #[test]
    fn what_a_stage_sends_is_packed_where_the_run_allows_it_and_it_pays() {
        let random = |i: u32| {
            let i = (i ^ i >> 16).wrapping_mul(0x85eb_ca6b);
            let i = (i ^ i >> 13).wrapping_mul(0xc2b2_ae35);
            ((i ^ i >> 16) >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let structured = |i: u32| (i / 64 % 4) as f32;
        assert!(packed(random, true) <= 2, "none but those that were tried");
        assert_eq!(packed(structured, true), 32);
        assert_eq!(packed(structured, false), 0);
    }

    #[test]
    fn stages_and_directions_are_measured_apart() {
        let (mut encoder, mut kept) = (Encoder::default(), Kept::default());
        let gradient = What::Gradient { loss: 1.5, tokens: 7 };
        let mut saved = |stage, zstd, what| match encoder.finish(left(stage, vec![1.0; 2048], zstd, what), &mut kept).0
        {
            Done::Forwarded { sample, .. } => sample.saved,
            Done::Backed { sample, loss: 1.5, tokens: 7, gradient: Some(_), .. } => sample.saved,
            other => panic!("{other:?}"),
        };
        assert!(saved(0, true, What::Output).is_some());
        assert!(saved(0, false, What::Output).is_some(), "it is remembered");
        assert_eq!((saved(1, false, What::Output), saved(0, false, gradient)), (None, None));
    }

    #[test]
    fn an_absurd_result_is_not_sent_and_its_memory_comes_back() {
        let (mut encoder, mut kept) = (Encoder::default(), Kept::default());
        let (done, spare) = encoder.finish(left(3, vec![f32::NAN; 64], false, What::Output), &mut kept);
        assert!(matches!(done, Done::NotFinite { .. }) && kept.0.is_empty());
        assert!(matches!(spare, Some(Spare { stage: 3, values }) if values.len() == 64));
    }
}
