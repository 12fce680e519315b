//! `skein train`: writes and signs a manifest, feeds the data, and trains at once, alone or with whoever joins.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::json;
use skein_pipeline::{model::StageModel, plan::partition};
use skein_protocol::{
    Manifest, PeerId,
    run::{
        Ends, Loss, Weights,
        check::{self, Severity},
        preset::{self, PRESETS},
        text,
    },
};

use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        session::{self, Plan},
        show::{About, Bytes, Count, counted},
    },
    config::{StageChoice, nearest},
    corpus::{Corpus, Reading},
    home::RunFolder,
    node::{
        Role, Serve, Way,
        base::{Base, BaseError},
        feed::Data,
        signed,
    },
    text::{Piece, TextError},
};

/// Size of the model where nothing is said.
const PRESET: &str = "tiny";
/// Text of the first record that is shown.
const PREVIEW: usize = 160;

pub fn run(args: &args::Train, context: &Context) -> Result<u8, Report> {
    let out = &context.out;
    let known = args.run.as_deref().and_then(|run| context.home.runs().named(run));
    let base = base(args, context, known.as_ref())?;
    let corpus = read(args, base.as_ref())?;
    out.done(&format!(
        "data  {} {} from {}{}",
        About(corpus.len() as f64),
        if base.as_ref().is_some_and(|base| !base.tokenizer.is_bytes()) { "bytes" } else { "tokens" },
        counted(corpus.documents, "document"),
        match corpus.skipped.total() {
            0 => String::new(),
            _ => format!(" (left out: {})", corpus.skipped),
        }
    ));
    let pieces = corpus.pieces(PREVIEW)?;
    out.note(&match pieces.iter().all(|piece| piece.learned) {
        true => format!("begins: {}", preview(&corpus)),
        false => format!("begins, with what is learned in [brackets]: {}", marked(&pieces)),
    });

    let identity = {
        let _lock = context.home.lock()?;
        context.home.identity()?
    };
    let me = identity.key.peer();
    let (manifest, signed) = match &args.run {
        Some(run) => existing(context, run, me, &identity.key)?,
        None => {
            let manifest = made(args, me, base.as_ref())?;
            let (_, signed) = signed::sign(&manifest, &identity.key);
            (manifest, signed)
        }
    };
    refuse_problems(&manifest, args.run.as_deref())?;
    refuse_another_base(&manifest, base.as_ref())?;
    let run = signed::run_of(&signed).map_err(|error| Failure::Other { message: error.to_string() })?;
    describe(context, &manifest);
    if args.dry_run {
        out.done(&format!("run   {}  {run}", manifest.run.name));
        match out.style().json {
            true => out.document("train", &json!({ "run": run, "manifest": manifest })),
            false => out.print(text::write(&manifest).trim_end()),
        }
        return Ok(0);
    }
    if let Some(path) = &args.out
        && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Failure::NotEmpty { path: path.display().to_string() }.into());
    }
    let data = Data { corpus: Arc::new(corpus), epochs: args.epochs };
    let serve = serve(args, context, &manifest);
    if base.is_some() && !matches!(&serve, Serve::Stages(stages) if stages.len() == usize::from(manifest.stages.count))
    {
        return Err(usage(
            "--model: who owns the first weights serves all stages at the start, so that others can copy them; \
             this machine gives too little memory for that, or was told to serve less"
                .into(),
        ));
    }
    session::run(
        context,
        Plan {
            command: "train",
            run: manifest.run.name.clone(),
            way: Way::Known { signed, meet: Vec::new() },
            role: Role { serve, feed: Some(data), feed_later: false },
            invite: None,
            patience: Duration::from_secs(20),
            keep_trying: true,
            save_to: args.out.clone(),
            owner: true,
            base,
            until_stdin_closes: args.give.until_stdin_closes,
        },
    )
}

/// The model that the run begins with, where it is one in a folder.
fn base(args: &args::Train, context: &Context, known: Option<&RunFolder>) -> Result<Option<Base>, Report> {
    if let Some(folder) = &args.model {
        let folder = &*super::hub::local(folder, context)?;
        context.out.note(&format!("reading {}", folder.display()));
        let base = Base::open(folder).map_err(|error| unusable(folder, error))?;
        let parameters = StageModel::whole(base.checkpoint.config.clone()).map_or(0, |model| model.values());
        context.out.done(&format!(
            "model {} parameters of the family {}, {}",
            About(parameters as f64),
            format!("{:?}", base.checkpoint.family).to_lowercase(),
            if base.tokenizer.is_bytes() { "its tokens are bytes" } else { "with its tokenizer" },
        ));
        return Ok(Some(base));
    }
    let Some(folder) = known else { return Ok(None) };
    let Some(signed) = folder.manifest()? else { return Ok(None) };
    let Ok(manifest) = signed::open(&signed, folder.run) else { return Ok(None) };
    Base::of_run(folder, &manifest).map_err(|error| unusable(&folder.path, error))
}

