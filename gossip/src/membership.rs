//! Who is there and what they serve: the directory, made of verified items.
//!
//! In: items that `spread` found new, expiries, losses. Out: nothing; it is asked. It takes no newcomers beyond as many
//! replicas of a stage as items are spread, and keeps one progress a feeder and one held snapshot a stage and keeper: what it
//! keeps is bounded as `spread` is.

use std::{collections::BTreeMap, sync::Arc};

use skein_protocol::{
    Incarnation, Instant, MicroBatchId, PeerId, Stage, Version,
    wire::membership::{Heard, Held, ItemKey, Offer, Progress, StageOffer, State, What},
};

use crate::{sorted::Sorted, spread::ITEMS};

/// Replicas of one stage that are kept. Everybody must know the same: who is not known gets no labels.
pub const REPLICAS_MAX: usize = ITEMS;

/// An item with the offer of a peer.
#[derive(Clone, Debug)]
struct Known {
    heard: Arc<Heard>,
}

impl Known {
    fn peer(&self) -> PeerId {
        self.heard.author()
    }

    fn incarnation(&self) -> Incarnation {
        self.heard.item.stamp.incarnation
    }

    fn offer(&self) -> &Offer {
        match &self.heard.item.what {
            What::Offer(offer) => offer,
            _ => unreachable!("only offers are kept here"),
        }
    }
}

#[derive(Clone, Debug)]
struct Fed {
    incarnation: Incarnation,
    progress: Progress,
}

#[derive(Debug, Default)]
pub struct Membership {
    /// In the order of their names.
    peers: Sorted<Known>,
    /// How many offer each stage, in whatever state.
    stages: BTreeMap<Stage, usize>,
    feeders: BTreeMap<PeerId, Fed>,
    held: BTreeMap<(Stage, PeerId), (Incarnation, Held)>,
    empty_since: BTreeMap<Stage, Instant>,
}

/// What an item changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A peer is new, or serves something else than before.
    Offer(PeerId),
    /// A peer serves what it served, at another speed or version.
    Numbers(PeerId),
    Progress(PeerId),
    Held(Stage),
    /// Not taken: no room, or not allowed.
    Nothing,
}

impl Membership {
    /// `may_feed` says whose progress counts.
    pub fn on_item(&mut self, heard: &Arc<Heard>, may_feed: impl Fn(PeerId) -> bool) -> Change {
        let (author, incarnation) = (heard.author(), heard.item.stamp.incarnation);
        match &heard.item.what {
            What::Offer(offer) => {
                let place = self.find(author);
                let full = |stage| self.count(stage) >= REPLICAS_MAX;
                if place.is_err() && offer.stages.iter().any(|s| full(s.stage)) {
                    return Change::Nothing;
                }
                if let Some(before) = self.peers.put(place, author.start(), Known { heard: heard.clone() }) {
                    if before.incarnation() == incarnation && states(before.offer()).eq(states(offer)) {
                        return Change::Numbers(author);
                    }
                    self.unlist(&before);
                }
                for of in distinct(offer) {
                    *self.stages.entry(of).or_default() += 1;
                }
                Change::Offer(author)
            }
            What::Progress(progress) => {
                if !may_feed(author) {
                    return Change::Nothing;
                }
                let before = self.feeders.get(&author).map_or(0, |fed| fed.progress.samples);
                let samples = progress.samples.max(before);
                self.feeders.insert(author, Fed { incarnation, progress: Progress { samples, ..progress.clone() } });
                Change::Progress(author)
            }
            What::Held(held) => {
                let stage = held.version.stage;
                self.held.insert((stage, author), (incarnation, held.clone()));
                Change::Held(stage)
            }
        }
    }

    pub fn on_expired(&mut self, key: ItemKey) {
        match key.kind {
            0 => self.remove(key.author),
            // A counter only grows: it outlives the item that brought it.
            1 => {}
            _ => {
                self.held.remove(&(key.subject, key.author));
            }
        }
    }

    /// A peer is gone: what it served and held is not there until it offers it again. `lost`: the incarnation that is gone; the
    /// word of a newer one may have been faster than its connection.
    pub fn on_lost(&mut self, peer: PeerId, lost: Option<Incarnation>) {
        let gone = |incarnation: Incarnation| lost.is_none_or(|lost| incarnation <= lost);
        if self.known(peer).is_some_and(|known| gone(known.incarnation())) {
            self.remove(peer);
        }
        self.held.retain(|(_, keeper), (incarnation, _)| *keeper != peer || !gone(*incarnation));
    }

