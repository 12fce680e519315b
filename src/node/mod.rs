//! One real peer: the driver around `skein_pipeline::Peer`, and the handle by which a command, a dashboard or a test holds it.
//!
//! In: a [`Setup`]. Out: a [`Node`], whose records and state can be watched and which takes orders. Everything here translates;
//! what is to be done, the peer decides.

pub mod admission;
pub mod admit;
pub mod base;
pub mod blobs;
pub mod clock;
mod costs;
mod driver;
pub mod export;
pub mod feed;
pub mod generate;
pub mod lifecycle;
pub mod lobby;
pub mod log;
pub mod memory;
mod perform;
pub mod save;
pub mod shapes;
pub mod signed;
pub mod store;
pub mod view;
pub mod worker;

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use libp2p::Multiaddr;
use skein_pipeline::peer::io::Command;
use skein_protocol::{Incarnation, Manifest, PeerId, RunId, Stage, event::Record, key::Key};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
};

pub use self::{
    costs::measure as costs,
    driver::{Ended, Order},
    lifecycle::{start, start_unless},
};
use self::{
    feed::Data,
    generate::{Ask, Said},
    lobby::{Invited, LobbyError},
    signed::Refused,
    store::{Remark, Unsaved},
    view::State,
    worker::Niceness,
};
use crate::{
    home::{Home, HomeError, Lock, RunFolder},
    net::{Limits, Net, NetError},
};

/// Everything that a node is started with. What others must agree on is in the manifest, not here.
#[derive(Clone, Debug)]
pub struct Setup {
    pub home: Home,
    pub way: Way,
    pub role: Role,
    pub net: NetSetup,
    pub give: Give,
    /// The invite's own text, kept for the next start.
    pub invite: Option<String>,
    /// Bytes of event log that are kept.
    pub events_keep: u64,
    /// How long the peers of an invite may stay silent.
    pub patience: Duration,
    /// After that it says so and goes on trying, rather than failing.
    pub keep_trying: bool,
    /// Of the peer's random choices; nothing: from the operating system.
    pub seed: Option<u64>,
}

/// How the run is found.
#[derive(Clone, Debug)]
pub enum Way {
    /// The signed manifest is here: its owner starts it, or it was joined before.
    Known {
        signed: Vec<u8>,
        meet: Vec<(PeerId, Vec<Multiaddr>)>,
    },
    Invited(Invited),
}

/// What this peer does in the run.
#[derive(Clone, Debug)]
pub struct Role {
    pub serve: Serve,
    /// Data to feed: the owner and its delegates only.
    pub feed: Option<Data>,
    /// Feeds only when it is told to ([`Command::Feed`]).
    pub feed_later: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serve {
    Nothing,
    /// Where it helps most.
    Plan,
    Stages(Vec<Stage>),
}

impl Role {
    /// Feeds, and serves whatever is needed.
    pub fn train(data: Data) -> Self {
        Role { serve: Serve::Plan, feed: Some(data), feed_later: false }
    }

    pub fn join() -> Self {
        Role { serve: Serve::Plan, feed: None, feed_later: false }
    }

    pub fn host(stages: Vec<Stage>) -> Self {
        Role { serve: Serve::Stages(stages), feed: None, feed_later: false }
    }

    /// Feeds, and leaves the computing to others.
    pub fn feed(data: Data) -> Self {
        Role { serve: Serve::Nothing, feed: Some(data), feed_later: false }
    }

