//! A backend over the run of the peer that runs on this machine. In: text. Out: text, as the live swarm gives it.
//!
//! The peer draws the tokens; texts to stop at are this side's to find.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    thread,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    ask::{Ask, Backend, End, Piece, Prompt, Said, Token, Trouble, Why},
    batch::Limits,
    session::Place,
    stops::Stops,
};
use crate::watch::{self, Client, ClientError, GenerateRequest, Refusal};

pub(super) struct Swarm {
    client: Arc<Client>,
    limits: Limits,
    taken: Arc<AtomicUsize>,
    line: Arc<Line>,
    context: Option<usize>,
}

impl Swarm {
    pub fn new(client: Client, context: Option<usize>, limits: Limits) -> Self {
        let line = Arc::new(Line { state: Mutex::default(), changed: Condvar::new(), most: limits.sessions_max });
        Swarm { client: Arc::new(client), limits, taken: Arc::default(), line, context }
    }
}

impl Backend for Swarm {
    fn ask(&self, ask: Ask) -> Result<UnboundedReceiver<Said>, Trouble> {
        let is_empty = match &ask.prompt {
            Prompt::Text(text) | Prompt::Rendered(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
        };
        if is_empty {
            return Err(Trouble::Empty);
        }
        let Some(place) = Place::take(&self.taken, self.limits.places()) else {
            return Err(Trouble::Busy { answering: self.limits.sessions_max, waiting: self.limits.waiting_max });
        };
        let tokens_max = ask.tokens_max.unwrap_or(u32::MAX).min(self.context.map_or(u32::MAX, |most| most as u32));
        let Ask { prompt, sampling, taste, logprobs, stops, .. } = ask;
        let request = GenerateRequest { prompt, tokens_max, sampling, taste, logprobs };
        let (reply, said) = unbounded_channel();
        let (client, line) = (self.client.clone(), self.line.clone());
        let asking = move || {
            let _place = place;
            let _turn = line.turn();
            answer(&client, &request, Stops::new(stops), &reply);
        };
        thread::Builder::new().name("answer".into()).spawn(asking).map_err(|error| Trouble::Run(error.to_string()))?;
        Ok(said)
    }
}

fn answer(client: &Client, request: &GenerateRequest, mut stops: Stops, reply: &UnboundedSender<Said>) {
    // Tokens whose text is held back.
    let mut held = Vec::new();
    let say = |text: String, held: &mut Vec<Token>, is_end: bool| {
        if !text.is_empty() || is_end && !held.is_empty() {
            let _ = reply.send(Said::Piece(Piece { text, tokens: std::mem::take(held) }));
        }
    };
    let (mut pieces, mut end) = (0, None);
    let asked = client.generate_while(request, |piece| {
        match piece {
            watch::Piece::Route(_) => {}
            watch::Piece::Text(Piece { text, tokens }) => {
                pieces += 1;
                held.extend(tokens);
                let (text, stopped) = stops.push(&text);
                say(text, &mut held, stopped);
                if stopped {
                    // The peer counts tokens at the end, which is not waited for: of bytes these are exact.
                    let prompt_tokens = match &request.prompt {
                        Prompt::Text(text) | Prompt::Rendered(text) => text.len(),
                        Prompt::Tokens(tokens) => tokens.len(),
                    };
                    end = Some(End { why: Why::Stop, prompt_tokens: prompt_tokens as u64, tokens: pieces });
                }
            }
            watch::Piece::End(finish) => {
                let why = match finish.stopped {
                    true => Why::Stop,
                    false if finish.tokens >= u64::from(request.tokens_max) => Why::Length,
                    false => Why::Context,
                };
                end = Some(End { why, prompt_tokens: finish.prompt_tokens, tokens: finish.tokens });
            }
        }
        end.is_none() && !reply.is_closed()
    });
    let _ = match (asked, end) {
        (_, Some(end)) => {
            say(stops.finish(), &mut held, true);
            reply.send(Said::End(end))
        }
        (Ok(()), None) => Ok(()),
        (Err(error), None) => reply.send(Said::Failed(trouble(error))),
    };
}

fn trouble(error: ClientError) -> Trouble {
    match error {
        ClientError::Refused(Refusal::NoReplica { stages }) => {
            let stages: Vec<String> = stages.iter().map(ToString::to_string).collect();
            Trouble::NoReplica { stages: stages.join(", ") }
        }
        ClientError::Refused(Refusal::TooLong { got, context }) => Trouble::TooLong { got, context },
        ClientError::Refused(Refusal::NoSuchToken { token, vocabulary }) => Trouble::NoSuchToken { token, vocabulary },
        other => Trouble::Run(other.to_string()),
    }
}

/// Who came first is answered first.
struct Line {
    state: Mutex<Waiting>,
    changed: Condvar,
    most: usize,
}

#[derive(Default)]
struct Waiting {
    waiting: VecDeque<u64>,
    answered: usize,
    next: u64,
}

struct Turn(Arc<Line>);

impl Line {
    fn turn(self: &Arc<Self>) -> Turn {
        let mut state = self.state();
        let mine = state.next;
        state.next += 1;
        state.waiting.push_back(mine);
        while state.answered >= self.most || state.waiting.front() != Some(&mine) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.pop_front();
        state.answered += 1;
        self.changed.notify_all();
        Turn(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().answered -= 1;
        self.0.changed.notify_all();
    }
}
