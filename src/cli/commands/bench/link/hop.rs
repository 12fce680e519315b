//! One hop of an activation as a swarm makes it: encoded, sent, received, decoded; without the computing. In: values. Out: the
//! bytes that travel, and values again.

use bytes::Bytes;
use skein_protocol::{codec, run::Codec};

use crate::cli::{commands::bench::other, failure::Report};

/// Values of one activation: 1 x 256 x 512.
pub const VALUES: usize = 256 * 512;

/// As activations travel by default.
const CODEC: Codec = Codec::Int8;

pub fn sample() -> Vec<f32> {
    (0..VALUES as u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32) - 1.0).collect()
}

pub fn encode(values: &[f32]) -> Bytes {
    codec::encode(values, CODEC, false).into()
}

pub fn decode(bytes: &[u8]) -> Result<Vec<f32>, Report> {
    codec::decode(bytes, VALUES, &[CODEC]).map_err(other)
}
