//! `skein generate`: continues a prompt, with the live swarm through the peer that runs here, or with a saved folder on this
//! machine. The text goes to stdout as it comes, everything else to stderr.

use std::{
    io::{self, IsTerminal, Read},
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
    talk::{Ask, Model, Prompt, Said, Sampling, Taste, Trouble, Why},
    watch::{Client, ClientError, Finish, GenerateRequest, Piece, State},
};

/// A prompt from stdin that is longer is none.
const PROMPT_MAX: u64 = 1 << 20;

pub fn run(args: &args::Generate, context: &Context) -> Result<u8, Report> {
    let sampling = ask::sampling(&args.choice)?;
    if let Some(folder) = ask::folder(&args.model) {
        let model = ask::open(folder, args.model.clone(), 1, context)?;
        return from_folder(&model, &prompt(args)?, args, sampling, &context.out);
    }
    let client = ask::client(context)?;
    let state = client.state()?;
    ask::run_named(&state, &args.model)?;
    from_swarm(&client, &state, prompt(args)?, args, sampling, &context.out)
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
    model: &Model,
    prompt: &str,
    args: &args::Generate,
    sampling: Sampling,
    out: &Out,
) -> Result<u8, Report> {
    let json = out.style().json;
    let ask = Ask { tokens_max: Some(args.max_tokens), ..Ask::new(Prompt::Text(prompt.into()), sampling) };
    let since = Instant::now();
    let mut said = model.ask(ask).map_err(refused)?;
    let (mut text, mut finish) = (String::new(), Finish::default());
    if !json {
        out.print_piece(prompt);
    }
    let end = loop {
        match said.blocking_recv() {
            Some(Said::Piece(piece)) => {
                if finish.first_token_ms == 0 {
                    finish.first_token_ms = since.elapsed().as_millis().max(1) as u64;
                }
                if json { text.push_str(&piece.text) } else { out.print_piece(&piece.text) }
            }
            Some(Said::End(end)) => break Ok(end),
            Some(Said::Failed(trouble)) => break Err(refused(trouble)),
            None => break Err(refused(Trouble::Closed)),
        }
    };
    if !json {
        out.print("");
    }
    let end = end?;
    (finish.tokens, finish.prompt_tokens, finish.stopped) = (end.tokens, end.prompt_tokens, end.why == Why::Stop);
    finish.duration_ms = since.elapsed().as_millis() as u64;
    let ended = match end.why {
        Why::Stop => "stop",
        Why::Length => "length",
        Why::Context => "context",
    };
    if end.why == Why::Context {
        let context = Count(model.context.unwrap_or_default() as u64);
        out.note(&format!("the model reads no further than {context} tokens"));
    }
    if args.stats {
        let parameters = Count(model.parameters.unwrap_or_default() as u64);
        out.note(&format!("{parameters} parameters on this machine, seed {}", sampling.seed));
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
    let seed = sampling.seed;
    let request = GenerateRequest {
        prompt: Prompt::Text(prompt.clone()),
        tokens_max: args.max_tokens,
        sampling,
        taste: Taste::default(),
        logprobs: None,
    };
    let (mut text, mut route, mut finish) = (String::new(), Vec::new(), Finish::default());
    let mut begun = false;
    let asked = client.generate(&request, |piece| match piece {
        Piece::Route(stages) => {
            if who_sees(&stages, state) != who_sees(&route, state) || route.is_empty() {
                out.note(&who_sees(&stages, state));
            }
            route = stages;
        }
        Piece::Text(piece) if json => text.push_str(&piece.text),
        Piece::Text(piece) => {
            if !std::mem::replace(&mut begun, true) {
                out.print_piece(&prompt);
            }
            out.print_piece(&piece.text);
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
        let answer = Answer { prompt: &prompt, text: &text, seed, finish, ended: None, route: Some(route.into()) };
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

fn refused(trouble: Trouble) -> Report {
    match trouble {
        Trouble::TooLong { .. } | Trouble::Empty => Failure::Usage { message: trouble.to_string() }.into(),
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
