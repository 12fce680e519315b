//! The OpenAI-compatible API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`. In: HTTP. Out: what a
//! [`Model`] says, in the forms of that API.
//!
//! A field that could change the answer and is not known is refused by name, never dropped in silence. Without a key a web page
//! of somebody else must not reach it: `Host` has to name this machine, and a foreign `Origin` is refused.

mod answer;
mod error;
mod fields;
mod request;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use skein_protocol::hash;
use tokio::net::TcpListener;

use self::{
    answer::{Answer, Choice, Form},
    error::ApiError,
    request::{Chat, Common, Completion},
};
use crate::talk::{Ask, Model, Prompt};

const BODY_MAX: usize = 8 << 20;

/// An address that is listened at.
pub struct Server {
    pub address: SocketAddr,
    listener: TcpListener,
    app: Router,
}

struct Desk {
    address: SocketAddr,
    key: Option<String>,
    model: Arc<Model>,
    /// Requests so far.
    asked: AtomicU64,
}

impl Server {
    /// `key`: what programs must show; nothing: whoever reaches the listener may ask. Needs a tokio runtime.
    ///
    /// # Errors
    /// The listener is broken.
    pub fn new(listener: std::net::TcpListener, key: Option<String>, model: Model) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk { address, key, model: Arc::new(model), asked: AtomicU64::new(0) });
        let app = Router::new()
            .route("/health", get(health))
            .route("/v1/models", get(models))
            .route("/v1/models/{*id}", get(one_model))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(completions))
            .fallback(nowhere)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(desk.clone(), door))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(desk);
        Ok(Server { address, listener, app })
    }

    /// Answers until `stop`; what is being answered then is answered to its end.
    ///
    /// # Errors
    /// The listener broke.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        axum::serve(self.listener, self.app).with_graceful_shutdown(stop).await
    }
}

/// Who may come in.
async fn door(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let refused = match &desk.key {
        _ if request.uri().path() == "/health" => None,
        Some(key) => desk.without_key(headers, key),
        None => desk.foreign(headers),
    };
    match refused {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

impl Desk {
    fn without_key(&self, headers: &HeaderMap, key: &str) -> Option<ApiError> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        match given {
            Some(given) if same(given, key.as_bytes()) => None,
            Some(_) => Some(ApiError::no_key("This API key is not the one of `skein serve --api-key`.")),
            None => Some(ApiError::no_key("An API key is needed: `Authorization: Bearer KEY`.")),
        }
    }

    /// A name that an attacker's page resolves to 127.0.0.1 still stands in `Host`, and the page itself in `Origin`.
    fn foreign(&self, headers: &HeaderMap) -> Option<ApiError> {
        let names = self.names();
        let is_here = |host: &str| names.iter().any(|name| name == host);
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(is_here) {
            return Some(ApiError::foreign(
                "The Host header names another machine; without a key only this one may ask.",
            ));
        }
        let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or_default();
        match origin.strip_prefix("http://").is_some_and(is_here) {
            true => None,
            false => Some(ApiError::foreign("A web page of another origin may not ask without a key.")),
        }
    }

    fn names(&self) -> [String; 4] {
        let port = self.address.port();
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        [self.address.to_string(), local.to_string(), format!("[::1]:{port}"), format!("localhost:{port}")]
    }

    fn is_served(&self, name: &str) -> Result<(), ApiError> {
        if name == self.model.name { Ok(()) } else { Err(ApiError::no_model(name, &self.model.name)) }
    }

    fn describe(&self) -> Value {
        let Model { name, created, owner, context, parameters, fingerprint, template, .. } = &*self.model;
        json!({
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": owner,
            "skein": {
                "fingerprint": fingerprint,
                "context": context,
                "parameters": parameters,
                "chat_template": template.is_some(),
            },
        })
    }
}

/// Equal texts, compared so that the time says nothing about where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let of = |text: &[u8]| hash::keyed("skein api key 1", &[text]).0;
    of(a).iter().zip(of(b)).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn models(State(desk): State<Arc<Desk>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [desk.describe()] }))
}

async fn one_model(State(desk): State<Arc<Desk>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    desk.is_served(&id)?;
    Ok(Json(desk.describe()))
}

