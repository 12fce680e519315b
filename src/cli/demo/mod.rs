//! `skein demo`: a whole swarm on this machine. This process owns the run, feeds it and watches; the peers that serve are
//! processes of their own, real libp2p and QUIC between them, so that a kill is a kill.
//!
//! In: how many, how long, whom to kill. Out: the picture while it runs, the model, text before and after, the figures.

mod done;
mod picture;
mod repair;
mod sample;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use skein_pipeline::{model::cost, peer::io::Command, plan::partition};
use skein_protocol::{
    Manifest, PeerId,
    event::{Event, Record},
    hash,
    run::{Weights, preset::preset},
};
use skein_simulations::checker::Kill;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use self::{
    done::{DemoDone, Known, Samples},
    picture::Picture,
    repair::{Open, Takeover},
    sample::Voice,
};
use super::{
    args,
    context::Context,
    failure::{Failure, Report},
    local::{self, Given, LocalSwarm, Serving, Start, Task},
    out::{Mark, Out},
    petname,
    session::{self, Wishes},
    show::{self, About, Count, Peer, Span, Traffic, utc_ms},
};
use crate::{
    corpus::Corpus,
    node::{
        Node, Order,
        log::{self, Tail},
        save::{Beside, Form, What},
        view::State,
    },
};

/// Length of the whole, where nothing is said; training gets what the start and the end leave.
const SECONDS: u64 = 60;
const START_AND_END: u64 = 10;
/// Run steps that the default length comes to on two cores, more or less: as many are no short run.
const STEPS: u64 = 600;
/// Bytes of fables.
const FABLES: usize = 1_200_000;
/// What is open when feeding stops is finished within this time, or its loss will be seen in the figures.
const SETTLE: Duration = Duration::from_secs(10);
const PICTURE: Duration = Duration::from_millis(200);
/// The late joiner comes so long after the kill (or after half of the time, if nobody is killed).
const LATE: Duration = Duration::from_secs(3);
/// What a dead peer had accepted and not finished stands in so many bytes at the end of its log: a window is a few ids.
const LAST_WORDS: u64 = 128 << 10;
/// What this process still does when it is told to stop may take so long.
const STOP: Duration = Duration::from_secs(2);

pub fn run(args: &args::Demo, context: &Context) -> Result<u8, Report> {
    let plan = Plan::of(args)?;
    let folder = Folder::make(args.keep.as_deref())?;
    let runtime = session::runtime()?;
    let ended = runtime.block_on(async {
        let mut interrupts = Wishes::listen(false);
        tokio::select! {
            biased;
            _ = interrupts.next() => None,
            ended = demo(args, &plan, &folder, context) => Some(ended),
        }
    });
    // The peers ended with the future that held them. After this nothing of this process writes into the folder either.
    runtime.shutdown_timeout(STOP);
    ended.unwrap_or_else(|| Ok(stopped(&folder, &context.out)))
}

/// Ctrl-C: a demo has nothing to hand on.
fn stopped(folder: &Folder, out: &Out) -> u8 {
    let left = match folder.kept {
        true => format!("what they wrote stays in {}", folder.path.display()),
        false => "nothing is kept".into(),
    };
    out.warn(&format!("stopped: all peers of the demo were ended, {left}"));
    130
}

/// What the arguments come to.
struct Plan {
    corpus: Arc<Corpus>,
    manifest: Manifest,
    kill: Option<(u16, f64)>,
    length: Length,
    /// As long as the default, or longer.
    whole: bool,
}

#[derive(Clone, Copy)]
enum Length {
    Time(Duration),
    Steps(u64),
}

