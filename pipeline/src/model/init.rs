//! Initial weights, equal bit for bit on every peer: from the manifest's seed and each tensor's name, whatever the split.
//!
//! A BLAKE3 output stream per tensor; Box-Muller in f64 with the transcendental functions of `libm` (Rust source, the same
//! on every platform); one rounding to f32. The stream of a longer tensor begins with that of a shorter one.

use std::f64::consts::PI;

use skein_protocol::{Manifest, hash::stream, run::Weights};

use super::{EMBEDDING, HEAD, Param, StageModel};

/// Of the scheme: another way to draw weights takes another domain.
const DOMAIN: &str = "skein 2026 weight init v1";

/// Spread of embedding and head.
const STD: f64 = 0.02;

/// The flat buffer of a stage at version 0, where the manifest says all of it: drawn from its seed, or adapters, drawn from the hash
/// of what they stand beside.
pub fn of_manifest(manifest: &Manifest, model: &StageModel) -> Option<Vec<f32>> {
    match &manifest.model.weights {
        Weights::Seed { init_seed } => Some(initial(model, *init_seed)),
        Weights::Blob { blob, .. } => {
            let (seed, _) = blob.0.split_first_chunk().expect("a hash is longer");
            model.lora().map(|_| initial(model, u64::from_le_bytes(*seed)))
        }
    }
}

/// The flat buffer of a stage at version 0.
pub fn initial(model: &StageModel, seed: u64) -> Vec<f32> {
    let mut out = vec![0.0; model.values()];
    for param in model.params() {
        tensor(model, param, seed, &mut out[param.range()]);
    }
    out
}

fn tensor(model: &StageModel, param: &Param, seed: u64, out: &mut [f32]) {
    // Adapters begin with nothing added.
    if param.name.ends_with("lora_B.weight") {
        return out.fill(0.0);
    }
    if param.name.ends_with("lora_A.weight") {
        return uniform(seed, &param.name, 1.0 / (param.shape[1] as f64).sqrt(), out);
    }
    if !param.is_matrix() {
        return out.fill(if param.name.ends_with("bias") { 0.0 } else { 1.0 });
    }
    // A tie over more than one stage is undone at the start: the head begins as a copy of the embedding.
    let name = if model.config.tie_embeddings && param.name == HEAD { EMBEDDING } else { &param.name };
    normal(seed, name, std(model, param), out);
}

/// 0.02 for embedding and head, `1 / sqrt(in)` elsewhere; what is added to the residual stream is divided by
/// `sqrt(2 layers)`, so that the stream's variance does not grow with the depth of the whole model.
fn std(model: &StageModel, param: &Param) -> f64 {
    if matches!(param.name.as_str(), EMBEDDING | HEAD) {
        return STD;
    }
    let fan_in = 1.0 / (param.shape[1] as f64).sqrt();
    match param.name.ends_with("o_proj.weight") || param.name.ends_with("down_proj.weight") {
        true => fan_in / (2.0 * f64::from(model.config.layers)).sqrt(),
        false => fan_in,
    }
}

/// Values between `-bound` and `bound`. Each 4 bytes of the stream give one.
fn uniform(seed: u64, name: &str, bound: f64, out: &mut [f32]) {
    let mut reader = stream(DOMAIN, &[&seed.to_le_bytes(), name.as_bytes()]);
    let mut bytes = [0u8; 4 * 1024];
    for values in out.chunks_mut(1024) {
        reader.fill(&mut bytes[..4 * values.len()]);
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            let unit = (f64::from(u32::from_le_bytes(*bytes)) + 0.5) / 4_294_967_296.0;
            *value = (bound * (2.0 * unit - 1.0)) as f32;
        }
    }
}

/// Normal values of mean 0. Each 8 bytes of the stream give two.
fn normal(seed: u64, name: &str, std: f64, out: &mut [f32]) {
    let mut reader = stream(DOMAIN, &[&seed.to_le_bytes(), name.as_bytes()]);
    let mut bytes = [0u8; 8 * 1024];
    for values in out.chunks_mut(2 * 1024) {
        let pairs = values.len().div_ceil(2);
        reader.fill(&mut bytes[..8 * pairs]);
        for (pair, bytes) in values.chunks_mut(2).zip(bytes.chunks_exact(8)) {
            let uniform = |b: &[u8]| f64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let first = (uniform(&bytes[..4]) + 0.5) / 4_294_967_296.0;
            let angle = 2.0 * PI * (uniform(&bytes[4..]) / 4_294_967_296.0);
            let radius = std * (-2.0 * libm::log(first)).sqrt();
            pair[0] = (radius * libm::cos(angle)) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * libm::sin(angle)) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::{hash::keyed, run::ModelConfig};

    use super::*;
    use crate::model::tests::tiny;

    #[test]
    fn a_split_model_starts_with_the_weights_of_the_whole() {
        let whole = initial(&StageModel::whole(tiny()).unwrap(), 7);
        let mut parts = initial(&StageModel::new(tiny(), 0, 2, true, false).unwrap(), 7);
        parts.extend(initial(&StageModel::new(tiny(), 2, 1, false, true).unwrap(), 7));
        assert_eq!(whole, parts);
        assert_ne!(whole, initial(&StageModel::whole(tiny()).unwrap(), 8));
    }

    #[test]
    fn an_untied_head_begins_as_the_embedding() {
        let config = ModelConfig { tie_embeddings: true, ..tiny() };
        let first = StageModel::new(config.clone(), 0, 2, true, false).unwrap();
        let last = StageModel::new(config, 2, 1, false, true).unwrap();
        let (a, b) = (initial(&first, 3), initial(&last, 3));
        assert_eq!(a[first.param(EMBEDDING).unwrap().range()], b[last.param(HEAD).unwrap().range()]);
    }

    #[test]
    fn values_have_the_spread_asked_for() {
        let mut values = vec![0.0; 40_001];
        normal(1, "x", 0.02, &mut values);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 40_001.0;
        let var = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 40_001.0;
        assert!(mean.abs() < 4e-4, "{mean}");
        assert!((var.sqrt() - 0.02).abs() < 2e-4, "{}", var.sqrt());
    }

    /// The same bytes in debug and release and on every platform: the digest is part of the protocol.
    #[test]
    fn the_digest_of_a_seed_does_not_move() {
        let weights = initial(&StageModel::whole(tiny()).unwrap(), 4711);
        let bytes: Vec<u8> = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(keyed("test", &[&bytes]).short(16), "e85064eff5785f3d");
    }
}
