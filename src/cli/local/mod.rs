//! A whole swarm on this machine: its owner in this process, the peers that serve in processes of their own, so that a kill
//! is a kill. In: a manifest and data. Out: the owner's node, and peers that serve. Knows no picture and no figures.

mod children;

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use skein_pipeline::{
    compute::{Device, OnDevice},
    peer::io::Command,
};
use skein_protocol::{Manifest, hash::Digest};
use tokio::{sync::watch, time::timeout};

pub use self::children::{Given, Serving, Task};
use super::{
    context::Context,
    failure::{Failure, Report},
    refused::Circumstances,
    session::Desk,
    show::Span,
};
use crate::{
    corpus::Corpus,
    home::Home,
    net::to_multiaddr,
    node::{
        self, Give, NetSetup, Node, Order, Role, Serve, Setup, Way,
        feed::{Cut, Data},
        signed,
        view::State,
    },
};

/// Peers that do not come within this time do not come.
const FORMING: Duration = Duration::from_secs(60);
/// Who was asked to leave is given so long: a drain's own deadlines together.
const LEAVE: Duration = Duration::from_secs(35);
/// Bytes that each peer may take for stages, where there is as much.
const MEMORY: u64 = 4 << 30;
/// How often a look is taken whether a process has ended.
const LOOK: Duration = Duration::from_millis(200);

/// What a swarm on this machine is made of.
pub struct Start<'a> {
    /// As errors name it.
    pub command: &'static str,
    pub manifest: Manifest,
    pub corpus: Arc<Corpus>,
    /// Folder in which every peer gets a home.
    pub homes: &'a Path,
    /// Stages that the owner itself serves, and its threads.
    pub serve: Serve,
    pub threads: u16,
    /// Whether the other peers have a control server, which says what they hold.
    pub watched: bool,
    /// Where each listens and others reach it, the owner first, if that is not the same.
    pub behind: Vec<Behind>,
    /// What the manifest names by its hash: the owner has it.
    pub shelf: Vec<(Digest, Vec<u8>)>,
    pub seed: u64,
}

impl<'a> Start<'a> {
    /// An owner that serves nothing with one thread, has nothing but the corpus, and peers that nobody watches.
    pub fn new(command: &'static str, manifest: Manifest, corpus: Arc<Corpus>, homes: &'a Path) -> Self {
        Self {
            command,
            manifest,
            corpus,
            homes,
            serve: Serve::Nothing,
            threads: 1,
            watched: false,
            behind: Vec::new(),
            shelf: Vec::new(),
            seed: 1,
        }
    }
}

/// A peer behind a forwarder.
#[derive(Clone, Copy, Debug)]
pub struct Behind {
    /// The port where it listens itself.
    pub port: u16,
    /// Where others reach it.
    pub public: SocketAddr,
}

pub struct LocalSwarm {
    pub node: Node,
    pub desk: Desk,
    pub invite: String,
    pub peers: Vec<Serving>,
    pub given: Given,
    began: Instant,
}

impl LocalSwarm {
    /// Signs the manifest and starts its owner, who will feed when it is told to.
    pub async fn start(what: Start<'_>, context: &Context) -> Result<LocalSwarm, Report> {
        let began = Instant::now();
        let home = Home::at(&what.homes.join("owner"));
        let mut manifest = what.manifest;
        let key = home.identity()?.key;
        for (blob, bytes) in &what.shelf {
            home.shelf().put(*blob, &[bytes])?;
        }
        manifest.run.owner = key.peer();
        let (_, signed) = signed::sign(&manifest, &key);
        let data = Data { corpus: what.corpus, epochs: None, held_out: None, cut: Cut::default() };
        let setup = Setup {
            home: home.clone(),
            way: Way::Known { signed, meet: Vec::new() },
            role: Role { serve: what.serve, feed: Some(data), feed_later: true },
            net: match what.behind.first() {
                None => NetSetup::loopback(),
                Some(Behind { port, public }) => NetSetup {
                    port: *port,
                    port_fixed: true,
                    announce: vec![to_multiaddr(*public)],
                    ..NetSetup::loopback()
                },
            },
            // Its worker steps back as those of the others do, or a busy machine would slow only them.
            give: Give { save_every: Duration::ZERO, ..Give::default() },
            invite: None,
            events_keep: 1 << 30,
            patience: FORMING,
            keep_trying: false,
            seed: Some(what.seed),
        };
        let circumstances = Circumstances {
            command: what.command,
            run: manifest.run.name.clone(),
            machine: context.machine,
            port_origin: String::new(),
        };
        let threads = usize::from(what.threads.max(1));
        let engines = move |_: &Manifest| OnDevice::new(Device::Cpu { threads });
        let node = node::start(setup, engines, |_| {}).await.map_err(|error| circumstances.report(error))?;
        let desk = Desk {
            run: node.run,
            manifest: node.manifest.clone(),
            orders: node.orders(),
            snapshots: node.state(),
            base: None,
            shelf: home.shelf(),
            words: Arc::default(),
        };
        let invite = invite(&desk, &mut node.state()).await?;
        let memory = MEMORY.min(context.machine.memory_total >> 20 << 20);
        let given = Given { homes: what.homes.into(), memory, watched: what.watched, behind: what.behind };
        Ok(LocalSwarm { node, desk, invite, peers: Vec::new(), given, began })
    }

