//! What codecs cost on this machine: each is run once or twice on a small tensor when a node starts. In: a stop-watch. Out: seconds
//! a value, by which the codec of a link is chosen. Takes a few milliseconds; a busy machine makes all of them slower alike.

use std::time::Instant;

use skein_pipeline::flow::coding::{Cost, Costs};
use skein_protocol::{
    codec::{self, decode_into, encode_into},
    run::Codec,
};

/// Numbers of the tensor: 128 KiB as f32.
const VALUES: usize = 1 << 15;
const ROUNDS: u32 = 2;

pub fn measure() -> Costs {
    // Sums of four waves: neither constant nor noise, as activations are.
    let value = |i: usize| [0.013f32, 0.17, 1.3, 7.7].iter().map(|pace| (i as f32 * pace).sin()).sum::<f32>();
    let values: Vec<f32> = (0..VALUES).map(value).collect();
    let mut back = vec![0.0; VALUES];
    Costs(codec::ALL.map(|codec| cost(codec, &values, &mut back)))
}

fn cost(codec: Codec, values: &[f32], back: &mut [f32]) -> Cost {
    let (mut plain, mut packed) = (Vec::new(), Vec::new());
    // Finite values, and bytes just made of them: nothing is refused.
    let encode = seconds(|| drop(encode_into(values, codec, false, &mut plain)));
    let decode = seconds(|| drop(decode_into(&plain, back, &[codec])));
    let both = seconds(|| drop(encode_into(values, codec, true, &mut packed)));
    let unpacked = seconds(|| drop(decode_into(&packed, back, &[codec])));
    Cost { encode, decode, pack: (both - encode).max(0.0), unpack: (unpacked - decode).max(0.0) }
}

/// The least of a few tries, a value.
fn seconds(mut work: impl FnMut()) -> f64 {
    let tries = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    });
    tries.fold(f64::INFINITY, f64::min) / VALUES as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_costs_something() {
        for cost in measure().0 {
            assert!(cost.encode > 0.0 && cost.decode > 0.0 && cost.pack >= 0.0 && cost.unpack >= 0.0, "{cost:?}");
        }
    }
}
