//! The picture of a running peer that `status`, `peers` and `/api/v1/state` show. Plain values with their unit in the name; a
//! name never changes its meaning inside one `schema`.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use skein_pipeline::peer::view::{MyState, View};
use skein_protocol::{Incarnation, Manifest, PeerId, RunId, Stage};

use crate::node::memory::Account;

/// How far back a pace looks.
const PACE_WINDOW: Duration = Duration::from_secs(20);
/// A picture that is older means that the loop hangs.
const PICTURE_AGE_MAX_MS: u64 = 10_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the program that made it.
    pub skein: String,
    pub schema: u32,
    /// When this picture was taken: milliseconds since 1970.
    pub utc_ms: u64,
    pub phase: Phase,
    pub waiting: Option<Waiting>,
    /// Nothing until the manifest is known.
    pub run: Option<RunState>,
    pub me: Me,
    /// Run step, and the one at which the run ends.
    pub step: u64,
    pub steps_end: Option<u64>,
    pub samples: u64,
    pub tokens: u64,
    /// Mean of the latest micro-batches, nats a token.
    pub loss: Option<f32>,
    /// Of data that is held out.
    pub held_out_loss: Option<f32>,
    /// Of the whole run, over the last 20 seconds.
    pub tokens_per_s: Option<f64>,
    pub stages: Vec<StageState>,
    pub mine: Vec<MyStage>,
    pub peers: Vec<PeerState>,
    pub feeding: Option<Feeding>,
    pub memory: Account,
    pub given: Given,
    /// Sentences about what should not stay as it is.
    pub warnings: Vec<String>,
}

