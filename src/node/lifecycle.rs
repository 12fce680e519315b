//! From nothing to a running peer, and back: the order in which a node starts, and what Ctrl-C does.
//!
//! In: [`Setup`]. Out: a [`Node`], or the first thing that is not as it must be. What can be known without the network is checked
//! before it is asked; each step tells that it is done, so a person sees what is waited for.

use std::{path::PathBuf, sync::Arc};

use libp2p::Multiaddr;
use skein_pipeline::{
    model::cost,
    peer::{Peer, PeerConfig, SavedState, io::Command},
    worker::Engines,
};
use skein_protocol::{Manifest, PeerId, RunId, key::Key};
use tokio::sync::{broadcast, mpsc, watch};

use super::{
    Node, NodeError, Progress, Role, Serve, Setup, Way,
    admit::{Admission, Gate, Shapes},
    blobs::Blobs,
    clock::Clock,
    driver::{Driver, Ended, Parts},
    feed::{Feed, Mark},
    lobby::Lobby,
    log::Log,
    signed,
    store::Store,
    worker::WorkerThread,
};
use crate::{
    home::{Book, Lock, RunFolder},
    net::{self, Net, NetConfig, NetError, NetEvent},
};

/// Records that a slow listener may be behind.
const RECORDS: usize = 4096;
/// Orders that wait for the driver.
const ORDERS: usize = 64;
/// Peers of the address book that are tried at the start.
const FROM_BOOK: usize = 16;
/// Ports above the wanted one that are tried when it is taken, before the system chooses.
const PORTS: u16 = 8;

/// Starts a peer. `engines` is called on the worker's thread with the run's manifest; `progress` hears of each step.
///
/// # Errors
/// The first thing that cannot be: see [`NodeError`]. Nothing of the peer runs on after an error.
pub async fn start<M: Engines + 'static>(
    setup: Setup,
    engines: impl FnOnce(&Manifest) -> M + Send + 'static,
    mut progress: impl FnMut(Progress),
) -> Result<Node, NodeError> {
    let lock = setup.home.lock()?;
    let identity = setup.home.identity()?;
    let key = identity.key;
    progress(Progress::Identity { me: key.peer(), made_now: identity.made_now });

    let known = known_manifest(&setup.way)?;
    if let Some(manifest) = &known {
        check_role(&setup, &key, manifest)?;
    }
    let blobs = Blobs::new(setup.give.blob_bytes);
    let gate = Arc::new(Gate::new(blobs.clone()));
    let book = setup.home.book();
    let meet = whom_to_meet(&setup, &book, key.peer());
    let (net, mut net_events, port) = open_network(&setup, key.clone(), &meet, gate.clone()).await?;
    progress(Progress::Listening { port });

    let (signed_bytes, manifest, backlog) = match known {
        Some(manifest) => (signed_of(&setup.way), manifest, Vec::new()),
        None => match enter(&setup, &net, &mut net_events, &mut progress).await {
            Ok(entered) => entered,
            Err(error) => {
                drop(net_events);
                net.shutdown().await;
                return Err(error);
            }
        },
    };
    let run = signed::run_of(&signed_bytes)?;
    progress(Progress::Manifest { run, name: manifest.run.name.clone() });
    let built = build(
        setup,
        key,
        lock,
        run,
        signed_bytes,
        manifest,
        meet,
        (net.clone(), net_events, backlog),
        gate,
        blobs,
        engines,
    );
    match built {
        Ok((node, driver)) => {
            progress(Progress::Running { incarnation: node.incarnation, remarks: node.remarks.clone() });
            Ok(node.run(driver))
        }
        Err(error) => {
            net.shutdown().await;
            Err(error)
        }
    }
}

fn known_manifest(way: &Way) -> Result<Option<Manifest>, NodeError> {
    match way {
        Way::Known { signed, .. } => {
            let run = signed::run_of(signed)?;
            Ok(Some(signed::open(signed, run)?))
        }
        Way::Invited(_) => Ok(None),
    }
}

fn signed_of(way: &Way) -> Vec<u8> {
    match way {
        Way::Known { signed, .. } => signed.clone(),
        Way::Invited(_) => Vec::new(),
    }
}

