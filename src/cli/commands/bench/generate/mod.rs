//! `skein bench generate`: how fast a model reads a prompt and answers it, alone and with many readers at once, in one process. In:
//! sizes, numbers of tokens. Out: tokens a second.

mod swarm;

use std::{path::Path, time::Instant};

use serde::Serialize;
use skein_pipeline::{
    compute::{Device, engine},
    exact::{Engine, EngineError, Piece, Settings, StageInput, likeliest},
    model::{StageModel, init},
};
use skein_protocol::{
    Manifest,
    run::{Arithmetic, Recompute},
};

use self::swarm::Through;
use super::{millis, other, shape, torch};
use crate::{
    cli::{
        args::BenchGenerate,
        context::Context,
        failure::{Failure, Report},
        show::{self, Bytes, Count},
        table::{Column, Table},
    },
    node::memory,
};

#[derive(Serialize)]
struct Measured {
    model: String,
    params: u64,
    threads: u16,
    arithmetic: Arithmetic,
    prompt: u32,
    /// One reader, after the prompt.
    tokens_per_s: f64,
    prefill_tokens_per_s: f64,
    first_token_ms: f64,
    clients: u32,
    /// All of them together, after their prompts.
    clients_tokens_per_s: f64,
    peak_rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<Beside>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swarm: Option<Through>,
}

/// The same model in another library, measured right after ours; ours of theirs in percent.
#[derive(Serialize)]
struct Beside {
    #[serde(flatten)]
    theirs: Numbers,
    of: [f64; 3],
}

#[derive(Serialize)]
struct Numbers {
    torch: String,
    torch_prefill_tokens_per_s: f64,
    torch_tokens_per_s: f64,
    torch_clients_tokens_per_s: f64,
}

pub fn run(args: &BenchGenerate, context: &Context) -> Result<u8, Report> {
    let mut manifest = shape::manifest(&args.shape)?;
    manifest.train.arithmetic = vec![args.arithmetic];
    let needed = u64::from(args.prompt) + u64::from(args.tokens.max(swarm::TOKENS_MIN));
    if needed > 1 << 20 {
        let message = format!("--prompt and --tokens: {needed} tokens together, at most 1,048,576");
        return Err(Failure::Usage { message }.into());
    }
    manifest.model.config.context = manifest.model.config.context.max(needed as u32);
    let model = StageModel::whole(manifest.model.config.clone()).map_err(other)?;
    let params = model.values() as u64;
    let settings = Settings { recompute: Recompute::Always, kept_bytes_max: 0, ..Settings::of(&manifest) };
    let device = Device::Cpu { threads: usize::from(args.threads.max(1)) };
    let weights = init::initial(&model, 1);
    let mut engine = engine(device, args.arithmetic, model, settings, weights).map_err(other)?;
    // The first prompt also packs the weights, and finds room for itself.
    answer(engine.as_mut(), 1, args.prompt, 2).map_err(other)?;
    let (first, alone) = answer(engine.as_mut(), 1, args.prompt, args.tokens).map_err(other)?;
    let (_, together) = answer(engine.as_mut(), args.clients, args.prompt.min(32), args.tokens).map_err(other)?;
    let measured = Measured {
        model: shape::name(&args.shape, &manifest),
        params,
        threads: args.threads.max(1),
        arithmetic: args.arithmetic,
        prompt: args.prompt,
        tokens_per_s: alone,
        prefill_tokens_per_s: f64::from(args.prompt) / first,
        first_token_ms: 1e3 * first,
        clients: args.clients,
        clients_tokens_per_s: together,
        peak_rss_bytes: memory::peak(),
        beside: None,
        swarm: None,
    };
    let measured = match &args.torch {
        Some(python) => Measured { beside: Some(beside(python, args, &manifest, &measured)?), ..measured },
        None => measured,
    };
    drop(engine);
    let through = args.stages.map(|stages| swarm::measure(args, manifest, stages, context)).transpose()?;
    let measured = Measured { swarm: through, ..measured };
    if context.out.style().json {
        context.out.document("bench", &measured);
        return Ok(0);
    }
    let names =
        ["MODEL", "PARAMETERS", "THREADS", "PROMPT", "FIRST TOKEN", "ANSWER", "READERS", "ALL ANSWERS", "MEMORY"];
    // Theirs in the same order: prompts, answers, all answers.
    let of_theirs: &[&str] =
        if measured.beside.is_some() { &["PROMPT OF IT", "ANSWER OF IT", "ALL OF IT"] } else { &[] };
    let mut table = Table::new(names.iter().chain(of_theirs).copied().map(Column::Left).collect());
    let of = measured.beside.as_ref().map(|Beside { theirs, of }| {
        (format!("IT is torch {}", theirs.torch), of.map(|percent| format!("{percent:.0} %")))
    });
    let mut row = vec![
        measured.model,
        Count(params).to_string(),
        measured.threads.to_string(),
        show::tokens_per_s(measured.prefill_tokens_per_s),
        millis(Some(measured.first_token_ms)),
        show::tokens_per_s(alone),
        args.clients.to_string(),
        show::tokens_per_s(together),
        measured.peak_rss_bytes.map_or("-".into(), |most| Bytes(most).to_string()),
    ];
    row.extend(of.iter().flat_map(|(_, of)| of.iter().cloned()));
    table.row(row);
    context.out.table(&table);
    if let Some(through) = &measured.swarm {
        context.out.table(&through.table());
    }
    if let Some((theirs, _)) = of {
        context.out.note(&theirs);
    }
    Ok(0)
}

