//! What the feeders saw: ids, losses, tokens, throughput.

use std::collections::BTreeSet;

use skein_protocol::{MicroBatchId, event::Event};

use super::{Line, Summary};

pub fn check(lines: &[Line], summary: &mut Summary) {
    let mut seen: BTreeSet<MicroBatchId> = BTreeSet::new();
    let mut losses = Vec::new();
    for line in lines {
        match &line.record.event {
            Event::Minted { .. } => summary.minted += 1,
            Event::Voided { .. } => summary.voided += 1,
            Event::Completed { id, loss, tokens, .. } => {
                if !seen.insert(*id) {
                    summary.broken(format!("{} completed twice", super::once::name(id)));
                }
                summary.completed += 1;
                summary.tokens += u64::from(*tokens);
                losses.push(*loss);
            }
            Event::Stepped { run_step, .. } => {
                summary.steps += 1;
                summary.run_steps = summary.run_steps.max(*run_step);
            }
            Event::SentForward { bytes, raw, .. } => {
                summary.bytes_activations += bytes;
                summary.bytes_if_f32 += raw;
            }
            Event::SentBackward { bytes, .. } => summary.bytes_gradients += bytes,
            _ => {}
        }
    }
    let tenth = losses.len().div_ceil(10);
    summary.loss_first = mean(&losses[..losses.len().min(8)]);
    summary.loss_last = mean(&losses[losses.len() - tenth..]);
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
