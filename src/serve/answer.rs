//! Answers in the forms of the API. In: what a model says to one request. Out: one JSON document, or events as they come.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{
    FutureExt, StreamExt,
    future::try_join_all,
    stream::{self, BoxStream, SelectAll},
};
use serde_json::{Map, Value, json};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

use super::error::ApiError;
use crate::talk::{End, Likely, Model, Piece, Said, Token, Trouble, Why};

/// Proxies close what is silent for longer than a minute or so.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Trouble that comes within this time is a status of HTTP; later it is an event.
const FIRST: Duration = Duration::from_millis(500);

/// What a request is answered with.
pub struct Answer {
    pub form: Form,
    pub model: Arc<Model>,
    pub choices: Vec<Choice>,
    pub include_usage: bool,
    /// The field that the prompt came from.
    pub prompt: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Chat,
    Completion,
}

pub struct Choice {
    pub said: UnboundedReceiver<Said>,
    /// What it begins with: the prompt, where that was asked for.
    pub echo: String,
    /// Of its prompt the first choice, which counts its tokens.
    pub counts_prompt: bool,
    pub logprobs: bool,
}

/// What identifies all parts of one answer.
struct Head {
    form: Form,
    id: String,
    created: u64,
    model: Arc<Model>,
}

#[derive(Default)]
struct Usage {
    prompt: u64,
    completion: u64,
}

impl Usage {
    fn add(&mut self, end: &End, counts_prompt: bool) {
        self.prompt += if counts_prompt { end.prompt_tokens } else { 0 };
        self.completion += end.tokens;
    }

    fn json(&self) -> Value {
        let Usage { prompt, completion } = self;
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }
}

impl Head {
    fn new(form: Form, model: Arc<Model>) -> Self {
        let kind = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{kind}-{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Head { form, id, created, model }
    }

    fn json(&self, object: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut whole = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
            "choices": choices,
        });
        if let Some(usage) = usage {
            whole["usage"] = usage;
        }
        whole
    }

    fn object(&self, chunk: bool) -> &'static str {
        match (self.form, chunk) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        }
    }
}

impl Answer {
    /// All of it at once.
    pub async fn whole(self) -> Result<Response, ApiError> {
        let prompt = self.prompt;
        let all = try_join_all(self.choices.into_iter().map(collect)).await;
        let all = all.map_err(|trouble| ApiError::of(&trouble, prompt))?;
        let (head, mut usage) = (Head::new(self.form, self.model), Usage::default());
        let mut choices = Vec::new();
        for (index, whole) in all.into_iter().enumerate() {
            usage.add(&whole.end, whole.counts_prompt);
            let logprobs = logprobs(self.form, whole.logprobs, &whole.tokens, &mut 0);
            let mut choice = json!({ "index": index, "logprobs": logprobs, "finish_reason": reason(whole.end.why) });
            match self.form {
                Form::Chat => {
                    choice["message"] = json!({ "role": "assistant", "content": whole.text, "refusal": null })
                }
                Form::Completion => choice["text"] = whole.text.into(),
            }
            choices.push(choice);
        }
        Ok(Json(head.json(head.object(false), choices, Some(usage.json()))).into_response())
    }

    /// As it comes.
    pub async fn stream(self) -> Result<Response, ApiError> {
        let mut streams = SelectAll::new();
        let mut open = Vec::new();
        for (index, mut choice) in self.choices.into_iter().enumerate() {
            open.push(Open {
                echo: choice.echo,
                counts_prompt: choice.counts_prompt,
                logprobs: choice.logprobs,
                offset: 0,
                ended: false,
            });
            let said = stream::poll_fn(move |context| choice.said.poll_recv(context));
            streams.push(said.map(move |said| (index, said)).boxed());
        }
        let mut events = Events {
            head: Head::new(self.form, self.model),
            streams,
            ready: VecDeque::new(),
            open,
            usage: Usage::default(),
            include_usage: self.include_usage,
            over: false,
            prompt: self.prompt,
        };
        events.begin();
        if let Ok(Some((index, said))) = timeout(FIRST, events.streams.next()).await {
            match said {
                Said::Failed(trouble) => return Err(ApiError::of(&trouble, self.prompt)),
                said => events.on_said(index, said),
            }
        }
        let events = stream::unfold(events, |mut events| async move { Some((events.next().await?, events)) });
        let events = events.map(|data| Ok::<_, Infallible>(Event::default().data(data)));
        Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("waiting")).into_response())
    }
}

struct Whole {
    text: String,
    tokens: Vec<Token>,
    end: End,
    counts_prompt: bool,
    logprobs: bool,
}