impl Plan {
    fn of(args: &args::Demo) -> Result<Plan, Report> {
        let corpus = match &args.data {
            None => Corpus::fables(args.seed, FABLES),
            Some(path) => Corpus::read(std::slice::from_ref(path))?,
        };
        let usage = |message: String| Report::from(Failure::Usage { message });
        if args.peers < args.stages {
            return Err(usage(format!("--peers {}: {} stages need at least as many peers", args.peers, args.stages)));
        }
        let mut manifest = preset("demo").expect("a preset of this build, as a test sees");
        manifest.train.seed = args.seed;
        manifest.model.weights = Weights::Seed { init_seed: args.seed };
        // More stages than the preset has layers: one layer each.
        manifest.model.config.layers = manifest.model.config.layers.max(u32::from(args.stages));
        manifest.stages.count = args.stages;
        manifest.stages.split = partition::of(&manifest, args.stages).ok_or_else(|| {
            usage(format!("--stages {}: the model has {} layers", args.stages, manifest.model.config.layers))
        })?;
        let kill = match (&args.kill, args.no_kill) {
            (_, true) => None,
            (Some(text), false) => Some(kill_of(text, args.peers).ok_or_else(|| {
                usage(format!(
                    "--kill {text}: expected PEER@PERCENT%, such as 2@50%, with a peer from 1 to {}",
                    args.peers
                ))
            })?),
            (None, false) => {
                let drawn = hash::keyed("skein demo kill 1", &[&args.seed.to_le_bytes()]).0[0];
                Some((1 + u16::from(drawn) % args.peers, 0.5))
            }
        };
        let (length, whole) = match (args.steps, args.seconds) {
            (Some(steps), _) => (Length::Steps(steps), steps >= STEPS),
            (None, seconds) => {
                let seconds = seconds.unwrap_or(SECONDS);
                let training = seconds.saturating_sub(START_AND_END).max(seconds.div_ceil(2));
                (Length::Time(Duration::from_secs(training)), seconds >= SECONDS)
            }
        };
        Ok(Plan { corpus: Arc::new(corpus), manifest, kill, length, whole })
    }

    /// Share that is done, 0 to 1.
    fn done(&self, since: Duration, step: u64) -> f64 {
        let share = match self.length {
            Length::Time(all) => since.as_secs_f64() / all.as_secs_f64(),
            Length::Steps(all) => step as f64 / all as f64,
        };
        share.min(1.0)
    }
}

/// `2@50%`.
fn kill_of(text: &str, peers: u16) -> Option<(u16, f64)> {
    let (peer, when) = text.split_once('@')?;
    let (peer, percent): (u16, f64) = (peer.trim().parse().ok()?, when.trim().trim_end_matches('%').parse().ok()?);
    ((1..=peers).contains(&peer) && (0.0..=100.0).contains(&percent)).then_some((peer, percent / 100.0))
}

async fn demo(args: &args::Demo, plan: &Plan, folder: &Folder, context: &Context) -> Result<u8, Report> {
    let began = Instant::now();
    let out = &context.out;
    introduce(args, plan, context);

    let start =
        Start { seed: args.seed, ..Start::new("demo", plan.manifest.clone(), plan.corpus.clone(), &folder.path) };
    let mut swarm = LocalSwarm::start(start, context).await?;
    swarm.add_all(args.peers, args.stages, 1)?;
    let took = Span(swarm.form().await?);
    out.done(&format!("swarm formed in {took}     ({0} of {0} found each other and serve)", swarm.peers.len()));
    let LocalSwarm { node, desk, invite, mut peers, given, .. } = swarm;
    let manifest = node.manifest.clone();
    let voice = Voice::of(&plan.corpus, &manifest, args.seed);
    let before = voice.speak(&desk.orders).await;

    let mut show = Show {
        plan,
        out: out.clone(),
        picture: Picture::new(out, &manifest),
        records: node.records(),
        snapshots: node.state(),
        orders: desk.orders.clone(),
        invite,
        given,
        next_number: args.peers + 1,
        kill: plan.kill,
        kills: Vec::new(),
        joiner: None,
        join_at: None,
        joined: false,
        open: Open::default(),
        takeover: None,
    };
    let training_s = show.train(&mut peers).await?;
    let Show { kills, joiner, mut picture, .. } = show;
    picture.finish();
    drop(picture);

    let after = voice.speak(&desk.orders).await;
    let model = folder.path.join("model");
    let form = Form { family: desk.manifest.model.family, what: What::Model, beside: Beside::Bytes, gguf: None };
    let exported =
        session::collect_and_write(&desk.orders, form, &model, true, |missed| out.warn(&missed.to_string())).await;
    out.note("everybody leaves: finishing what is open, a last round, goodbye");
    let logs = leave(node, &mut peers, out).await?;
    let known = Known {
        peers: args.peers,
        kills,
        joiner,
        training_s,
        wall_s: began.elapsed().as_secs_f64(),
        samples: Samples {
            before: before.text,
            after: after.text,
            known_words_before: before.known_words,
            known_words_after: after.known_words,
        },
        whole: plan.whole,
    };
    let done = DemoDone::of(&manifest, logs, &known);
    if let Err(refusal) = exported {
        return Err(Failure::from(refusal).into());
    }
    if let Some((late, _)) = known.joiner.filter(|_| done.joined.is_empty()) {
        out.warn(&format!("{} came too late to compute anything", Peer(late)));
    }
    Ok(conclude(&done, folder, voice.first_word(), out))
}

