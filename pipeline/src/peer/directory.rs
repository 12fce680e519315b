//! What this peer knows of the run, and tells it: spread and membership behind one door.
//!
//! In: spread frames, what I serve. Out: frames, and answers to "who serves this stage". It stamps, signs and repeats my items.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use skein_gossip::{
    membership::{Change, Membership},
    spread::{Act, Spread},
};
use skein_protocol::{
    Incarnation, Instant, Lane, Manifest, MicroBatchId, Outbox, PeerId, RunId, Stage, Utc, Version,
    event::{Event, Severity},
    hash::Digest,
    key::Key,
    rng::Streams,
    wire::{
        self,
        membership::{ADDRESSES_MAX, Heard, Held, Item, Offer, Progress, Seals, StageOffer, Stamp, State, What},
        spread,
    },
};

use super::{
    PeerConfig,
    io::Output,
    replica::{Phase, Replica},
};
use crate::{
    flow::stage::Standing,
    plan::swarm::{Row, Serving},
};

/// An unchanged offer is repeated after this; it lives twice as long.
const OFFER_EVERY: Duration = Duration::from_secs(30);
/// An offer whose numbers alone changed is repeated after this, and later where many peers offer: every word goes to everybody.
const NUMBERS_EVERY: Duration = Duration::from_secs(1);
/// Peers up to which nobody has to speak less often.
const FEW: u32 = 16;
const LIFE: Duration = Duration::from_secs(75);
const PROGRESS_LIFE: Duration = Duration::from_secs(120);

pub struct Directory {
    me: PeerId,
    key: Key,
    run: RunId,
    disk: u64,
    addresses: Vec<String>,
    stamp: Stamp,
    spread: Spread,
    members: Membership,
    said: Option<(Instant, Offer)>,
    progress_said: Option<(Instant, Progress)>,
    held_said: BTreeMap<Stage, (Instant, Held)>,
    progress_news: bool,
    /// Who serves what may have changed.
    news: bool,
    /// Peers that serve what they served, at another speed or version; some of them more than once.
    numbers: Vec<PeerId>,
    manifest: Arc<Manifest>,
    /// Kept for its memory.
    acts: Outbox<Act>,
}

impl Directory {
    pub fn new(config: &PeerConfig, streams: &Streams, now: Instant) -> Self {
        let manifest: &Manifest = &config.manifest;
        Directory {
            me: config.me(),
            key: config.key.clone(),
            run: config.run,
            disk: config.disk,
            addresses: config.addresses.clone(),
            stamp: Stamp { incarnation: config.incarnation, sequence: 0 },
            spread: Spread::new(config.me(), config.run, manifest.stages.count, streams, now),
            members: Membership::default(),
            said: None,
            progress_said: None,
            held_said: BTreeMap::new(),
            progress_news: false,
            news: true,
            numbers: Vec::new(),
            manifest: config.manifest.clone(),
            acts: Outbox::new(),
        }
    }

    pub fn share_seals(&mut self, seals: Seals) {
        self.spread.share_seals(seals);
    }

    /// By how much rarer a peer speaks of what is not urgent, so that what all hear of all does not grow with their number.
    pub fn crowd(&self) -> u32 {
        (self.members.len() as u32 / FEW).max(1)
    }

    pub fn set_addresses(&mut self, addresses: Vec<String>) {
        self.addresses = addresses;
    }

    pub fn on_incarnated(&mut self, incarnation: Incarnation) {
        self.stamp = Stamp { incarnation, sequence: 0 };
        (self.said, self.progress_said) = (None, None);
        self.held_said.clear();
    }

    // ---- telling ---------------------------------------------------------------------------------------------------------

    fn publish(&mut self, now: Instant, utc: Utc, life: Duration, what: What, out: &mut Outbox<Output>) {
        self.stamp.sequence += 1;
        let life_ms = u32::try_from(life.as_millis()).unwrap_or(u32::MAX);
        let item = Item { run: self.run, stamp: self.stamp, made_at: utc, life_ms, what };
        let mut acts = std::mem::take(&mut self.acts);
        self.spread.publish(now, item.sign(&self.key), item, &mut acts);
        self.perform(acts, out);
    }

