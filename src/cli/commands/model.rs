//! `skein model`: what a folder with a model holds, and whether it is computed here as its makers' library computes it.

mod convert;

use std::{fs, path::Path};

use serde_json::json;
use skein_pipeline::{
    compute::{
        Device,
        hf::{self, AdapterFolder, Checkpoint, HfError, SUPPORTED},
        parity::{self, Agreement, ParityError, Reference},
    },
    model::StageModel,
};
use skein_protocol::run::RopeScaling;

use super::hub;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        show::{Bytes, Count, counted},
        table::{Column, Table},
    },
    home::file::refused,
};

pub fn run(args: &args::Model, context: &Context) -> Result<u8, Report> {
    match args {
        args::Model::Show { folder } => show(folder, context),
        args::Model::Check(args) => check(args, context),
        args::Model::Merge(args) => merge(args, context),
        args::Model::Convert(args) => convert::run(args, context),
        args::Model::Pull { source } => hub::pull(source, context),
        args::Model::List => hub::list(context),
        args::Model::Rm { source, yes } => hub::remove(source, *yes, context),
    }
}

/// What a person is told of a folder that cannot be read as a model.
pub fn unread(folder: &Path, error: HfError) -> Report {
    let path = folder.display().to_string();
    match error {
        HfError::Io { .. } | HfError::Unreadable { .. } if !folder.exists() => {
            Failure::NotAModel { path, why: "there is no such folder or file".into() }.into()
        }
        HfError::NoTokenizer(files) => Failure::NoTokenizer { path, files: files.join(", ") }.into(),
        HfError::Family(name) => Failure::UnknownFamily { name, supported: SUPPORTED.join(", ") }.into(),
        HfError::Words { why, .. } => Failure::WordsUnknown { path, why }.into(),
        HfError::Pickle(file) => Failure::Pickle { file: file.display().to_string(), path }.into(),
        other => {
            let why = other.to_string();
            Report { failure: Box::new(Failure::NotAModel { path, why }), cause: Some(Box::new(other)) }
        }
    }
}

fn show(folder: &Path, context: &Context) -> Result<u8, Report> {
    let folder = &*hub::local(folder, context)?;
    let checkpoint = Checkpoint::open(folder).map_err(|error| unread(folder, error))?;
    let whole = StageModel::whole(checkpoint.config.clone()).map_err(|error| unread(folder, error.into()))?;
    let (config, parameters) = (&checkpoint.config, whole.values() as u64);
    let family = format!("{:?}", checkpoint.family).to_lowercase();
    if context.out.style().json {
        let value = json!({ "path": folder, "family": family, "parameters": parameters, "config": config });
        context.out.document("model", &value);
        return Ok(0);
    }
    let mut table = Table::new(vec![Column::Left("what"), Column::Left("value")]);
    let mut row = |what: &str, value: String| table.row(vec![what.into(), value]);
    row("family", family);
    row("parameters", Count(parameters).to_string());
    row("as f32", Bytes(4 * parameters).to_string());
    row("layers", config.layers.to_string());
    let heads = format!("{} of {}, {} of keys and values", config.heads, config.head(), config.kv_heads);
    row("width", format!("{}, MLP {}", config.hidden, config.ffn));
    row("heads", heads);
    row(
        "vocabulary",
        format!("{}{}", Count(config.vocab.into()), if config.tie_embeddings { ", tied head" } else { "" }),
    );
    let scaled = match config.rope_scaling {
        None => String::new(),
        Some(RopeScaling::Linear { factor }) => format!(", stretched {factor} times"),
        Some(RopeScaling::Llama3 { factor, original, .. }) => format!(", stretched {factor} times from {original}"),
    };
    row("context", format!("{} tokens{scaled}", Count(config.context.into())));
    if let Some(window) = config.window {
        let from = if window.from > 0 { format!(" from layer {} on", window.from) } else { String::new() };
        row("window", format!("{} tokens{from}", Count(window.size.into())));
    }
    context.out.table(&table);
    Ok(0)
}

