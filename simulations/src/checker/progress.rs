//! What the feeders saw: ids, losses, tokens, throughput. An id that is completed twice counts twice (P1).

use std::collections::BTreeSet;

use skein_protocol::{MicroBatchId, event::Event};

use super::{Findings, Line, Property, Summary};

/// Losses of the beginning.
const FIRST: usize = 8;

#[derive(Debug, Default)]
pub struct Progress {
    seen: BTreeSet<MicroBatchId>,
    losses: Vec<f32>,
    found: Summary,
}

impl Progress {
    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let summary = &mut self.found;
        match &line.record.event {
            Event::Minted { .. } => summary.minted += 1,
            Event::Voided { .. } => summary.voided += 1,
            Event::Completed { id, loss, tokens, .. } => {
                if !self.seen.insert(*id) {
                    found.add(Property::P1, format!("{} completed twice", super::once::name(id)));
                }
                summary.completed += 1;
                summary.tokens += u64::from(*tokens);
                self.losses.push(*loss);
            }
            Event::Stepped { run_step, .. } => {
                summary.steps += 1;
                summary.run_steps = summary.run_steps.max(*run_step);
            }
            Event::Resent { .. } => summary.resent += 1,
            Event::SentForward { bytes, raw, .. } => {
                summary.bytes_activations += bytes;
                summary.bytes_if_f32 += raw;
            }
            Event::SentBackward { bytes, .. } => summary.bytes_gradients += bytes,
            _ => {}
        }
    }

    pub fn finish(self, summary: &mut Summary) {
        let losses = &self.losses;
        let tenth = losses.len().div_ceil(10);
        *summary = Summary {
            loss_first: mean(&losses[..losses.len().min(FIRST)]),
            loss_last: mean(&losses[losses.len() - tenth..]),
            ..self.found
        };
    }
}

fn mean(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
    if values.is_empty() { 0.0 } else { (sum / values.len() as f64) as f32 }
}

/// Completions a second between two times.
pub fn rate(lines: &[Line], from: u64, until: u64) -> f64 {
    let count = lines
        .iter()
        .filter(|line| (from..until).contains(&line.at) && matches!(line.record.event, Event::Completed { .. }))
        .count();
    count as f64 * 1e9 / until.saturating_sub(from).max(1) as f64
}
