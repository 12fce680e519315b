//! `skein eval`: how well a model says held-out data. In: a folder, perhaps an adapter, or the run that the peer here works on; data. Out: loss and perplexity of
//! what is learned, and how many answers the model says word for word.

use std::{borrow::Cow, path::Path, sync::Arc};

use serde_json::json;
use skein_pipeline::{
    compute::{
        Device, engine,
        hf::{AdapterFolder, Checkpoint},
    },
    exact::{Engine, EngineError, IGNORE, Settings, StageInput, StageWeights, likeliest},
    model::{StageModel, frozen::Frozen},
};
use skein_protocol::run::{Arithmetic, BasePrecision};
use tempfile::TempDir;

use super::{ask, export, hub, model::unread, train::unusable};
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        progress::{Progress, Unit},
        show::{Count, counted},
    },
    corpus::{Corpus, Reading},
    node::{base::Words, signed},
    text::Example,
    watch::{ExportForm, ExportRequest},
};

pub fn run(args: &args::Eval, context: &Context) -> Result<u8, Report> {
    let named = args.model.to_string_lossy();
    let run = match ask::folder(&named) {
        Some(_) => None,
        None => Some(of_run(&named, context)?),
    };
    let model = match &run {
        Some(exported) => Cow::Owned(exported.path().join("model")),
        None => hub::local(&args.model, context)?,
    };
    let folder = std::path::absolute(&model).unwrap_or_else(|_| model.to_path_buf());
    let checkpoint = Checkpoint::open(&folder).map_err(|error| unread(&args.model, error))?;
    let words = Words::fitting(&checkpoint, &folder).map_err(|error| unusable(&args.model, error))?;
    let sequence = args.sequence.unwrap_or(512).min(checkpoint.config.context) as usize;
    let corpus = read(args, words)?;
    let threads = context.node.give.thread_count(&context.machine).into();
    let mut engine = made(&checkpoint, args.adapter.as_deref(), sequence, threads)?;
    let most = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let examples = corpus.examples(sequence + 1).take(most);
    let total = corpus.example_count(sequence + 1).min(most as u64);
    let progress = Progress::start(&context.out, "reading", total, Unit::Things);
    let mut found = Found::default();
    for (n, example) in examples.enumerate() {
        found
            .add(engine.as_mut(), &example?, sequence)
            .map_err(|error| Failure::Other { message: error.to_string() })?;
        progress.at(n as u64 + 1);
    }
    drop(progress);
    if found.tokens == 0 {
        return Err(Failure::Other {
            message: "nothing in this data is learned, so there is nothing to measure".into(),
        }
        .into());
    }
    let loss = found.loss / found.tokens as f64;
    if context.out.style().json {
        let value = json!({
            "records": found.records, "tokens": found.tokens, "loss": loss, "perplexity": loss.exp(),
            "answers": found.answers, "exact": found.exact,
        });
        context.out.document("eval", &value);
        return Ok(0);
    }
    context.out.print(&format!("loss {loss:.4} nats a token, perplexity {:.3}", loss.exp()));
    if found.answers > 0 {
        let percent = 100.0 * found.exact as f64 / found.answers as f64;
        context.out.print(&format!(
            "{} of {} word for word ({percent:.1} %)",
            found.exact,
            counted(found.answers, "answer")
        ));
    }
    context.out.note(&format!("over {} in {}", counted(found.tokens, "token"), counted(found.records, "record")));
    if found.cut > 0 {
        context.out.warn(&format!(
            "{} longer than {} tokens: measured up to there",
            counted(found.cut, "record"),
            Count(sequence as u64)
        ));
    }
    Ok(0)
}

/// The model of the run that the peer here works on, as it is now, in a folder that is gone afterwards.
fn of_run(named: &str, context: &Context) -> Result<TempDir, Report> {
    let client = ask::client(context)?;
    let run = ask::run_named(&client.state()?, named)?;
    let here = |error: std::io::Error| Failure::Other { message: format!("a temporary folder: {error}") };
    let folder = tempfile::Builder::new().prefix("skein-eval-").tempdir().map_err(here)?;
    let signed = context.home.runs().list().into_iter().find(|folder| folder.run == run.id);
    let signed = signed.and_then(|folder| folder.manifest().ok()?);
    let has_adapters = signed.and_then(|bytes| signed::open(&bytes, run.id).ok()).is_some_and(|m| m.lora().is_some());
    let form = if has_adapters { ExportForm::Merged } else { ExportForm::Best };
    let request = ExportRequest { out: folder.path().join("model"), overwrite: false, form };
    let exported = export::collect(&client, &request, context)?;
    context.out.note(&format!("{} as it is at step {}", run.name, Count(exported.step)));
    Ok(folder)
}

