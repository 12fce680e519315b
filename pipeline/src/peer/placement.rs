//! Which stages this peer serves, and how each gets its weights: from a living replica, from a held snapshot, from the seed.

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc, time::Duration};

use skein_protocol::{
    Blob, Instant, Manifest, Outbox, PeerId, Stage, Version, event::Event, hash::Digest,
    wire::state::Purpose as StatePurpose,
};

use super::{
    Peer, Placement, Ticket,
    circle::{Circle, Needs},
    desk,
    io::Output,
    replica::{Origin, Phase, Replica},
};
use crate::{
    flow::{
        schedule::{Priority, Purpose},
        stage::{StageFlow, Standing},
    },
    job::{Done, Job},
    model::cost,
    plan::{
        assign,
        swarm::{Cost, Swarm},
    },
};

/// After the first hello, offers and counters of the run have arrived.
const SETTLED: Duration = Duration::from_millis(700);
/// With nobody to be heard for this long, a peer that expects others begins alone.
const LONELY: Duration = Duration::from_secs(20);
/// A stage without a replica is looked at this often, and the plan.
const PLAN_EVERY: Duration = Duration::from_millis(500);
const PLAN_SLOWEST: u32 = 16;
/// A peer with room waits this long for a newcomer, or for somebody before it in the order of adoption.
const ADOPT_AFTER: Duration = Duration::from_secs(1);

/// Fetches that may fail before a snapshot that somebody keeps is no longer asked for.
const FAILURES_MAX: u32 = 4;
/// The pause after all living donors have failed grows up to this: who has no room, here or there, may have it then.
const FAILED_PAUSE: Duration = Duration::from_secs(120);
/// A stage that nobody serves waits this long for the last state of whoever leaves it. Its uplink may need longer, but then all wait
/// for the work of one peer since the last snapshot.
const LEAVES_WITHIN: Duration = Duration::from_secs(45);

impl Peer {
    /// Whether what the directory says can be relied on: who is there has spoken.
    fn is_settled(&self, now: Instant) -> bool {
        let met_before = self.alone_since > self.started;
        match self.greeted_at {
            Some(at) => now.since(at) >= SETTLED,
            // Somebody is there who cannot be understood: what looks empty need not be.
            None if !self.clock_is_right && self.neighbours.up().next().is_some() => false,
            None => !self.config.expects_others && !met_before || now.since(self.alone_since) >= LONELY,
        }
    }

    /// Looks whether a stage is to be taken, and pushes those that are on their way.
    pub(super) fn place(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.silent || self.drain.is_some() {
            return;
        }
        // Who is alone looks for nobody: what lies on this disk comes before the seed.
        if !self.config.saved.is_empty() {
            self.hold_saved(now, out);
        }
        self.go_on_moving(now, out);
        self.seek(now, out);
        if !self.is_settled(now) {
            return;
        }
        if self.placement == Placement::Plan && now >= self.plan_at {
            // Where many are, and nobody is missing, nothing hurries.
            let hurries = self.replicas.is_empty() || !self.empty.is_empty();
            let crowd = if hurries { 1 } else { self.directory.crowd().min(PLAN_SLOWEST) };
            self.plan_at = now + PLAN_EVERY * crowd;
            self.plan(now, out);
        }
        let looking: Vec<Stage> = self
            .replicas
            .values()
            .filter(|replica| matches!(replica.phase, Phase::Looking { .. }))
            .map(|replica| replica.stage)
            .collect();
        for stage in looking {
            self.look(now, stage, out);
        }
        if self.config.manifest.lock_step() {
            self.stand_down(now, out);
        }
    }

