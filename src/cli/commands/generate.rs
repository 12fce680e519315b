//! `skein generate`: continues a prompt, with the live swarm through the peer that runs here, or with a saved folder on this
//! machine. The text goes to stdout as it comes, everything else to stderr.

use std::{
    io::{self, IsTerminal, Read},
    path::Path,
    time::Instant,
};

use serde::Serialize;
use serde_json::json;
use skein_protocol::{PeerId, Stage};

use super::ask;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        out::Out,
        show::{Count, Peer, Span, counted, tokens_per_s},
    },
    node::{
        generate::{Sampling, Why},
        local::{Local, LocalError},
    },
    watch::{Client, ClientError, Finish, GenerateRequest, Piece, State},
};

/// A prompt from stdin that is longer is none.
const PROMPT_MAX: u64 = 1 << 20;

pub fn run(args: &args::Generate, context: &Context) -> Result<u8, Report> {
    let sampling = sampling(args)?;
    let folder = Path::new(&args.model);
    if folder.is_dir() || args.model.contains(['/', '\\', '.']) {
        let local = open(folder, context.node.give.thread_count(&context.machine).into())?;
        return from_folder(local, &prompt(args)?, args, sampling, &context.out);
    }
    let client = ask::client(context)?;
    let state = client.state()?;
    ask::run_named(&state, &args.model)?;
    from_swarm(&client, &state, prompt(args)?, args, sampling, &context.out)
}

fn sampling(args: &args::Generate) -> Result<Sampling, Report> {
    let usage = |message: String| Err(Failure::Usage { message }.into());
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return usage(format!("--temperature {}: 0 or more", args.temperature));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return usage(format!("--top-p {}: above 0, at most 1", args.top_p));
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    Ok(Sampling { temperature: args.temperature, top_p: args.top_p, seed })
}

/// The one that was typed, or stdin without its last line end.
fn prompt(args: &args::Generate) -> Result<String, Report> {
    let usage = |message: &str| Failure::Usage { message: message.into() };
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if io::stdin().is_terminal() => {
            return Err(usage("a prompt is missing; it can also come through a pipe").into());
        }
        None => {
            let mut text = String::new();
            io::stdin()
                .take(PROMPT_MAX)
                .read_to_string(&mut text)
                .map_err(|error| Failure::DataUnreadable { path: "stdin".into(), error: error.to_string() })?;
            text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text).to_string()).unwrap_or(text)
        }
    };
    if prompt.is_empty() { Err(usage("the prompt is empty").into()) } else { Ok(prompt) }
}

/// What is said at the end in `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    text: &'a str,
    seed: u64,
    #[serde(flatten)]
    finish: Finish,
    /// Why it ended, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<serde_json::Value>,
}

fn from_folder(
    mut local: Local,
    prompt: &str,
    args: &args::Generate,
    sampling: Sampling,
    out: &Out,
) -> Result<u8, Report> {
    let json = out.style().json;
    let (since, mut text, mut finish) = (Instant::now(), String::new(), Finish::default());
    if !json {
        out.print_piece(prompt);
    }
    let why = local.generate(prompt, args.max_tokens, sampling, |piece| {
        if finish.tokens == 0 {
            finish.first_token_ms = since.elapsed().as_millis() as u64;
        }
        finish.tokens += 1;
        if json {
            text.push_str(piece)
        } else {
            out.print_piece(piece)
        }
        true
    });
    if !json {
        out.print("");
    }
    let why = why.map_err(refused)?;
    // The last piece is what was left of a character, not a token.
    finish.tokens = finish.tokens.saturating_sub(1);
    finish.duration_ms = since.elapsed().as_millis() as u64;
    let ended = match why {
        Why::Stop => "stop",
        Why::Length => "length",
        Why::Context => "context",
        Why::NoReplica => "no replica",
    };
    if why == Why::Context {
        out.note(&format!("the model reads no further than {} tokens", Count(local.context() as u64)));
    }
    if args.stats {
        out.note(&format!("{} parameters on this machine, seed {}", Count(local.parameters() as u64), sampling.seed));
        stats(&finish, out);
    }
    if json {
        let answer = Answer { prompt, text: &text, seed: sampling.seed, finish, ended: Some(ended), route: None };
        out.document("generate", &answer);
    }
    Ok(0)
}

