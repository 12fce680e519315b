//! From one stage to another that needs this peer more.
//!
//! A stage is left only while another replica serves it, one stage at a time, and with what was done there safe: what was
//! accepted is finished, the partial sum stepped, a last round done, the state saved. The plan says where to; here is when. A
//! replica that cannot finish what it has (it holds the only answers for a stage that died) stays.

use std::{collections::BTreeSet, time::Duration};

use skein_protocol::{Instant, Outbox, Stage, event::Event};

use super::{Peer, io::Output, replica::Replica};
use crate::{
    flow::{
        schedule::{Priority, Purpose},
        stage::{StageFlow, Standing},
    },
    job::Job,
    plan::{
        moves::{Move, Own},
        swarm::{Cost, Swarm},
    },
};

/// A stage without a replica is moved to after this: newcomers and peers with room come first.
pub const EMPTY_FOR: Duration = Duration::from_secs(4);
/// A stage that is merely slow must be so for this long.
pub const SLOW_FOR: Duration = Duration::from_secs(30);
/// Who is named and does not go within this is passed over, and the next one is named.
const APART: Duration = Duration::from_secs(2);
/// What was accepted is finished within this, or the move is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// What waits at others behind a stage that died is given back after this: whoever gets it is sent where it waits.
const STUCK: Duration = Duration::from_secs(2);
/// After a move that came to nothing none is tried for so long.
const PAUSE: Duration = Duration::from_secs(60);
/// So often at most those who were named and did not go are passed over.
const PASSES: u128 = 8;
/// After a move none is made for so long: one in a period.
const PERIOD: Duration = Duration::from_secs(30);
/// A last round may take this long.
const LAST_ROUND: Duration = Duration::from_secs(5);

/// A move that is wanted, or under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// The swarm's most pressing move, whoever makes it, is this one without a break since then, while so many served the
    /// stages between which it leads.
    Wanted { what: Move, since: Instant, replicas: [usize; 2] },
    /// What was accepted is finished.
    Finishing { what: Move, since: Instant },
    /// The partial sum is stepped.
    Stepping { what: Move },
    /// A last round with whoever stays.
    LastRound { what: Move, since: Instant },
    /// The state is saved.
    Saving { what: Move },
}

impl Moving {
    fn what(self) -> Move {
        match self {
            Moving::Wanted { what, .. }
            | Moving::Finishing { what, .. }
            | Moving::Stepping { what }
            | Moving::LastRound { what, .. }
            | Moving::Saving { what } => what,
        }
    }
}

impl Peer {
    /// The plan has nothing more for this peer as it stands: it may help more elsewhere.
    ///
    /// All who see the same name the same peers, who go once the need has lasted. Who is named and does not go (it is pinned,
    /// it has no room, it cannot finish what it has) is passed over after a while.
    pub(super) fn consider_moving(&mut self, now: Instant, swarm: &Swarm, costs: &[Cost], out: &mut Outbox<Output>) {
        self.fetch_ahead = None;
        let since = match self.moving {
            None => None,
            Some(Moving::Wanted { what, since, replicas }) => Some((what, since, replicas)),
            Some(_) => return,
        };
        let serves = |flow: &StageFlow| flow.standing == Standing::Serving;
        let free = |replica: &&Replica| !replica.pinned && replica.flow().is_some_and(serves);
        let all_serve = self.replicas.values().all(Replica::is_serving) && now >= self.move_after;
        let from: BTreeSet<Stage> = self.replicas.values().filter(free).map(|replica| replica.stage).collect();
        if !all_serve || from.is_empty() {
            return self.moving = None;
        }
        let own = Own { me: self.me, free: &from, memory: self.config.memory };
        let list = self.foresight.see(now, own, swarm, costs);
        let Some((_, need)) = list.first().copied() else { return self.moving = None };
        let replicas = [need.from, need.to].map(|stage| swarm.count(stage));
        // Whenever somebody came or went, it is to be seen anew whether one more shall go.
        let same = since.filter(|(before, _, then)| (*before, *then) == (need, replicas));
        let since = same.map_or(now, |(_, since, _)| since);
        self.moving = Some(Moving::Wanted { what: need, since, replicas });
        let patience = if need.is_empty { EMPTY_FOR } else { SLOW_FOR };
        let waited = now.since(since);
        if waited < patience || !own.may_go_to(need.to, swarm, costs) {
            return;
        }
        let passes = ((waited - patience).as_nanos() / APART.as_nanos()).min(PASSES) as usize;
        let Some(what) = self.foresight.move_of(own, costs, passes) else { return };
        if !self.makes_sense(what) {
            return;
        }
        // Frozen weights take long: the stage is served on until those of the next are here.
        if self.frozen_parts(what.to).is_none() {
            return self.fetch_ahead = Some(what.to);
        }
        self.set_standing(now, what.from, Standing::Draining, out);
        self.moving = Some(Moving::Finishing { what, since: now });
    }

