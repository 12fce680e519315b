//! `skein train` and `skein finetune`: write and sign a manifest, feed the data, and train at once, alone or with whoever joins.

mod make;

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::json;
use skein_pipeline::model::StageModel;
use skein_protocol::{
    Manifest, PeerId,
    hash::Digest,
    key::Key,
    run::{
        BasePrecision, Lora, Loss, Weights,
        check::{self, Severity},
        preset::PRESETS,
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
    corpus::{Corpus, CorpusError, HoldOut, Reading},
    home::RunFolder,
    node::{
        Role, Serve, Way,
        base::{Base, BaseError, Words},
        feed::{Cut, Data},
        signed,
    },
    text::{Piece, TextError},
};

/// Text of the first record that is shown.
const PREVIEW: usize = 160;

/// What is asked for.
struct Wish<'a> {
    command: &'static str,
    preset: Option<&'a str>,
    model: Option<&'a Path>,
    /// Adapters beside the model, instead of all its weights.
    lora: Option<Lora>,
    delegates: Vec<PeerId>,
    /// The data are records of which only a part may be learned, also where tokens are bytes.
    records: bool,
    course: &'a args::Course,
}

pub fn train(args: &args::Train, context: &Context) -> Result<u8, Report> {
    let (preset, model) = (args.preset.as_deref(), args.model.as_deref());
    let (delegates, course) = (Vec::new(), &args.course);
    run(&Wish { command: "train", preset, model, lora: None, delegates, records: false, course }, context)
}

pub fn finetune(args: &args::Finetune, context: &Context) -> Result<u8, Report> {
    let alpha = args.lora_alpha.unwrap_or(args.lora_rank.saturating_mul(2));
    let (rank, targets, base) = (args.lora_rank, args.targets.clone(), args.base_precision);
    let lora = Lora { rank, alpha, targets, dropout_percent: 0, base };
    let peer = |text: &String| text.parse().map_err(|error| usage(format!("--delegate {text}: {error}")));
    let wish = Wish {
        command: "finetune",
        preset: None,
        model: args.model.as_deref(),
        lora: (!args.full).then_some(lora),
        delegates: args.delegate.iter().map(peer).collect::<Result<_, _>>()?,
        records: true,
        course: &args.course,
    };
    run(&wish, context)
}

/// A run that was made before.
struct Existing {
    /// Where this home keeps it, if it was in it.
    folder: Option<RunFolder>,
    manifest: Manifest,
    signed: Vec<u8>,
}