    /// Lock-step: hosts that began beside each other settle who serves. Whoever has the older weights and no work stands by.
    fn stand_down(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let surplus = |(stage, replica): (&Stage, &Replica)| {
            let idle = replica.flow().is_some_and(|flow| flow.is_idle());
            (idle && self.leader(*stage) != Some(self.me)).then_some(*stage)
        };
        let surplus: Vec<Stage> = self.replicas.iter().filter_map(surplus).collect();
        for stage in surplus {
            let Some(replica) = self.replicas.get_mut(&stage) else { continue };
            replica.phase = Phase::Looking { since: now };
            self.jobs.push(Priority::Weights, Job::Remove { stage }, Purpose::Forget);
            out.push(Output::Emit(Event::Joining { stage, why: "another replica serves it: standing by".into() }));
            self.publish_offer(now, out);
            self.refresh_route(now, out);
        }
    }

    /// Lock-step: of the living replicas of a stage the one with the newest weights, which serves it.
    pub(super) fn leader(&self, stage: Stage) -> Option<PeerId> {
        let mine = self.replicas.get(&stage).and_then(Replica::flow);
        let mine = mine.filter(|flow| flow.standing == Standing::Serving).map(|flow| (self.me, flow.version()));
        let others = self.directory.replicas(stage).into_iter();
        let others = others.filter(|(peer, _)| *peer != self.me && self.neighbours.is_up(*peer));
        others.chain(mine).max_by_key(|(peer, version)| (version.own_step, Reverse(*peer))).map(|(peer, _)| peer)
    }

    /// Lock-step: a host stands by while somebody serves its stage, and while one that comes before it may take it.
    fn stands_by(&mut self, now: Instant, stage: Stage, since: Instant) -> bool {
        if !self.config.manifest.lock_step() {
            return false;
        }
        if self.leader(stage).is_some() {
            if let Some(replica) = self.replicas.get_mut(&stage) {
                replica.phase = Phase::Looking { since: now };
            }
            return true;
        }
        let is_before = |peer: &PeerId| *peer < self.me && self.neighbours.is_up(*peer);
        let before = self.directory.joining(stage).filter(is_before).count() as u32;
        now.since(since) < ADOPT_AFTER * before
    }

    fn plan(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let mine: BTreeSet<Stage> = self.replicas.keys().copied().collect();
        let mut gone = if mine.is_empty() { self.absent(now) } else { BTreeSet::new() };
        gone.extend(self.neighbours.gone());
        let mut planned = self.directory.planned(|peer| !gone.is_empty() && gone.contains(&peer));
        planned.retain(|(peer, ..)| *peer != self.me);
        let speed = |replica: &Replica| replica.flow().map_or(0.0, |flow| flow.busy.speed());
        let rows = self.replicas.iter().map(|(stage, replica)| (self.me, *stage, speed(replica)));
        let at = planned.partition_point(|(peer, ..)| *peer < self.me);
        planned.splice(at..at, rows);
        let costs = self.stage_costs.clone();
        let swarm = Swarm::of(planned, &costs);
        let used: u64 = mine.iter().filter_map(|stage| costs.get(usize::from(*stage))).map(|cost| cost.memory).sum();
        let memory = self.config.memory.saturating_sub(used);
        let lock_step = self.config.manifest.lock_step();
        let wanted = assign::stages_for(self.me, &swarm, &mine, &costs, memory);
        if wanted.is_empty() && !lock_step && !mine.is_empty() {
            self.consider_moving(now, &swarm, &costs, out);
        }
        for stage in wanted {
            let empty = swarm.count(stage) == 0;
            if lock_step && !empty {
                continue;
            }
            let began = now.since(self.started) < LONELY && mine.is_empty();
            if empty && !began && !self.is_my_turn(now, stage) {
                continue;
            }
            self.want_stage(now, stage, false, "it has the least throughput", out);
        }
    }

    /// Peers that a newcomer should not count on: offered by others, and not reached although most of those it dials were. Who
    /// died a few seconds ago is still offered by those who had no business with it.
    fn absent(&mut self, now: Instant) -> BTreeSet<PeerId> {
        self.draw_circle(now);
        let (here, absent): (BTreeSet<PeerId>, BTreeSet<PeerId>) =
            self.circle.dialled.iter().partition(|peer| self.neighbours.is_up(**peer));
        if here.len() > absent.len() { absent } else { BTreeSet::new() }
    }

