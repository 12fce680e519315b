//! Whom a peer wants to be connected to, where it cannot be everybody.
//!
//! In: who offers what, what I serve and feed. Out: peers to dial, and those whose connection is kept though nothing is sent.
//! Whoever serves a stage wants some replicas of the stages before and behind it, to send to and hear from, and of its own, to
//! average with; whoever feeds wants all of the first; whoever serves nothing wants some of every stage. A few strangers, alike for everybody by a hash of both names,
//! hold the swarm together: a random graph in which each chooses eight is connected but for a chance in millions.

use std::collections::BTreeSet;

use skein_protocol::{PeerId, Stage, hash::scatter, wire::membership::Offer};

/// Among so many others a peer knows everybody.
pub const ALL: usize = 32;
/// Replicas of each stage that it works with.
pub const NEAR: usize = 8;
/// Of each stage, if it serves none.
const EACH: usize = 2;
/// Peers of whatever stage.
const STRANGERS: usize = 8;

/// What decides whom a peer needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    pub me: PeerId,
    /// Stages that it serves, or is about to.
    pub mine: &'a BTreeSet<Stage>,
    pub feeds: bool,
    pub last: Stage,
    /// Those who may feed.
    pub feeders: &'a [PeerId],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circle {
    pub dialled: BTreeSet<PeerId>,
    pub strangers: BTreeSet<PeerId>,
    /// There are more.
    pub is_part: bool,
}

impl Circle {
    /// Whether this peer works with `peer`, if there is anything to work on: where it knows everybody, with anybody.
    pub fn has(&self, peer: &PeerId) -> bool {
        !self.is_part || self.dialled.contains(peer)
    }

    /// `offers` are in the order of the peers' names.
    pub fn of<'a>(needs: Needs<'_>, offers: impl Iterator<Item = (PeerId, &'a Offer)>) -> Self {
        let Needs { me, mine, feeds, last, feeders } = needs;
        let mut others: Vec<(u64, PeerId, &Offer)> =
            offers.filter(|(peer, _)| *peer != me).map(|(peer, offer)| (distance(me, peer), peer, offer)).collect();
        others.sort_unstable_by_key(|(distance, peer, _)| (*distance, *peer));
        let strangers: BTreeSet<PeerId> = others.iter().take(STRANGERS).map(|(_, peer, _)| *peer).collect();
        if others.len() <= ALL {
            return Circle { dialled: others.iter().map(|(_, peer, _)| *peer).collect(), strangers, is_part: false };
        }
        let is_mine = |stage: &Stage| mine.contains(stage);
        let is_near = |stage: Stage| {
            let beside = [stage.checked_sub(1), Some(stage), stage.checked_add(1)];
            beside.iter().flatten().any(is_mine) || feeds && stage == last
        };
        let serves_nothing = mine.is_empty() && !feeds;
        // Few feed, and all work comes from them: whom they do not know has none.
        let wanted = |stage: Stage| match (is_near(stage), serves_nothing) {
            _ if feeds && stage == 0 => usize::MAX,
            (true, _) => NEAR,
            (_, true) => EACH,
            _ => 0,
        };
        let mut left: Vec<usize> = (0..=last).map(wanted).collect();
        let mut dialled = strangers.clone();
        for (_, peer, offer) in &others {
            for of in &offer.stages {
                let Some(left) = left.get_mut(usize::from(of.stage)).filter(|left| **left > 0) else { continue };
                *left -= 1;
                dialled.insert(*peer);
            }
        }
        // The first stage hears from those who feed, and the last one asks them for labels.
        if is_mine(&0) || is_mine(&last) {
            let is_there = |peer: &&PeerId| others.iter().any(|(_, other, _)| other == *peer);
            dialled.extend(feeders.iter().filter(is_there));
        }
        Circle { dialled, strangers, is_part: true }
    }
}

