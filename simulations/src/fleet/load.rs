//! What one micro-batch takes of a replica: time of its device and of its links, bytes, operations.
//!
//! In: the manifest, by the same formulas as every other part (`model::cost`, the codecs' lengths), and a peer. Out: seconds. It
//! knows no other peer: what waits for what is the pools' and the law's.

use skein_pipeline::model::cost;
use skein_protocol::{
    Manifest, Stage,
    codec::coded_len,
    run::{AveragingRule, Codec},
};

use super::{calibrated, setup::Peer, stages::Stages};

/// What every job costs to begin and end, and bytes a second of walking over parameters: as the modelled worker has them.
const JOB_S: f64 = 1e-4;
const WALK: f64 = 5e9;
/// Walks over the parameters: of a step, of all jobs of a round, of making a state or an engine of one.
const STEP_WALKS: f64 = 28.0;
const ROUND_WALKS: f64 = 24.0 + 24.0 + 16.0;
const STATE_WALKS: f64 = 60.0;

/// One stage, by a micro-batch or as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageLoad {
    pub flops: f64,
    pub parameters: f64,
    pub memory: u64,
    /// Bytes of the state that a joiner fetches, and of one side of an averaging round.
    pub state: f64,
    pub round: f64,
    /// Bytes sent and received: an activation to the next stage, a gradient to the one before.
    pub sends: [f64; 2],
    pub receives: [f64; 2],
    jobs: f64,
}

/// Seconds of one micro-batch at a replica, each of its parts by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Takes {
    pub compute: f64,
    pub up: f64,
    pub down: f64,
}

impl Takes {
    /// With overlap the slowest part counts.
    pub fn slowest(self) -> f64 {
        self.compute.max(self.up).max(self.down)
    }
}

/// Part of what a replica hands on, and of what it hands back, that stays at its peer, which serves the stage beside it too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stays {
    pub on: f64,
    pub back: f64,
}

/// All stages of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    pub stages: Vec<StageLoad>,
    pub tokens: f64,
    pub per_step: f64,
    /// Own steps between rounds; none: no rounds.
    pub every: Option<f64>,
    pub in_flight_max: f64,
    pub reach_max: f64,
    pub staleness_bound: u32,
    /// Rounds that a replica takes part in, for each micro-batch.
    pub rounds: f64,
}

impl Load {
    /// `window`: micro-batches for which a replica keeps room, if not what the manifest lets a feeder open.
    pub fn of(manifest: &Manifest, window: Option<u32>) -> Self {
        let mut roomy = manifest.clone();
        roomy.train.in_flight_max = window.unwrap_or(roomy.train.in_flight_max);
        let memory = |stage: Stage| cost::memory(&roomy, stage).peak();
        let of = |stage: Stage| StageLoad { memory: memory(stage), ..of_stage(manifest, stage) };
        let stages: Vec<StageLoad> = (0..manifest.stages.count).map(of).collect();
        let per_step = f64::from(manifest.train.micro_batches_per_step.max(1));
        let averages = manifest.averaging.rule != AveragingRule::None && !manifest.lock_step();
        let every = (averages && manifest.averaging.every > 0).then_some(f64::from(manifest.averaging.every));
        Load {
            stages,
            tokens: manifest.tokens_per_micro_batch() as f64,
            per_step,
            every,
            in_flight_max: f64::from(manifest.train.in_flight_max.max(1)),
            reach_max: manifest.reach_max() as f64,
            staleness_bound: manifest.staleness.bound,
            rounds: every.map_or(0.0, |every| calibrated::ROUNDS_A_PERIOD / (every * per_step)),
        }
    }

    pub fn takes(&self, stage: Stage, peer: &Peer, speed: f64, stays: Stays) -> Takes {
        let of = &self.stages[usize::from(stage)];
        let averaging = self.rounds * of.round;
        let (on, back) = (1.0 - stays.on, 1.0 - stays.back);
        let walks = STEP_WALKS / self.per_step + ROUND_WALKS * self.rounds;
        Takes {
            compute: of.jobs * JOB_S + of.flops / flops(peer, speed) + walks * of.parameters / WALK,
            up: (of.sends[0] * on + of.sends[1] * back + averaging) / f64::from(peer.up).max(1.0),
            down: (of.receives[0] * back + of.receives[1] * on + averaging) / f64::from(peer.down).max(1.0),
        }
    }

    /// Seconds of the forward alone.
    pub fn forward(&self, stage: Stage, compute: f64) -> f64 {
        if usize::from(stage) + 1 == self.stages.len() { compute } else { compute / 3.0 }
    }

    /// Whether a peer has the memory for the stage beside others.
    pub fn fits(&self, stage: Stage, beside: Stages, peer: &Peer) -> bool {
        let used = beside.iter().map(|other| self.stages[usize::from(other)].memory).fold(0, u64::saturating_add);
        used.saturating_add(self.stages[usize::from(stage)].memory) <= u64::from(peer.memory_mib) << 20
    }

    /// Seconds in which a donor makes the state and a joiner an engine of it.
    pub fn state_work(&self, stage: Stage) -> f64 {
        2.0 * STATE_WALKS * self.stages[usize::from(stage)].parameters / WALK
    }

    /// Operations of one micro-batch at all stages.
    pub fn flops(&self) -> f64 {
        self.stages.iter().map(|stage| stage.flops).sum()
    }
}

