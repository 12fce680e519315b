//! What the manifest names by its hash: the frozen weights of stages, a tokenizer. In: what this peer needs, who may have it, what its
//! driver says of bytes that arrived. Out: requests to one peer after the other, until it lies on the shelf, from where others get
//! it in turn. Who serves a stage has its weights; the owner began with all of them.

use std::{collections::BTreeSet, time::Duration};

use skein_protocol::{
    Blob, Instant, Outbox, PeerId, Stage,
    event::{Event, Severity},
    hash::Digest,
};

use super::{Peer, Ticket, desk, io::Output, replica::Phase};
use crate::model::{cost, frozen};

/// Nobody had it: all are asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// While nobody has it a person is told so this often.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// Bytes of what is no stage's: the files of a tokenizer.
const FILES_MAX: u64 = 160 << 20;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    blob: Digest,
    /// Whose weights it is.
    stage: Option<Stage>,
    bytes_max: u64,
}

/// How far the search for one blob is.
#[derive(Debug)]
pub(super) struct Sought {
    progress: Progress,
    tried: BTreeSet<PeerId>,
    /// Who began to give it since its chunks were last thrown away: one alone can be blamed for them.
    donors: BTreeSet<PeerId>,
    /// Whose bytes had another hash: they are not asked again.
    liars: BTreeSet<PeerId>,
    again_at: Instant,
    told_at: Option<Instant>,
}

#[derive(Debug)]
enum Progress {
    Looking,
    Fetching {
        ticket: u64,
    },
    /// The driver compares the hash.
    Checking {
        from: PeerId,
        parts: Vec<Blob>,
    },
}

impl Peer {
    /// Where the frozen weights of a stage lie, if it has any. Nothing: they are not here yet.
    pub(super) fn frozen_parts(&self, stage: Stage) -> Option<Vec<Blob>> {
        match self.config.manifest.frozen(stage) {
            None => Some(Vec::new()),
            Some(blob) => self.transfer.shelved(blob).map(<[Blob]>::to_vec),
        }
    }

    /// Chunks that are here of a stage's frozen weights, and how many they have, while they are fetched.
    pub(super) fn frozen_progress(&self, stage: Stage) -> Option<(u32, u32)> {
        match self.sought.get(&self.config.manifest.frozen(stage)?)?.progress {
            Progress::Fetching { ticket } => self.transfer.progress(ticket),
            Progress::Looking | Progress::Checking { .. } => None,
        }
    }

    /// Takes what was found on this disk.
    fn shelve_found(&mut self, now: Instant, out: &mut Outbox<Output>) {
        for (blob, bytes) in std::mem::take(&mut self.config.shelf) {
            let mut desk = desk!(self, now, out);
            self.transfer.shelve_whole(&mut desk, blob, bytes);
        }
    }

    /// The stages that are to be served come first; what would let this peer take over a stage whose snapshot it holds comes after.
    fn wanted(&self) -> Vec<Wanted> {
        let manifest = &self.config.manifest;
        let of_stage = |stage: Stage| {
            let blob = manifest.frozen(stage)?;
            let bytes_max = frozen::bytes_max(cost::frozen_bytes(manifest, stage));
            Some(Wanted { blob, stage: Some(stage), bytes_max })
        };
        let asked = self.asked.iter().map(|blob| Wanted { blob: *blob, stage: None, bytes_max: FILES_MAX });
        let mine = self.replicas.values().filter(|replica| !replica.is_serving()).map(|replica| replica.stage);
        let mine = mine.chain(self.fetch_ahead);
        let is_missing = |wanted: &Wanted| self.transfer.shelved(wanted.blob).is_none();
        let wanted: Vec<Wanted> = asked.chain(mine.filter_map(of_stage)).filter(is_missing).collect();
        if !wanted.is_empty() || self.drain.is_some() {
            return wanted;
        }
        let room = self.config.disk.saturating_sub(self.transfer.held_bytes() + self.transfer.shelved_bytes());
        let may = |stage: &Stage| {
            let fits = cost::memory(manifest, *stage).peak() <= self.config.memory;
            fits && manifest.may_serve(self.me, *stage)
        };
        let held = self.transfer.held().map(|held| held.version.stage).filter(may).filter_map(of_stage);
        held.filter(|wanted| is_missing(wanted) && wanted.bytes_max <= room).take(1).collect()
    }

    /// Looks for what is needed and not here.
    pub(super) fn seek(&mut self, now: Instant, out: &mut Outbox<Output>) {
        // What is here need not be looked for.
        self.shelve_found(now, out);
        let wanted = self.wanted();
        let is_over = |blob: &Digest, sought: &Sought| {
            !matches!(sought.progress, Progress::Checking { .. }) && wanted.iter().all(|wanted| wanted.blob != *blob)
        };
        let over: Vec<Digest> =
            self.sought.iter().filter(|(blob, sought)| is_over(blob, sought)).map(|(blob, _)| *blob).collect();
        for blob in over {
            let ended = self.sought.remove(&blob);
            let mut desk = desk!(self, now, out);
            if let Some(Sought { progress: Progress::Fetching { ticket }, .. }) = ended {
                self.tickets.remove(&ticket);
                self.transfer.cancel(&mut desk, ticket);
            }
            self.transfer.forget(&mut desk, blob);
        }
        for wanted in wanted {
            self.seek_one(now, wanted, out);
        }
    }