    /// A stage without a replica is adopted by one peer after the other, in the order of a hash, so that not all take it at once.
    fn is_my_turn(&self, now: Instant, stage: Stage) -> bool {
        let Some(since) = self.directory.empty_since(stage) else { return true };
        let rank = |peer: PeerId| {
            skein_protocol::hash::keyed("skein adopt 1", &[&self.config.run.0, &stage.to_le_bytes(), &peer.0])
        };
        let mine = rank(self.me);
        let others = self.directory.offers().map(|(peer, _)| peer).filter(|peer| !self.neighbours.is_gone(*peer));
        let before = others.filter(|peer| rank(*peer) < mine).count() as u32;
        now.since(since) >= ADOPT_AFTER * (1 + before)
    }

    pub(super) fn want_stage(&mut self, now: Instant, stage: Stage, pinned: bool, why: &str, out: &mut Outbox<Output>) {
        let may = stage <= self.rules.last && self.config.manifest.may_serve(self.me, stage);
        if !may || self.replicas.contains_key(&stage) || self.drain.is_some() {
            return;
        }
        out.push(Output::Emit(Event::Joining { stage, why: why.into() }));
        let average = self.new_average(stage);
        let replica = Replica {
            stage,
            phase: Phase::Looking { since: now },
            wait_until: Instant::ZERO,
            failures: 0,
            passes: 0,
            tried: BTreeSet::new(),
            pinned,
            average,
            exchange: 0,
            pushed_at: None,
            refused_by: BTreeSet::new(),
        };
        self.replicas.insert(stage, replica);
        out.push(Output::Provide { key: self.stage_key(stage) });
        self.publish_offer(now, out);
        self.place(now, out);
    }

    pub(super) fn stage_key(&self, stage: Stage) -> [u8; 32] {
        skein_protocol::hash::keyed("skein stage 1", &[&self.config.run.0, &stage.to_le_bytes()]).0
    }

    pub(super) fn run_key(&self) -> [u8; 32] {
        skein_protocol::hash::keyed("skein run 1", &[&self.config.run.0]).0
    }

    /// Finds weights for a stage.
    fn look(&mut self, now: Instant, stage: Stage, out: &mut Outbox<Output>) {
        let Some(replica) = self.replicas.get(&stage) else { return };
        let Phase::Looking { since } = replica.phase else { return };
        let (tried, wait_until) = (replica.tried.clone(), replica.wait_until);
        if self.stands_by(now, stage, since) || self.hold_back(now, stage) {
            return;
        }
        let donors = self.directory.replicas(stage);
        let donor = donors
            .iter()
            .filter(|(peer, _)| *peer != self.me && !tried.contains(peer) && self.neighbours.is_up(*peer))
            .max_by_key(|(_, version)| (version.round, version.own_step))
            .copied();
        if let Some((from, _)) = donor {
            return self.fetch(now, stage, from, None, out);
        }
        // Somebody serves it, but is not connected (yet): it is being dialled.
        let living =
            donors.iter().any(|(peer, _)| *peer != self.me && !tried.contains(peer) && !self.neighbours.is_gone(*peer));
        if living && now.since(since) < Duration::from_secs(10) {
            return;
        }
        let failed = donors.iter().any(|(peer, _)| tried.contains(peer) && self.neighbours.is_up(*peer));
        if failed && let Some(replica) = self.replicas.get_mut(&stage) {
            // Every donor failed once, and they are there: they are asked again, after a while. Older weights beside living ones
            // would be another model.
            let longer = (SETTLED * 2u32.saturating_pow(replica.passes)).min(FAILED_PAUSE) - SETTLED;
            if now >= wait_until + longer {
                replica.tried.clear();
                replica.passes += 1;
            }
            return;
        }
        // Whoever leaves gives its last state to a keeper before it goes.
        let is_left = self.directory.leaving(stage).any(|peer| !self.neighbours.is_gone(peer));
        let Some(replica) = self.replicas.get_mut(&stage) else { return };
        if is_left && now.since(since) < LEAVES_WITHIN {
            replica.wait_until = now + SETTLED;
        }
        if now >= replica.wait_until {
            self.look_for_snapshot(now, stage, since, out);
        }
    }

