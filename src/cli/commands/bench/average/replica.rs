//! One replica of `skein bench average`: the machine of averaging between a network and a worker's thread. In: on stdin where the
//! others are, and each time that a round is due. Out: on stdout its address, that it has trained, and how a round went.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use skein_gossip::average::{Act, Average};
use skein_pipeline::{
    compute::{Device, OnDevice},
    job::{Coding, Done, Job, Key, RoundPartner},
};
use skein_protocol::{
    Blob, JobId, Lane, Manifest, Outbox, PeerId, RunId, Stage,
    event::RoundOutcome,
    run::Codec,
    wire::{Frame, Starts, average},
};
use tokio::sync::mpsc;

use super::Told;
use crate::{
    cli::{
        commands::bench::{link, other, scratch},
        context::Context,
        failure::Report,
    },
    net::{Net, NetEvent},
    node::{
        blobs::{Blobs, Kind},
        clock::Clock,
        store::Store,
        worker::{Niceness, Ran, WorkerThread},
    },
};

const STAGE: Stage = 0;
const KEY: Key = 1;

pub async fn run(context: &Context, manifest: Manifest, seed: u64) -> Result<u8, Report> {
    let (net, mut events) = link::end(false).await?;
    let address = link::address(&mut events).await?;
    let folder = scratch()?;
    let blobs = Blobs::new(u64::MAX / 2, u64::MAX / 2);
    let engines = || OnDevice::new(Device::Cpu { threads: 1 });
    let store = Store::new(folder.path().into(), 1);
    let manifest = Arc::new(manifest);
    let started = WorkerThread::start(manifest.clone(), engines, blobs.clone(), store, Niceness::Normal, u64::MAX);
    let (worker, ran) = started.map_err(other)?;
    let average = Average::new(net.me(), RunId::default(), STAGE, 1, skein_protocol::wire::limits::BODY_MAX);
    let mut replica = Replica {
        manifest,
        net,
        events,
        worker,
        ran,
        blobs,
        average,
        clock: Clock::start(),
        jobs: 0,
        asked: BTreeMap::new(),
        told: Told { exchange_s: None, snapshot_ms: 0.0, prepare_ms: 0.0, adopt_ms: 0.0 },
        ended: None,
        adopting: false,
    };
    replica.work(Job::Create { stage: STAGE }).await?;
    context.out.print(&address.to_string());
    let mut orders = lines();
    let Some(others) = orders.recv().await else { return Ok(0) };
    replica.meet(others.split_whitespace().filter(|other| **other != address.to_string()[..])).await?;
    for step in 0.. {
        // Who found no partner may still be another's.
        if !replica.wait(&mut orders).await? {
            return Ok(0);
        }
        replica.train(seed, step).await?;
        context.out.print("trained");
        if !replica.wait(&mut orders).await? {
            return Ok(0);
        }
        let told = replica.round().await?;
        context.out.print(&serde_json::to_string(&told).map_err(other)?);
    }
    Ok(0)
}

