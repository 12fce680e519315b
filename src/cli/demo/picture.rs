//! The demo as it happens: a line a stage, and one with the loss. In: what the feeder sees. Out: lines that stay in place on a
//! terminal, and a line every ten seconds elsewhere.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use skein_protocol::{Manifest, PeerId, Stage};

use crate::{
    cli::{
        out::{Mark, Out},
        petname,
        show::{self, Count},
    },
    node::view::State,
    watch::Pace,
};

const LINE_EVERY: Duration = Duration::from_secs(10);
/// Values of the loss that the small curve shows.
const CURVE: usize = 24;

pub struct Picture {
    out: Out,
    lines: Vec<ProgressBar>,
    layers: Vec<(u32, u32)>,
    tokens_per_sample: u64,
    /// Everybody who ever served a stage, in the order of coming, and when they died (share of the demo).
    replicas: BTreeMap<Stage, Vec<PeerId>>,
    dead: BTreeMap<PeerId, u32>,
    losses: Vec<f32>,
    pace: Pace,
    line_at: Instant,
}

impl Picture {
    pub fn new(out: &Out, manifest: &Manifest) -> Picture {
        let count = usize::from(manifest.stages.count) + 1;
        let style = ProgressStyle::with_template("  {msg}").expect("the template is fixed");
        let line = |_| {
            let line = out.bars().add(ProgressBar::new_spinner());
            line.set_style(style.clone());
            line
        };
        Picture {
            out: out.clone(),
            lines: if out.style().progress { (0..count).map(line).collect() } else { Vec::new() },
            layers: (0..manifest.stages.count).map(|stage| manifest.layers_of(stage)).collect(),
            tokens_per_sample: u64::from(manifest.train.sequence),
            replicas: BTreeMap::new(),
            dead: BTreeMap::new(),
            losses: Vec::new(),
            pace: Pace::default(),
            line_at: Instant::now(),
        }
    }

    pub fn died(&mut self, peer: PeerId, percent: u32) {
        self.dead.insert(peer, percent);
    }

    /// `done`: share of the demo, 0 to 1.
    pub fn show(&mut self, state: &State, done: f64) {
        for stage in &state.peer.stages {
            let known = self.replicas.entry(stage.stage).or_default();
            for peer in &stage.replicas {
                if !known.contains(peer) {
                    known.push(*peer);
                }
            }
        }
        self.pace.note(Duration::from_millis(state.uptime_ms), state.peer.samples * self.tokens_per_sample);
        self.losses.extend(state.peer.loss);
        let stages: Vec<String> =
            state.peer.stages.iter().map(|stage| self.stage(stage.stage, &stage.replicas)).collect();
        let summary = self.summary(state, done);
        for (line, text) in self.lines.iter().zip(stages.into_iter().chain([summary.clone()])) {
            line.set_message(text);
        }
        if self.lines.is_empty() && !self.out.style().json && self.line_at.elapsed() >= LINE_EVERY {
            self.line_at = Instant::now();
            self.out.say(Mark::Note, &summary, &[("step", &state.peer.step)]);
        }
    }

    fn stage(&self, stage: Stage, living: &[PeerId]) -> String {
        let (first, count) = self.layers[usize::from(stage)];
        let layers = match count {
            1 => format!("layer  {first}  "),
            _ => format!("layers {first}-{}", first + count - 1),
        };
        let unicode = self.out.style().unicode;
        let sign = |peer: &PeerId| match (living.contains(peer), self.dead.get(peer)) {
            (_, Some(percent)) => format!("{}{percent}%", if unicode { "✗" } else { "x" }),
            (true, None) => (if unicode { "●" } else { "*" }).to_string(),
            (false, None) => (if unicode { "○" } else { "o" }).to_string(),
        };
        let names: Vec<String> = self
            .replicas
            .get(&stage)
            .into_iter()
            .flatten()
            .map(|peer| format!("{:<20}", format!("{} {}", petname::of(peer), sign(peer))))
            .collect();
        format!("stage {stage}  {layers}  {}", names.concat())
    }

    fn summary(&self, state: &State, done: f64) -> String {
        let mut text = format!("step {}  {:.0} %", Count(state.peer.step), 100.0 * done);
        if let (Some(first), Some(last)) = (self.losses.first(), self.losses.last()) {
            text.push_str(&format!("  loss {first:.2} -> {last:.3}"));
            if self.out.style().unicode {
                text.push_str(&format!("  {}", self.curve()));
            }
        }
        if let Some(rate) = self.pace.per_s() {
            text.push_str(&format!("  {}", show::tokens_per_s(rate)));
        }
        text
    }

    fn curve(&self) -> String {
        const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let max = self.losses.iter().copied().fold(f32::MIN, f32::max);
        let every = self.losses.len().div_ceil(CURVE).max(1);
        let height = |loss: f32| STEPS[((loss / max * 7.99).clamp(0.0, 7.0)) as usize];
        self.losses.chunks(every).map(|chunk| height(chunk.iter().sum::<f32>() / chunk.len() as f32)).collect()
    }

    /// The last state stays as plain lines.
    pub fn finish(&mut self) {
        let last: Vec<String> = self.lines.iter().map(|line| format!("  {}", line.message())).collect();
        self.clear();
        self.out.plain(&last.join("\n"));
    }

    fn clear(&mut self) {
        for line in self.lines.drain(..) {
            line.finish_and_clear();
            self.out.bars().remove(&line);
        }
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        self.clear();
    }
}
