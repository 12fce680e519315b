//! The seeds of this crate's fuzz targets, in `fuzz/corpus`: written by this test, and replayed by it with whatever fuzzing has
//! added.

use skein_pipeline::model::state::{StageState, TrainState};
use skein_protocol::{PeerId, Version, codec, run::Codec};

use crate::{
    decoders,
    replay::{Seeds, replay},
};

pub fn state(full: bool) -> StageState {
    let values = |k: f32| (0..5).map(|i| i as f32 * k).collect::<Vec<f32>>();
    let version = Version { stage: 1, peer: PeerId([7; 32]), incarnation: 2, round: 3, own_step: 9 };
    let params = TrainState { params: values(0.5), ..TrainState::default() };
    let weights = StageState { version, samples: 77, train: params, ..StageState::default() };
    if !full {
        return weights;
    }
    let train = TrainState { params: values(0.5), m: values(-1.0), v: values(1e-3), count: 12 };
    StageState { train, slow: values(0.25), momentum: values(3.0), ..weights }
}

/// The body of a round of `values` parameters, as `SPEC.md` describes it.
pub fn round(values: usize, codec: Codec, zstd: bool) -> Vec<u8> {
    let tensor: Vec<f32> = (0..values).map(|i| (i as f32 - 50.0) / 7.0).collect();
    let parts = [(codec, zstd), (codec::slow_weights(codec), false), (Codec::Int8, false)];
    let parts = parts.map(|(codec, zstd)| codec::encode(&tensor, codec, zstd));
    let lengths = parts.iter().flat_map(|part| (part.len() as u64).to_le_bytes());
    lengths.chain(parts.iter().flatten().copied()).collect()
}

fn seeds(target: &str) -> Seeds {
    match target {
        "state" => {
            let sealed = |full| state(full).encode().0;
            let whole = sealed(true);
            // The root is added by the target: what has none yet is changed with more luck.
            let body = whole[..whole.len() - 32].to_vec();
            [("full", whole), ("weights", sealed(false)), ("body", body)].map(|(name, it)| (name.into(), it)).into()
        }
        "round" => {
            let forms = codec::ALL.into_iter().enumerate().flat_map(|(i, codec)| [(i, codec, false), (i, codec, true)]);
            let seed = |(i, codec, zstd): (usize, Codec, bool)| {
                let name = format!("{codec:?}{}", if zstd { "-zstd" } else { "" }).to_lowercase();
                (name, [&[100, 0, i as u8], &round(100, codec, zstd)[..]].concat())
            };
            forms.map(seed).collect()
        }
        other => panic!("{other} is no target"),
    }
}

#[test]
fn every_seed_is_in_the_corpus_and_no_decoder_minds_any_of_it() {
    decoders::ALL.into_iter().for_each(|(target, decoder)| replay(target, decoder, seeds(target)));
}