/// Peers to start from, those that were named before those of the book.
fn whom_to_meet(setup: &Setup, book: &Book, me: PeerId) -> Vec<(PeerId, Vec<Multiaddr>)> {
    let named = match &setup.way {
        Way::Known { meet, .. } => meet.clone(),
        Way::Invited(invited) => invited.peers.clone(),
    };
    let mut meet: Vec<(PeerId, Vec<Multiaddr>)> = named.into_iter().filter(|(peer, _)| *peer != me).collect();
    for (peer, addresses) in book.newest().into_iter().take(FROM_BOOK) {
        if peer != me && meet.iter().all(|(other, _)| *other != peer) {
            meet.push((peer, addresses.iter().filter_map(|text| text.parse().ok()).collect()));
        }
    }
    meet
}

async fn open_network(
    setup: &Setup,
    key: Key,
    meet: &[(PeerId, Vec<Multiaddr>)],
    gate: Arc<Gate>,
) -> Result<(Net, mpsc::Receiver<NetEvent>, u16), NodeError> {
    let bootstrap = meet
        .iter()
        .flat_map(|(peer, addresses)| {
            let id = net::address::libp2p_of(peer);
            addresses.iter().map(move |address| net::address::with_peer(address.clone(), id))
        })
        .chain(setup.net.bootstrap.iter().cloned())
        .collect::<Vec<_>>();
    let wanted = setup.net.port;
    let others = (1..=PORTS).filter_map(|more| wanted.checked_add(more)).chain([0]);
    let ports = std::iter::once(wanted).chain(others.filter(|_| !setup.net.port_fixed && wanted != 0));
    let mut taken = None;
    for port in ports {
        let config = NetConfig {
            key: key.clone(),
            port,
            listen: setup.net.listen.clone(),
            lan: setup.net.lan,
            port_mapping: setup.net.port_mapping,
            relay_use: setup.net.relay_use,
            relay_server: setup.net.relay_server,
            offline_loopback: setup.net.offline_loopback,
            bootstrap: bootstrap.clone(),
            announce: setup.net.announce.clone(),
            limits: setup.net.limits.clone(),
        };
        match net::start(config, gate.clone()).await {
            Ok((net, events)) => {
                for (peer, addresses) in meet {
                    net.dial(*peer, addresses.clone());
                }
                let port = net.port();
                return Ok((net, events, port));
            }
            Err(error @ NetError::PortTaken { .. }) => taken = taken.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(taken.expect("at least one port was tried, and each was taken").into())
}

/// Waits until a peer of the invite hands over the manifest.
async fn enter(
    setup: &Setup,
    net: &Net,
    events: &mut mpsc::Receiver<NetEvent>,
    progress: &mut impl FnMut(Progress),
) -> Result<(Vec<u8>, Manifest, Vec<NetEvent>), NodeError> {
    let Way::Invited(invited) = &setup.way else { return Err(NodeError::NetworkGone) };
    progress(Progress::Meeting { peers: invited.peers.len() });
    let mut lobby = Lobby::new(net, events, invited);
    let entered = loop {
        match lobby.wait(setup.patience).await {
            Ok(entered) => break entered,
            Err(error) if setup.keep_trying && error.may_pass(invited.peers.len()) => {
                progress(Progress::StillTrying(error))
            }
            Err(error) => return Err(error.into()),
        }
    };
    let backlog = lobby.leave();
    Ok((entered.signed, entered.manifest, backlog))
}

/// What the role needs of the manifest, before anything is fetched.
fn check_role(setup: &Setup, key: &Key, manifest: &Manifest) -> Result<(), NodeError> {
    let (role, run) = (&setup.role, &manifest.run);
    let me = key.peer();
    if role.feed.is_some() && me != run.owner && !run.delegates.contains(&me) {
        return Err(NodeError::MayNotFeed { me, owner: run.owner });
    }
    let count = manifest.stages.count;
    let need = |stage| cost::memory(manifest, stage).peak();
    let needed = match &role.serve {
        Serve::Nothing => return Ok(()),
        Serve::Plan => (0..count).map(need).min().unwrap_or(0),
        Serve::Stages(stages) => {
            if let Some(stage) = stages.iter().copied().find(|stage| *stage >= count) {
                return Err(NodeError::NoSuchStage { stage, count });
            }
            stages.iter().copied().map(need).sum()
        }
    };
    let (give, least) = (setup.give.memory, manifest.admission.memory_min.0);
    if needed > give {
        return Err(NodeError::TooLittleMemory { need: needed, give });
    }
    if least > give && me != run.owner {
        return Err(NodeError::BelowTheRunsLeast { least, give });
    }
    Ok(())
}

fn commands_of(role: &Role) -> Vec<Command> {
    let serve = match &role.serve {
        Serve::Nothing => Vec::new(),
        Serve::Plan => vec![Command::Join],
        Serve::Stages(stages) => stages.iter().map(|stage| Command::Host { stage: *stage }).collect(),
    };
    serve.into_iter().chain((role.feed.is_some() && !role.feed_later).then_some(Command::Feed)).collect()
}

#[allow(clippy::too_many_arguments)]
fn build<M: Engines + 'static>(
    setup: Setup,
    key: Key,
    lock: Lock,
    run: RunId,
    signed: Vec<u8>,
    manifest: Manifest,
    meet: Vec<(PeerId, Vec<Multiaddr>)>,
    (net, net_events, backlog): (Net, mpsc::Receiver<NetEvent>, Vec<NetEvent>),
    gate: Arc<Gate>,
    blobs: Blobs,
    engines: impl FnOnce(&Manifest) -> M + Send + 'static,
) -> Result<(Node, Driver), NodeError> {
    check_role(&setup, &key, &manifest)?;
    let folder = enter_folder(&setup, run, &manifest, &signed)?;
    let manifest = Arc::new(manifest);
    let shapes = Shapes::new(manifest.clone());
    gate.open(shapes.clone());
    let store = Store::new(checkpoints(&setup, &folder, key.peer()), setup.give.keep_versions);
    let (found, remarks) = store.newest();
    let unsaved = store.unsaved();
    let saved = found.into_iter().map(|found| SavedState {
        version: found.version,
        root: found.root,
        blob: blobs.put(found.state),
    });
    let saved = saved.collect();
    let mark = Mark::of(&folder);
    let log = Log::open(&folder.path, key.peer(), setup.events_keep)
        .map_err(|source| NodeError::Log { path: folder.path.clone(), source })?;
    let for_engines = manifest.clone();
    let (niceness, memory) = (setup.give.niceness, setup.give.memory);
    let engines = move || engines(&for_engines);
    let (worker, ran) = WorkerThread::start(manifest.clone(), engines, blobs.clone(), store, niceness, memory)
        .map_err(NodeError::Thread)?;
    // The last thing before the first word: a start that failed needs no number.
    let incarnation = setup.home.next_incarnation()?;
    let clock = Clock::start();
    let config = PeerConfig {
        key: key.clone(),
        run,
        manifest: manifest.clone(),
        manifest_bytes: signed.clone(),
        incarnation,
        seed: setup.seed.unwrap_or_else(rand::random),
        memory: setup.give.memory,
        disk: setup.give.disk,
        addresses: net.addresses().iter().map(ToString::to_string).collect(),
        feed_from: mark.read(),
        saved,
        expects_others: !meet.is_empty() || !setup.net.bootstrap.is_empty(),
    };
    let commands = commands_of(&setup.role);
    let (orders_in, orders) = mpsc::channel(ORDERS);
    let (records, first_records) = broadcast::channel(RECORDS);
    let (state_in, state) = watch::channel(None);
    let feed = setup.role.feed.map(|data| Feed::new(data, &manifest));
    let peer = Peer::new(config, clock.now(), clock.utc());
    let driver = Driver::new(Parts {
        peer,
        run,
        name: manifest.run.name.clone(),
        incarnation,
        clock,
        home: setup.home,
        net: net.clone(),
        net_events,
        backlog,
        gate,
        admission: Admission::new(manifest.clone()),
        shapes,
        blobs,
        worker,
        ran,
        log,
        feed,
        mark,
        context: manifest.model.config.context as usize,
        stages: manifest.stages.count,
        save_every: setup.give.save_every,
        commands,
        orders,
        records: records.clone(),
        state: state_in,
    });
    let node = Node {
        me: key.peer(),
        key,
        run,
        manifest,
        signed: signed.into(),
        folder,
        incarnation,
        remarks,
        unsaved,
        net,
        orders: orders_in,
        records,
        first_records: Some(first_records).into(),
        state,
        done: None,
        _lock: lock,
    };
    Ok((node, driver))
}

/// Where this peer's checkpoints of the run lie. A place that others may share has a folder for each peer.
fn checkpoints(setup: &Setup, folder: &RunFolder, me: PeerId) -> PathBuf {
    match &setup.give.checkpoints {
        Some(place) => place.join(me.short()).join(&folder.name),
        None => folder.checkpoints(),
    }
}

fn enter_folder(setup: &Setup, run: RunId, manifest: &Manifest, signed: &[u8]) -> Result<RunFolder, NodeError> {
    let runs = setup.home.runs();
    let folder = runs.enter(&manifest.run.name, run)?;
    if folder.manifest()?.as_deref() != Some(signed) {
        folder.save_manifest(signed)?;
    }
    if let Some(invite) = &setup.invite {
        folder.save_invite(invite)?;
    }
    runs.set_last(&folder)?;
    Ok(folder)
}

/// How the person ends it: once to leave in good order, twice to leave at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Ended(Ended),
    /// The second Ctrl-C: exit code 130.
    AtOnce,
}