/// What the peer is doing, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Starting,
    /// Looking for the run or for a place in it.
    Joining,
    /// Every stage has a replica, and micro-batches complete or may.
    Training,
    /// Something that the run needs is missing; `waiting` names it.
    Waiting,
    Draining,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub what: String,
    pub since_utc_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    pub name: String,
    pub id: RunId,
    pub about: String,
    pub owner: PeerId,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Me {
    pub peer: PeerId,
    pub name: String,
    pub incarnation: Incarnation,
    pub since_utc_ms: u64,
    /// Where others reach this peer, best first.
    pub addresses: Vec<String>,
    /// In words: public, behind NAT, …
    pub reachability: String,
    pub device: String,
    pub threads: u16,
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageState {
    pub stage: Stage,
    pub first_layer: u32,
    pub layers: u32,
    pub replicas: Vec<PeerId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MyStage {
    pub stage: Stage,
    pub state: MyStageState,
    pub round: u32,
    pub own_step: u32,
    pub micro_batches: u64,
    pub tokens_per_s: f64,
    pub rounds: u64,
    pub rounds_rolled_back: u64,
    /// How much of its weights is here, while they are fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_percent: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MyStageState {
    Looking,
    Fetching,
    Loading,
    Serving,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerState {
    pub peer: PeerId,
    pub name: String,
    pub connected: bool,
    /// `direct`, `relay`, …; empty when not connected.
    pub path: String,
    pub address: String,
    pub rtt_ms: Option<f64>,
    pub stages: Vec<PeerStage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStage {
    pub stage: Stage,
    /// `joining`, `serving` or `draining`.
    pub state: String,
    pub round: u32,
    pub own_step: u32,
    pub tokens_per_s: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feeding {
    pub open: u64,
    /// How many may be open: what keeps the busiest stage at work, within the manifest's `in_flight_max`.
    pub window: u64,
    pub completed: u64,
    pub voided: u64,
}

/// What this peer gave since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub duration_ms: u64,
    pub micro_batches: u64,
    pub tokens: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

impl State {
    pub const SCHEMA: u32 = 1;

    /// Before anything is known but who I am.
    pub fn starting(me: Me, utc_ms: u64) -> State {
        State {
            skein: env!("CARGO_PKG_VERSION").into(),
            schema: State::SCHEMA,
            utc_ms,
            phase: Phase::Starting,
            waiting: None,
            run: None,
            me,
            step: 0,
            steps_end: None,
            samples: 0,
            tokens: 0,
            loss: None,
            held_out_loss: None,
            tokens_per_s: None,
            stages: Vec::new(),
            mine: Vec::new(),
            peers: Vec::new(),
            feeding: None,
            memory: Account::default(),
            given: Given::default(),
            warnings: Vec::new(),
        }
    }

    /// Takes over what the machines say. What they do not know (connections, traffic, reachability, pace) is the driver's to add
    /// afterwards; connections of peers that stay are kept.
    pub fn update(&mut self, manifest: &Manifest, run: RunId, view: &View, utc_ms: u64) {
        let tokens_per_micro_batch = manifest.tokens_per_micro_batch() as f64;
        self.utc_ms = utc_ms;
        self.run = Some(RunState {
            name: manifest.run.name.clone(),
            id: run,
            about: manifest.run.about.clone(),
            owner: manifest.run.owner,
        });
        self.me.incarnation = view.incarnation;
        (self.step, self.samples) = (view.step, view.samples);
        self.steps_end = manifest.run.ends.steps;
        self.tokens = view.samples.saturating_mul(u64::from(manifest.train.sequence));
        self.loss = view.loss;
        self.held_out_loss = view.held_out_loss;
        self.stages = view
            .stages
            .iter()
            .map(|stage| StageState {
                stage: stage.stage,
                first_layer: stage.first_layer,
                layers: stage.layers,
                replicas: stage.replicas.clone(),
            })
            .collect();
        self.mine = view
            .mine
            .iter()
            .map(|mine| MyStage {
                stage: mine.stage,
                state: match mine.state {
                    MyState::Looking => MyStageState::Looking,
                    MyState::Fetching => MyStageState::Fetching,
                    MyState::Loading => MyStageState::Loading,
                    MyState::Serving => MyStageState::Serving,
                },
                round: mine.version.map_or(0, |version| version.round),
                own_step: mine.version.map_or(0, |version| version.own_step),
                micro_batches: mine.micro_batches,
                tokens_per_s: mine.micro_batches_per_s * tokens_per_micro_batch,
                rounds: mine.rounds,
                rounds_rolled_back: mine.rounds_rolled_back,
                fetched_percent: mine.fetched.map(|(here, all)| (u64::from(here) * 100 / u64::from(all).max(1)) as u8),
            })
            .collect();
        self.given.micro_batches = self.mine.iter().map(|mine| mine.micro_batches).sum();
        self.given.tokens = (self.given.micro_batches as f64 * tokens_per_micro_batch) as u64;
        self.given.duration_ms = utc_ms.saturating_sub(self.me.since_utc_ms);
        let before = std::mem::take(&mut self.peers);
        self.peers = view
            .peers
            .iter()
            .map(|peer| {
                let known = before.iter().find(|known| known.peer == peer.peer);
                PeerState {
                    peer: peer.peer,
                    name: known.map_or(String::new(), |known| known.name.clone()),
                    connected: peer.connected,
                    path: known.map_or(String::new(), |known| known.path.clone()),
                    address: known.map_or(String::new(), |known| known.address.clone()),
                    rtt_ms: known.and_then(|known| known.rtt_ms),
                    stages: peer
                        .stages
                        .iter()
                        .map(|stage| PeerStage {
                            stage: stage.stage,
                            state: stage.state.clone(),
                            round: stage.round,
                            own_step: stage.own_step,
                            tokens_per_s: stage.micro_batches_per_s * tokens_per_micro_batch,
                        })
                        .collect(),
                }
            })
            .collect();
        self.feeding = view.feeding.as_ref().map(|feed| Feeding {
            open: feed.open as u64,
            window: feed.window,
            completed: feed.completed,
            voided: feed.voided,
        });
        self.decide_phase(view, utc_ms);
        self.warn();
    }

    fn decide_phase(&mut self, view: &View, utc_ms: u64) {
        let empty: Vec<String> =
            self.stages.iter().filter(|stage| stage.replicas.is_empty()).map(|stage| stage.stage.to_string()).collect();
        let serving = self.mine.iter().any(|mine| mine.state == MyStageState::Serving);
        let what = if view.ended || view.draining || empty.is_empty() {
            None
        } else if empty.len() == self.stages.len() {
            Some("peers that serve the run".to_string())
        } else {
            Some(format!("a replica of stage {}", empty.join(", ")))
        };
        self.phase = if view.ended {
            Phase::Ended
        } else if view.draining {
            Phase::Draining
        } else if what.is_some() {
            if serving || self.feeding.is_some() { Phase::Waiting } else { Phase::Joining }
        } else if serving || self.mine.is_empty() {
            Phase::Training
        } else {
            Phase::Joining
        };
        let same_as_before = self.waiting.take().filter(|before| Some(&before.what) == what.as_ref());
        self.waiting = what.map(|what| same_as_before.unwrap_or(Waiting { what, since_utc_ms: utc_ms }));
    }

    fn warn(&mut self) {
        self.warnings.clear();
        if self.stages.iter().all(|stage| stage.replicas.len() <= 1) {
            // A run that begins has one replica everywhere; that is no news.
            return;
        }
        for stage in self.stages.iter().filter(|stage| stage.replicas.len() == 1) {
            self.warnings.push(format!("stage {} has one replica: if it leaves, training waits.", stage.stage));
        }
    }

    /// Whether the loop that made this picture still turned a moment before `utc_ms`.
    pub fn is_fresh(&self, utc_ms: u64) -> bool {
        utc_ms.abs_diff(self.utc_ms) <= PICTURE_AGE_MAX_MS
    }

    /// Whether this peer does what it was started for: it serves, or it feeds and was to serve nothing.
    pub fn is_ready(&self) -> bool {
        let serving = self.mine.iter().any(|mine| mine.state == MyStageState::Serving);
        let feeds_alone = self.mine.is_empty() && self.feeding.is_some();
        matches!(self.phase, Phase::Training | Phase::Waiting) && (serving || feeds_alone)
    }

    /// Time until the last step at the present pace: what a step takes is what the steps so far took.
    pub fn remaining(&self) -> Option<Duration> {
        let tokens_per_s = self.tokens_per_s.filter(|pace| *pace > 0.0)?;
        let steps = self.steps_end?.checked_sub(self.step)?;
        let tokens_per_step = self.tokens as f64 / (self.step > 0).then_some(self.step as f64)?;
        Duration::try_from_secs_f64(steps as f64 * tokens_per_step / tokens_per_s).ok()
    }
}

/// How fast a counter grows, over the last 20 seconds. Time is given, not read.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    points: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// Says what the counter is at `now` (since any fixed moment).
    pub fn note(&mut self, now: Duration, count: u64) {
        if self.points.back().is_some_and(|(_, last)| *last > count) {
            self.points.clear();
        }
        self.points.push_back((now, count));
        // One point from before the window stays, so that the window is always covered.
        while self.points.len() > 2 && now.saturating_sub(self.points[1].0) >= PACE_WINDOW {
            self.points.pop_front();
        }
    }

    /// Counts a second; nothing before two points a second apart.
    pub fn per_s(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.points.front()?, self.points.back()?);
        let time = to.checked_sub(*from).filter(|time| *time >= Duration::from_secs(1))?;
        Some((last - first) as f64 / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_pipeline::peer::view::StageView;

    fn stages(replicas: &[usize]) -> Vec<StageView> {
        let stage = |(stage, count): (usize, &usize)| StageView {
            stage: stage as Stage,
            first_layer: 0,
            layers: 1,
            replicas: (0..*count).map(|n| PeerId([n as u8; 32])).collect(),
        };
        replicas.iter().enumerate().map(stage).collect()
    }

    fn state(view: &View) -> State {
        let mut state = State::starting(Me::default(), 0);
        state.stages = view
            .stages
            .iter()
            .map(|stage| StageState {
                stage: stage.stage,
                first_layer: stage.first_layer,
                layers: stage.layers,
                replicas: stage.replicas.clone(),
            })
            .collect();
        state.decide_phase(view, 5_000);
        state.warn();
        state
    }

    #[test]
    fn what_is_missing_has_a_name() {
        let state_of = |replicas: &[usize]| state(&View { stages: stages(replicas), ..View::default() });
        let whole = state_of(&[2, 1]);
        assert_eq!((whole.phase, &whole.waiting), (Phase::Training, &None));
        assert_eq!(whole.warnings, ["stage 1 has one replica: if it leaves, training waits."]);
        let broken = state_of(&[2, 0, 0]);
        assert_eq!(broken.phase, Phase::Joining);
        assert_eq!(broken.waiting.unwrap(), Waiting { what: "a replica of stage 1, 2".into(), since_utc_ms: 5_000 });
        assert!(state_of(&[1, 1]).warnings.is_empty());
        assert_eq!(state_of(&[0, 0]).waiting.unwrap().what, "peers that serve the run");
    }

    #[test]
    fn a_wait_keeps_its_beginning() {
        let view = View { stages: stages(&[1, 0]), ..View::default() };
        let mut state = state(&view);
        state.decide_phase(&view, 9_000);
        assert_eq!(state.waiting.as_ref().unwrap().since_utc_ms, 5_000);
        state.decide_phase(&View { stages: stages(&[1, 0]), draining: true, ..View::default() }, 9_500);
        assert_eq!((state.phase, state.waiting), (Phase::Draining, None));
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.per_s(), None);
        for second in 0..60 {
            pace.note(Duration::from_secs(second), if second < 30 { 0 } else { (second - 30) * 10 });
        }
        assert_eq!(pace.per_s(), Some(10.0));
        pace.note(Duration::from_secs(60), 0);
        assert_eq!(pace.per_s(), None);
    }
}
