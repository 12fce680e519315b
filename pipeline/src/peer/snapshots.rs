//! Copies of a stage that outlive its replicas: saved on disk, copied by joiners, held by peers that serve other stages.

use skein_protocol::{
    Instant, Outbox, PeerId, Stage, Version,
    event::{Event, Safety},
    hash::keyed,
    wire::{
        membership::{Offer, State},
        state::{Is, Purpose as StatePurpose},
    },
};

use super::{
    Peer, StateFor, Ticket, desk,
    drain::Drain,
    io::Output,
    replica::{Origin, Replica},
    transfer::Fact,
};
use crate::{
    flow::schedule::{Priority, Purpose},
    job::{Done, Job},
    model::cost,
};

/// Refusals after which the next checkpoint is waited for: for each keeper that is asked the whole state is encoded.
const ASKED_MAX: usize = 4;

impl Peer {
    pub(super) fn on_transfer_facts(
        &mut self,
        now: Instant,
        facts: impl IntoIterator<Item = Fact>,
        out: &mut Outbox<Output>,
    ) {
        for fact in facts {
            match fact {
                Fact::Fetched { ticket, from, version, root, parts, len } => {
                    self.on_fetched(now, ticket, from, Is { request: 0, version, len, root }, parts, out);
                }
                Fact::Failed { ticket, from, why } => self.on_fetch_failed(now, ticket, from, &why, out),
                Fact::Wanted { from, request, stage, purpose } => {
                    self.on_state_wanted(now, from, request, stage, purpose, out);
                }
                Fact::Unwanted { from, request } => self.on_state_unwanted(from, request),
                Fact::NotKept { by, stage } => self.on_not_kept(by, stage),
                Fact::Copied { to, version } => self.on_copied(to, version, out),
                Fact::KeepAsked { from, is } => self.on_keep_asked(now, from, is, out),
            }
        }
    }

    fn on_fetched(
        &mut self,
        now: Instant,
        ticket: u64,
        from: PeerId,
        is: Is,
        parts: Vec<skein_protocol::Blob>,
        out: &mut Outbox<Output>,
    ) {
        let (version, root, len) = (is.version, is.root, is.len);
        match self.tickets.remove(&ticket) {
            Some(Ticket::Serve { stage, snapshot }) => {
                let origin = match snapshot {
                    false => Origin::Replica { from, version, root, len },
                    true => Origin::Snapshot { from: Some(from), version, root, len },
                };
                self.load(stage, origin, parts, true, out);
            }
            Some(Ticket::Hold { .. }) => {
                let mut desk = desk!(self, now, out);
                self.transfer.hold(&mut desk, version, root, len, parts.clone());
                out.push(Output::Held { version, root, parts });
                out.push(Output::Emit(Event::Held { version, root, by: self.me }));
                self.publish_held(now, out);
            }
            Some(Ticket::Export { from }) => self.on_exported(now, from, Ok((parts, root)), out),
            Some(Ticket::Blob { blob }) => self.on_blob_fetched(blob, from, parts, out),
            None => parts.into_iter().for_each(|blob| out.push(Output::Release { blob })),
        }
    }

