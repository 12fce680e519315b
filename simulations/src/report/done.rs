//! The last lines of `--json`: one flat object of what came of each simulation, and one of all seeds together, for scripts.

use serde::{Deserialize, Serialize};

use super::{
    estimate::Estimate,
    summary::{Summary, real},
};
use crate::outcome::{Cause, Fidelity, Outcome};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub struct SimulateDone {
    pub digest: String,
    pub seed: u64,
    pub fidelity: Fidelity,
    pub peers: u32,
    pub simulated_s: f64,
    /// How long it took whoever asked.
    pub wall_s: f64,
    pub events: u64,
    pub tokens_per_s: f64,
    pub goodput_share: f64,
    pub staleness_p50: u32,
    pub staleness_p99: u32,
    pub completed: u64,
    pub applied: u64,
    pub perished: u64,
    pub refused: u64,
    pub lost: u64,
    pub doubled: u64,
    pub overlapped: u64,
    pub loss_last: Option<f64>,
    pub loss_reference: Option<f64>,
    pub bytes_per_peer: f64,
    /// How many.
    pub violations: u64,
    pub bottleneck: Cause,
}

impl SimulateDone {
    pub fn of(outcome: &Outcome, wall_s: f64) -> SimulateDone {
        let totals = &outcome.totals;
        SimulateDone {
            digest: outcome.digest.clone(),
            seed: outcome.seed,
            fidelity: outcome.fidelity,
            peers: outcome.peers,
            simulated_s: real(outcome.simulated_s),
            wall_s: real(wall_s),
            events: outcome.events,
            tokens_per_s: real(outcome.tokens_per_s()),
            goodput_share: real(outcome.goodput()),
            staleness_p50: totals.staleness_p50,
            staleness_p99: totals.staleness_p99,
            completed: totals.completed,
            applied: totals.applied,
            perished: totals.perished,
            refused: totals.refused,
            lost: totals.lost,
            doubled: totals.doubled,
            overlapped: totals.overlapped,
            loss_last: totals.loss_last.filter(|loss| loss.is_finite()),
            loss_reference: totals.loss_reference.filter(|loss| loss.is_finite()),
            bytes_per_peer: real(outcome.bytes_per_peer()),
            violations: outcome.violations.len() as u64,
            bottleneck: outcome.shares.bottleneck(),
        }
    }

    /// One line, without its end.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }
}

/// Several seeds of one scenario: means, each with the interval that holds the mean with 95 % confidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub struct SimulateSummary {
    pub seeds: u64,
    pub fidelity: Fidelity,
    pub peers: u32,
    /// How long all of them took together, on as many cores as there were.
    pub wall_s: f64,
    pub tokens_per_s: f64,
    pub tokens_per_s_low: Option<f64>,
    pub tokens_per_s_high: Option<f64>,
    pub goodput_share: f64,
    pub goodput_share_low: Option<f64>,
    pub goodput_share_high: Option<f64>,
    pub bytes_per_peer: f64,
    pub bytes_per_peer_low: Option<f64>,
    pub bytes_per_peer_high: Option<f64>,
    pub loss_last: Option<f64>,
    pub loss_last_low: Option<f64>,
    pub loss_last_high: Option<f64>,
    pub lost: u64,
    /// How many, of all seeds.
    pub violations: u64,
    /// Whether all was as the author expected, and no property was violated.
    pub good: bool,
    pub bottleneck: Cause,
}

impl SimulateSummary {
    pub fn of(summary: &Summary, wall_s: f64) -> SimulateSummary {
        let figures = &summary.figures;
        let interval = |of: &Estimate| (real(of.mean), of.low, of.high);
        let (tokens_per_s, tokens_per_s_low, tokens_per_s_high) = interval(&figures.tokens_per_s);
        let (goodput_share, goodput_share_low, goodput_share_high) = interval(&figures.goodput);
        let (bytes_per_peer, bytes_per_peer_low, bytes_per_peer_high) = interval(&figures.bytes_per_peer);
        let loss = figures.loss_last;
        SimulateSummary {
            seeds: summary.seeds.len() as u64,
            fidelity: summary.fidelity,
            peers: summary.peers,
            wall_s: real(wall_s),
            tokens_per_s,
            tokens_per_s_low,
            tokens_per_s_high,
            goodput_share,
            goodput_share_low,
            goodput_share_high,
            bytes_per_peer,
            bytes_per_peer_low,
            bytes_per_peer_high,
            loss_last: loss.map(|loss| loss.mean),
            loss_last_low: loss.and_then(|loss| loss.low),
            loss_last_high: loss.and_then(|loss| loss.high),
            lost: summary.seeds.iter().map(|seed| seed.totals.lost).max().unwrap_or(0),
            violations: summary.violations.len() as u64,
            good: summary.good(),
            bottleneck: summary.bottleneck,
        }
    }
}