fn from_swarm(
    client: &Client,
    state: &State,
    prompt: String,
    args: &args::Generate,
    sampling: Sampling,
    out: &Out,
) -> Result<u8, Report> {
    let json = out.style().json;
    let Sampling { temperature, top_p, seed } = sampling;
    let request = GenerateRequest { prompt, tokens_max: args.max_tokens, temperature, top_p, seed };
    let (mut text, mut route, mut finish) = (String::new(), Vec::new(), Finish::default());
    let mut begun = false;
    let asked = client.generate(&request, |piece| match piece {
        Piece::Route(stages) => {
            if who_sees(&stages, state) != who_sees(&route, state) || route.is_empty() {
                out.note(&who_sees(&stages, state));
            }
            route = stages;
        }
        Piece::Text(piece) if json => text.push_str(&piece),
        Piece::Text(piece) => {
            if !std::mem::replace(&mut begun, true) {
                out.print_piece(&request.prompt);
            }
            out.print_piece(&piece);
        }
        Piece::End(end) => finish = end,
    });
    if begun {
        out.print("");
    }
    asked.map_err(|error| match error {
        ClientError::Interrupted(why) => Failure::NotPossible { why: format!("the text was cut off: {why}") }.into(),
        other => Report::from(other),
    })?;
    if finish.tokens == 0 && args.max_tokens > 0 {
        return Err(Failure::NotPossible { why: "it ended before the first token".into() }.into());
    }
    if args.stats {
        let stages: Vec<String> = route.iter().map(|(stage, peer)| format!("{stage} {}", Peer(*peer))).collect();
        out.note(&format!("through stage {}; seed {seed}", stages.join(", ")));
        stats(&finish, out);
    }
    if json {
        let route: Vec<_> = route.iter().map(|(stage, peer)| json!({ "stage": stage, "peer": peer })).collect();
        let answer =
            Answer { prompt: &request.prompt, text: &text, seed, finish, ended: None, route: Some(route.into()) };
        out.document("generate", &answer);
    }
    Ok(0)
}

fn stats(finish: &Finish, out: &Out) {
    let rate = finish.tokens as f64 * 1000.0 / finish.duration_ms.max(1) as f64;
    out.note(&format!(
        "{} in {} ({}), the first after {}{}",
        counted(finish.tokens, "token"),
        Span::from(finish.duration_ms),
        tokens_per_s(rate),
        Span::from(finish.first_token_ms),
        if finish.replaced > 0 {
            format!("; {} replaced on the way", counted(finish.replaced, "replica"))
        } else {
            String::new()
        }
    ));
}

/// Who can read the prompt and the answer. Said before the first text, and when others take over.
fn who_sees(route: &[(Stage, PeerId)], state: &State) -> String {
    let me = |peer: &PeerId| *peer == state.me.peer;
    let ends = (route.iter().min_by_key(|(stage, _)| *stage), route.iter().max_by_key(|(stage, _)| *stage));
    let (Some((_, first)), Some((_, last))) = ends else { return String::new() };
    if route.iter().all(|(_, peer)| me(peer)) {
        return "every stage is this machine: nobody else sees this prompt".into();
    }
    let sees = match (me(first), me(last)) {
        (true, true) => "the first and the last stage are this machine; those between see activations".into(),
        (true, false) => format!("stage 0 is this machine; the last stage ({}) can read the answer", Peer(*last)),
        (false, true) => format!("stage 0 ({}) can read this prompt", Peer(*first)),
        (false, false) if first == last => format!("{} can read this prompt and the answer", Peer(*first)),
        (false, false) => {
            format!("stage 0 ({}) can read this prompt, the last stage ({}) the answer", Peer(*first), Peer(*last))
        }
    };
    format!("{sees}: skein explain privacy")
}

fn open(folder: &Path, threads: usize) -> Result<Local, Report> {
    Local::open(folder, threads).map_err(|error| match error {
        LocalError::Folder(error) => super::model::unread(folder, error),
        other => Failure::Other { message: other.to_string() }.into(),
    })
}

fn refused(error: LocalError) -> Report {
    match error {
        LocalError::TooLong { .. } => Failure::Usage { message: error.to_string() }.into(),
        other => Failure::Other { message: other.to_string() }.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Me;

    #[test]
    fn it_is_said_who_can_read_a_prompt() {
        let (me, other) = (PeerId([1; 32]), PeerId([2; 32]));
        let state = State::starting(Me { peer: me, ..Me::default() }, 0);
        assert!(who_sees(&[(0, other), (1, me)], &state).starts_with("stage 0 ("));
        assert!(who_sees(&[(1, other), (0, me)], &state).contains("can read the answer"));
        assert!(who_sees(&[(0, me), (1, other), (2, me)], &state).contains("activations"));
        assert!(who_sees(&[(0, me), (1, me)], &state).contains("nobody else"));
    }
}