pub fn unusable(folder: &Path, error: BaseError) -> Report {
    match error {
        BaseError::Folder(error) => super::model::unread(folder, error),
        BaseError::Text(TextError::NoTokenizer { there, .. }) => {
            Failure::NoTokenizer { path: folder.display().to_string(), files: there.join(", ") }.into()
        }
        other => Failure::NotAModel { path: folder.display().to_string(), why: other.to_string() }.into(),
    }
}

/// As bytes, or as the tokenizer of the model reads it.
fn read(args: &args::Train, base: Option<&Base>) -> Result<Corpus, Report> {
    match base {
        Some(base) if !base.tokenizer.is_bytes() => {
            Ok(Corpus::open(&args.data, Reading::of_model(base.tokenizer.clone(), base.template.clone()))?)
        }
        _ => Ok(Corpus::read(&args.data)?),
    }
}

/// Weights that are not those the run was signed with would train another model.
fn refuse_another_base(manifest: &Manifest, base: Option<&Base>) -> Result<(), Report> {
    match (&manifest.model.weights, base) {
        (Weights::Seed { .. }, None) => Ok(()),
        (Weights::Blob { .. }, Some(base)) if base.is_of(manifest) => Ok(()),
        (Weights::Blob { .. }, Some(base)) => {
            Err(usage(format!("--model {}: the run began with other weights", base.folder.display())))
        }
        (Weights::Blob { .. }, None) => {
            Err(usage("the run began with a model in a folder: --model DIR says where that lies now".into()))
        }
        (Weights::Seed { .. }, Some(_)) => Err(usage("--model: the weights of this run are drawn from a seed".into())),
    }
}

/// The beginning of the data on one line.
fn preview(corpus: &Corpus) -> String {
    let head = corpus.preview(PREVIEW);
    let words: Vec<&str> = head.split_whitespace().collect();
    let more = if (head.len() as u64) < corpus.len() { "…" } else { "" };
    format!("\"{}{more}\"", words.join(" "))
}

/// The first record on one line, with what is learned between brackets.
fn marked(pieces: &[Piece]) -> String {
    let piece = |piece: &Piece| match piece.learned {
        true => format!("[{}]", piece.text),
        false => piece.text.clone(),
    };
    format!("{:?}", pieces.iter().map(piece).collect::<String>())
}

/// What the owner computes, beside feeding: what it gives says so, as for everybody.
fn serve(args: &args::Train, context: &Context, manifest: &Manifest) -> Serve {
    let give = &context.node.give;
    match give.stage {
        _ if args.no_serve || !give.works() => Serve::Nothing,
        StageChoice::Stage(stage) => Serve::Stages(vec![stage]),
        StageChoice::Auto => all_that_fit(context, manifest),
    }
}

/// A lone owner serves every stage, so that training starts at once; where they do not all fit, the plan decides.
fn all_that_fit(context: &Context, manifest: &Manifest) -> Serve {
    let give = context.node.give.memory_bytes(&context.machine);
    let stages: Vec<u16> = (0..manifest.stages.count).collect();
    let need: u64 = stages.iter().map(|stage| skein_pipeline::model::cost::memory(manifest, *stage).peak()).sum();
    if need <= give { Serve::Stages(stages) } else { Serve::Plan }
}

