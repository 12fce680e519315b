//! From nothing to a running peer: the order in which a node starts.
//!
//! In: [`Setup`]. Out: a [`Node`], or the first thing that is not as it must be. What can be known without the network is checked
//! before it is asked; each step tells that it is done, so a person sees what is waited for.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    path::PathBuf,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
};

use libp2p::Multiaddr;
use skein_pipeline::{
    model::cost,
    peer::{Peer, PeerConfig, SavedState, io::Command},
    worker::Engines,
};
use skein_protocol::{Blob, Manifest, PeerId, RunId, Version, hash::Digest, key::Key, run::Tokenizer};
use tokio::sync::{broadcast, mpsc, watch};

use super::{
    Node, NodeError, Progress, Role, Serve, Setup, Way,
    admission::Admission,
    admit::Gate,
    blobs::{Blobs, Kind},
    clock::Clock,
    costs,
    driver::{Driver, Parts},
    feed::{Data, Feed, Mark},
    lobby::Lobby,
    log::Log,
    shapes::Shapes,
    signed,
    store::{Found, Remark, Store},
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
    progress: impl FnMut(Progress),
) -> Result<Node, NodeError> {
    let started = start_unless(setup, engines, progress, pending()).await?;
    Ok(started.expect("only `leave` ends a start without a node or an error"))
}