fn run(wish: &Wish<'_>, context: &Context) -> Result<u8, Report> {
    let (out, course) = (&context.out, wish.course);
    if let Some(path) = &course.out
        && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Failure::NotEmpty { path: path.display().to_string() }.into());
    }
    // A new run leaves nothing behind before its data was read.
    let key = || -> Result<Key, Report> {
        let _lock = context.home.lock()?;
        Ok(context.home.identity()?.key)
    };
    let existing = course.run.as_deref().map(|run| existing(context, run, &key()?)).transpose()?;
    let base = base(wish, context, existing.as_ref())?;
    if let Some(Existing { manifest, .. }) = &existing {
        refuse_another_base(manifest, base.as_ref())?;
    }
    let words = words(context, base.as_ref(), existing.as_ref())?;
    let reads_bytes = words.as_ref().is_none_or(|words| words.tokenizer.is_bytes());
    // Plain text for a model of bytes is one ring, unless of records only a part is learned.
    let has_records = match &existing {
        Some(Existing { manifest, .. }) => manifest.train.loss == Loss::CompletionOnly,
        None => wish.records,
    };
    let of_records = has_records || !reads_bytes;
    let corpus = read(course, words.filter(|_| of_records))?;
    out.done(&format!(
        "data  {} {} from {}{}",
        About(corpus.len() as f64),
        if reads_bytes { "tokens" } else { "bytes" },
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

    let key = key()?;
    let me = key.peer();
    let folder = existing.as_ref().and_then(|existing| existing.folder.clone());
    let (manifest, signed) = match existing {
        Some(Existing { manifest, signed, .. }) => (manifest, signed),
        None => {
            let shelf = context.home.shelf();
            let manifest = make::manifest(wish, me, base.as_ref(), (!course.dry_run).then_some(&shelf))?;
            let (_, signed) = signed::sign(&manifest, &key);
            (manifest, signed)
        }
    };
    refuse_problems(&manifest, course.run.as_deref())?;
    let run = signed::run_of(&signed).map_err(|error| Failure::Other { message: error.to_string() })?;
    describe(context, &manifest);
    let cut = folder.as_ref().map(Cut::of).transpose()?.flatten();
    let data = hold_out(corpus, course.held_out, cut, of_records, &manifest)?;
    if let Some(held_out) = &data.held_out {
        let of = About(held_out.len() as f64);
        out.done(&format!("apart {of} tokens are measured with and never learned (--held-out)"));
    }
    if course.dry_run {
        out.done(&format!("run   {}  {run}", manifest.run.name));
        match out.style().json {
            true => out.document(wish.command, &json!({ "run": run, "manifest": manifest })),
            false => out.print(text::write(&manifest).trim_end()),
        }
        return Ok(0);
    }
    if let Some(base) = &base {
        base.shelve_words(&context.home.shelf())?;
    }
    let data = Data { epochs: course.epochs, ..data };
    let ends = &manifest.run.ends;
    if data.epochs.is_none() && ends.steps.is_none() && ends.tokens.is_none() && ends.loss.is_none() {
        let then = course.out.as_ref().map_or(String::new(), |path| format!(", and writes {} then", path.display()));
        out.note(&format!("ends  when you stop it (Ctrl-C){then}: no --epochs, --steps or --tokens says when else"));
    }
    let owner = manifest.run.owner == me;
    let serve = serve(course, context, &manifest, owner);
    let all = matches!(&serve, Serve::Stages(stages) if stages.len() == usize::from(manifest.stages.count));
    let ends = |stages: &[u16]| stages.contains(&0) && stages.contains(&manifest.last_stage());
    if manifest.stages.pin_ends && owner && !matches!(&serve, Serve::Stages(stages) if ends(stages)) {
        let what = "the first and the last stage of a private run are its owner's alone: it has to serve both";
        return Err(usage(what.into()));
    }
    if base.is_some() && manifest.lora().is_none() && !all {
        return Err(usage(
            "--model: who owns the first weights serves all stages at the start, so that others can copy them; \
             this machine gives too little memory for that, or was told to serve less"
                .into(),
        ));
    }
    let invited = folder.filter(|_| !owner).and_then(|folder| super::join::invited(&folder));
    session::run(
        context,
        Plan {
            command: wish.command,
            run: manifest.run.name.clone(),
            way: Way::Known { signed, meet: invited.map_or_else(Vec::new, |invited| invited.peers) },
            role: Role { serve, feed: Some(data), feed_later: false },
            invite: None,
            patience: Duration::from_secs(20),
            keep_trying: true,
            save_to: course.out.clone(),
            owner,
            base,
            until_stdin_closes: course.give.until_stdin_closes,
        },
    )
}

/// The model that the run begins with, where it is one in a folder. Beside adapters what it is needed for is laid on the shelf.
fn base(wish: &Wish<'_>, context: &Context, existing: Option<&Existing>) -> Result<Option<Base>, Report> {
    let shelf = context.home.shelf();
    let base = match wish.model {
        Some(folder) => Some(opened(folder, context)?),
        None => match existing {
            Some(existing) if existing.manifest.lora().is_none() => noted(existing)?,
            _ => None,
        },
    };
    let Some(existing) = existing.filter(|existing| existing.manifest.lora().is_some()) else { return Ok(base) };
    let manifest = &existing.manifest;
    let is_here = |blob: &Digest| shelf.get(*blob).is_ok_and(|bytes| bytes.is_some());
    if manifest.blobs().iter().all(is_here) {
        return Ok(base);
    }
    let base = match base {
        Some(base) => Some(base),
        None => noted(existing).unwrap_or_else(|report| {
            context.out.warn(&format!("{} What this disk lacks comes from the others.", report.failure.what()));
            None
        }),
    };
    match &base {
        Some(base) if base.is_of(manifest) => {
            context.out.note("the weights of its stages are not all on this disk: they are made anew");
            base.frozen(manifest, Some(&shelf)).map_err(|error| unusable(&base.folder, error))?;
            base.shelve_words(&shelf)?;
        }
        None if existing.folder.is_none() => {
            return Err(usage("the run begins with a model that is not here: skein finetune MODEL --run FILE".into()));
        }
        Some(_) | None => {}
    }
    Ok(base)
}

fn opened(folder: &Path, context: &Context) -> Result<Base, Report> {
    let local = super::hub::local(folder, context)?;
    context.out.note(&format!("reading {}", local.display()));
    let base = Base::open(&local).map_err(|error| unusable(&local, error))?;
    let parameters = StageModel::whole(base.checkpoint.config.clone()).map_or(0, |model| model.values());
    context.out.done(&format!(
        "model {} parameters of the family {}, {}",
        About(parameters as f64),
        format!("{:?}", base.checkpoint.family).to_lowercase(),
        if base.words.tokenizer.is_bytes() { "its tokens are bytes" } else { "with its tokenizer" },
    ));
    Ok(base)
}

/// That which the folder of the run notes.
fn noted(existing: &Existing) -> Result<Option<Base>, Report> {
    let Some(folder) = &existing.folder else { return Ok(None) };
    let place = Base::place(folder).unwrap_or_else(|| folder.path.clone());
    Base::of_run(folder, &existing.manifest).map_err(|error| unusable(&place, error))
}

/// How the model of the run reads, where it began with one.
fn words(context: &Context, base: Option<&Base>, existing: Option<&Existing>) -> Result<Option<Words>, Report> {
    match (base, existing) {
        (Some(base), _) => Ok(Some(base.words.clone())),
        (None, Some(existing)) => {
            let shelf = context.home.shelf();
            let words = Words::of_run(&shelf, &existing.manifest).map_err(|error| unusable(shelf.dir(), error))?;
            let missing = "the tokenizer of this run is not here: skein join it once, until it has arrived, or say where its model \
                           lies (skein finetune MODEL --run NAME)";
            words.ok_or_else(|| usage(missing.into())).map(Some)
        }
        (None, None) => Ok(None),
    }
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

/// Fewer records than these are all learned from, unless somebody asks.
const HELD_OUT_OF: u64 = 200;

/// What is learned from, and what is measured with. `cut`: of a run that was fed before.
fn hold_out(
    corpus: Corpus,
    asked: Option<HoldOut>,
    cut: Option<Cut>,
    of_records: bool,
    manifest: &Manifest,
) -> Result<Data, Report> {
    let (seed, sequence) = (manifest.train.seed, manifest.train.sequence as usize);
    let parted = |(learned, held): (Corpus, Corpus), until| {
        if held.summary(sequence).learned == 0 {
            return Err(CorpusError::NothingLearned { records: held.documents, sequence: Some(sequence) });
        }
        Ok(Data { held_out: Some(Arc::new(held)), cut: Cut(Some(until)), ..Data::of(learned) })
    };
    let held = match (cut, asked) {
        (Some(_), Some(_)) => {
            let what = "--held-out: what is held out was settled when this run was first fed from here";
            return Err(usage(what.into()));
        }
        (Some(Cut(Some(until))), None) => return Ok(parted(corpus.hold_out_until(until, seed)?, until)?),
        (Some(Cut(None)), None) | (None, Some(HoldOut::Count(0))) => return Ok(Data::of(corpus)),
        (None, None) if !of_records || corpus.documents < HELD_OUT_OF => return Ok(Data::of(corpus)),
        (None, None) => HoldOut::Share(0.02),
        (None, Some(held)) => held,
    };
    match corpus.hold_out(held, seed).and_then(|(learned, held, until)| parted((learned, held), until)) {
        // Of a single text there is nothing to part, or its answers lie beyond the end of a sequence.
        Err(CorpusError::HoldOut { .. } | CorpusError::NothingLearned { .. }) if asked.is_none() => {
            Ok(Data::of(corpus))
        }
        parted => Ok(parted?),
    }
}

/// As bytes, or as the tokenizer of the model reads it.
fn read(course: &args::Course, words: Option<Words>) -> Result<Corpus, Report> {
    match words {
        Some(Words { tokenizer, template, .. }) => {
            let reading = Reading { skip_bad: course.skip_bad, ..Reading::of_model(tokenizer, template) };
            Ok(Corpus::open(&course.data, reading)?)
        }
        None => Ok(Corpus::read(&course.data)?),
    }
}

/// Weights that are not those the run was signed with would train another model.
fn refuse_another_base(manifest: &Manifest, base: Option<&Base>) -> Result<(), Report> {
    match (&manifest.model.weights, base) {
        (Weights::Seed { .. }, None) => Ok(()),
        (Weights::Blob { .. }, Some(base)) if base.is_of(manifest) => Ok(()),
        (Weights::Blob { .. }, Some(base)) => {
            Err(usage(format!("{}: the run began with other weights", base.folder.display())))
        }
        // Beside adapters they lie on the shelf, or come from whoever has them.
        (Weights::Blob { .. }, None) if manifest.lora().is_some() => Ok(()),
        (Weights::Blob { .. }, None) => Err(usage(
            "the run began with a model in a folder: skein train --model DIR --run NAME says where that lies now"
                .into(),
        )),
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
fn serve(course: &args::Course, context: &Context, manifest: &Manifest, owner: bool) -> Serve {
    let give = &context.node.give;
    match give.stage {
        _ if course.no_serve || !give.works() => Serve::Nothing,
        StageChoice::Stage(stage) => Serve::Stages(vec![stage]),
        StageChoice::Auto if owner => all_that_fit(context, manifest),
        StageChoice::Auto => Serve::Plan,
    }
}

/// A lone owner serves every stage, so that training starts at once; where they do not all fit, those that nobody else may serve, or
/// the plan decides.
fn all_that_fit(context: &Context, manifest: &Manifest) -> Serve {
    let give = context.node.give.memory_bytes(&context.machine);
    let stages: Vec<u16> = (0..manifest.stages.count).collect();
    let need: u64 = stages.iter().map(|stage| skein_pipeline::model::cost::memory(manifest, *stage).peak()).sum();
    match need <= give {
        true => Serve::Stages(stages),
        false if manifest.stages.pin_ends => Serve::Stages(vec![0, manifest.last_stage()]),
        false => Serve::Plan,
    }
}

fn usage(message: String) -> Report {
    Failure::Usage { message }.into()
}

/// What is no preset, and what is.
pub fn no_preset(name: &str) -> Report {
    let hint = nearest(name, PRESETS.iter().map(ToString::to_string));
    Failure::NoProfile { name: name.into(), known: PRESETS.join(", "), hint: hint.into() }.into()
}

/// A manifest file, or the name of a run that is known here.
fn existing(context: &Context, run: &str, key: &Key) -> Result<Existing, Report> {
    let me = key.peer();
    if let Some(folder) = context.home.runs().named(run)
        && let Some(signed) = folder.manifest()?
    {
        let manifest = signed::open(&signed, folder.run).map_err(|error| Failure::Damaged {
            path: folder.path.join("manifest").display().to_string(),
            why: error.to_string(),
        })?;
        return Ok(Existing { folder: Some(folder), manifest, signed });
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
    let (id, signed) = signed::sign(&parsed.manifest, key);
    let folder = context.home.runs().list().into_iter().find(|folder| folder.run == id);
    Ok(Existing { folder, manifest: parsed.manifest, signed })
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
    let trained = match manifest.lora() {
        Some(lora) => {
            let frozen: u64 = (0..stages).map(|s| skein_pipeline::model::cost::frozen_parameters(manifest, s)).sum();
            let of = lora.targets.join(",");
            let held = match lora.base {
                BasePrecision::AsIs => String::new(),
                other => format!(" in {}", other.name()),
            };
            let (parameters, frozen) = (About(parameters as f64), About(frozen as f64));
            format!("LoRA rank {} on {of}: {parameters} parameters of {frozen}{held}", lora.rank)
        }
        None => format!("{} parameters", About(parameters as f64)),
    };
    context.out.done(&format!(
        "plan  {trained} in {} (at most {} of memory each), {} tokens a step",
        counted(stages.into(), "stage"),
        Bytes(largest),
        Count(manifest.samples_per_step() * u64::from(manifest.train.sequence)),
    ));
}