/// A new manifest from a preset or a model, and the flags.
fn made(args: &args::Train, me: PeerId, base: Option<&Base>) -> Result<Manifest, Report> {
    let name = args.preset.as_deref().unwrap_or(PRESET);
    let mut manifest = preset::preset(name).ok_or_else(|| no_preset(name))?;
    let mut label = name.to_string();
    if let Some(base) = base {
        begin_with(&mut manifest, base)?;
        label = base.folder.file_name().map_or("model".into(), |name| slug(&name.to_string_lossy()));
    }
    manifest.run.owner = me;
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
    if let Some(sequence) = args.sequence {
        manifest.train.sequence = sequence;
        manifest.model.config.context = manifest.model.config.context.max(sequence);
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
    Ok(manifest)
}

/// Makes a manifest one that goes on training a model.
fn begin_with(manifest: &mut Manifest, base: &Base) -> Result<(), Report> {
    let config = &base.checkpoint.config;
    manifest.model.family = base.checkpoint.family;
    manifest.model.config = config.clone();
    manifest.model.weights = Weights::Blob { blob: base.weights, sources: Vec::new() };
    manifest.model.tokenizer = base.words.clone();
    if !base.tokenizer.is_bytes() {
        manifest.train.loss = Loss::CompletionOnly;
    }
    manifest.train.sequence = SEQUENCE.min(config.context);
    manifest.optimizer.lr = RATE;
    manifest.optimizer.schedule.warmup = WARM_UP;
    let parameters = StageModel::whole(config.clone()).map_err(|error| usage(format!("--model: {error}")))?.values();
    let stages = (parameters as u64).div_ceil(STAGE).clamp(1, u64::from(config.layers).min(64)) as u16;
    manifest.stages.count = stages;
    manifest.stages.split =
        partition::of(manifest, stages).ok_or_else(|| usage("--model: its layers do not part into stages".into()))?;
    Ok(())
}

/// A model that has learned is moved gently: rates that train one from scratch would undo it.
const RATE: f64 = 2e-5;
const WARM_UP: u64 = 20;
/// Tokens of a sequence, where the model reads as many.
const SEQUENCE: u32 = 512;
/// Parameters of a stage, about: 2 GB with their gradients and moments, which most machines can give.
const STAGE: u64 = 100_000_000;

fn usage(message: String) -> Report {
    Failure::Usage { message }.into()
}

/// What is no preset, and what is.
pub fn no_preset(name: &str) -> Report {
    let hint = nearest(name, PRESETS.iter().map(ToString::to_string));
    Failure::NoProfile { name: name.into(), known: PRESETS.join(", "), hint: hint.into() }.into()
}

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

/// A manifest file, or the name of a run that is known here.
fn existing(
    context: &Context,
    run: &str,
    me: PeerId,
    key: &skein_protocol::key::Key,
) -> Result<(Manifest, Vec<u8>), Report> {
    if let Some(folder) = context.home.runs().named(run)
        && let Some(signed) = folder.manifest()?
    {
        let manifest = signed::open(&signed, folder.run).map_err(|error| Failure::Damaged {
            path: folder.path.join("manifest").display().to_string(),
            why: error.to_string(),
        })?;
        return Ok((manifest, signed));
    }
    if !Path::new(run).exists() {
        return Err(super::unknown_run(context, run));
    }
    let file = std::fs::read_to_string(run)
        .map_err(|error| Failure::DataUnreadable { path: run.into(), error: error.to_string() })?;
    let parsed = text::parse(&file, Some(me)).map_err(|problems| super::run::not_valid(Path::new(run), &problems))?;
    if parsed.manifest.run.owner != me {
        let owner = crate::cli::show::Peer(parsed.manifest.run.owner);
        return Err(Failure::NotYours { run: run.into(), owner: owner.to_string() }.into());
    }
    let (_, signed) = signed::sign(&parsed.manifest, key);
    Ok((parsed.manifest, signed))
}

/// `source`: the file or the run it came from; nothing where the flags made it.
fn refuse_problems(manifest: &Manifest, source: Option<&str>) -> Result<(), Report> {
    let problems: Vec<String> = check::check(manifest)
        .into_iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(|problem| format!("{} {}", problem.key, problem.what))
        .collect();
    match source {
        _ if problems.is_empty() => Ok(()),
        None => Err(usage(format!("the run would not be valid: {}", problems.join("; ")))),
        Some(path) => Err(Failure::BadManifest { path: path.into(), problems: problems.join("\n") }.into()),
    }
}

fn describe(context: &Context, manifest: &Manifest) {
    let stages = manifest.stages.count;
    let parameters: u64 = (0..stages).map(|s| skein_pipeline::model::cost::stage_parameters(manifest, s)).sum();
    let largest = (0..stages).map(|s| skein_pipeline::model::cost::memory(manifest, s).peak()).max().unwrap_or(0);
    context.out.done(&format!(
        "plan  {} parameters in {} (at most {} of memory each), {} tokens a step",
        About(parameters as f64),
        counted(stages.into(), "stage"),
        Bytes(largest),
        Count(manifest.samples_per_step() * u64::from(manifest.train.sequence)),
    ));
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