async fn collect(mut choice: Choice) -> Result<Whole, Trouble> {
    let (mut text, mut tokens) = (choice.echo, Vec::new());
    loop {
        match choice.said.recv().await {
            Some(Said::Piece(piece)) => {
                text.push_str(&piece.text);
                tokens.extend(piece.tokens);
            }
            Some(Said::End(end)) => {
                let Choice { counts_prompt, logprobs, .. } = choice;
                return Ok(Whole { text, tokens, end, counts_prompt, logprobs });
            }
            Some(Said::Failed(trouble)) => return Err(trouble),
            None => return Err(Trouble::Closed),
        }
    }
}

/// A choice whose events go out.
struct Open {
    echo: String,
    counts_prompt: bool,
    logprobs: bool,
    /// Characters so far.
    offset: usize,
    ended: bool,
}

struct Events {
    head: Head,
    streams: SelectAll<BoxStream<'static, (usize, Said)>>,
    /// Data that may go out.
    ready: VecDeque<String>,
    open: Vec<Open>,
    usage: Usage,
    include_usage: bool,
    over: bool,
    prompt: &'static str,
}

impl Events {
    fn begin(&mut self) {
        for index in 0..self.open.len() {
            let echo = std::mem::take(&mut self.open[index].echo);
            match self.head.form {
                Form::Chat => {
                    self.chunk(json!({ "index": index, "delta": { "role": "assistant", "content": "" } }), Value::Null)
                }
                Form::Completion if !echo.is_empty() => {
                    self.chunk(json!({ "index": index, "text": echo }), Value::Null)
                }
                Form::Completion => {}
            }
        }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            if self.over {
                return None;
            }
            match self.streams.next().await {
                Some((index, said)) => self.on_said(index, said),
                // A backend that ends without a word.
                None => self.fail(&Trouble::Closed),
            }
            // What came together leaves in one write.
            while !self.over
                && let Some(Some((index, said))) = self.streams.next().now_or_never()
            {
                self.on_said(index, said);
            }
        }
    }

    fn on_said(&mut self, index: usize, said: Said) {
        match said {
            Said::Piece(piece) => self.on_piece(index, &piece),
            Said::End(end) => self.on_end(index, end),
            Said::Failed(trouble) => self.fail(&trouble),
        }
    }

    fn on_piece(&mut self, index: usize, piece: &Piece) {
        let open = &mut self.open[index];
        let logprobs = logprobs(self.head.form, open.logprobs, &piece.tokens, &mut open.offset);
        let choice = match self.head.form {
            Form::Chat => json!({ "index": index, "delta": { "content": piece.text }, "logprobs": logprobs }),
            Form::Completion => json!({ "index": index, "text": piece.text, "logprobs": logprobs }),
        };
        self.chunk(choice, Value::Null);
    }

    fn on_end(&mut self, index: usize, end: End) {
        self.usage.add(&end, self.open[index].counts_prompt);
        self.open[index].ended = true;
        let choice = match self.head.form {
            Form::Chat => json!({ "index": index, "delta": {} }),
            Form::Completion => json!({ "index": index, "text": "" }),
        };
        self.chunk(choice, reason(end.why).into());
        if self.open.iter().all(|open| open.ended) {
            if self.include_usage {
                let whole = self.head.json(self.head.object(true), Vec::new(), Some(self.usage.json()));
                self.ready.push_back(whole.to_string());
            }
            self.ready.push_back("[DONE]".into());
            self.over = true;
        }
    }

    /// Nothing more follows, and no `[DONE]`: what came is not all.
    fn fail(&mut self, trouble: &Trouble) {
        self.ready.push_back(ApiError::of(trouble, self.prompt).body().to_string());
        self.over = true;
    }

    fn chunk(&mut self, mut choice: Value, finish_reason: Value) {
        choice["finish_reason"] = finish_reason;
        if choice.get("logprobs").is_none() {
            choice["logprobs"] = Value::Null;
        }
        let usage = self.include_usage.then_some(Value::Null);
        self.ready.push_back(self.head.json(self.head.object(true), vec![choice], usage).to_string());
    }
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Stop => "stop",
        Why::Length | Why::Context => "length",
    }
}

/// `offset`: characters before these tokens, and after them.
fn logprobs(form: Form, wanted: bool, tokens: &[Token], offset: &mut usize) -> Value {
    if !wanted {
        return Value::Null;
    }
    if form == Form::Chat {
        let likely = |likely: &Likely| json!({ "token": likely.text, "logprob": likely.logprob, "bytes": likely.text.as_bytes() });
        let token = |token: &Token| {
            let mut this = likely(&token.this);
            this["top_logprobs"] = token.top.iter().map(likely).collect();
            this
        };
        return json!({ "content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null });
    }
    let mut offsets = Vec::new();
    for token in tokens {
        offsets.push(*offset);
        *offset += token.this.text.chars().count();
    }
    let top = |token: &Token| token.top.iter().map(|one| (one.text.clone(), one.logprob.into())).collect::<Map<_, _>>();
    json!({
        "tokens": tokens.iter().map(|token| token.this.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.this.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