/// Lines of stdin until it closes.
fn lines() -> mpsc::Receiver<String> {
    let (read, lines) = mpsc::channel(4);
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if read.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// What a job of the worker was asked for.
#[derive(Clone, Copy)]
enum Asked {
    Snapshot(u32),
    Prepare(u32),
    Adopt,
    Other,
}

struct Replica {
    manifest: Arc<Manifest>,
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    worker: WorkerThread,
    ran: mpsc::UnboundedReceiver<Ran>,
    blobs: Blobs,
    average: Average,
    clock: Clock,
    jobs: u64,
    asked: BTreeMap<u64, Asked>,
    told: Told,
    /// How the round ended, once it has.
    ended: Option<RoundOutcome>,
    adopting: bool,
}

impl Replica {
    async fn meet<'a>(&mut self, others: impl Iterator<Item = &'a str>) -> Result<(), Report> {
        let mut wanted = 0;
        for address in others {
            self.net.dial_address(address.parse().map_err(other)?);
            wanted += 1;
        }
        let mut members: Vec<PeerId> = Vec::new();
        while members.len() < wanted {
            if let Some(NetEvent::Up { peer, .. }) = self.events.recv().await
                && !members.contains(&peer)
            {
                members.push(peer);
            }
        }
        self.net.active(members.iter().copied().collect());
        self.average.set_members(members, Vec::new());
        Ok(())
    }

    /// Does what others want until the next order. Whether there was one.
    async fn wait(&mut self, orders: &mut mpsc::Receiver<String>) -> Result<bool, Report> {
        loop {
            tokio::select! {
                order = orders.recv() => return Ok(order.is_some()),
                happened = self.events.recv() => self.happen(happened)?,
                Some(ran) = self.ran.recv() => self.on_ran(ran)?,
            }
        }
    }

    fn ask(&mut self, job: Job, asked: Asked) -> Result<(), Report> {
        self.jobs += 1;
        self.asked.insert(self.jobs, asked);
        match self.worker.assign(JobId(self.jobs), job) {
            true => Ok(()),
            false => Err(other("the worker's thread is gone")),
        }
    }

    /// One job that nothing else waits for.
    async fn work(&mut self, job: Job) -> Result<Done, Report> {
        self.ask(job, Asked::Other)?;
        match self.ran.recv().await {
            Some(Ran::Done {
                done: Done::BadInput { why } | Done::NotFinite { why } | Done::Failed { why, .. },
                ..
            }) => Err(other(why)),
            Some(Ran::Done { done, .. }) => Ok(done),
            Some(Ran::Panicked { message, .. }) => Err(other(message)),
            None => Err(other("the worker's thread is gone")),
        }
    }

    /// A step, so that there is something to average.
    async fn train(&mut self, seed: u64, step: u32) -> Result<(), Report> {
        self.ended = None;
        let tokens = self.manifest.tokens_per_micro_batch();
        let ids = |shift: u64| -> Bytes {
            (0..tokens).flat_map(|i| (((i * 31 + seed * 7 + shift) % 200) as u32).to_le_bytes()).collect()
        };
        let input = self.blobs.put(ids(u64::from(step)), Kind::Work);
        let labels = self.blobs.put(ids(u64::from(step) + 31), Kind::Work);
        let coding = Coding { codec: Codec::F32, zstd: false };
        let starts = Starts::default();
        self.work(Job::Loss { stage: STAGE, key: KEY, input, starts, labels, weight: 1.0, coding }).await?;
        self.work(Job::Step { stage: STAGE, samples: u64::from(step) + 1 }).await?;
        for blob in [input, labels] {
            self.blobs.release(blob).map_err(other)?;
        }
        Ok(())
    }

    /// The round that is due now, to its end.
    async fn round(&mut self) -> Result<Told, Report> {
        let began = Instant::now();
        let mut out = Outbox::new();
        self.average.on_step(self.clock.now(), 1, &mut out);
        self.perform(out)?;
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while self.ended.is_none() || self.adopting {
            tokio::select! {
                happened = self.events.recv() => self.happen(happened)?,
                Some(ran) = self.ran.recv() => self.on_ran(ran)?,
                _ = ticks.tick() => {
                    let mut out = Outbox::new();
                    self.average.on_tick(self.clock.now(), &mut out);
                    self.perform(out)?;
                }
            }
        }
        let met = self.ended.take() == Some(RoundOutcome::Both);
        Ok(Told { exchange_s: met.then(|| began.elapsed().as_secs_f64()), ..self.told.clone() })
    }

    fn happen(&mut self, happened: Option<NetEvent>) -> Result<(), Report> {
        match happened {
            Some(NetEvent::Message { from, frame, body, .. }) => {
                let Frame::Average(frame) = Frame::decode(&frame).map_err(other)? else { return Ok(()) };
                let body = body.map(|body| self.blobs.put(body, Kind::Work));
                self.on_frame(from, frame, body)
            }
            Some(NetEvent::Lost { why, .. }) => Err(other(format!("a replica is lost: {why}"))),
            Some(_) => Ok(()),
            None => Err(other("the network stopped")),
        }
    }

    fn on_frame(&mut self, from: PeerId, frame: average::Frame, body: Option<Blob>) -> Result<(), Report> {
        let mut out = Outbox::new();
        self.average.on_frame(self.clock.now(), from, frame, body, &mut out);
        self.perform(out)
    }

    fn on_ran(&mut self, ran: Ran) -> Result<(), Report> {
        let (job, done, took) = match ran {
            Ran::Done { job, done, took } => (job, done, took),
            Ran::Panicked { message, .. } => return Err(other(message)),
        };
        let (now, ms) = (self.clock.now(), took.as_secs_f64() * 1e3);
        let mut out = Outbox::new();
        match (self.asked.remove(&job.0), done) {
            (Some(Asked::Snapshot(round)), done) => {
                self.told.snapshot_ms = ms;
                let blob = if let Done::Encoded { blob, .. } = done { Some(blob) } else { None };
                self.average.on_snapshot(round, blob, &mut out);
            }
            (Some(Asked::Prepare(round)), done) => {
                self.told.prepare_ms = ms;
                let after = if let Done::Prepared { after, .. } = done { Some(after) } else { None };
                self.average.on_prepared(now, round, after, &mut out);
            }
            (Some(Asked::Adopt), _) => {
                self.told.adopt_ms = ms;
                self.adopting = false;
            }
            (Some(Asked::Other) | None, _) => {}
        }
        self.perform(out)
    }

    fn perform(&mut self, mut acts: Outbox<Act>) -> Result<(), Report> {
        while let Some(act) = acts.pop() {
            match act {
                Act::Send { to, frame, body } => {
                    let lane = if body.is_some() { Lane::Average } else { Lane::Control };
                    let body = body.map(|blob| self.blobs.get(blob)).transpose().map_err(other)?;
                    self.net.send(to, lane, Frame::Average(frame).encode().into(), body).map_err(other)?;
                }
                Act::Snapshot { round } => {
                    let codec = self.manifest.averaging.codec;
                    self.ask(Job::RoundSnapshot { stage: STAGE, round, codec }, Asked::Snapshot(round))?;
                }
                Act::Prepare { round, theirs, my_samples, their_samples, first, copy } => {
                    let partner = RoundPartner { tensors: theirs, my_samples, their_samples, first, copy };
                    self.ask(Job::RoundPrepare { stage: STAGE, round, partner }, Asked::Prepare(round))?;
                }
                Act::Adopt { round } => {
                    self.adopting = true;
                    self.ask(Job::RoundAdopt { stage: STAGE, round }, Asked::Adopt)?;
                }
                Act::RollBack { round } => self.ask(Job::RoundRollBack { stage: STAGE, round }, Asked::Other)?,
                Act::Alone => self.ask(Job::RoundAlone { stage: STAGE }, Asked::Other)?,
                Act::Release(blob) => self.blobs.release(blob).map_err(other)?,
                Act::Ended(ended) => self.ended = Some(ended.outcome),
            }
        }
        Ok(())
    }
}