    fn find(&self, peer: PeerId) -> Result<usize, usize> {
        self.peers.find(peer.start(), |known| known.peer().cmp(&peer))
    }

    fn known(&self, peer: PeerId) -> Option<&Known> {
        self.find(peer).ok().map(|at| &self.peers.items()[at])
    }

    fn remove(&mut self, peer: PeerId) {
        if let Ok(at) = self.find(peer) {
            let known = self.peers.remove(at);
            self.unlist(&known);
        }
    }

    fn unlist(&mut self, known: &Known) {
        for stage in distinct(known.offer()) {
            if let Some(count) = self.stages.get_mut(&stage) {
                *count -= 1;
            }
        }
    }

    pub fn offer(&self, peer: PeerId) -> Option<&Offer> {
        self.known(peer).map(Known::offer)
    }

    /// How many offer a stage, in whatever state.
    pub fn count(&self, stage: Stage) -> usize {
        self.stages.get(&stage).copied().unwrap_or(0)
    }

    /// Peers that offer something.
    pub fn len(&self) -> usize {
        self.peers.items().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn peers(&self) -> impl Iterator<Item = (PeerId, &Offer)> {
        self.peers.items().iter().map(|known| (known.peer(), known.offer()))
    }

    /// Replicas that serve `stage`, with their versions.
    pub fn replicas(&self, stage: Stage) -> impl Iterator<Item = (PeerId, Version)> + '_ {
        self.in_state(stage, State::Serving)
    }

    /// Replicas that take nothing new.
    pub fn leaving(&self, stage: Stage) -> impl Iterator<Item = PeerId> + '_ {
        self.in_state(stage, State::Draining).map(|(peer, _)| peer)
    }

    /// All replicas of all stages, in the order of the peers.
    pub fn everywhere(&self) -> impl Iterator<Item = (PeerId, &StageOffer)> + '_ {
        self.peers().flat_map(|(peer, offer)| offer.stages.iter().map(move |offer| (peer, offer)))
    }

    fn in_state(&self, stage: Stage, wanted: State) -> impl Iterator<Item = (PeerId, Version)> + '_ {
        let some = if self.count(stage) > 0 { self.peers.items() } else { &[] };
        some.iter().filter_map(move |known| {
            let offer = known.offer().stages.iter().find(|offer| offer.stage == stage && offer.state == wanted)?;
            let (peer, incarnation) = (known.peer(), known.incarnation());
            let version = Version { stage, peer, incarnation, round: offer.round, own_step: offer.own_step };
            Some((peer, version))
        })
    }

    pub fn held(&self, stage: Stage) -> impl Iterator<Item = (PeerId, &Held)> {
        self.held
            .range((stage, PeerId([0; 32]))..=(stage, PeerId([255; 32])))
            .map(|((_, keeper), (_, held))| (*keeper, held))
    }

    /// Samples that a feeder says it completed.
    pub fn samples_of(&self, feeder: PeerId) -> u64 {
        self.feeders.get(&feeder).map_or(0, |fed| fed.progress.samples)
    }

    /// What all others say they completed. These are claims: their sum stops at the largest number.
    pub fn samples_without(&self, feeder: PeerId) -> u64 {
        let others = self.feeders.iter().filter(|(peer, _)| **peer != feeder);
        others.map(|(_, fed)| fed.progress.samples).fold(0, u64::saturating_add)
    }

    pub fn feeders(&self) -> impl Iterator<Item = (PeerId, &Progress)> {
        self.feeders.iter().map(|(peer, fed)| (*peer, &fed.progress))
    }

    /// Whether the feeder said that this id is over; also true for ids of an incarnation before its present one.
    pub fn is_over(&self, id: &MicroBatchId, per_step: u64) -> bool {
        let Some(fed) = self.feeders.get(&id.feeder) else { return false };
        if id.incarnation != fed.incarnation {
            return id.incarnation < fed.incarnation;
        }
        covers(&fed.progress, u64::from(id.step) * per_step + u64::from(id.index))
    }

    /// Since when a stage has no replica, as far as was noted.
    pub fn note_empty(&mut self, now: Instant, stage: Stage, empty: bool) -> Option<Instant> {
        if empty {
            Some(*self.empty_since.entry(stage).or_insert(now))
        } else {
            self.empty_since.remove(&stage);
            None
        }
    }

    pub fn empty_since(&self, stage: Stage) -> Option<Instant> {
        self.empty_since.get(&stage).copied()
    }
}

/// What an offer says of its stages, but for the numbers.
pub(crate) fn states(offer: &Offer) -> impl Iterator<Item = (Stage, State)> + '_ {
    offer.stages.iter().map(|of| (of.stage, of.state))
}