fn beside(python: &Path, args: &BenchGenerate, manifest: &Manifest, ours: &Measured) -> Result<Beside, Report> {
    let sizes = [u32::from(args.threads.max(1)), args.prompt, args.tokens, args.clients];
    let theirs = torch::generate(python, manifest, sizes)?;
    if theirs.params != ours.params {
        return Err(other(format!("--torch: its model has {} parameters, this one {}", theirs.params, ours.params)));
    }
    let of = [
        100.0 * ours.prefill_tokens_per_s / theirs.prefill_tokens_per_s,
        100.0 * ours.tokens_per_s / theirs.tokens_per_s,
        100.0 * ours.clients_tokens_per_s / theirs.clients_tokens_per_s,
    ];
    let theirs = Numbers {
        torch: theirs.torch,
        torch_prefill_tokens_per_s: theirs.prefill_tokens_per_s,
        torch_tokens_per_s: theirs.tokens_per_s,
        torch_clients_tokens_per_s: theirs.clients_tokens_per_s,
    };
    Ok(Beside { theirs, of })
}

/// So many readers at once: seconds until all have their first token, and tokens a second of all of them after that.
fn answer(engine: &mut dyn Engine, readers: u32, prompt: u32, tokens: u32) -> Result<(f64, f64), EngineError> {
    let vocab = engine.model().config.vocab;
    let token = |reader: u32, at: u32| (reader * 977 + at).wrapping_mul(2_654_435_761) % vocab;
    let mut texts: Vec<Vec<u32>> = (0..readers).map(|r| (0..prompt).map(|at| token(r, at)).collect()).collect();
    let since = Instant::now();
    let mut first = 0.0;
    for said in 0..=tokens {
        let piece = |(reader, text): (usize, &Vec<u32>)| (reader as u64, text.len());
        let places: Vec<(u64, usize)> = texts.iter().enumerate().map(piece).collect();
        let pieces: Vec<Piece<'_>> = (places.iter().zip(&texts))
            .map(|(&(session, len), text)| {
                let position = if said == 0 { 0 } else { len - 1 };
                Piece { session, position, input: StageInput::Tokens(&text[position..]) }
            })
            .collect();
        let logits = engine.infer_all(&pieces).into_iter().collect::<Result<Vec<_>, _>>()?;
        for (text, logits) in texts.iter_mut().zip(logits) {
            text.push(likeliest(&logits));
        }
        if said == 0 {
            first = since.elapsed().as_secs_f64();
        }
    }
    let rest = since.elapsed().as_secs_f64() - first;
    (0..readers).for_each(|reader| engine.drop_session(u64::from(reader)));
    Ok((first.max(1e-9), f64::from(readers * tokens) / rest.max(1e-9)))
}