    /// `carries`: bytes a second of my uplink, if that is known.
    pub fn offer_of(&self, replica: &Replica, carries: Option<f64>) -> StageOffer {
        let stage = replica.stage;
        match &replica.phase {
            Phase::Serving(flow) => {
                let version = flow.version();
                let state = if flow.standing == Standing::Serving { State::Serving } else { State::Draining };
                let milli = |per_s: f64| (per_s * 1e3) as u64;
                let (speed_milli, carries_milli) =
                    (milli(flow.busy.speed()), flow.busy.carried(carries).map_or(0, |rate| milli(rate).max(1)));
                let Version { round, own_step, .. } = version;
                StageOffer { stage, state, round, own_step, speed_milli, carries_milli }
            }
            _ => StageOffer { stage, state: State::Joining, round: 0, own_step: 0, speed_milli: 0, carries_milli: 0 },
        }
    }

    pub fn publish_offer(
        &mut self,
        now: Instant,
        utc: Utc,
        incarnation: Incarnation,
        stages: Vec<StageOffer>,
        out: &mut Outbox<Output>,
    ) {
        debug_assert_eq!(incarnation, self.stamp.incarnation);
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)];
        // It is asked with every tick, and mostly has nothing to say.
        if let Some((at, Offer { stages: said, addresses: reached, disk })) = &self.said {
            let age = now.since(*at);
            let same_kind = reached == addresses
                && said.len() == stages.len()
                && said.iter().zip(&stages).all(|(a, b)| (a.stage, a.state) == (b.stage, b.state));
            let often = (NUMBERS_EVERY * self.crowd()).min(OFFER_EVERY);
            let quiet = if *said == stages && *disk == self.disk { OFFER_EVERY } else { often };
            if same_kind && age < quiet {
                return;
            }
        }
        let offer = Offer { stages, addresses: addresses.to_vec(), disk: self.disk };
        self.said = Some((now, offer.clone()));
        self.publish(now, utc, LIFE, What::Offer(offer), out);
    }

    pub fn publish_progress(&mut self, now: Instant, utc: Utc, progress: Progress, out: &mut Outbox<Output>) {
        self.progress_said = Some((now, progress.clone()));
        self.publish(now, utc, PROGRESS_LIFE, What::Progress(progress), out);
    }

    pub fn publish_held(&mut self, now: Instant, utc: Utc, held: &[(Version, Digest, u64)], out: &mut Outbox<Output>) {
        for (version, root, len) in held {
            let held = Held { version: *version, root: *root, len: *len };
            let said = self.held_said.get(&version.stage);
            if said.is_some_and(|(at, said)| *said == held && now.since(*at) < OFFER_EVERY) {
                continue;
            }
            self.held_said.insert(version.stage, (now, held.clone()));
            self.publish(now, utc, LIFE, What::Held(held), out);
        }
    }

    /// Repeats my progress and snapshots before they expire.
    fn repeat(&mut self, now: Instant, utc: Utc, out: &mut Outbox<Output>) {
        if let Some((_, progress)) = self.progress_said.take_if(|(at, _)| now.since(*at) >= OFFER_EVERY) {
            self.publish_progress(now, utc, progress, out);
        }
        let due = self.held_said.values().filter(|(at, _)| now.since(*at) >= OFFER_EVERY);
        let held: Vec<_> = due.map(|(_, held)| (held.version, held.root, held.len)).collect();
        self.publish_held(now, utc, &held, out);
    }

    // ---- hearing ---------------------------------------------------------------------------------------------------------

    pub fn on_up(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Output>) {
        let mut acts = std::mem::take(&mut self.acts);
        self.spread.on_up(now, peer, &mut acts);
        self.perform(acts, out);
    }

    pub fn on_lost(&mut self, now: Instant, peer: PeerId, incarnation: Option<Incarnation>) {
        self.spread.on_lost(now, peer, incarnation);
        self.members.on_lost(peer, incarnation);
        self.news = true;
    }

    /// A neighbour is one no longer, and may well live.
    pub fn on_away(&mut self, peer: PeerId) {
        self.spread.on_away(peer);
    }

    /// Says everything of mine again, newer: somebody had forgotten it with our connection.
    pub fn say_again(&mut self) {
        self.said = None;
        self.held_said.clear();
    }

    pub fn on_frame(&mut self, now: Instant, utc: Utc, from: PeerId, frame: spread::Frame, out: &mut Outbox<Output>) {
        let mut acts = std::mem::take(&mut self.acts);
        self.spread.on_frame(now, utc, from, frame, &mut acts);
        self.perform(acts, out);
    }

    /// `is_gone`: who does not answer, whatever was said of it.
    pub fn on_tick(&mut self, now: Instant, utc: Utc, is_gone: impl Fn(PeerId) -> bool, out: &mut Outbox<Output>) {
        let mut acts = std::mem::take(&mut self.acts);
        self.spread.on_tick(now, &mut acts);
        self.perform(acts, out);
        self.repeat(now, utc, out);
        self.note_empty(now, is_gone);
    }

    /// One walk, which ends where every stage has somebody.
    fn note_empty(&mut self, now: Instant, is_gone: impl Fn(PeerId) -> bool) {
        let mut empty = vec![true; usize::from(self.manifest.stages.count)];
        let mut left = empty.len();
        for (peer, StageOffer { stage, state, .. }) in self.members.everywhere() {
            let Some(is_empty) = empty.get_mut(usize::from(*stage)).filter(|is_empty| **is_empty) else { continue };
            if *state != State::Draining && !is_gone(peer) {
                *is_empty = false;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        for (stage, is_empty) in (0..).zip(empty) {
            self.members.note_empty(now, stage, is_empty);
        }
    }

    fn perform(&mut self, mut acts: Outbox<Act>, out: &mut Outbox<Output>) {
        while let Some(act) = acts.pop() {
            match act {
                Act::Send { to, frame } => {
                    let frame = wire::Frame::Spread(frame);
                    out.push(Output::Send { to, lane: Lane::Control, frame, body: None });
                }
                Act::New { heard } => self.on_new(&heard, out),
                Act::Expired { key } => {
                    self.members.on_expired(key);
                    self.news = true;
                }
                Act::Blame { peer, severity, why } => {
                    out.push(Output::Blame { peer, severity, why: why.to_string() });
                }
            }
        }
        self.acts = acts;
    }

    fn on_new(&mut self, heard: &Arc<Heard>, out: &mut Outbox<Output>) {
        let author = heard.author();
        if let What::Held(held) = &heard.item.what
            && author != self.me
        {
            let (version, root) = (held.version, held.root);
            out.push(Output::Emit(Event::Held { version, root, by: author }));
        }
        if let What::Offer(offer) = &heard.item.what
            && let Some(claimed) = offer.stages.iter().find(|claimed| !self.manifest.may_serve(author, claimed.stage))
        {
            let why = format!("it claims stage {}, which is the owner's alone", claimed.stage);
            return out.push(Output::Blame { peer: author, severity: Severity::Wrong, why });
        }
        let run = &self.manifest.run;
        let change = self.members.on_item(heard, |peer| peer == run.owner || run.delegates.contains(&peer));
        match change {
            Change::Offer(_) => self.news = true,
            Change::Numbers(peer) => self.numbers.push(peer),
            Change::Progress(_) => self.progress_news = true,
            Change::Held(_) | Change::Nothing => {}
        }
    }

    pub fn tell_when_due(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let mut acts = std::mem::take(&mut self.acts);
        self.spread.tell_when_due(now, &mut acts);
        self.perform(acts, out);
    }

    /// When something is to be told, whatever happens meanwhile.
    pub fn deadline(&self) -> Option<Instant> {
        self.spread.deadline()
    }

    // ---- answers ---------------------------------------------------------------------------------------------------------

    /// Whether a progress arrived since this was last asked.
    pub fn take_progress_news(&mut self) -> bool {
        std::mem::take(&mut self.progress_news)
    }

    /// Whether somebody may serve something else than when this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Stages that those who are up serve as before, with the paces that they claim anew, since this was last asked.
    pub fn take_numbers(&mut self, is_up: impl Fn(PeerId) -> bool) -> Vec<(Stage, PeerId, f64)> {
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.retain(|peer| is_up(*peer));
        numbers.sort_unstable();
        numbers.dedup();
        let of_peer = |peer: PeerId| {
            let paces = self.offer(peer).into_iter().flat_map(Offer::paces);
            paces.map(move |(stage, pace)| (stage, peer, pace))
        };
        numbers.into_iter().flat_map(of_peer).collect()
    }

    /// Whether `peer` offers `stage`, or finishes what it has of it.
    pub fn has_served(&self, peer: PeerId, stage: Stage) -> bool {
        let of_stage = |offer: &StageOffer| offer.stage == stage && offer.state != State::Joining;
        self.offer(peer).is_some_and(|offer| offer.stages.iter().any(of_stage))
    }

    pub fn is_over(&self, id: &MicroBatchId, per_step: u64) -> bool {
        self.members.is_over(id, per_step)
    }

    pub fn samples_of(&self, feeder: PeerId) -> u64 {
        self.members.samples_of(feeder)
    }

    pub fn samples_without(&self, feeder: PeerId) -> u64 {
        self.members.samples_without(feeder)
    }

    /// Whether any feeder has ids that are not over.
    pub fn open_somewhere(&self) -> bool {
        self.members.feeders().any(|(_, progress)| progress.open > 0)
    }

    /// The smoothed loss that a feeder told last, nats, and that of data that is held out.
    pub fn losses(&self) -> [Option<f32>; 2] {
        let first = |of: fn(&Progress) -> Option<u64>| self.members.feeders().find_map(|(_, progress)| of(progress));
        [first(|progress| progress.loss_milli), first(|progress| progress.held_out_milli)]
            .map(|milli| milli.map(|milli| milli as f32 / 1e3))
    }

    /// Who serves what and at what pace, by their own word, and who only finishes what it has; of those that are `up` (in the
    /// order of their names), without me.
    pub fn standing(&self, up: impl Iterator<Item = PeerId>) -> (Serving, BTreeSet<(Stage, PeerId)>) {
        // Both are in the same order, and everybody may be there: one walk beside the other, and no search.
        let mut up = up.peekable();
        let mut leaving = BTreeSet::new();
        let near = self.members.peers().filter(|(peer, _)| {
            while up.next_if(|up| up < peer).is_some() {}
            *peer != self.me && up.peek() == Some(peer)
        });
        let serving = near.flat_map(|(peer, offer)| {
            let drains = offer.stages.iter().filter(|of| of.state == State::Draining);
            leaving.extend(drains.map(|of| (of.stage, peer)));
            offer.paces().map(move |(stage, pace)| (peer, stage, pace))
        });
        (self.by_stage(serving), leaving)
    }

    /// Who serves what and how fast their devices are, by their own word, connected or not, without me.
    pub fn serving(&self) -> Serving {
        let serves = |(peer, offer): &(PeerId, &StageOffer)| *peer != self.me && offer.state == State::Serving;
        let serving = self.members.everywhere().filter(serves);
        self.by_stage(serving.map(|(peer, offer)| (peer, offer.stage, offer.speed())))
    }

    /// Who only finishes what it has of a stage, connected or not, without me.
    pub fn leaving(&self, stage: Stage) -> impl Iterator<Item = PeerId> + '_ {
        self.members.leaving(stage).filter(|peer| *peer != self.me)
    }

    /// Who serves or is about to, connected or not, for the plan: in the order of the peers.
    pub fn planned(&self, is_gone: impl Fn(PeerId) -> bool) -> Vec<Row> {
        let planned = self.members.everywhere();
        let planned = planned.filter(|(peer, offer)| offer.state != State::Draining && !is_gone(*peer));
        // Most serve one stage.
        let mut rows = Vec::with_capacity(self.members.len() + 1);
        rows.extend(planned.map(|(peer, offer)| (peer, offer.stage, offer.speed())));
        rows
    }

    /// Every stage of the run, with its replicas among these.
    fn by_stage(&self, replicas: impl Iterator<Item = Row>) -> Serving {
        let mut stages: Vec<Vec<(PeerId, f64)>> = vec![Vec::new(); usize::from(self.manifest.stages.count)];
        for (peer, stage, speed) in replicas {
            // They come in the order of their names. Of what one says twice the first word counts.
            if let Some(peers) = stages.get_mut(usize::from(stage))
                && peers.last().is_none_or(|(last, _)| *last != peer)
            {
                peers.push((peer, speed));
            }
        }
        (0..).zip(stages).map(|(stage, peers)| (stage, peers.into_iter().collect())).collect()
    }

    /// Who is about to serve a stage, without me.
    pub fn joining(&self, stage: Stage) -> impl Iterator<Item = PeerId> + '_ {
        let is_joining =
            move |offer: &Offer| offer.stages.iter().any(|o| o.stage == stage && o.state == State::Joining);
        let others = self.members.peers().filter(|(peer, _)| *peer != self.me);
        others.filter(move |(_, offer)| is_joining(offer)).map(|(peer, _)| peer)
    }

    pub fn replicas(&self, stage: Stage) -> Vec<(PeerId, Version)> {
        self.members.replicas(stage).collect()
    }

    pub fn held(&self, stage: Stage) -> Vec<(PeerId, Version)> {
        let others = self.members.held(stage).filter(|(keeper, _)| *keeper != self.me);
        others.map(|(keeper, held)| (keeper, held.version)).collect()
    }

    pub fn empty_since(&self, stage: Stage) -> Option<Instant> {
        self.members.empty_since(stage)
    }

    pub fn offer(&self, peer: PeerId) -> Option<&Offer> {
        self.members.offer(peer)
    }

    pub fn offers(&self) -> impl Iterator<Item = (PeerId, &Offer)> {
        self.members.peers()
    }
}