fn check(args: &args::ModelCheck, context: &Context) -> Result<u8, Report> {
    let folder = &*hub::local(&args.folder, context)?;
    let checkpoint = Checkpoint::open(folder).map_err(|error| unread(folder, error))?;
    let adapter = args.adapter.as_deref().map(AdapterFolder::open).transpose();
    let adapter = adapter.map_err(|error| unread(args.adapter.as_deref().unwrap_or(&args.folder), error))?;
    let threads = context.node.give.thread_count(&context.machine).into();
    let found = Reference::read(&args.reference)
        .and_then(|reference| {
            parity::compare(&checkpoint, adapter.as_ref(), &reference, args.stages.into(), Device::Cpu { threads })
        })
        .map_err(|error| uncompared(&args.folder, error))?;
    if context.out.style().json {
        context.out.document("model-check", &found);
    } else {
        tell(&found, args, context);
    }
    match found.holds() {
        true => Ok(0),
        false => Err(Failure::NotAsTheirs { path: args.folder.display().to_string(), found: beyond(&found) }.into()),
    }
}

fn merge(args: &args::ModelMerge, context: &Context) -> Result<u8, Report> {
    let path = args.out.display().to_string();
    if fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::NotEmpty { path }.into());
    }
    let folder = &*hub::local(&args.folder, context)?;
    let checkpoint = Checkpoint::open(folder).map_err(|error| unread(folder, error))?;
    let adapter = AdapterFolder::open(&args.adapter).map_err(|error| unread(&args.adapter, error))?;
    let merged = checkpoint.merged(&adapter).map_err(|error| unread(&args.adapter, error))?;
    let needed = 4 * merged.1.len() as u64;
    fs::create_dir_all(&args.out).map_err(|error| refused(&args.out, needed, error))?;
    let texts = checkpoint.texts().map_err(|error| unread(&args.folder, error))?;
    let written = hf::write_with(&args.out, checkpoint.family, &[merged], &texts);
    let written = written.map_err(|error| match error {
        HfError::Io { path, source } => refused(&path, needed, source).into(),
        other => unread(&args.folder, other),
    })?;
    if context.out.style().json {
        let value = json!({ "out": args.out, "bytes": written.bytes, "parameters": written.parameters });
        context.out.document("model-merge", &value);
        return Ok(0);
    }
    context.out.done(&format!("{} parameters, {}", Count(written.parameters), Bytes(written.bytes)));
    context.out.print(&path);
    Ok(0)
}

/// Each number beside what is allowed.
fn tell(found: &Agreement, args: &args::ModelCheck, context: &Context) {
    let mut table = Table::new(vec![Column::Left("what"), Column::Right("apart"), Column::Right("allowed")]);
    let mut row = |what: String, apart: String, allowed: &str| table.row(vec![what, apart, allowed.into()]);
    let number = |value: f64| format!("{value:.1e}");
    if let Some(apart) = found.loss_abs {
        row("loss".into(), number(apart), "1e-4");
    }
    if let Some(apart) = found.logits_max_abs {
        row("logits, the furthest".into(), number(apart), "1e-4");
    }
    if let (Some(apart), Some(worst)) = (found.grads_max_rel, &found.grads_worst) {
        row(format!("gradients, the furthest: {worst}"), number(apart), "1e-3");
    }
    if let Some(equal) = found.greedy_equal {
        row("text, the likeliest token each time".into(), if equal { "equal" } else { "differs" }.into(), "equal");
    }
    context.out.table(&table);
    let stages = counted(args.stages.into(), "stage");
    if found.holds() {
        context.out.done(&format!("{} over {stages}: computed as the reference says", args.folder.display()));
    }
}

fn beyond(found: &Agreement) -> String {
    let mut beyond = Vec::new();
    let mut say = |what: &str, value: Option<f64>, most: f64| {
        if let Some(value) = value.filter(|value| *value > most) {
            beyond.push(format!("{what} {value:.1e} apart, {most:.0e} allowed"));
        }
    };
    say("loss", found.loss_abs, parity::LOSS_MAX);
    say("logits", found.logits_max_abs, parity::LOGITS_MAX);
    let worst = found.grads_worst.as_deref().unwrap_or_default();
    say(&format!("the gradient of {worst}"), found.grads_max_rel, parity::GRADIENTS_MAX);
    if found.greedy_equal == Some(false) {
        beyond.push("the text differs".into());
    }
    beyond.join("; ")
}

fn uncompared(folder: &Path, error: ParityError) -> Report {
    match error {
        ParityError::Folder(error) => unread(folder, error),
        ParityError::Model(error) => unread(folder, error.into()),
        ParityError::Reference { path, why } => Failure::DataUnreadable { path, error: why }.into(),
        error @ (ParityError::Weights(_) | ParityError::Engine(_)) => {
            Failure::Other { message: error.to_string() }.into()
        }
    }
}
