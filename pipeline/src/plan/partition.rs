//! Cuts the layers of a model into stages of nearly equal cost. Used once, when a Manifest is written; the split then never changes.

use skein_protocol::Manifest;

use crate::model::cost;

/// Layers a stage for the model of `manifest` cut into `stages`: the head counts by its operations, the embedding is a copy.
pub fn of(manifest: &Manifest, stages: u16) -> Option<Vec<u32>> {
    let model = &manifest.model.config;
    let flops = cost::flops(model, u64::from(manifest.train.sequence));
    split(model.layers, stages, 0.0, flops.head as f64 / flops.layer.max(1) as f64)
}

/// Layers a stage, such that the costliest stage is as cheap as can be. Every stage gets at least one layer.
///
/// `first` and `last` are what the embedding and the final norm with head cost, in units of one layer's cost; `stages` is at
/// least 1 and at most `layers`, else nothing is returned.
pub fn split(layers: u32, stages: u16, first: f64, last: f64) -> Option<Vec<u32>> {
    let stages = usize::from(stages);
    let layers = layers as usize;
    if stages == 0 || stages > layers {
        return None;
    }
    let cost = |stage: usize, n: usize| {
        n as f64 + if stage == 0 { first } else { 0.0 } + if stage + 1 == stages { last } else { 0.0 }
    };
    // worst[k][n]: least possible cost of the costliest of the first k stages, which hold n layers.
    let mut worst = vec![vec![f64::INFINITY; layers + 1]; stages + 1];
    let mut choice = vec![vec![0usize; layers + 1]; stages + 1];
    worst[0][0] = 0.0;
    for k in 1..=stages {
        for n in k..=layers {
            for own in 1..=n {
                let before = worst[k - 1][n - own];
                let now = before.max(cost(k - 1, own));
                // Ties go to the larger earlier stages, so that the last, which has the head, stays small.
                if now < worst[k][n] {
                    worst[k][n] = now;
                    choice[k][n] = own;
                }
            }
        }
    }
    let mut split = vec![0u32; stages];
    let mut left = layers;
    for k in (1..=stages).rev() {
        split[k - 1] = choice[k][left] as u32;
        left -= choice[k][left];
    }
    Some(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_share_the_layers_and_the_head_counts() {
        assert_eq!(split(12, 6, 0.0, 0.0), Some(vec![2; 6]));
        assert_eq!(split(4, 3, 0.0, 1.0), Some(vec![2, 1, 1]));
        assert_eq!(split(4, 1, 0.0, 1.0), Some(vec![4]));
        assert_eq!(split(2, 3, 0.0, 0.0), None);
        assert_eq!(split(2, 0, 0.0, 0.0), None);
    }
}