    pub fn observe() -> Self {
        Role { serve: Serve::Nothing, feed: None, feed_later: false }
    }
}

/// Sockets; see [`crate::net::NetConfig`].
#[derive(Clone, Debug)]
pub struct NetSetup {
    pub port: u16,
    /// Only this port will do; else another free one is taken.
    pub port_fixed: bool,
    pub listen: Vec<IpAddr>,
    pub lan: bool,
    pub port_mapping: bool,
    pub relay_use: bool,
    pub relay_server: bool,
    pub offline_loopback: bool,
    /// Peers to start from, besides those of the invite and of the book.
    pub bootstrap: Vec<Multiaddr>,
    pub announce: Vec<Multiaddr>,
    pub limits: Limits,
}

impl NetSetup {
    /// Everything on this machine, at any port.
    pub fn loopback() -> Self {
        NetSetup {
            port: 0,
            port_fixed: false,
            listen: vec![IpAddr::from([127, 0, 0, 1])],
            lan: false,
            port_mapping: false,
            relay_use: true,
            relay_server: false,
            offline_loopback: true,
            bootstrap: Vec::new(),
            announce: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// What this machine gives.
#[derive(Clone, Debug)]
pub struct Give {
    /// Bytes of device memory for stages.
    pub memory: u64,
    /// Bytes of disk for snapshots of others.
    pub disk: u64,
    /// Bytes of bodies from others that may lie in memory at one time.
    pub blob_bytes: u64,
    pub niceness: Niceness,
    /// Where checkpoints go, if not into the folder of the run.
    pub checkpoints: Option<PathBuf>,
    /// Checkpoints a stage.
    pub keep_versions: usize,
    /// Zero: only when it drains.
    pub save_every: Duration,
}

impl Default for Give {
    fn default() -> Self {
        Give {
            memory: 4 << 30,
            disk: 4 << 30,
            blob_bytes: 1 << 30,
            niceness: Niceness::Low,
            checkpoints: None,
            keep_versions: 3,
            save_every: Duration::from_secs(600),
        }
    }
}

/// A step of the start, or news of one that takes long.
#[derive(Clone, Debug)]
pub enum Progress {
    Identity {
        me: PeerId,
        made_now: bool,
    },
    /// 0: nowhere.
    Listening {
        port: u16,
    },
    Meeting {
        peers: usize,
    },
    StillTrying(LobbyError),
    Manifest {
        run: RunId,
        name: String,
    },
    Running {
        incarnation: Incarnation,
        remarks: Vec<Remark>,
    },
}

/// Why a node did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Lobby(#[from] LobbyError),
    #[error("the manifest is refused: {0}")]
    Manifest(#[from] Refused),
    /// SK125
    #[error("the smallest stage needs {need} bytes of memory, {give} are given")]
    TooLittleMemory { need: u64, give: u64 },
    /// SK310
    #[error("the run asks for {least} bytes of memory, {give} are given")]
    BelowTheRunsLeast { least: u64, give: u64 },
    #[error("stage {stage} does not exist, the run has {count}")]
    NoSuchStage { stage: Stage, count: u16 },
    #[error("stage {stage} of this run is served by its owner alone, {owner}: no token and no label leaves it")]
    OwnersStage { stage: Stage, owner: PeerId },
    #[error("{me} may not feed data into this run, its owner is {owner}")]
    MayNotFeed { me: PeerId, owner: PeerId },
    #[error("the event log in {}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("the worker's thread could not be started: {0}")]
    Thread(io::Error),
    #[error("the network stopped")]
    NetworkGone,
    /// SK900
    #[error("{0}")]
    Bug(String),
}

/// A running peer.
pub struct Node {
    pub me: PeerId,
    pub key: Key,
    pub run: RunId,
    pub manifest: Arc<Manifest>,
    /// The signed manifest as it travels.
    pub signed: Arc<[u8]>,
    pub folder: RunFolder,
    /// At the start; a fence makes a new one.
    pub incarnation: Incarnation,
    /// What was wrong with saved states.
    pub remarks: Vec<Remark>,
    /// What could not be saved since.
    pub unsaved: Unsaved,
    net: Net,
    orders: mpsc::Sender<Order>,
    records: broadcast::Sender<Record>,
    /// Subscribed before the first event: whoever asks first misses none.
    first_records: Mutex<Option<broadcast::Receiver<Record>>>,
    state: watch::Receiver<Option<State>>,
    done: Option<JoinHandle<Result<Ended, NodeError>>>,
    _lock: Lock,
}

impl Node {
    fn run(mut self, driver: driver::Driver) -> Self {
        self.done = Some(tokio::spawn(driver.run()));
        self
    }

    /// Every event from now on; the first to ask gets them from the start. Who is too slow misses some; the log has all.
    pub fn records(&self) -> broadcast::Receiver<Record> {
        let first = self.first_records.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| self.records.subscribe())
    }

    /// The newest snapshot; nothing in the first moment.
    pub fn state(&self) -> watch::Receiver<Option<State>> {
        self.state.clone()
    }

    pub fn orders(&self) -> mpsc::Sender<Order> {
        self.orders.clone()
    }

    /// Where others reach this peer, best first, each with its id.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.net.addresses()
    }

    /// Gives an order. A node that has ended takes none.
    pub async fn order(&self, order: Order) {
        let _ = self.orders.send(order).await;
    }

    pub async fn drain(&self) {
        self.order(Order::Command(Command::Drain)).await;
    }

    /// Text from the live swarm, token by token.
    pub async fn generate(&self, ask: Ask) -> mpsc::UnboundedReceiver<Said> {
        let (reply, said) = mpsc::unbounded_channel();
        self.order(Order::Generate { ask, reply }).await;
        said
    }

    /// Waits until the node has ended.
    ///
    /// # Errors
    /// What it could not go on with. A panic of the driver is a bug ([`NodeError::Bug`]).
    pub async fn wait(mut self) -> Result<Ended, NodeError> {
        match self.done.take() {
            None => Ok(Ended::Stopped),
            Some(done) => done.await.unwrap_or_else(|error| Err(NodeError::Bug(error.to_string()))),
        }
    }
}

/// A small manifest of `stages` stages, owned by key `[1; 32]`: 2 x 16 tokens a micro-batch, 32 numbers wide.
#[cfg(test)]
fn sample_manifest(stages: u16) -> Manifest {
    let owner = Key::from_secret([1; 32]).peer();
    let split = vec![1; usize::from(stages)];
    let text = format!(
        r#"
        [run]
        name = "sample"
        protocol = 1
        owner = "{owner}"
        [model]
        family = "llama"
        config = {{ hidden = 32, layers = {stages}, heads = 2, kv_heads = 2, ffn = 64, vocab = 256, context = 64 }}
        weights = {{ init_seed = 1 }}
        [stages]
        count = {stages}
        split = {split:?}
        [train]
        sequence = 16
        micro_batch = 2
        micro_batches_per_step = 4
        in_flight_max = 12
        [optimizer]
        lr = 1e-3
        [staleness]
        bound = 8
        [averaging]
        every = 5
        [codecs]
        forward = ["f32"]
        backward = ["f32"]
        [data]
        [admission]
        [privacy]
        [checkpoint]
        every = 20
        "#
    );
    toml::from_str(&text).expect("the sample manifest is well formed")
}
