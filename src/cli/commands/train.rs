//! `skein train`: writes and signs a manifest, feeds the data, and trains at once, alone or with whoever joins.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::json;
use skein_pipeline::plan::partition;
use skein_protocol::{
    Manifest, PeerId,
    run::{
        Ends, Weights,
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
    corpus::Corpus,
    node::{Role, Serve, Way, feed::Data, signed},
};

/// Size of the model where nothing is said.
const PRESET: &str = "tiny";
/// Text of the first record that is shown.
const PREVIEW: usize = 160;

pub fn run(args: &args::Train, context: &Context) -> Result<u8, Report> {
    let corpus = Corpus::read(&args.data)?;
    let out = &context.out;
    out.done(&format!(
        "data  {} tokens from {}{}",
        About(corpus.len() as f64),
        counted(corpus.documents, "document"),
        match corpus.skipped.total() {
            0 => String::new(),
            _ => format!(" (left out: {})", corpus.skipped),
        }
    ));
    out.note(&format!("begins: {}", preview(&corpus)));

    let identity = {
        let _lock = context.home.lock()?;
        context.home.identity()?
    };
    let me = identity.key.peer();
    let (manifest, signed) = match &args.run {
        Some(run) => existing(context, run, me, &identity.key)?,
        None => {
            let manifest = made(args, me)?;
            let (_, signed) = signed::sign(&manifest, &identity.key);
            (manifest, signed)
        }
    };
    refuse_problems(&manifest, args.run.as_deref())?;
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
            until_stdin_closes: args.give.until_stdin_closes,
        },
    )
}

/// The beginning of the data on one line.
fn preview(corpus: &Corpus) -> String {
    let head = corpus.preview(PREVIEW);
    let words: Vec<&str> = head.split_whitespace().collect();
    let more = if (head.len() as u64) < corpus.len() { "…" } else { "" };
    format!("\"{}{more}\"", words.join(" "))
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

/// A new manifest from a preset and the flags.
fn made(args: &args::Train, me: PeerId) -> Result<Manifest, Report> {
    let name = args.preset.as_deref().unwrap_or(PRESET);
    let mut manifest = preset::preset(name).ok_or_else(|| no_preset(name))?;
    manifest.run.owner = me;
    manifest.run.name = match &args.run_name {
        Some(name) => name.clone(),
        None => name_of(args.data.first().map_or(Path::new("run"), |path| path.as_path()), name),
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
    if let Some(micro_batch) = args.micro_batch {
        manifest.train.micro_batch = micro_batch;
    }
    if let Some(seed) = args.seed {
        manifest.train.seed = seed;
        manifest.model.weights = Weights::Seed { init_seed: seed };
    }
    Ok(manifest)
}

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
    let stem = path.file_stem().map_or("run".into(), |stem| stem.to_string_lossy().to_lowercase());
    let mut name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    while name.contains("--") {
        name = name.replace("--", "-");
    }
    let name = name.trim_matches('-');
    let name: String = name.chars().take(31usize.saturating_sub(preset.len())).collect();
    format!("{}-{preset}", if name.is_empty() { "run" } else { &name })
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