    fn on_fetch_failed(&mut self, now: Instant, ticket: u64, from: PeerId, why: &str, out: &mut Outbox<Output>) {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Serve { stage, .. }) => {
                let what = format!("the weights of stage {stage} from {}: {why}", from.short());
                out.push(Output::Emit(Event::Waiting { what }));
                self.fetch_failed(now, stage, from, out);
            }
            Some(Ticket::Export { from }) => self.on_exported(now, from, Err(why.into()), out),
            Some(Ticket::Blob { blob }) => self.on_blob_failed(now, blob, from, out),
            Some(Ticket::Hold { .. }) | None => {}
        }
    }

    fn on_state_wanted(
        &mut self,
        now: Instant,
        from: PeerId,
        request: u64,
        stage: Stage,
        purpose: StatePurpose,
        out: &mut Outbox<Output>,
    ) {
        let full = purpose == StatePurpose::Serve;
        let whom = StateFor::Request { to: from, request, whole: full };
        let encoding = self.states.values().filter_map(|(whom, _)| match whom {
            StateFor::Request { to, .. } => Some(*to),
            StateFor::Keeper => None,
        });
        let pending: Vec<PeerId> = encoding.collect();
        let room = self.transfer.has_room(from, &pending) && !self.states.values().any(|(other, _)| *other == whom);
        let flow = self.replicas.get(&stage).and_then(Replica::flow).filter(|_| room);
        let Some(version) = flow.map(|flow| flow.version()) else {
            let mut desk = desk!(self, now, out);
            return self.transfer.refuse(&mut desk, from, request);
        };
        if full {
            // A joiner must not pull the model back to slow weights that have not moved for long.
            self.rounds_before_giving(now, stage, out);
        }
        self.encode_state(stage, version, full, whom);
    }

    fn encode_state(&mut self, stage: Stage, version: Version, full: bool, whom: StateFor) {
        let ticket = self.ticket();
        self.states.insert(ticket, (whom, version));
        let purpose = Purpose::State { stage, ticket };
        let priority = if full { Priority::Forward } else { Priority::Bulk };
        self.jobs.push(priority, Job::State { stage, version, full }, purpose);
    }

    pub(super) fn on_state_encoded(
        &mut self,
        now: Instant,
        stage: Stage,
        ticket: u64,
        done: Done,
        out: &mut Outbox<Output>,
    ) {
        let Some((whom, version)) = self.states.remove(&ticket) else {
            let mut desk = desk!(self, now, out);
            return crate::flow::stage::release_done(&mut desk, done);
        };
        let mut desk = desk!(self, now, out);
        match (whom, done) {
            (StateFor::Request { to, request, whole }, Done::Encoded { blob, root }) => {
                self.transfer.serve(&mut desk, to, request, version, whole, blob, root);
            }
            (StateFor::Request { to, request, .. }, _) => self.transfer.refuse(&mut desk, to, request),
            (StateFor::Keeper, Done::Encoded { blob, root }) => match self.keeper_for(stage, blob.len) {
                Some(keeper) => {
                    let mut desk = desk!(self, now, out);
                    self.transfer.offer(&mut desk, keeper, version, blob, root);
                }
                None => {
                    out.push(Output::Release { blob });
                    self.ask_all_again(stage);
                }
            },
            (StateFor::Keeper, _) => {}
        }
    }

    /// Whoever asked for a state has given up: it is not encoded any more, unless the worker is at it.
    fn on_state_unwanted(&mut self, from: PeerId, request: u64) {
        let of =
            |whom: StateFor| matches!(whom, StateFor::Request { to, request: of, .. } if (to, of) == (from, request));
        let tickets: Vec<u64> =
            self.states.iter().filter(|(_, (whom, _))| of(*whom)).map(|(ticket, _)| *ticket).collect();
        for unwanted in tickets {
            self.states.remove(&unwanted);
            self.jobs.cancel(|purpose| matches!(purpose, Purpose::State { ticket, .. } if *ticket == unwanted));
        }
    }

    fn on_copied(&mut self, to: PeerId, version: Version, out: &mut Outbox<Output>) {
        let stage = version.stage;
        if version.peer == self.me && to != self.me && self.replicas.contains_key(&stage) {
            out.push(Output::Emit(Event::Safe { stage, own_step: version.own_step, how: Safety::Copied }));
        }
    }

    fn on_keep_asked(&mut self, now: Instant, from: PeerId, is: Is, out: &mut Outbox<Output>) {
        // An older one of the stage makes room for it.
        let replaced = self.transfer.held_of(is.version.stage).map_or(0, |held| held.len);
        let bytes = self.transfer.held_bytes().saturating_sub(replaced).saturating_add(is.len);
        let room =
            self.drain.is_none() && self.config.disk >= bytes && self.directory.has_served(from, is.version.stage);
        let newer = self
            .transfer
            .held_of(is.version.stage)
            .is_none_or(|held| (held.version.round, held.version.own_step) < (is.version.round, is.version.own_step));
        let ticket = self.ticket();
        let stage = is.version.stage;
        let most = (stage <= self.rules.last).then(|| cost::state_bytes_max(&self.config.manifest, stage));
        let mut desk = desk!(self, now, out);
        let Some(most) = most.filter(|_| room && newer) else {
            return self.transfer.refuse(&mut desk, from, is.request);
        };
        if self.transfer.keep(&mut desk, ticket, from, is, most) {
            self.tickets.insert(ticket, Ticket::Hold { from });
        }
    }

    /// Pushes a snapshot of a stage to somebody when too few copies of it are in the swarm and the last push is a checkpoint ago.
    pub(super) fn push_snapshot_if_due(&mut self, stage: Stage) {
        let checkpoint = &self.config.manifest.checkpoint;
        let (every, copies_min) = (checkpoint.every.max(1), checkpoint.copies_min as usize);
        let run_step = self.run_step();
        let replicas = self.directory.replicas(stage);
        let living = replicas.len().max(1);
        let Some(replica) = self.replicas.get(&stage) else { return };
        let due = replica.pushed_at.is_none_or(|at| run_step >= at + every);
        // Of the living replicas the one with the smallest id pushes.
        let first = replicas.iter().all(|(peer, _)| *peer >= self.me);
        if living >= copies_min || !due || !first {
            return;
        }
        if self.keeper_for(stage, 0).is_none() {
            return self.ask_all_again(stage);
        }
        let Some(version) = replica.flow().map(|flow| flow.version()) else { return };
        if let Some(replica) = self.replicas.get_mut(&stage) {
            replica.pushed_at = Some(run_step);
        }
        self.encode_state(stage, version, true, StateFor::Keeper);
    }

    /// A keeper has no room beside what it holds, or something newer: the next one is asked.
    fn on_not_kept(&mut self, by: PeerId, stage: Stage) {
        let Some(replica) = self.replicas.get_mut(&stage) else { return };
        replica.refused_by.insert(by);
        if !replica.refused_by.len().is_multiple_of(ASKED_MAX) {
            replica.pushed_at = None;
        }
        if matches!(self.drain, Some(Drain::Saving { .. })) {
            self.push_last_snapshot(stage);
        }
    }

    /// Nobody is left who did not refuse: at the next checkpoint some of them may have room.
    fn ask_all_again(&mut self, stage: Stage) {
        let run_step = self.run_step();
        if let Some(replica) = self.replicas.get_mut(&stage).filter(|replica| !replica.refused_by.is_empty()) {
            replica.refused_by.clear();
            replica.pushed_at = Some(run_step);
        }
    }

    fn run_step(&self) -> u64 {
        self.run_samples() / self.config.manifest.samples_per_step().max(1)
    }

    /// Before leaving: whoever takes a stage over that nobody else serves is to go on from its last step.
    pub(super) fn push_last_snapshots(&mut self) {
        let is_other = |peer: PeerId| peer != self.me && self.neighbours.is_up(peer);
        let last = |stage: &Stage| !self.directory.replicas(*stage).iter().any(|(peer, _)| is_other(*peer));
        let stages: Vec<Stage> = self.replicas.keys().copied().filter(last).collect();
        stages.into_iter().for_each(|stage| self.push_last_snapshot(stage));
    }

    fn push_last_snapshot(&mut self, stage: Stage) {
        let Some(version) = self.replicas.get(&stage).and_then(Replica::flow).map(|flow| flow.version()) else {
            return;
        };
        if self.keeper_for(stage, 0).is_some() {
            self.encode_state(stage, version, true, StateFor::Keeper);
        }
    }

    /// Whether a snapshot is on its way to a keeper.
    pub(super) fn is_pushing(&self) -> bool {
        self.states.values().any(|(whom, _)| *whom == StateFor::Keeper) || self.transfer.is_offering()
    }

    /// The neighbour that comes first for this stage (rendezvous order), does not serve it, does not leave, has the disk for so
    /// many bytes and has not refused.
    fn keeper_for(&self, stage: Stage, bytes: u64) -> Option<PeerId> {
        let may_keep = |offer: &Offer| {
            let serves = offer.stages.iter().any(|of| of.stage == stage && of.state == State::Serving);
            let leaves = offer.stages.iter().any(|of| of.state == State::Draining);
            !serves && !leaves && offer.disk > 0 && offer.disk >= bytes
        };
        let refused = |peer: &PeerId| self.replicas.get(&stage).is_some_and(|of| of.refused_by.contains(peer));
        self.neighbours
            .up()
            .filter(|peer| *peer != self.me && !refused(peer) && self.directory.offer(*peer).is_none_or(may_keep))
            .min_by_key(|peer| keyed("skein keeper 1", &[&self.root_of_run().0, &stage.to_le_bytes(), &peer.0]))
    }

    pub(super) fn publish_held(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let held: Vec<_> = self.transfer.held().map(|held| (held.version, held.root, held.len)).collect();
        self.directory.publish_held(now, self.utc, &held, out);
    }

    /// Takes what was found on this disk as snapshots that this peer holds.
    pub(super) fn hold_saved(&mut self, now: Instant, out: &mut Outbox<Output>) {
        for saved in std::mem::take(&mut self.config.saved) {
            let mut desk = desk!(self, now, out);
            self.transfer.hold_whole(&mut desk, saved.version, saved.root, saved.blob);
        }
        if self.transfer.held().next().is_some() {
            self.publish_held(now, out);
        }
    }

    // ---- saving ----------------------------------------------------------------------------------------------------------

    /// Has every served stage saved. A save waits for the adoption of a round, and for a round alone: the version that it is
    /// given has them already.
    pub(super) fn save_all(&mut self) {
        for stage in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.save(stage);
        }
    }

    pub(super) fn save(&mut self, stage: Stage) {
        let Some(version) = self.replicas.get(&stage).and_then(Replica::flow).map(|flow| flow.version()) else {
            return;
        };
        if !self.jobs.has(|purpose| *purpose == Purpose::Save { stage }) {
            self.jobs.push(Priority::Backward, Job::Save { stage, version }, Purpose::Save { stage });
        }
    }

    pub(super) fn on_saved(&mut self, stage: Stage, done: Done, out: &mut Outbox<Output>) {
        let Some(version) = self.saving.remove(&stage) else { return };
        match done {
            Done::Saved { root, bytes } => {
                out.push(Output::Emit(Event::Saved { version, root, bytes }));
                let own_step = version.own_step;
                out.push(Output::Emit(Event::Safe { stage, own_step, how: Safety::Saved }));
            }
            Done::Failed { why, .. } => {
                out.push(Output::Emit(Event::Waiting { what: format!("stage {stage} could not be saved: {why}") }));
            }
            _ => {}
        }
    }
}