/// Where everything lies: kept, or gone with the demo.
struct Folder {
    path: PathBuf,
    kept: bool,
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    fn make(keep: Option<&Path>) -> Result<Folder, Report> {
        let failed = |path: &Path, error: std::io::Error| crate::home::file::refused(path, 0, error);
        match keep {
            Some(path) => {
                if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
                    return Err(Failure::NotEmpty { path: path.display().to_string() }.into());
                }
                fs::create_dir_all(path).map_err(|error| failed(path, error))?;
                let path = path.canonicalize().map_err(|error| failed(path, error))?;
                Ok(Folder { path, kept: true, _temporary: None })
            }
            None => {
                let folder = tempfile::Builder::new().prefix("skein-demo-").tempdir();
                let folder = folder.map_err(|error| failed(&std::env::temp_dir(), error))?;
                Ok(Folder { path: folder.path().into(), kept: false, _temporary: Some(folder) })
            }
        }
    }
}

fn introduce(args: &args::Demo, plan: &Plan, context: &Context) {
    let stages = plan.manifest.stages.count;
    let parameters: u64 = (0..stages).map(|stage| cost::stage_parameters(&plan.manifest, stage)).sum();
    let replicas = match args.peers % args.stages {
        0 => format!("{stages} stages x {} replicas", args.peers / args.stages),
        _ => format!("{stages} stages"),
    };
    context.out.note(&format!(
        "{} peers on this machine, {replicas}, byte-level model of {} parameters, {} cores",
        args.peers,
        About(parameters as f64),
        context.machine.cores
    ));
}

/// The part of the demo in which it trains.
struct Show<'a> {
    plan: &'a Plan,
    out: Out,
    picture: Picture,
    records: broadcast::Receiver<Record>,
    snapshots: watch::Receiver<Option<State>>,
    orders: mpsc::Sender<Order>,
    invite: String,
    given: Given,
    next_number: u16,
    /// Whom and when, until it is done.
    kill: Option<(u16, f64)>,
    kills: Vec<Kill>,
    joiner: Option<(PeerId, u64)>,
    join_at: Option<Instant>,
    joined: bool,
    open: Open,
    /// Until it is told.
    takeover: Option<Takeover>,
}