async fn nowhere(uri: Uri) -> ApiError {
    ApiError::no_such_path(match uri.path() {
        "/v1/responses" => "The responses API is not spoken here: use /v1/chat/completions.".into(),
        "/v1/embeddings" => "There are no embeddings: a model that continues text has none that was trained.".into(),
        path => format!("There is nothing at {path}: ask /v1/models, /v1/chat/completions or /v1/completions."),
    })
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(format!("{} takes no {method}.", uri.path()))
}

type Body = Result<Bytes, BytesRejection>;

fn bytes(body: Body) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(BODY_MAX),
        _ => ApiError::not_json(format!("The request broke off: {rejection}.")),
    })
}

async fn chat(State(desk): State<Arc<Desk>>, body: Body) -> Result<Response, ApiError> {
    let body = bytes(body)?;
    let owner = desk.asked.fetch_add(1, Ordering::Relaxed);
    let prepared = prepared(move || {
        let Chat { messages, common } = Chat::parse(&body)?;
        desk.is_served(&common.model)?;
        let of = |trouble| ApiError::of(&trouble, "messages");
        let (prompt, stops) = desk.model.chat(&messages).map_err(of)?;
        let common = Common { stops: [stops, common.stops].concat(), ..common };
        let choices = choices(&desk.model, prompt, "", &common, owner, "messages")?;
        Ok((answer(&desk, Form::Chat, choices, &common), common))
    });
    respond(prepared.await?).await
}

async fn completions(State(desk): State<Arc<Desk>>, body: Body) -> Result<Response, ApiError> {
    let body = bytes(body)?;
    let owner = desk.asked.fetch_add(1, Ordering::Relaxed);
    let prepared = prepared(move || {
        let Completion { prompts, echo, common } = Completion::parse(&body)?;
        desk.is_served(&common.model)?;
        let mut all = Vec::new();
        for prompt in prompts {
            let shown = match &prompt {
                _ if !echo => String::new(),
                Prompt::Text(text) | Prompt::Rendered(text) => text.clone(),
                Prompt::Tokens(tokens) => desk.model.text_of(tokens),
            };
            all.extend(choices(&desk.model, prompt, &shown, &common, owner, "prompt")?);
        }
        Ok((answer(&desk, Form::Completion, all, &common), common))
    });
    respond(prepared.await?).await
}

/// Reading a long prompt takes a while: other requests go on meanwhile.
async fn prepared<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::internal("The server is ending.")))
}

/// `n` answers to one prompt, each with a seed of its own.
fn choices(
    model: &Model,
    prompt: Prompt,
    echo: &str,
    common: &Common,
    owner: u64,
    field: &str,
) -> Result<Vec<Choice>, ApiError> {
    let one = |i: usize| {
        let mut sampling = common.sampling;
        sampling.seed = sampling.seed.wrapping_add(i as u64);
        let ask = Ask {
            tokens_max: common.tokens_max,
            taste: common.taste.clone(),
            stops: common.stops.clone(),
            logprobs: common.logprobs,
            owner,
            ..Ask::new(prompt.clone(), sampling)
        };
        let said = model.ask(ask).map_err(|trouble| ApiError::of(&trouble, field))?;
        Ok(Choice { said, echo: echo.into(), counts_prompt: i == 0, logprobs: common.logprobs.is_some() })
    };
    (0..common.n).map(one).collect()
}

fn answer(desk: &Desk, form: Form, choices: Vec<Choice>, common: &Common) -> Answer {
    let prompt = if form == Form::Chat { "messages" } else { "prompt" };
    Answer { form, model: desk.model.clone(), choices, include_usage: common.include_usage, prompt }
}

async fn respond((answer, common): (Answer, Common)) -> Result<Response, ApiError> {
    let mut response = if common.stream { answer.stream().await? } else { answer.whole().await? };
    if let Ok(ignored) = HeaderValue::from_str(&common.ignored.join(", "))
        && !common.ignored.is_empty()
    {
        response.headers_mut().insert(HeaderName::from_static("x-skein-ignored"), ignored);
    }
    Ok(response)
}