/// The stages of an offer, each once.
fn distinct(offer: &Offer) -> impl Iterator<Item = Stage> + '_ {
    let stages = &offer.stages;
    let is_first = |(at, of): &(usize, &StageOffer)| stages[..*at].iter().all(|before| before.stage != of.stage);
    stages.iter().enumerate().filter(is_first).map(|(_, of)| of.stage)
}

/// Whether `position` is below the mark, or its bit is set.
fn covers(progress: &Progress, position: u64) -> bool {
    let Some(bit) = position.checked_sub(progress.low) else { return true };
    let byte = usize::try_from(bit / 8).ok().and_then(|i| progress.above.get(i)).copied().unwrap_or(0);
    byte >> (bit % 8) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::{
        Utc,
        hash::Digest,
        key::Signed,
        wire::membership::{Item, Stamp},
    };

    const A: PeerId = PeerId([1; 32]);

    fn item(author: PeerId, incarnation: u32, what: What) -> Arc<Heard> {
        let stamp = Stamp { incarnation, sequence: 1 };
        let item = Item { run: Digest([0; 32]), stamp, made_at: Utc(0), life_ms: 1000, what };
        let signed = Signed { body: Default::default(), by: author, signature: [0; 64] };
        Arc::new(Heard { signed: Arc::new(signed), item })
    }

    fn serving(stage: Stage) -> What {
        let offer =
            StageOffer { stage, state: State::Serving, round: 0, own_step: 0, speed_milli: 1500, carries_milli: 0 };
        What::Offer(Offer { stages: vec![offer], ..Offer::default() })
    }

    fn progress(low: u64, above: &[u8], samples: u64) -> What {
        What::Progress(Progress {
            low,
            above: above.to_vec().into(),
            samples,
            loss_milli: None,
            open: 0,
            held_out_milli: None,
        })
    }

    #[test]
    fn a_lost_replica_is_gone_until_it_offers_itself_again() {
        let mut members = Membership::default();
        members.on_item(&item(A, 1, serving(2)), |_| true);
        assert_eq!(members.everywhere().map(|(peer, offer)| (peer, offer.pace())).collect::<Vec<_>>(), vec![(A, 1.5)]);
        members.on_lost(A, Some(1));
        assert_eq!(members.replicas(2).count(), 0);
        members.on_item(&item(A, 2, serving(2)), |_| true);
        members.on_lost(A, Some(1));
        assert_eq!(members.replicas(2).count(), 1, "its next life was there already");
    }

    #[test]
    fn all_replicas_are_known_where_hundreds_serve_one_stage() {
        let mut members = Membership::default();
        for peer in 0..1000u16 {
            let mut name = [7; 32];
            name[..2].copy_from_slice(&peer.to_be_bytes());
            let change = members.on_item(&item(PeerId(name), 1, serving(2)), |_| true);
            assert_eq!(change, Change::Offer(PeerId(name)));
        }
        assert_eq!(members.count(2), 1000);
    }

    #[test]
    fn a_counter_never_falls_and_counts_only_for_those_who_may_feed() {
        let mut members = Membership::default();
        members.on_item(&item(A, 1, progress(5, &[], 50)), |_| true);
        members.on_item(&item(A, 2, progress(0, &[], 40)), |_| true);
        assert_eq!(members.samples_of(A), 50);
        assert_eq!(members.on_item(&item(PeerId([2; 32]), 1, progress(5, &[], 50)), |_| false), Change::Nothing);
    }

    #[test]
    fn claims_of_absurd_counters_do_not_overflow() {
        let mut members = Membership::default();
        for author in 1..4 {
            members.on_item(&item(PeerId([author; 32]), 1, progress(0, &[], u64::MAX)), |_| true);
        }
        assert_eq!(members.samples_without(A), u64::MAX);
    }

    #[test]
    fn ids_below_the_mark_with_a_bit_or_of_a_former_incarnation_are_over() {
        let mut members = Membership::default();
        members.on_item(&item(A, 2, progress(10, &[0b100], 0)), |_| true);
        let id = |incarnation, step, index| MicroBatchId { feeder: A, incarnation, step, index };
        assert!(members.is_over(&id(2, 2, 1), 4), "9");
        assert!(!members.is_over(&id(2, 2, 2), 4), "10");
        assert!(members.is_over(&id(2, 3, 0), 4), "12");
        assert!(members.is_over(&id(1, 99, 0), 4));
        assert!(!members.is_over(&id(3, 0, 0), 4));
    }
}
