//! A new manifest for `train` and `finetune`. In: a preset or a model, and flags. Out: a manifest that is not signed yet.

use std::path::Path;

use skein_pipeline::{model::StageModel, plan::partition};
use skein_protocol::{
    Manifest, PeerId,
    hash::Digest,
    run::{Ends, Loss, Method, Weights, preset},
};

use super::{Wish, no_preset, unusable, usage};
use crate::{cli::failure::Report, home::Shelf, hub::PREFIX, node::base::Base};

/// Size of the model where nothing is said.
const PRESET: &str = "tiny";

/// A new manifest from a preset or a model, and the flags.
///
/// `shelf`: what peers give to each other is laid down there.
pub(super) fn manifest(
    wish: &Wish<'_>,
    me: PeerId,
    base: Option<&Base>,
    shelf: Option<&Shelf>,
) -> Result<Manifest, Report> {
    let args = wish.course;
    let name = wish.preset.unwrap_or(PRESET);
    let mut manifest = preset(name).ok_or_else(|| no_preset(name))?;
    let mut label = name.to_string();
    if let Some(base) = base {
        begin_with(&mut manifest, base, wish)?;
        label = slug(&name_of_base(base));
    }
    manifest.run.owner = me;
    manifest.run.delegates = wish.delegates.clone();
    manifest.run.name = match &args.run_name {
        Some(name) => name.clone(),
        None => name_of(args.data.first().map_or(Path::new("run"), |path| path.as_path()), &label),
    };
    manifest.run.ends = Ends { steps: args.steps, tokens: args.tokens, ..manifest.run.ends };
    if let Some(stages) = args.stages {
        manifest.stages.count = stages;
        manifest.stages.split = partition::of(&manifest, stages).ok_or_else(|| {
            usage(format!("--stages {stages}: the model has {} layers", manifest.model.config.layers))
        })?;
    }
    manifest.stages.pin_ends = args.private;
    if args.private && args.stages.is_none() {
        let least = manifest.stages.count.max(3);
        manifest.stages.count = least;
        manifest.stages.split = partition::of(&manifest, least).ok_or_else(|| {
            usage(format!("--private needs three stages, the model has {} layers", manifest.model.config.layers))
        })?;
    }
    if let Some(sequence) = args.sequence {
        let context = &mut manifest.model.config.context;
        if base.is_some() && sequence > *context {
            return Err(usage(format!("--sequence {sequence}: the model reads {context} tokens")));
        }
        *context = (*context).max(sequence);
        manifest.train.sequence = sequence;
    }
    if let Some(lr) = args.lr {
        manifest.optimizer.lr = lr;
    }
    if let Some(micro_batch) = args.micro_batch {
        manifest.train.micro_batch = micro_batch;
    }
    if let Some(seed) = args.seed {
        manifest.train.seed = seed;
        if base.is_none() {
            manifest.model.weights = Weights::Seed { init_seed: seed };
        }
    }
    if let (Some(base), Some(_)) = (base, manifest.lora()) {
        // Gigabytes are not hashed for a run that would not be valid.
        let unknown = vec![Digest::default(); usize::from(manifest.stages.count)];
        name_frozen(&mut manifest, unknown);
        super::refuse_problems(&manifest, None)?;
        let frozen = base.frozen(&manifest, shelf).map_err(|error| unusable(&base.folder, error))?;
        name_frozen(&mut manifest, frozen);
    }
    Ok(manifest)
}

fn name_frozen(manifest: &mut Manifest, of_stages: Vec<Digest>) {
    if let Weights::Blob { stages, .. } = &mut manifest.model.weights {
        *stages = of_stages;
    }
}

/// Makes a manifest one that goes on training a model, or adapters beside it.
fn begin_with(manifest: &mut Manifest, base: &Base, wish: &Wish<'_>) -> Result<(), Report> {
    let lora = wish.lora.as_ref();
    let config = &base.checkpoint.config;
    manifest.model.family = base.checkpoint.family;
    manifest.model.config = config.clone();
    // A name of the Hub says where from; of a folder what it is called is enough, and where it lies is nobody's business.
    let hub = wish.model.and_then(|model| model.to_str()?.strip_prefix(PREFIX));
    let of = hub.map_or_else(|| name_of_base(base), str::to_string);
    let sources = vec![of.clone()];
    manifest.model.weights = Weights::Blob { blob: base.weights, sources, stages: Vec::new() };
    manifest.model.tokenizer = base.tokenizer();
    manifest.run.about = match lora {
        Some(_) => format!("{of}, with an adapter of its own"),
        None => format!("{of}, trained on"),
    };
    if let Some(lora) = lora {
        // What is added to a model is kept small by its rank.
        manifest.optimizer.decay = 0.0;
        manifest.train.method = Method::Lora;
        manifest.train.lora = Some(lora.clone());
    }
    if !base.words.tokenizer.is_bytes() || wish.records {
        manifest.train.loss = Loss::CompletionOnly;
    }
    manifest.train.sequence = SEQUENCE.min(config.context);
    manifest.optimizer.lr = if lora.is_some() { LORA_RATE } else { RATE };
    manifest.optimizer.schedule.warmup = WARM_UP;
    let parameters = StageModel::whole(config.clone()).map_err(|error| usage(format!("--model: {error}")))?.values();
    let stages = (parameters as u64)
        .div_ceil(if lora.is_some() { LORA_STAGE } else { STAGE })
        .clamp(1, u64::from(config.layers).min(64)) as u16;
    manifest.stages.count = stages;
    manifest.stages.split =
        partition::of(manifest, stages).ok_or_else(|| usage("--model: its layers do not part into stages".into()))?;
    Ok(())
}

/// What its folder is called.
fn name_of_base(base: &Base) -> String {
    let name = base.folder.file_name().map(|name| name.to_string_lossy().chars().take(80).collect());
    name.unwrap_or_else(|| "model".into())
}

/// A model that has learned is moved gently: rates that train one from scratch would undo it.
const RATE: f64 = 2e-5;
/// Adapters begin with nothing, and are moved faster.
const LORA_RATE: f64 = 2e-4;
const WARM_UP: u64 = 20;
/// Tokens of a sequence, where the model reads as many.
const SEQUENCE: u32 = 512;
/// Parameters of a stage, about: 2 GB with their gradients and moments, which most machines can give.
const STAGE: u64 = 100_000_000;
/// Where they stay as they are.
const LORA_STAGE: u64 = 400_000_000;

/// `war-and-peace-tiny` from `War and Peace.txt`.
fn name_of(path: &Path, preset: &str) -> String {
    let name = path.file_stem().map_or("run".into(), |stem| slug(&stem.to_string_lossy()));
    let preset: String = preset.chars().take(20).collect();
    let name: String = name.chars().take(31usize.saturating_sub(preset.len())).collect();
    format!("{}-{preset}", if name.is_empty() { "run" } else { &name })
}

/// Small letters, digits and single dashes.
fn slug(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_after_its_data() {
        assert_eq!(name_of(Path::new("/x/War and  Peace.txt"), "tiny"), "war-and-peace-tiny");
        assert_eq!(name_of(Path::new("…"), "tiny"), "run-tiny");
        assert!(name_of(Path::new(&"a".repeat(90)), "small-124m").len() <= 32);
    }
}