/// As [`start`]. The wait for a peer of the invite has no end of its own: `leave` ends it, with nothing started.
///
/// # Errors
/// As [`start`].
pub async fn start_unless<M: Engines + 'static>(
    setup: Setup,
    engines: impl FnOnce(&Manifest) -> M + Send + 'static,
    mut progress: impl FnMut(Progress),
    leave: impl Future<Output = ()>,
) -> Result<Option<Node>, NodeError> {
    let lock = setup.home.lock()?;
    let identity = setup.home.identity()?;
    let key = identity.key;
    progress(Progress::Identity { me: key.peer(), made_now: identity.made_now });

    let known = known_manifest(&setup.way)?;
    if let Some(manifest) = &known {
        check_role(&setup, &key, manifest)?;
    }
    let blobs = Blobs::new(setup.give.blob_bytes, setup.give.memory);
    let gate = Arc::new(Gate::new(blobs.clone()));
    let book = setup.home.book();
    let meet = whom_to_meet(&setup, &book, key.peer());
    let (net, mut net_events, port) = open_network(&setup, key.clone(), &meet, gate.clone()).await?;
    progress(Progress::Listening { port });

    let (signed_bytes, manifest, backlog) = match known {
        Some(manifest) => (signed_of(&setup.way), manifest, Vec::new()),
        None => match enter(&setup, &net, &mut net_events, &mut progress, pin!(leave)).await {
            Ok(Some(entered)) => entered,
            none => {
                drop(net_events);
                net.shutdown().await;
                return none.map(|_| None);
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
            Ok(Some(node.run(driver)))
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
    let (wanted, fixed) = (setup.net.port, setup.net.port_fixed);
    let last = setup.home.last_port();
    let mut taken = None;
    for port in ports(wanted, fixed, last) {
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
                if !fixed && wanted != 0 && Some(port) != last {
                    setup.home.keep_port(port);
                }
                return Ok((net, events, port));
            }
            Err(error @ NetError::PortTaken { .. }) => taken = taken.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(taken.expect("at least one port was tried, and each was taken").into())
}

/// Ports in the order in which they are tried. One that was set by hand is the only one. Otherwise that of last time comes first,
/// since others look for this peer there, then the usual one, those above it, and what the system gives.
fn ports(wanted: u16, fixed: bool, last: Option<u16>) -> Vec<u16> {
    if fixed || wanted == 0 {
        return vec![wanted];
    }
    let above = (0..=PORTS).filter_map(|more| wanted.checked_add(more)).filter(|port| Some(*port) != last);
    last.into_iter().chain(above).chain([0]).collect()
}

/// Waits until a peer of the invite hands over the manifest; nothing when `leave` comes first.
async fn enter(
    setup: &Setup,
    net: &Net,
    events: &mut mpsc::Receiver<NetEvent>,
    progress: &mut impl FnMut(Progress),
    mut leave: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<(Vec<u8>, Manifest, Vec<NetEvent>)>, NodeError> {
    let Way::Invited(invited) = &setup.way else { return Err(NodeError::NetworkGone) };
    progress(Progress::Meeting { peers: invited.peers.len() });
    let mut lobby = Lobby::new(net, events, invited);
    let entered = loop {
        let waited = tokio::select! {
            waited = lobby.wait(setup.patience) => waited,
            () = &mut leave => return Ok(None),
        };
        match waited {
            Ok(entered) => break entered,
            Err(error) if setup.keep_trying && error.may_pass(invited.peers.len()) => {
                progress(Progress::StillTrying(error))
            }
            Err(error) => return Err(error.into()),
        }
    };
    let backlog = lobby.leave();
    Ok(Some((entered.signed, entered.manifest, backlog)))
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
        Serve::Plan => (0..count).filter(|stage| manifest.may_serve(me, *stage)).map(need).min().unwrap_or(0),
        Serve::Stages(stages) => {
            if let Some(stage) = stages.iter().copied().find(|stage| *stage >= count) {
                return Err(NodeError::NoSuchStage { stage, count });
            }
            if let Some(stage) = stages.iter().copied().find(|stage| !manifest.may_serve(me, *stage)) {
                return Err(NodeError::OwnersStage { stage, owner: run.owner });
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

fn commands_of(role: &Role, manifest: &Manifest) -> Vec<Command> {
    let serve = match &role.serve {
        Serve::Nothing => Vec::new(),
        Serve::Plan => vec![Command::Join],
        Serve::Stages(stages) => stages.iter().map(|stage| Command::Host { stage: *stage }).collect(),
    };
    // Whoever has the tokenizer can talk to the model, and feed data of its own where it may.
    let files = match &manifest.model.tokenizer {
        Tokenizer::File { blob } => Some(Command::Fetch { blob: *blob }),
        Tokenizer::Byte => None,
    };
    files.into_iter().chain(serve).chain((role.feed.is_some() && !role.feed_later).then_some(Command::Feed)).collect()
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
    let (folder, is_new) = enter_folder(&setup, run, &manifest, &signed)?;
    // Nobody else can know a run that its owner begins.
    let begins = is_new && manifest.run.owner == key.peer();
    let manifest = Arc::new(manifest);
    let shapes = Shapes::new(manifest.clone());
    gate.open(shapes.clone());
    let store = Store::new(checkpoints(&setup, &folder, key.peer()), setup.give.keep_versions);
    let held = Store::held(&folder);
    let (saved, remarks) = found_on_disk(&[&store, &held], &blobs);
    let shelf = on_the_shelf(&setup, &manifest, &blobs);
    let unsaved = store.unsaved();
    let mark = Mark::of(&folder);
    if let Some(data) = &setup.role.feed {
        data.cut.note(&folder)?;
    }
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
        held_out: setup.role.feed.as_ref().map(Data::which_held_out).unwrap_or_default(),
        saved,
        shelf,
        costs: costs::measure(),
        expects_others: !begins && (!meet.is_empty() || !setup.net.bootstrap.is_empty()),
    };
    let commands = commands_of(&setup.role, &manifest);
    let (orders_in, orders) = mpsc::channel(ORDERS);
    let (records, first_records) = broadcast::channel(RECORDS);
    let (state_in, state) = watch::channel(None);
    let feed = setup.role.feed.map(|data| Feed::new(data, &manifest));
    let peer = Peer::new(config, clock.now(), clock.utc());
    let driver = Driver::new(Parts {
        peer,
        run,
        manifest: manifest.clone(),
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
        held: Arc::new(Mutex::new(held)),
        worker,
        ran,
        log,
        feed,
        mark,
        context: manifest.model.config.context as usize,
        memory: setup.give.memory,
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

/// The newest whole state of each stage in any of the stores, and what was wrong with others.
fn found_on_disk(stores: &[&Store], blobs: &Blobs) -> (Vec<SavedState>, Vec<Remark>) {
    let (mut newest, mut remarks) = (BTreeMap::new(), Vec::new());
    for store in stores {
        let (found, wrong) = store.newest();
        remarks.extend(wrong);
        for found in found {
            let age = |version: &Version| (version.round, version.own_step);
            let Found { version, .. } = &found;
            if newest.get(&version.stage).is_none_or(|known: &Found| age(&known.version) < age(version)) {
                newest.insert(version.stage, found);
            }
        }
    }
    let saved = newest.into_values().map(|Found { version, root, state }| {
        let blob = blobs.put(state, Kind::File);
        SavedState { version, root, blob }
    });
    (saved.collect(), remarks)
}

/// What lies here of that which the manifest names by its hash. What no run of this home names any more goes.
fn on_the_shelf(setup: &Setup, manifest: &Manifest, blobs: &Blobs) -> Vec<(Digest, Blob)> {
    let shelf = setup.home.shelf();
    let of_run = |folder: RunFolder| signed::open(&folder.manifest().ok()??, folder.run).ok();
    let known = setup.home.runs().list();
    let manifests: Vec<Manifest> = known.iter().cloned().filter_map(of_run).collect();
    // A manifest that cannot be read may name anything.
    if manifests.len() == known.len() {
        shelf.sweep(&manifests.iter().flat_map(Manifest::blobs).collect());
    }
    let mut found = Vec::new();
    for blob in manifest.blobs() {
        match shelf.get(blob) {
            Ok(bytes) => found.extend(bytes.map(|bytes| (blob, blobs.put(bytes, Kind::File)))),
            Err(error) => tracing::warn!(%error, "what lies on the shelf cannot be read: it is fetched again"),
        }
    }
    found
}

/// Where this peer's checkpoints of the run lie. A place that others may share has a folder for each peer.
fn checkpoints(setup: &Setup, folder: &RunFolder, me: PeerId) -> PathBuf {
    match &setup.give.checkpoints {
        Some(place) => place.join(me.short()).join(&folder.name),
        None => folder.checkpoints(),
    }
}

/// The run's folder, and whether it was not there before.
fn enter_folder(setup: &Setup, run: RunId, manifest: &Manifest, signed: &[u8]) -> Result<(RunFolder, bool), NodeError> {
    let runs = setup.home.runs();
    let folder = runs.enter(&manifest.run.name, run)?;
    let before = folder.manifest()?;
    if before.as_deref() != Some(signed) {
        folder.save_manifest(signed)?;
    }
    if let Some(invite) = &setup.invite {
        folder.save_invite(invite)?;
    }
    runs.set_last(&folder)?;
    Ok((folder, before.is_none()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skein_pipeline::compute::{Device, OnDevice};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        home::Home,
        node::{Ended, Give, NetSetup, Order, blobs::Room, sample_manifest},
    };

    #[test]
    fn the_port_of_last_time_is_tried_first_unless_one_was_set_by_hand() {
        assert_eq!(ports(4747, false, None)[..2], [4747, 4748]);
        assert_eq!(ports(4747, false, Some(4748))[..3], [4748, 4747, 4749]);
        assert_eq!(ports(4747, false, Some(4748)).last(), Some(&0));
        assert_eq!((ports(5000, true, Some(4748)), ports(0, false, Some(4748))), (vec![5000], vec![0]));
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        assert_eq!(home.last_port(), None);
        home.keep_port(4750);
        assert_eq!(Home::at(dir.path()).last_port(), Some(4750));
    }

    #[test]
    fn what_was_saved_or_held_is_offered_after_a_restart_the_newer_of_the_two_and_takes_no_room_from_work() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder { name: "run".into(), path: dir.path().into(), run: RunId::default() };
        let (store, held) = (Store::new(folder.checkpoints(), 2), Store::held(&folder));
        let version = |stage, round| Version { stage, round, ..Version::default() };
        for (store, stage, round) in [(&store, 0, 3), (&held, 0, 2), (&held, 1, 7), (&store, 2, 1), (&held, 2, 4)] {
            store.write(version(stage, round), Default::default(), &[&[stage as u8; 100]]).unwrap();
        }
        let blobs = Blobs::new(10, 10);
        let (saved, remarks) = found_on_disk(&[&store, &held], &blobs);
        let found: Vec<_> = saved.iter().map(|saved| (saved.version.stage, saved.version.round)).collect();
        assert_eq!((found, remarks), (vec![(0, 3), (1, 7), (2, 4)], vec![]));
        assert_eq!(blobs.get(saved[1].blob).unwrap(), vec![1; 100]);
        assert!(blobs.has_room(10, Room::Work) && blobs.has_room(10, Room::Weights));
    }

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
        let started = start(setup, |_| OnDevice::new(Device::Cpu { threads: 1 }), note);
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
