//! What the feeders saw: ids, losses, tokens, throughput.

use std::collections::VecDeque;

use skein_protocol::event::Event;

use super::{Line, Summary};

/// Losses of the beginning.
const FIRST: usize = 8;

#[derive(Debug, Default)]
pub struct Progress {
    /// Losses of the beginning, and of the last tenth.
    first: Vec<f32>,
    last: VecDeque<f32>,
    found: Summary,
}

impl Progress {
    pub fn on_line(&mut self, line: &Line) {
        let summary = &mut self.found;
        match &line.record.event {
            Event::Minted { .. } => summary.minted += 1,
            Event::Voided { .. } => summary.voided += 1,
            Event::Completed { loss, tokens, .. } => {
                summary.completed += 1;
                summary.tokens += u64::from(*tokens);
                if self.first.len() < FIRST {
                    self.first.push(*loss);
                }
                self.last.push_back(*loss);
                if self.last.len() as u64 > summary.completed.div_ceil(10) {
                    self.last.pop_front();
                }
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
        *summary =
            Summary { loss_first: mean(self.first.into_iter()), loss_last: mean(self.last.into_iter()), ..self.found };
    }
}

fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len();
    let sum: f64 = values.map(f64::from).sum();
    if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
}

/// Completions a second between two times.
pub fn rate(lines: &[Line], from: u64, until: u64) -> f64 {
    let count = lines
        .iter()
        .filter(|line| (from..until).contains(&line.at) && matches!(line.record.event, Event::Completed { .. }))
        .count();
    count as f64 * 1e9 / until.saturating_sub(from).max(1) as f64
}
