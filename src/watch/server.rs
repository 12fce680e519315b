//! The server: `GET /healthz`, `/readyz`, `/api/v1/state`, `/api/v1/peers`, `/api/v1/config`; `POST /api/v1/stop`, `/invite`,
//! `/generate`, `/export`. In: requests of this machine. Out: JSON, and orders to the peer.
//!
//! A web page of somebody else must not reach it: `Host` has to name this machine, a foreign `Origin` is refused, and whatever
//! changes state needs the token. Beyond loopback the token is needed to read, too.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Request, State as Shared},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use skein_protocol::Utc;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    order::{ExportRequest, GenerateRequest, Order, Refusal},
    state::State,
};

/// A request may carry a prompt of this size.
const BODY_MAX: usize = 1 << 20;
/// Ports that are tried after the one that was not set by hand.
const PORT_TRIES: u16 = 64;
/// Pieces of an answer that may wait for a slow reader.
const REPLY_QUEUE: usize = 64;

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Whether `listen` was set by hand: then it is that address or none.
    pub fixed: bool,
    pub token: String,
    /// What `/api/v1/config` answers.
    pub config: serde_json::Value,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{0} is taken by another program")]
    Taken(SocketAddr),
    #[error("listening at {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Desk {
    address: SocketAddr,
    token: String,
    config: serde_json::Value,
    state: watch::Receiver<Arc<State>>,
    orders: mpsc::Sender<Order>,
}

impl Server {
    /// Listens and serves until dropped. Needs a tokio runtime.
    ///
    /// # Errors
    /// The address is taken (and was set by hand), or cannot be listened at.
    pub async fn start(
        config: ServerConfig,
        state: watch::Receiver<Arc<State>>,
        orders: mpsc::Sender<Order>,
    ) -> Result<Server, ServeError> {
        let listener = bind(config.listen, config.fixed).await?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address: config.listen, source })?;
        let desk = Arc::new(Desk { address, token: config.token, config: config.config, state, orders });
        let app = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/api/v1/state", get(whole))
            .route("/api/v1/peers", get(peers))
            .route("/api/v1/config", get(configuration))
            .route("/api/v1/stop", post(stop))
            .route("/api/v1/invite", post(invite))
            .route("/api/v1/generate", post(generate))
            .route("/api/v1/export", post(export))
            .layer(middleware::from_fn_with_state(desk.clone(), door))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(desk);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the control server ended");
            }
        });
        Ok(Server { address, task })
    }
}

async fn bind(wanted: SocketAddr, fixed: bool) -> Result<TcpListener, ServeError> {
    let tries = if fixed || wanted.port() == 0 { 1 } else { PORT_TRIES };
    let mut address = wanted;
    for _ in 0..tries {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(source) => return Err(ServeError::Listen { address, source }),
        }
        address.set_port(address.port().checked_add(1).unwrap_or(1024));
    }
    Err(ServeError::Taken(wanted))
}

/// Who may come in.
async fn door(Shared(desk): Shared<Arc<Desk>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    // Whoever holds another peer's token wants that one: its process is gone, and its port is ours now.
    if headers.contains_key(header::AUTHORIZATION) && !desk.has_token(headers) {
        return refuse(StatusCode::UNAUTHORIZED, "this token is of another peer");
    }
    let open_to_all = matches!(request.uri().path(), "/healthz" | "/readyz");
    if !open_to_all && !desk.address.ip().is_loopback() && !desk.has_token(headers) {
        return refuse(StatusCode::UNAUTHORIZED, "the token is needed");
    }
    if desk.address.ip().is_loopback() && !desk.host_is_here(headers) {
        return refuse(StatusCode::FORBIDDEN, "the Host header names another machine");
    }
    if headers.get(header::ORIGIN).is_some_and(|origin| !desk.is_own_origin(origin.as_bytes())) {
        return refuse(StatusCode::FORBIDDEN, "the Origin header names another page");
    }
    if request.method() != Method::GET && !desk.has_token(headers) {
        return refuse(StatusCode::UNAUTHORIZED, "the token is needed");
    }
    next.run(request).await
}

impl Desk {
    fn has_token(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| same(given, self.token.as_bytes()))
    }

    /// A name that an attacker's page resolves to 127.0.0.1 still stands in `Host`.
    fn host_is_here(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        self.names().any(|name| name == host)
    }

    fn is_own_origin(&self, origin: &[u8]) -> bool {
        self.names().any(|name| format!("http://{name}").as_bytes() == origin)
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let port = self.address.port();
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        [self.address.to_string(), local.to_string(), format!("[::1]:{port}"), format!("localhost:{port}")].into_iter()
    }

    fn picture(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    async fn order(&self, order: Order) -> Result<(), Response> {
        let gone = |_| refuse(StatusCode::SERVICE_UNAVAILABLE, "the peer is ending");
        self.orders.send(order).await.map_err(gone)
    }
}