    /// Somebody stays, and nobody has come to where I am missing.
    fn makes_sense(&self, Move { from, to, is_empty }: Move) -> bool {
        let stays = |(peer, _): &(_, _)| *peer != self.me && self.neighbours.is_up(*peer);
        let has_come = is_empty && !self.directory.replicas(to).is_empty();
        !has_come && self.directory.replicas(from).iter().any(stays)
    }

    /// The stage is served on, as if nothing had been.
    pub(super) fn give_up_move(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let Some(moving) = self.moving.take() else { return };
        self.beyond.clear();
        if !matches!(moving, Moving::Wanted { .. }) {
            self.move_after = now + PAUSE;
            self.set_standing(now, moving.what().from, Standing::Serving, out);
        }
    }

    /// Goes on with a move, or gives it up when the stage would be left without a replica.
    pub(super) fn go_on_moving(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let Some(moving) = self.moving.filter(|moving| !matches!(moving, Moving::Wanted { .. })) else { return };
        let what = moving.what();
        let Move { from, to, .. } = what;
        let Some(flow) = self.replicas.get(&from).and_then(Replica::flow) else { return self.give_up_move(now, out) };
        if !self.makes_sense(what) {
            return self.give_up_move(now, out);
        }
        match moving {
            Moving::Wanted { .. } => {}
            Moving::Finishing { since, .. } => {
                // Only who goes to the next stage can tell itself who has an id beyond that one.
                let (next, stuck) = (to == from + 1, what.is_empty && now.since(since) > STUCK);
                let beyond = self.with_flow(now, out, from, |flow, desk| flow.hand_back(desk, next, stuck));
                self.beyond.extend(beyond.unwrap_or_default());
                let Some(flow) = self.replicas.get(&from).and_then(Replica::flow) else { return };
                if flow.needed_ids(|peer| self.neighbours.is_up(peer)) == 0 {
                    self.with_flow(now, out, from, |flow, desk| flow.step(desk));
                    self.moving = Some(Moving::Stepping { what });
                } else if now.since(since) > PATIENCE {
                    self.give_up_move(now, out);
                }
            }
            Moving::Stepping { .. } => {
                if !flow.is_stepping() {
                    self.round_last(now, from, out);
                    self.moving = Some(Moving::LastRound { what, since: now });
                }
            }
            Moving::LastRound { since, .. } => {
                let idle = self.replicas.get(&from).is_some_and(|replica| replica.average.is_idle());
                if idle || now.since(since) > LAST_ROUND {
                    self.save(from);
                    self.moving = Some(Moving::Saving { what });
                }
            }
            Moving::Saving { .. } => {
                let idle = self.replicas.get(&from).is_some_and(|replica| replica.average.is_idle());
                if idle && !self.jobs.has(|purpose| *purpose == Purpose::Save { stage: from }) {
                    self.moving = None;
                    self.move_after = now + PERIOD;
                    self.remove(now, from, out);
                    self.want_stage(now, to, false, "it needs this peer more than the stage it served", out);
                }
            }
        }
    }

    fn set_standing(&mut self, now: Instant, stage: Stage, standing: Standing, out: &mut Outbox<Output>) {
        if let Some(flow) = self.replicas.get_mut(&stage).and_then(Replica::flow_mut) {
            flow.standing = standing;
        }
        self.publish_offer(now, out);
        self.refresh_route(now, out);
    }

    /// Serves a stage no longer.
    fn remove(&mut self, now: Instant, stage: Stage, out: &mut Outbox<Output>) {
        self.with_flow(now, out, stage, |flow, desk| flow.on_over(desk, |_| true));
        self.replicas.remove(&stage);
        self.jobs.push(Priority::Weights, Job::Remove { stage }, Purpose::Forget);
        out.push(Output::Emit(Event::StageLeft { stage }));
        self.publish_offer(now, out);
        self.refresh_route(now, out);
    }
}