impl Show<'_> {
    /// Trains to the end. Returns its seconds.
    async fn train(&mut self, peers: &mut Vec<Serving>) -> Result<f64, Report> {
        let began = Instant::now();
        let _ = self.orders.send(Order::Command(Command::Feed)).await;
        let mut tick = interval(PICTURE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                record = self.records.recv() => match record {
                    Ok(record) => self.hear(&record),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => {
                        return Err(Failure::Other { message: "the feeder stopped".into() }.into());
                    }
                },
                _ = tick.tick() => {
                    let state = self.snapshots.borrow_and_update().clone();
                    let Some(state) = state else { continue };
                    let done = self.plan.done(began.elapsed(), state.peer.step);
                    self.act(peers, done, state.peer.step)?;
                    self.look_at_the_takeover();
                    self.picture.show(&state, done);
                    if done >= 1.0 {
                        break;
                    }
                }
            }
        }
        let _ = self.orders.send(Order::Command(Command::StopFeeding)).await;
        let _ = timeout(SETTLE, self.settle()).await;
        if let Some(mut takeover) = self.takeover.take() {
            takeover.look();
            self.out.done(&takeover.sentence());
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// Until nothing is open.
    async fn settle(&mut self) {
        while self.snapshots.borrow_and_update().as_ref().is_none_or(open) {
            tokio::select! {
                record = self.records.recv() => match record {
                    Ok(record) => self.hear(&record),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                changed = self.snapshots.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Kills and starts whoever is due.
    fn act(&mut self, peers: &mut Vec<Serving>, done: f64, step: u64) -> Result<(), Report> {
        if let Some((number, when)) = self.kill.filter(|(_, when)| done >= *when) {
            self.kill = None;
            self.kill(peers, number, when, step);
            self.join_at = Some(Instant::now() + LATE);
        }
        let alone = self.plan.kill.is_none() && done >= 0.5 && self.join_at.is_none();
        if alone {
            self.join_at = Some(Instant::now());
        }
        if self.joiner.is_none() && self.join_at.is_some_and(|at| Instant::now() >= at) {
            let utc = utc_ms();
            let late = Serving::start(self.next_number, Task::Join, 1, &self.invite, &self.given)?;
            self.out.note(&format!("a late joiner starts: {}", Peer(late.peer)));
            self.joiner = Some((late.peer, utc));
            peers.push(late);
        }
        let here = self.joiner.filter(|_| !self.joined).filter(|(peer, _)| {
            let state = self.snapshots.borrow();
            state.as_ref().is_some_and(|state| state.peer.stages.iter().any(|stage| stage.replicas.contains(peer)))
        });
        if let Some((peer, started)) = here {
            self.joined = true;
            let took = Span(Duration::from_millis(utc_ms().saturating_sub(started)));
            self.out.done(&format!(
                "{} joined, took the stage that needed help most and serves, {took} after its start",
                Peer(peer)
            ));
        }
        Ok(())
    }

    fn kill(&mut self, peers: &mut [Serving], number: u16, when: f64, step: u64) {
        let Some(victim) = peers.iter().position(|peer| peer.number == number) else { return };
        let logs: Vec<Tail> = peers.iter().filter_map(|peer| peer.follow(0)).collect();
        let victim = &mut peers[victim];
        victim.kill();
        let killed = utc_ms();
        let last_words = victim.follow(LAST_WORDS).map(|mut log| log.read()).unwrap_or_default();
        self.takeover = Some(Takeover::new(victim.peer, killed, &last_words, &self.open, logs));
        self.kills.push(Kill { peer: victim.peer, at: killed * 1_000_000 });
        self.picture.died(victim.peer, (100.0 * when) as u32);
        self.out.say(
            Mark::Warning,
            &format!("{} was killed at step {}, on purpose", Peer(victim.peer), Count(step)),
            &[("peer", &victim.peer)],
        );
    }

    /// Tells who took over from the dead peer, once that is known.
    fn look_at_the_takeover(&mut self) {
        if let Some(takeover) = self.takeover.take_if(|takeover| takeover.look()) {
            self.out.done(&takeover.sentence());
        }
    }

    fn hear(&mut self, record: &Record) {
        self.open.hear(&record.event);
        if let Some(takeover) = &mut self.takeover {
            takeover.hear(record);
        }
        if self.out.style().json {
            self.out.record(record);
        }
        match &record.event {
            Event::StageEmpty { stage } => self.out.warn(&format!("stage {stage} has no replica: training waits")),
            Event::StageBack { stage, peer } => {
                self.out.done(&format!("stage {stage} is served again, by {}", petname::of(peer)))
            }
            Event::Voided { why, .. } => self.out.warn(&format!("a micro-batch was given up: {why}")),
            _ => {}
        }
    }
}

fn open(state: &State) -> bool {
    state.peer.feeding.as_ref().is_none_or(|feeding| feeding.open > 0)
}

/// Everybody leaves in good order. Returns all event logs.
async fn leave(node: Node, peers: &mut [Serving], out: &Out) -> Result<Vec<Vec<Record>>, Report> {
    for late in local::part(peers).await {
        out.warn(&format!("peer {late} did not leave in time and was ended"));
    }
    let folder = node.folder.path.clone();
    node.drain().await;
    let ended = timeout(SETTLE, node.wait()).await;
    if !matches!(ended, Ok(Ok(_))) {
        out.warn("this process did not leave the swarm in time");
    }
    let mine = log::read(&folder).map_err(|error| Report::from(crate::home::file::refused(&folder, 0, error)))?;
    Ok(std::iter::once(mine).chain(peers.iter().map(Serving::records)).collect())
}

/// Says how it went. The exit code.
fn conclude(done: &DemoDone, folder: &Folder, first_word: &str, out: &Out) -> u8 {
    let ratio = done.bytes_if_f32 as f64 / (done.bytes_activations.max(1)) as f64;
    out.done(&format!(
        "{} tokens in {} steps, {}; loss {:.2} -> {:.3}; activations {} (f32 would be {ratio:.1} times as much), gradients {}, averaging {}",
        About(done.tokens as f64),
        Count(done.steps),
        show::tokens_per_s(done.tokens_per_s),
        done.loss_first,
        done.loss_last,
        Traffic(done.bytes_activations),
        Traffic(done.bytes_gradients),
        Traffic(done.bytes_averaging),
    ));
    let apart = done.disagreement.map_or(String::new(), |apart| format!(", replicas agree to {:.2} %", 100.0 * apart));
    let back = match done.rounds_rolled_back {
        0 => String::new(),
        n => format!(" ({n} rolled back)"),
    };
    out.done(&format!("{} averaging rounds{back}{apart}", done.rounds));
    if !done.killed.is_empty() {
        let repair = match done.repair_ms_max {
            Some(ms) => format!("what the dead peer held went on after {}", Span::from(ms)),
            None => "the dead peer held nothing that others waited for".into(),
        };
        out.done(&format!(
            "repair: {repair}; {} gradients perished with it, {} lost, {} counted twice",
            done.perished, done.lost, done.doubled
        ));
    }
    for shortfall in &done.shortfalls {
        out.say(Mark::Failure, shortfall, &[]);
    }
    if out.style().json {
        out.event("DemoDone", done);
    } else {
        out.print(&format!(
            "\nbefore training\n  {}\nafter{}\n  {}\n",
            shown(&done.samples.before),
            words(done.samples.known_words_after),
            shown(&done.samples.after)
        ));
        if folder.kept {
            out.print(&format!("kept      {}  (model, event logs, each peer's home)", folder.path.display()));
            out.print(&format!("try       skein generate {} \"{first_word}\"", folder.path.join("model").display()));
        }
        out.print("across two machines");
        out.print("  on one    skein train --data FILE --preset tiny     prints an invite");
        out.print("  on others skein join INVITE");
    }
    if done.shortfalls.is_empty() { 0 } else { 10 }
}

fn words(known: Option<f64>) -> String {
    known.map_or(String::new(), |share| {
        format!("     ({:.0} % of the words it says are words of the text)", 100.0 * share)
    })
}

/// One paragraph, without what a terminal would act on.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_to_kill_is_a_peer_and_a_share() {
        assert_eq!(kill_of("4@30%", 6), Some((4, 0.3)));
        assert_eq!(kill_of("1@100", 6), Some((1, 1.0)));
        for wrong in ["", "4", "0@50%", "7@50%", "2@-1%", "2@101%", "x@5%", "2@NaN%"] {
            assert_eq!(kill_of(wrong, 6), None, "{wrong}");
        }
    }
}