/// Operations a second of a device that has a part of its speed.
pub fn flops(peer: &Peer, speed: f64) -> f64 {
    f64::from(peer.flops).max(1.0) * speed.max(1e-6)
}

/// The same in millions, as it is summed: at most a million of a million, so that no sum overflows.
pub fn power(peer: &Peer, speed: f64) -> u64 {
    (flops(peer, speed) / 1e6).min(1e12) as u64
}

fn of_stage(manifest: &Manifest, stage: Stage) -> StageLoad {
    let (first, last) = (stage == 0, stage == manifest.last_stage());
    let values = manifest.tokens_per_micro_batch() * u64::from(manifest.model.config.hidden);
    // A link takes the first codec that it is offered unless it is measured to be slow.
    let body =
        |codecs: &[Codec]| coded_len(values, codecs.first().copied().unwrap_or(Codec::F32)).unwrap_or(4 * values);
    let (activation, gradient) = (body(&manifest.codecs.forward) as f64, body(&manifest.codecs.backward) as f64);
    let when = |is: bool, bytes: f64| if is { bytes } else { 0.0 };
    let parameters = cost::stage_parameters(manifest, stage);
    StageLoad {
        flops: cost::stage_flops(manifest, stage) as f64,
        parameters: parameters as f64,
        memory: 0,
        state: 20.0 * parameters as f64 + 64.0,
        round: cost::round_bytes(manifest, stage) as f64,
        sends: [when(!last, activation), when(!first, gradient)],
        receives: [when(!first, activation), when(!last, gradient)],
        jobs: if last { 1.0 } else { 2.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Small;

    fn peer(flops: f32, up: f32) -> Peer {
        let down = 10.0 * up;
        Peer { flops, up, down, delay_us: 0, memory_mib: 1 << 14, place: None, device: 0, access: 0, region: 0 }
    }

    #[test]
    fn a_micro_batch_takes_what_its_arithmetic_and_its_bodies_take() {
        let load = Load::of(&Small { round_every: 0, ..Small::demo(4) }.manifest(), None);
        // 4 x 128 tokens of 128 values in two bytes, and one byte of header.
        let body = 4.0 * 128.0 * 128.0 * 2.0 + 1.0;
        let bodies = |stage: usize| (load.stages[stage].sends, load.stages[stage].receives);
        assert_eq!(bodies(0), ([body, 0.0], [0.0, body]));
        assert_eq!(bodies(1), ([body, body], [body, body]));
        assert_eq!(bodies(3), ([0.0, body], [body, 0.0]));
        let takes = load.takes(1, &peer(1e9, 1e6), 1.0, Stays::default());
        let steps = 28.0 * load.stages[1].parameters / 5e9 / 4.0;
        assert!((takes.compute - (2e-4 + load.stages[1].flops / 1e9 + steps)).abs() < 1e-9);
        assert!((takes.up - 2.0 * body / 1e6).abs() < 1e-9 && (takes.down - 2.0 * body / 1e7).abs() < 1e-9);
        // Half the speed takes twice the arithmetic.
        let slow = load.takes(1, &peer(1e9, 1e6), 0.5, Stays::default());
        assert!((slow.compute - takes.compute - load.stages[1].flops / 1e9).abs() < 1e-9 && slow.up == takes.up);
    }

    #[test]
    fn rounds_share_the_links() {
        let with = |every| Load::of(&Small { round_every: every, ..Small::demo(4) }.manifest(), None);
        let up = |load: &Load| load.takes(1, &peer(1e9, 1e6), 1.0, Stays::default()).up;
        assert_eq!(with(0).every, None);
        let more = up(&with(5)) - up(&with(0));
        let each = with(5).stages[1].round / 1e6;
        assert!((more - calibrated::ROUNDS_A_PERIOD / (5.0 * 4.0) * each).abs() < 1e-9, "{more} {each}");
    }

    #[test]
    fn a_stage_that_does_not_fit_is_none_of_a_peers() {
        let load = Load::of(&Small::demo(2).manifest(), None);
        let small = Peer { memory_mib: 1, ..peer(1e9, 1e6) };
        assert!(load.fits(0, Stages::NONE, &peer(1e9, 1e6)) && !load.fits(0, Stages::NONE, &small));
        let both = load.stages[0].memory + load.stages[1].memory;
        let room = |memory: u64| Peer { memory_mib: (memory >> 20) as u32, ..peer(1e9, 1e6) };
        let beside = |memory: u64| load.fits(1, Stages::one(0), &room(memory));
        assert!(beside(both + (1 << 20)) && !beside(both - (1 << 20)), "its memory is shared");
    }

    #[test]
    fn what_stays_at_a_peer_takes_no_link() {
        let load = Load::of(&Small { round_every: 0, ..Small::demo(4) }.manifest(), None);
        let takes = |on, back| load.takes(1, &peer(1e9, 1e6), 1.0, Stays { on, back });
        let (all, none) = (takes(0.0, 0.0), takes(1.0, 1.0));
        assert_eq!((none.up, none.down, none.compute), (0.0, 0.0, all.compute));
        // Forward and back are alike: half of the activations is a quarter of all.
        assert!(
            (takes(0.5, 0.0).up - 0.75 * all.up).abs() < 1e-12
                && (takes(0.0, 0.5).down - 0.75 * all.down).abs() < 1e-12
        );
    }
}