    fn seek_one(&mut self, now: Instant, wanted: Wanted, out: &mut Outbox<Output>) {
        let fresh = || Sought {
            progress: Progress::Looking,
            tried: BTreeSet::new(),
            donors: BTreeSet::new(),
            liars: BTreeSet::new(),
            again_at: now,
            told_at: None,
        };
        let sought = self.sought.entry(wanted.blob).or_insert_with(fresh);
        if !matches!(sought.progress, Progress::Looking) || now < sought.again_at {
            return;
        }
        let Some(from) = self.who_has(wanted) else {
            let Some(sought) = self.sought.get_mut(&wanted.blob) else { return };
            sought.tried.clear();
            sought.again_at = now + AGAIN;
            if sought.told_at.is_none_or(|at| now.since(at) >= TELL_EVERY) {
                sought.told_at = Some(now);
                let what = match wanted.stage {
                    Some(stage) => format!("somebody who has the frozen weights of stage {stage}, as the owner does"),
                    None => "somebody who has the tokenizer, as the owner does".into(),
                };
                out.push(Output::Emit(Event::Waiting { what }));
            }
            return;
        };
        let ticket = self.ticket();
        self.tickets.insert(ticket, Ticket::Blob { blob: wanted.blob });
        if let Some(sought) = self.sought.get_mut(&wanted.blob) {
            sought.progress = Progress::Fetching { ticket };
            sought.donors.insert(from);
        }
        let mut desk = desk!(self, now, out);
        self.transfer.fetch_blob(&mut desk, ticket, from, wanted.blob, wanted.bytes_max);
    }

    /// Of those who were not asked yet: who serves the stage, who holds a snapshot of it, who began the run, anybody.
    fn who_has(&self, wanted: Wanted) -> Option<PeerId> {
        let sought = self.sought.get(&wanted.blob);
        let was_asked =
            |peer: &PeerId| sought.is_some_and(|sought| sought.tried.contains(peer) || sought.liars.contains(peer));
        let stage = |of: &dyn Fn(Stage) -> Vec<PeerId>| wanted.stage.map(of).unwrap_or_default();
        let serve = stage(&|stage| self.directory.replicas(stage).iter().map(|(peer, _)| *peer).collect());
        let hold = stage(&|stage| self.directory.held(stage).iter().map(|(peer, _)| *peer).collect());
        let run = &self.config.manifest.run;
        let began = [run.owner].into_iter().chain(run.delegates.iter().copied());
        let is_good = |peer: &PeerId| *peer != self.me && self.neighbours.is_up(*peer) && !was_asked(peer);
        serve.into_iter().chain(hold).chain(began).chain(self.neighbours.up()).find(is_good)
    }

    pub(super) fn on_blob_fetched(&mut self, blob: Digest, from: PeerId, parts: Vec<Blob>, out: &mut Outbox<Output>) {
        match self.sought.get_mut(&blob) {
            Some(sought) => {
                sought.progress = Progress::Checking { from, parts: parts.clone() };
                out.push(Output::Shelve { blob, parts });
            }
            None => parts.into_iter().for_each(|blob| out.push(Output::Release { blob })),
        }
    }

    pub(super) fn on_blob_failed(&mut self, now: Instant, blob: Digest, from: PeerId, out: &mut Outbox<Output>) {
        if let Some(sought) = self.sought.get_mut(&blob) {
            sought.tried.insert(from);
            sought.progress = Progress::Looking;
        }
        self.seek(now, out);
    }

    /// The driver's word on what was fetched: its bytes have the hash, or somebody gave others.
    pub(super) fn on_shelved(&mut self, now: Instant, blob: Digest, is_right: bool, out: &mut Outbox<Output>) {
        let Some(sought) = self.sought.get_mut(&blob) else { return };
        let Progress::Checking { from, parts } = std::mem::replace(&mut sought.progress, Progress::Looking) else {
            return;
        };
        if !is_right {
            parts.into_iter().for_each(|blob| out.push(Output::Release { blob }));
            let donors = std::mem::take(&mut sought.donors);
            // Of several any may have lied: each is asked for all of it before it is blamed.
            if donors.len() == 1 {
                sought.liars.insert(from);
                let why = format!("what it gave for {} has another hash", blob.short(8));
                out.push(Output::Blame { peer: from, severity: Severity::Wrong, why });
            }
            return self.seek(now, out);
        }
        self.sought.remove(&blob);
        self.asked.remove(&blob);
        let bytes = parts.iter().map(|part| part.len).sum();
        let mut desk = desk!(self, now, out);
        self.transfer.shelve(&mut desk, blob, parts);
        out.push(Output::Emit(Event::Shelved { blob, from, bytes }));
        self.place(now, out);
    }

    /// Stages whose frozen weights are awaited stay at the beginning of their search: what they find then is the newest.
    pub(super) fn hold_back(&mut self, now: Instant, stage: Stage) -> bool {
        let waits = self.frozen_parts(stage).is_none();
        if waits && let Some(replica) = self.replicas.get_mut(&stage) {
            replica.phase = Phase::Looking { since: now };
        }
        waits
    }
}