/// The same for both, so that most who are near to me have me near, too; and without any other order, for whom a third is near
/// says nothing of the two.
fn distance(a: PeerId, b: PeerId) -> u64 {
    scatter(&a.min(b).0, scatter(&a.max(b).0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::wire::membership::{StageOffer, State};

    const STAGES: Stage = 10;

    fn peer(n: usize) -> PeerId {
        PeerId(skein_protocol::hash::keyed("test", &[&n.to_le_bytes()]).0)
    }

    /// So many peers, one stage each in turn, by name.
    fn swarm(count: usize) -> Vec<(PeerId, Offer)> {
        let offer = |stage| StageOffer {
            stage,
            state: State::Serving,
            round: 0,
            own_step: 0,
            speed_milli: 0,
            carries_milli: 0,
        };
        let of = |n: usize| (peer(n), Offer { stages: vec![offer(n as Stage % STAGES)], ..Offer::default() });
        let mut swarm: Vec<_> = (0..count).map(of).collect();
        swarm.sort_by_key(|(peer, _)| *peer);
        swarm
    }

    fn circle(n: usize, mine: &[Stage], feeds: bool, swarm: &[(PeerId, Offer)]) -> Circle {
        let mine = mine.iter().copied().collect();
        let needs = Needs { me: peer(n), mine: &mine, feeds, last: STAGES - 1, feeders: &[peer(0)] };
        Circle::of(needs, swarm.iter().map(|(peer, offer)| (*peer, offer)))
    }

    fn of_stage(circle: &Circle, stage: Stage, swarm: &[(PeerId, Offer)]) -> usize {
        let serves = |(peer, offer): &&(PeerId, Offer)| circle.dialled.contains(peer) && offer.stages[0].stage == stage;
        swarm.iter().filter(serves).count()
    }

    #[test]
    fn among_few_everybody_is_dialled() {
        let swarm = swarm(ALL + 1);
        assert_eq!(circle(3, &[3], false, &swarm).dialled.len(), ALL);
    }

    #[test]
    fn among_many_a_peer_dials_those_it_works_with_and_some_strangers() {
        let swarm = swarm(1000);
        let of_4 = circle(4, &[4], false, &swarm);
        for stage in 3..=5 {
            assert!((NEAR..NEAR + 4).contains(&of_stage(&of_4, stage, &swarm)), "{stage}");
        }
        assert!(of_4.dialled.len() <= 3 * NEAR + STRANGERS && of_4.dialled.is_superset(&of_4.strangers));
        let feeder = circle(1000, &[], true, &swarm);
        assert_eq!(of_stage(&feeder, 0, &swarm), 100);
        assert!(of_stage(&feeder, STAGES - 1, &swarm) >= NEAR);
        let guest = circle(1000, &[], false, &swarm);
        assert!((0..STAGES).all(|stage| of_stage(&guest, stage, &swarm) >= EACH));
        assert!(circle(9, &[9], false, &swarm).dialled.contains(&peer(0)), "who feeds has the labels");
        assert!(!of_4.dialled.contains(&peer(0)) || of_4.strangers.contains(&peer(0)));
    }

    #[test]
    fn strangers_hold_the_swarm_together_and_nobody_has_too_many() {
        let swarm = swarm(1000);
        let circles: Vec<Circle> = (0..1000).map(|n| circle(n, &[n as Stage % STAGES], false, &swarm)).collect();
        let mut connections = vec![BTreeSet::new(); 1000];
        let number = |peer: &PeerId| swarm.binary_search_by_key(peer, |(peer, _)| *peer).expect("of the swarm");
        let of_strangers = |n: usize| circles[n].strangers.iter().map(number);
        for n in 0..1000 {
            let me = number(&peer(n));
            for other in of_strangers(n) {
                connections[me].insert(other);
                connections[other].insert(me);
            }
        }
        let (mut reached, mut next) = (BTreeSet::from([0]), vec![0]);
        while let Some(at) = next.pop() {
            next.extend(connections[at].iter().filter(|other| reached.insert(**other)));
        }
        assert_eq!(reached.len(), 1000);
        let most = connections.iter().map(BTreeSet::len).max();
        assert!(most <= Some(6 * STRANGERS), "{most:?}");
    }
}
