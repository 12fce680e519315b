//! A picture of a peer for people: what `status` and `peers` show. Read only.

use serde::{Deserialize, Serialize};
use skein_protocol::{Incarnation, PeerId, Stage, Version, wire::membership::State};

use super::{
    Peer,
    replica::{Phase, Replica},
};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct View {
    pub me: PeerId,
    pub incarnation: Incarnation,
    /// Run step, and samples of all feeders.
    pub step: u64,
    pub samples: u64,
    pub loss: Option<f32>,
    /// Of data that is held out.
    pub held_out_loss: Option<f32>,
    /// Bytes of the caches of generations that this peer serves.
    pub caches: u64,
    pub stages: Vec<StageView>,
    pub mine: Vec<MineView>,
    pub peers: Vec<PeerView>,
    pub feeding: Option<FeedView>,
    pub draining: bool,
    pub ended: bool,
    /// States that others are fetching from here.
    pub serving_states: usize,
    /// Data index from which a restart feeds on.
    pub feed_next: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageView {
    pub stage: Stage,
    pub first_layer: u32,
    pub layers: u32,
    pub replicas: Vec<PeerId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MineView {
    pub stage: Stage,
    pub state: MyState,
    pub version: Option<Version>,
    pub micro_batches: u64,
    pub micro_batches_per_s: f64,
    pub rounds: u64,
    pub rounds_rolled_back: u64,
    /// Chunks of its weights that are here, and all of them, while they are fetched.
    pub fetched: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MyState {
    Looking,
    Fetching,
    Loading,
    Serving,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerView {
    pub peer: PeerId,
    pub connected: bool,
    pub stages: Vec<PeerStageView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStageView {
    pub stage: Stage,
    pub state: String,
    pub round: u32,
    pub own_step: u32,
    pub micro_batches_per_s: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FeedView {
    pub open: usize,
    /// How many may be open.
    pub window: u64,
    pub completed: u64,
    pub tokens: u64,
    pub voided: u64,
    /// The data has an end, and all of it is over.
    pub done: bool,
}

impl Peer {
    /// Data index from which a restart of this feeder feeds on.
    pub fn feed_next(&self) -> Option<u64> {
        self.source.as_ref().map(|source| source.feed_next())
    }

    /// Who computes a session that was asked for here, one peer a stage; nothing once it is over or lost.
    pub fn generation_route(&self, session: u64) -> Option<&[PeerId]> {
        self.generate.route(session)
    }

    pub fn view(&self) -> View {
        let manifest = &self.config.manifest;
        let samples = self.run_samples();
        let [told, told_held_out] = self.directory.losses();
        let carries = self.uplink.carries(self.last_turn);
        View {
            me: self.me,
            incarnation: self.incarnation,
            step: samples / manifest.samples_per_step().max(1),
            samples,
            loss: self.source.as_ref().and_then(|source| source.loss).or(told),
            held_out_loss: self.source.as_ref().and_then(|source| source.held_out_loss).or(told_held_out),
            caches: self.generate.caches(),
            stages: (0..manifest.stages.count)
                .map(|stage| {
                    let (first_layer, layers) = manifest.layers_of(stage);
                    StageView { stage, first_layer, layers, replicas: self.route.replicas(stage).collect() }
                })
                .collect(),
            mine: self.replicas.values().map(|replica| self.mine(replica, carries)).collect(),
            peers: self.peer_views(),
            feeding: self.source.as_ref().map(|source| FeedView {
                open: source.open_len(),
                window: source.open_max(),
                completed: source.completed,
                tokens: source.tokens,
                voided: source.voided,
                done: source.is_done(),
            }),
            draining: self.drain.is_some(),
            ended: self.ended,
            serving_states: self.transfer.serving() + self.states.len(),
            feed_next: self.feed_next(),
        }
    }

    fn peer_views(&self) -> Vec<PeerView> {
        let offers = self.directory.offers().filter(|(peer, _)| *peer != self.me);
        offers
            .map(|(peer, offer)| PeerView {
                peer,
                connected: self.neighbours.is_up(peer),
                stages: offer
                    .stages
                    .iter()
                    .map(|offer| PeerStageView {
                        stage: offer.stage,
                        state: match offer.state {
                            State::Joining => "joining",
                            State::Serving => "serving",
                            State::Draining => "draining",
                        }
                        .to_string(),
                        round: offer.round,
                        own_step: offer.own_step,
                        micro_batches_per_s: self.route.speed(offer.stage, peer).unwrap_or_else(|| offer.pace()),
                    })
                    .collect(),
            })
            .collect()
    }

    fn mine(&self, replica: &Replica, carries: Option<f64>) -> MineView {
        let frozen = self.frozen_progress(replica.stage);
        let flow = replica.flow();
        MineView {
            stage: replica.stage,
            state: match replica.phase {
                Phase::Looking { .. } if frozen.is_some() => MyState::Fetching,
                Phase::Looking { .. } => MyState::Looking,
                Phase::Fetching { .. } => MyState::Fetching,
                Phase::Loading { .. } => MyState::Loading,
                Phase::Serving(_) => MyState::Serving,
            },
            version: flow.map(|flow| flow.version()),
            micro_batches: flow.map_or(0, |flow| flow.busy.done),
            micro_batches_per_s: flow.map_or(0.0, |flow| flow.busy.pace(carries)),
            rounds: replica.average.rounds,
            rounds_rolled_back: replica.average.rolled_back,
            fetched: match replica.phase {
                Phase::Fetching { ticket } => self.transfer.progress(ticket),
                _ => frozen,
            },
        }
    }
}