    fn look_for_snapshot(&mut self, now: Instant, stage: Stage, since: Instant, out: &mut Outbox<Output>) {
        let newness = |version: Version| (version.round, version.own_step);
        let Some(replica) = self.replicas.get_mut(&stage) else { return };
        let mine = self.transfer.held_of(stage).map(|held| (held.version, held.root, held.len));
        let held = self.directory.held(stage);
        let is_up = |peer: &PeerId| self.neighbours.is_up(*peer);
        let newest = |held: &mut dyn Iterator<Item = &(PeerId, Version)>| {
            held.max_by_key(|(_, version)| newness(*version)).copied()
        };
        let theirs = newest(&mut held.iter().filter(|(peer, _)| is_up(peer) && !replica.tried.contains(peer)));
        // The seed, or an older snapshot, would throw away what somebody keeps: who keeps it is waited for, and asked again.
        let best = mine.map(|(version, ..)| version).into_iter().chain(theirs.map(|(_, version)| version));
        let best = best.map(newness).max();
        let newer = |version: &Version| best.is_none_or(|best| newness(*version) > best);
        let mut missing = held.iter().filter(|(_, version)| newer(version));
        if missing.clone().any(|(peer, _)| is_up(peer)) && replica.failures <= FAILURES_MAX {
            replica.tried.clear();
            return;
        }
        if missing.any(|(peer, _)| !is_up(peer) && !self.neighbours.is_gone(*peer)) && now.since(since) < LONELY {
            return;
        }
        match (mine, theirs) {
            (Some((version, root, len)), theirs) if theirs.is_none_or(|(_, v)| newness(v) <= newness(version)) => {
                let parts = self.transfer.held_parts(stage);
                let origin = Origin::Snapshot { from: None, version, root, len };
                self.load(stage, origin, parts, false, out);
            }
            (_, Some((from, version))) => self.fetch(now, stage, from, Some(version), out),
            // A replica that others still hear may only be out of my reach: beside it the seed would be another model.
            _ if self.run_samples() > 0 && self.is_offered(stage) => {}
            _ => self.load(stage, Origin::Seed, Vec::new(), false, out),
        }
    }

    /// Whether anybody else is said to serve the stage.
    fn is_offered(&self, stage: Stage) -> bool {
        self.directory.replicas(stage).iter().any(|(peer, _)| *peer != self.me)
    }

    fn fetch(&mut self, now: Instant, stage: Stage, from: PeerId, version: Option<Version>, out: &mut Outbox<Output>) {
        let ticket = self.ticket();
        self.tickets.insert(ticket, Ticket::Serve { stage, snapshot: version.is_some() });
        if let Some(replica) = self.replicas.get_mut(&stage) {
            replica.phase = Phase::Fetching { ticket };
        }
        let most = cost::state_bytes_max(&self.config.manifest, stage);
        let mut desk = desk!(self, now, out);
        self.transfer.fetch(&mut desk, ticket, from, stage, StatePurpose::Serve, version, most);
    }

    pub(super) fn fetch_failed(&mut self, now: Instant, stage: Stage, from: PeerId, out: &mut Outbox<Output>) {
        self.weights_failed(now, stage, Some(from));
        self.place(now, out);
    }