    /// Starts one more peer.
    pub fn add(&mut self, task: Task, threads: u16) -> Result<(), Report> {
        let number = self.peers.len() as u16 + 1;
        self.peers.push(Serving::start(number, task, threads, &self.invite, &self.given)?);
        Ok(())
    }

    /// Starts one that has ended again, with its home.
    pub fn again(&mut self, peer: usize, task: Task, threads: u16) -> Result<(), Report> {
        self.peers[peer] = Serving::start(peer as u16 + 1, task, threads, &self.invite, &self.given)?;
        Ok(())
    }

    /// Starts as many peers, on the stages in turn.
    pub fn add_all(&mut self, peers: u16, stages: u16, threads: u16) -> Result<(), Report> {
        (0..peers).try_for_each(|number| self.add(Task::Host(number % stages), threads))
    }

    /// Waits until every peer serves; how long that took since the start of the owner.
    pub async fn form(&mut self) -> Result<Duration, Report> {
        let mut snapshots = self.node.state();
        let peers = &mut self.peers;
        let all = timeout(FORMING, async {
            loop {
                let serving = snapshots.borrow_and_update().as_ref().map_or(0, |state| serving(state, peers));
                if serving == peers.len() {
                    return Ok(());
                }
                if let Some(dead) = peers.iter_mut().find_map(|peer| peer.ended().then_some(&*peer)) {
                    return Err(format!("peer {} ended:\n{}", dead.number, dead.last_words()));
                }
                let _ = timeout(LOOK, snapshots.changed()).await;
            }
        });
        let message = match all.await {
            Ok(Ok(())) => return Ok(self.began.elapsed()),
            Ok(Err(message)) => message,
            Err(_) => {
                let missing = peers.iter().map(|peer| format!("peer {}:\n{}", peer.number, peer.last_words()));
                format!("not all peers serve after {}\n{}", Span(FORMING), missing.collect::<Vec<_>>().join("\n"))
            }
        };
        Err(Failure::Other { message }.into())
    }

    /// Ends the feeding, then the peers, then the owner. What the peers left, and the numbers of those that had to be ended.
    pub async fn end(mut self) -> (Vec<Serving>, Vec<u16>) {
        let orders = self.node.orders();
        // They finish what is open, which needs the feeder; its own drain would wait for them in turn.
        let _ = orders.send(Order::Command(Command::StopFeeding)).await;
        let late = part(&mut self.peers).await;
        let _ = orders.send(Order::Stop).await;
        let _ = timeout(LEAVE, self.node.wait()).await;
        (self.peers, late)
    }
}

async fn invite(desk: &Desk, snapshots: &mut watch::Receiver<Option<State>>) -> Result<String, Report> {
    let found = timeout(FORMING, async {
        loop {
            match desk.invite() {
                Ok(made) => return Ok(made.invite),
                Err(refusal) if snapshots.changed().await.is_err() => return Err(refusal),
                Err(_) => {}
            }
        }
    });
    match found.await {
        Ok(Ok(invite)) => Ok(invite),
        Ok(Err(refusal)) => Err(Failure::from(refusal).into()),
        Err(_) => {
            Err(Failure::Other { message: "this process found no address of its own to listen at".into() }.into())
        }
    }
}

fn serving(state: &State, peers: &[Serving]) -> usize {
    peers.iter().filter(|peer| state.peer.stages.iter().any(|stage| stage.replicas.contains(&peer.peer))).count()
}

/// Asks all of them to leave, then waits. The numbers of those that had to be ended.
pub async fn part(peers: &mut [Serving]) -> Vec<u16> {
    peers.iter_mut().for_each(Serving::ask_to_leave);
    let until = Instant::now() + LEAVE;
    let mut late = Vec::new();
    for peer in peers {
        if !peer.wait(until).await {
            late.push(peer.number);
        }
    }
    late
}