/// Compares without telling by its time how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(Refusal::Other { why: why.into() })).into_response()
}

fn answer<T: Serialize>(value: &T) -> Response {
    Json(value).into_response()
}

async fn healthz(Shared(desk): Shared<Arc<Desk>>) -> Response {
    let (picture, now) = (desk.picture(), now());
    if picture.is_fresh(now.0) {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        let why = format!("the loop has not turned for {} s\n", Utc(picture.utc_ms).distance(now).as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
    }
}

fn now() -> Utc {
    Utc(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

async fn readyz(Shared(desk): Shared<Arc<Desk>>) -> Response {
    let state = desk.picture();
    if state.is_ready() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    let why = match &state.waiting {
        Some(waiting) => format!("waiting for {}\n", waiting.what),
        None => format!("{:?}\n", state.phase).to_lowercase(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn whole(Shared(desk): Shared<Arc<Desk>>) -> Response {
    answer(desk.picture().as_ref())
}

async fn peers(Shared(desk): Shared<Arc<Desk>>) -> Response {
    answer(&desk.picture().peers)
}

async fn configuration(Shared(desk): Shared<Arc<Desk>>) -> Response {
    answer(&desk.config)
}

#[derive(serde::Deserialize)]
struct Stop {
    #[serde(default)]
    now: bool,
}

async fn stop(Shared(desk): Shared<Arc<Desk>>, body: Bytes) -> Response {
    let request: Stop = match parse(&body) {
        Ok(request) => request,
        Err(response) => return response,
    };
    match desk.order(Order::Stop { now: request.now }).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(response) => response,
    }
}

async fn invite(Shared(desk): Shared<Arc<Desk>>) -> Response {
    let (reply, made) = oneshot::channel();
    if let Err(response) = desk.order(Order::Invite { reply }).await {
        return response;
    }
    match made.await {
        Ok(Ok(made)) => answer(&made),
        Ok(Err(refusal)) => (StatusCode::CONFLICT, Json(refusal)).into_response(),
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the peer is ending"),
    }
}

async fn generate(Shared(desk): Shared<Arc<Desk>>, body: Bytes) -> Response {
    let request: GenerateRequest = match parse(&body) {
        Ok(request) => request,
        Err(response) => return response,
    };
    let (reply, pieces) = mpsc::channel(REPLY_QUEUE);
    match desk.order(Order::Generate { request, reply }).await {
        Ok(()) => stream(pieces),
        Err(response) => response,
    }
}

async fn export(Shared(desk): Shared<Arc<Desk>>, body: Bytes) -> Response {
    let request: ExportRequest = match parse(&body) {
        Ok(request) => request,
        Err(response) => return response,
    };
    let (reply, notes) = mpsc::channel(REPLY_QUEUE);
    match desk.order(Order::Export { request, reply }).await {
        Ok(()) => stream(notes),
        Err(response) => response,
    }
}

#[allow(clippy::result_large_err, reason = "the error is the answer")]
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Response> {
    serde_json::from_slice(body).map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))
}

/// One JSON object a line, as they come: `{"Ok":…}` or, as the last, `{"Err":…}`.
fn stream<T: Serialize + Send + 'static>(replies: mpsc::Receiver<Result<T, Refusal>>) -> Response {
    let lines = futures::stream::unfold(replies, |mut replies| async move {
        let reply = replies.recv().await?;
        let mut line = serde_json::to_vec(&reply).expect("replies are plain data");
        line.push(b'\n');
        Some((Ok::<_, Infallible>(line), replies))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(address: &str) -> Desk {
        let state = State::starting(super::super::state::Me::default(), 0);
        Desk {
            address: address.parse().unwrap(),
            token: "secret".into(),
            config: serde_json::Value::Null,
            state: watch::channel(Arc::new(state)).1,
            orders: mpsc::channel(1).0,
        }
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_name_that_points_here_is_not_here() {
        let desk = desk("127.0.0.1:4750");
        for (host, here) in [
            ("127.0.0.1:4750", true),
            ("localhost:4750", true),
            ("[::1]:4750", true),
            ("127.0.0.1", false),
            ("localhost:4751", false),
            ("evil.example:4750", false),
        ] {
            assert_eq!(desk.host_is_here(&headers(&[(header::HOST, host)])), here, "{host}");
        }
        assert!(!desk.host_is_here(&HeaderMap::new()));
        assert!(desk.is_own_origin(b"http://127.0.0.1:4750"));
        assert!(!desk.is_own_origin(b"http://evil.example"));
        assert!(!desk.is_own_origin(b"null"));
    }

    #[test]
    fn only_the_whole_token_opens() {
        let desk = desk("127.0.0.1:4750");
        for (value, opens) in [("Bearer secret", true), ("Bearer secre", false), ("secret", false), ("Bearer ", false)]
        {
            assert_eq!(desk.has_token(&headers(&[(header::AUTHORIZATION, value)])), opens, "{value}");
        }
    }
}