    /// What was fetched, found or made did not become an engine: others first, and not at once.
    fn weights_failed(&mut self, now: Instant, stage: Stage, from: Option<PeerId>) {
        let Some(replica) = self.replicas.get_mut(&stage) else { return };
        replica.tried.extend(from);
        replica.failures += 1;
        replica.wait_until = now + SETTLED;
        replica.phase = Phase::Looking { since: now };
    }

    /// Has the engine of a stage made. `owned`: the parts are released when it is.
    pub(super) fn load(
        &mut self,
        stage: Stage,
        origin: Origin,
        parts: Vec<Blob>,
        owned: bool,
        out: &mut Outbox<Output>,
    ) {
        // Nothing is looked for before they are here, and they stay.
        let frozen = self.frozen_parts(stage).unwrap_or_default();
        let job = match &origin {
            Origin::Seed => Job::Create { stage, frozen },
            Origin::Replica { root, .. } | Origin::Snapshot { root, .. } => {
                Job::Load { stage, parts: parts.clone(), root: *root, frozen }
            }
        };
        if let (Origin::Replica { version, root, from, len }, _)
        | (Origin::Snapshot { version, root, len, from: Some(from) }, _) = (&origin, ())
        {
            out.push(Output::Emit(Event::Fetched { version: *version, from: Some(*from), bytes: *len, root: *root }));
        }
        if let Some(replica) = self.replicas.get_mut(&stage) {
            let parts = if owned { parts } else { Vec::new() };
            replica.phase = Phase::Loading { origin, parts };
        }
        self.jobs.push(Priority::Weights, job, Purpose::Create { stage });
    }

    pub(super) fn on_created(&mut self, now: Instant, stage: Stage, done: Done, out: &mut Outbox<Output>) {
        let Some(replica) = self.replicas.get_mut(&stage) else { return };
        let Phase::Loading { origin, parts } = &mut replica.phase else { return };
        let (origin, parts) = (origin.clone(), std::mem::take(parts));
        for blob in parts {
            out.push(Output::Release { blob });
        }
        let ok = match (&done, &origin) {
            (Done::Ok, Origin::Seed) => true,
            (Done::Loaded { version: is }, Origin::Replica { version, .. } | Origin::Snapshot { version, .. }) => {
                is == version
            }
            _ => false,
        };
        if !ok {
            if let Origin::Snapshot { from: None, .. } = origin {
                let mut desk = desk!(self, now, out);
                self.transfer.discard(&mut desk, stage);
            }
            let from = match origin {
                Origin::Replica { from, .. } => Some(from),
                Origin::Snapshot { from, .. } => from,
                Origin::Seed => None,
            };
            return self.weights_failed(now, stage, from);
        }
        self.begin_to_serve(now, stage, origin, out);
    }

    fn begin_to_serve(&mut self, now: Instant, stage: Stage, origin: Origin, out: &mut Outbox<Output>) {
        let (me, incarnation) = (self.me, self.incarnation);
        let inherited = match origin {
            Origin::Seed => Version { stage, ..Version::default() },
            Origin::Replica { version, .. } | Origin::Snapshot { version, .. } => version,
        };
        let version = Version { stage, peer: me, incarnation, ..inherited };
        let mut flow = StageFlow::new(me, incarnation, version, self.rules.clone());
        flow.hear(std::mem::take(&mut self.beyond));
        if self.drain.is_some() {
            flow.standing = Standing::Draining;
        }
        let restored = match origin {
            Origin::Replica { .. } => false,
            Origin::Snapshot { .. } => true,
            Origin::Seed => self.run_samples() > 0,
        };
        if restored {
            let from_seed = origin == Origin::Seed;
            out.push(Output::Emit(Event::Restored { stage, version: inherited, from_seed }));
        }
        if let Some(replica) = self.replicas.get_mut(&stage) {
            replica.phase = Phase::Serving(Box::new(flow));
            replica.tried.clear();
            (replica.failures, replica.passes) = (0, 0);
        }
        self.rounds_begin(stage, version);
        out.push(Output::Emit(Event::Serving { stage, version }));
        self.publish_offer(now, out);
        self.refresh_route(now, out);
        self.feed(now, out);
    }

