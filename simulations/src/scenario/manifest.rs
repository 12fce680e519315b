//! The Manifest of a scenario: what the product would be given to train this. In: the scenario, the machines. Out: a Manifest whose
//! owner is filled in later, cut into as many stages as were asked for, or as few as fit.

use skein_pipeline::{model::cost, plan::partition};
use skein_protocol::{
    Manifest,
    codec::nominal_error,
    run::{AveragingRule, Codec, ModelConfig},
};

use super::{ModelChoice, Run, Scenario, Sizes, keys::MODELS};
use crate::{driver::Small, world};

/// Open ids of a feeder where the scenario leaves it to us.
const IN_FLIGHT_MAX: u64 = 4096;

/// Sizes of a model by name.
pub fn sizes(name: &str) -> Option<Sizes> {
    let mut table: std::collections::BTreeMap<String, Sizes> = world::table(include_str!("../../data/models.toml"));
    debug_assert_eq!(table.len(), MODELS.len());
    table.remove(name)
}

impl ModelChoice {
    /// Sizes with nothing left to guess.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = match self {
            ModelChoice::Named(name) => sizes(name).expect("names of models are checked where they are read"),
            ModelChoice::Sizes(sizes) => sizes.clone(),
        };
        if sizes.kv_heads == 0 {
            sizes.kv_heads = sizes.heads;
        }
        sizes
    }
}

pub fn codec(word: &str) -> Codec {
    match word {
        "bf16" => Codec::Bf16,
        "int16" => Codec::Int16,
        "int8" => Codec::Int8,
        "int4" => Codec::Int4,
        "sparse" => Codec::Sparse,
        // Words are checked where they are read.
        _ => Codec::F32,
    }
}

/// The Manifest in `stages` stages; nothing where the model has fewer layers.
pub fn of(scenario: &Scenario, stages: u16) -> Option<Manifest> {
    let Run { micro_batch, micro_batches_per_step, staleness_bound, averaging_every, .. } = scenario.run;
    let run = &scenario.run;
    let sizes = run.model.sizes();
    let small = Small {
        stages,
        layers: sizes.layers,
        hidden: sizes.hidden,
        ffn: sizes.ffn,
        vocab: sizes.vocab,
        sequence: sizes.context,
        micro_batch,
        micro_batches_per_step,
        in_flight_max: in_flight(run),
        staleness_bound,
        round_every: averaging_every,
        codec: codec(&run.forward),
    };
    if stages == 0 || u32::from(stages) > sizes.layers {
        return None;
    }
    let mut manifest = small.manifest();
    let Sizes { hidden, layers, heads, kv_heads, ffn, vocab, context } = sizes;
    let model = &mut manifest.model.config;
    *model = ModelConfig { hidden, layers, heads, kv_heads, ffn, vocab, context, ..model.clone() };
    manifest.train.sequence = if run.sequence == 0 { context } else { run.sequence };
    manifest.stages.split = partition::of(&manifest, stages)?;
    manifest.averaging.codec = codec(&run.averaging);
    if averaging_every == 0 {
        manifest.averaging.rule = AveragingRule::None;
    }
    let codecs = &mut manifest.codecs;
    codecs.backward = vec![codec(&run.backward)];
    // Who names a codec accepts what it loses.
    let loses = codecs.forward.iter().chain(&codecs.backward).map(|codec| nominal_error(*codec));
    codecs.error_max = loses.fold(codecs.error_max, f64::max);
    manifest.checkpoint.every = u64::from(run.checkpoint_every);
    manifest.privacy.group_min = 4;
    manifest.admission.peers_max = 1_000_000;
    manifest.admission.per_subnet_max = 1_000_000;
    Some(manifest)
}

fn in_flight(run: &Run) -> u32 {
    let per_step = u64::from(run.micro_batches_per_step);
    let most = match run.staleness_bound {
        0 => per_step,
        bound => per_step * u64::from(bound),
    };
    if run.in_flight_max > 0 { run.in_flight_max } else { most.min(IN_FLIGHT_MAX) as u32 }
}

/// The stage that needs the most memory, and how much.
pub fn largest_stage(manifest: &Manifest) -> (u16, u64) {
    let needs = (0..manifest.stages.count).map(|stage| (cost::memory(manifest, stage).peak(), stage));
    needs.max().map_or((0, 0), |(bytes, stage)| (stage, bytes))
}

/// The fewest stages of which each fits `memory`, at most `most`.
pub fn fewest_stages(scenario: &Scenario, memory: u64, most: u16) -> Option<Manifest> {
    (1..=most).filter_map(|stages| of(scenario, stages)).find(|manifest| largest_stage(manifest).1 <= memory)
}

/// Parameters of the whole model.
pub fn parameters(manifest: &Manifest) -> u64 {
    (0..manifest.stages.count).map(|stage| cost::stage_parameters(manifest, stage)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(model: &str) -> Scenario {
        let run = Run { model: ModelChoice::Named(model.into()), ..Scenario::default().run };
        Scenario { run, ..Scenario::default() }
    }

    #[test]
    fn models_have_the_sizes_that_their_names_say() {
        for (name, wanted) in [
            ("tiny", 0.016e6),
            ("demo", 1e6),
            ("124m", 124e6),
            ("350m", 350e6),
            ("1b3", 1.3e9),
            ("7b", 6.74e9),
            ("13b", 13.0e9),
            ("30b", 32.5e9),
        ] {
            let got = parameters(&of(&named(name), 1).unwrap()) as f64;
            assert!((got / wanted - 1.0).abs() < 0.06, "{name} has {got}");
        }
    }

    #[test]
    fn as_few_stages_as_fit_are_taken() {
        let scenario = named("1b3");
        let stages = |gib: u64| fewest_stages(&scenario, gib << 30, 24).map(|manifest| manifest.stages.count);
        let (few, many) = (stages(40).unwrap(), stages(12).unwrap());
        assert!(few < many, "{few} {many}");
        assert!(largest_stage(&of(&scenario, few - 1).unwrap()).1 > 40 << 30);
        assert_eq!(stages(1), None);
        assert!(of(&scenario, 25).is_none());
    }
}