fn read(args: &args::Eval, words: Words) -> Result<Corpus, Report> {
    let reading = Reading { skip_bad: args.skip_bad, ..Reading::of_model(words.tokenizer, words.template) };
    Ok(Corpus::open(&args.data, reading)?)
}

fn made(
    checkpoint: &Checkpoint,
    adapter: Option<&Path>,
    sequence: usize,
    threads: usize,
) -> Result<Box<dyn Engine>, Report> {
    let (model, weights) = checkpoint.whole().map_err(|error| unread(checkpoint.path(), error))?;
    let (model, weights) = match adapter {
        None => (model, weights.into()),
        Some(folder) => {
            let adapter = AdapterFolder::open(folder).map_err(|error| unread(folder, error))?;
            let unfit = |error| unread(folder, error);
            let model = StageModel::adapted(model, adapter.lora.clone()).map_err(|error| unfit(error.into()))?;
            let params = adapter.read(&model).map_err(unfit)?;
            let frozen = Frozen::of(model.frozen().unwrap_or(&model), &weights, BasePrecision::AsIs);
            let frozen = frozen.map_err(|error| Failure::Other { message: error.to_string() })?;
            (model, StageWeights { params, frozen: Some(Arc::new(frozen)) })
        }
    };
    let settings = Settings::still(sequence, 1);
    engine(Device::Cpu { threads }, Arithmetic::F32, model, settings, weights)
        .map_err(|error| Failure::Other { message: error.to_string() }.into())
}

/// What was measured so far.
#[derive(Debug, Default)]
struct Found {
    records: u64,
    /// Longer than a sequence.
    cut: u64,
    /// Learned ones, and the sum of their losses.
    tokens: u64,
    loss: f64,
    /// Records of which something is only read, and those of them that the likeliest tokens say word for word.
    answers: u64,
    exact: u64,
}

impl Found {
    fn add(&mut self, engine: &mut dyn Engine, example: &Example, sequence: usize) -> Result<(), EngineError> {
        self.records += 1;
        self.cut += u64::from(example.tokens.len() > sequence + 1);
        let n = example.tokens.len().min(sequence + 1);
        let (tokens, learned) = (&example.tokens[..n], &example.learned[..n]);
        if n < 2 {
            return Ok(());
        }
        let mut ids = tokens[..n - 1].to_vec();
        let target = |i: usize| if learned[i] { tokens[i] } else { IGNORE };
        let mut targets: Vec<u32> = (1..n).map(target).collect();
        ids.resize(sequence, 0);
        targets.resize(sequence, IGNORE);
        engine.forward(0, StageInput::Tokens(&ids))?;
        let lost = engine.loss_backward(0, &targets, 0.0)?;
        engine.drop_kept(0);
        self.loss += lost.loss;
        self.tokens += u64::from(lost.tokens);
        if let Some(first) = learned.iter().position(|learned| *learned).filter(|first| *first > 0)
            && example.tokens.len() == n
        {
            self.answers += 1;
            self.exact += u64::from(says(engine, tokens, learned, first)?);
        }
        Ok(())
    }
}

/// Whether the likeliest token is the learned one wherever one is, which is whether the model says them by itself.
fn says(engine: &mut dyn Engine, tokens: &[u32], learned: &[bool], first: usize) -> Result<bool, EngineError> {
    let mut logits = engine.infer(1, 0, StageInput::Tokens(&tokens[..first]))?;
    let mut right = true;
    for at in first..tokens.len() {
        right = !learned[at] || likeliest(&logits) == tokens[at];
        if !right || at + 1 == tokens.len() {
            break;
        }
        logits = engine.infer(1, at, StageInput::Tokens(&tokens[at..=at]))?;
    }
    engine.drop_session(1);
    Ok(right)
}