    /// Dials whom this peer works with, and asks the network who else is there: often while it knows too few, and now and then all
    /// the same, since two halves of a run that did not hear each other for a while have forgotten one another.
    pub(super) fn reach_out(&mut self, now: Instant, out: &mut Outbox<Output>) {
        /// With fewer neighbours the network is asked for more.
        const FEW: usize = 2;
        const LOOKUP_EVERY: Duration = Duration::from_secs(10);
        const OTHERWISE: Duration = Duration::from_secs(60);
        self.draw_circle(now);
        let missing = if self.circle_stands { Vec::new() } else { self.neighbours.missing(&self.circle.dialled) };
        self.circle_stands = missing.is_empty();
        for peer in missing {
            let addresses = self.directory.offer(peer).map(|offer| offer.addresses.clone());
            if let Some(addresses) = addresses {
                self.dial(now, peer, addresses, out);
            }
        }
        let few = self.neighbours.up().take(FEW).count() < FEW || !self.empty.is_empty();
        // Not all at once, where all started together.
        let otherwise = OTHERWISE + Duration::from_millis(100 * u64::from(self.me.0[0]));
        let due = if few { self.lookup_at } else { self.lookup_at + (otherwise - LOOKUP_EVERY) };
        if now >= due {
            self.lookup_at = now + LOOKUP_EVERY;
            let ticket = self.ticket();
            out.push(Output::Provide { key: self.run_key() });
            out.push(Output::Lookup { request: ticket, key: self.run_key() });
            if let Some(stage) = self.empty.first().copied() {
                let request = self.ticket();
                out.push(Output::Lookup { request, key: self.stage_key(stage) });
            }
        }
    }

    fn draw_circle(&mut self, now: Instant) {
        /// Among many somebody comes or goes all the time.
        const EVERY: Duration = Duration::from_secs(1);
        let feeds = self.source.is_some();
        let news = self.circle_is_old && (self.directory.crowd() <= 1 || now.since(self.circled_at) >= EVERY);
        if !news && self.circled_for.0.iter().eq(self.replicas.keys()) && self.circled_for.1 == feeds {
            return;
        }
        let mine: BTreeSet<Stage> = self.replicas.keys().copied().collect();
        let run = &self.config.manifest.run;
        let feeders: Vec<PeerId> = run.delegates.iter().copied().chain([run.owner]).collect();
        let needs = Needs { me: self.me, mine: &mine, feeds, last: self.rules.last, feeders: &feeders };
        self.circle = Circle::of(needs, self.directory.offers());
        self.route.set_circle(self.circle.is_part.then(|| self.circle.dialled.clone()));
        (self.circled_at, self.circle_is_old, self.circled_for) = (now, false, (mine, feeds));
        (self.near_is_old, self.circle_stands) = (true, false);
    }

    /// Tells the run what I serve, how fast, and where I am reached. Repeats only what changed, and before it expires.
    pub(super) fn publish_offer(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.silent {
            return;
        }
        let carries = self.uplink.carries(now);
        let offers = self.replicas.values().map(|replica| self.directory.offer_of(replica, carries)).collect();
        self.directory.publish_offer(now, self.utc, self.incarnation, offers, out);
    }

    pub(super) fn root_of_run(&self) -> Digest {
        self.config.run
    }
}

/// What each stage takes of this peer.
pub(super) fn stage_costs(manifest: &Manifest, me: PeerId) -> Arc<[Cost]> {
    // What is not this peer's to serve fits nowhere.
    let memory = |stage| match manifest.may_serve(me, stage) {
        true => cost::memory(manifest, stage).peak(),
        false => u64::MAX,
    };
    let of_stage = |stage| Cost { memory: memory(stage), flops: cost::stage_flops(manifest, stage) };
    (0..manifest.stages.count).map(of_stage).collect()
}