/// Runs a node until it ends. The first Ctrl-C or SIGTERM drains it, `draining` is called then; the second ends it at once.
///
/// # Errors
/// What ended the node, if not the person.
pub async fn until_left(node: Node, mut draining: impl FnMut()) -> Result<Left, NodeError> {
    let orders = node.orders();
    let mut wait = std::pin::pin!(node.wait());
    let mut interrupts = Interrupts::listen();
    let mut asked = false;
    loop {
        tokio::select! {
            ended = &mut wait => return ended.map(Left::Ended),
            () = interrupts.next() => {
                if asked {
                    return Ok(Left::AtOnce);
                }
                asked = true;
                draining();
                // A node that takes no orders must not keep the second Ctrl-C from being heard.
                let orders = orders.clone();
                tokio::spawn(async move { drop(orders.send(super::Order::Command(Command::Drain)).await) });
            }
        }
    }
}

/// Ctrl-C and SIGTERM. Listened for from the start to the end, so that none between two looks is lost.
struct Interrupts {
    #[cfg(unix)]
    signals: Option<[tokio::signal::unix::Signal; 2]>,
}

#[cfg(unix)]
impl Interrupts {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let both = [signal(SignalKind::interrupt()), signal(SignalKind::terminate())];
        let [Ok(interrupt), Ok(terminate)] = both else {
            tracing::warn!("signals cannot be listened for: they end this process at once");
            return Interrupts { signals: None };
        };
        Interrupts { signals: Some([interrupt, terminate]) }
    }

    async fn next(&mut self) {
        match &mut self.signals {
            Some([interrupt, terminate]) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            None => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
impl Interrupts {
    fn listen() -> Self {
        Interrupts {}
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skein_pipeline::compute::{Device, OnDevice};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        home::Home,
        node::{Ended, Give, NetSetup, Order, sample_manifest},
    };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_peer_starts_with_more_stages_than_orders_may_wait() {
        let dir = tempfile::tempdir().unwrap();
        let stages = ORDERS as u16 + 6;
        let (_, signed) = signed::sign(&sample_manifest(stages), &Key::from_secret([1; 32]));
        let setup = Setup {
            home: Home::at(dir.path()),
            way: Way::Known { signed, meet: Vec::new() },
            role: Role::host((0..stages).collect()),
            net: NetSetup::loopback(),
            give: Give::default(),
            invite: None,
            events_keep: 1 << 20,
            patience: Duration::from_secs(1),
            keep_trying: false,
            seed: Some(1),
        };
        let mut ports = Vec::new();
        let note = |progress| {
            if let Progress::Listening { port } = progress {
                ports.push(port);
            }
        };
        let started = start(setup, |_| OnDevice(Device::Cpu { threads: 1 }), note);
        let node = timeout(Duration::from_secs(60), started).await.expect("it starts in time").expect("it starts");
        assert!(matches!(ports[..], [port] if port > 0), "the port that the system chose: {ports:?}");
        let mut state = node.state();
        let all = |state: &Option<crate::node::view::State>| {
            state.as_ref().is_some_and(|state| state.peer.mine.len() == usize::from(stages))
        };
        timeout(Duration::from_secs(60), state.wait_for(all)).await.expect("in time").expect("it runs");
        node.order(Order::Stop).await;
        assert_eq!(node.wait().await.expect("in good order"), Ended::Stopped);
    }
}
