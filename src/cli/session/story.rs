//! What a peer tells the person in front of it: news as sentences, the state of the run as one line. In: records and pictures.
//! Out: lines through [`Out`].

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use skein_protocol::{
    Lane, Manifest,
    event::{Event, Record, Severity},
    hash::Digest,
};

use super::trouble::Troubles;
use crate::{
    cli::{
        out::{Mark, Out},
        show::{self, Bytes, Count, Peer, Span, counted},
    },
    watch::{Phase, State},
};

/// Between two lines of a log.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// A wait that is longer is named; one that is longer than the second gets advice.
const WAIT_NAMED: u64 = 3_000;
const WAIT_ADVISED: u64 = 30_000;

pub struct Story {
    out: Out,
    troubles: Troubles,
    first_layers: Vec<(u32, u32)>,
    /// Of each stage's frozen weights, where such are beside adapters.
    frozen: Vec<Option<Digest>>,
    bar: Option<ProgressBar>,
    line_at: Instant,
    advised: Option<String>,
    /// As last seen.
    losses: Option<String>,
}

impl Story {
    pub fn new(out: &Out, manifest: &Manifest) -> Self {
        let bar = out.style().progress.then(|| {
            let bar = out.bars().add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is fixed"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Story {
            out: out.clone(),
            troubles: Troubles::new(manifest),
            first_layers: (0..manifest.stages.count).map(|stage| manifest.layers_of(stage)).collect(),
            frozen: (0..manifest.stages.count).map(|stage| manifest.frozen(stage)).collect(),
            bar,
            line_at: Instant::now(),
            advised: None,
            losses: None,
        }
    }

    /// One event. In `--json` each is a line of the result.
    pub fn hear(&mut self, record: &Record) {
        if self.out.style().json {
            self.out.record(record);
        }
        let out = &self.out;
        match &record.event {
            Event::PeerUp { peer } => out.say(Mark::Note, &format!("{} is here", Peer(*peer)), &[("peer", peer)]),
            Event::PeerLost { peer, why, .. } => {
                out.say(Mark::Warning, &format!("{} is gone: {why}", Peer(*peer)), &[("peer", peer)]);
            }
            Event::Joining { stage, why } => {
                out.say(Mark::Note, &format!("taking {}: {why}", self.stage(*stage)), &[("stage", stage)]);
            }
            Event::Shelved { blob, from, bytes } => {
                let what = self.of_blob(*blob);
                out.say(Mark::Done, &format!("{what} from {}, {}", Peer(*from), Bytes(*bytes)), &[("bytes", bytes)]);
            }
            Event::Fetched { from: Some(from), bytes, .. } => {
                out.say(Mark::Done, &format!("weights from {}, {}", Peer(*from), Bytes(*bytes)), &[("bytes", bytes)]);
            }
            Event::StageLeft { stage } => {
                out.say(Mark::Note, &format!("left {}", self.stage(*stage)), &[("stage", stage)]);
            }
            Event::Serving { stage, version } => {
                let sentence = format!("serving {} since own step {}", self.stage(*stage), version.own_step);
                out.say(Mark::Done, &sentence, &[("stage", stage), ("own_step", &version.own_step)]);
            }
            Event::StageBack { stage, peer } => {
                out.say(
                    Mark::Done,
                    &format!("{} is served again, by {}", self.stage(*stage), Peer(*peer)),
                    &[("stage", stage)],
                );
            }
            Event::Restored { stage, version, from_seed: false } if version.peer == record.peer => {
                let sentence =
                    format!("{} goes on from its checkpoint of own step {}", self.stage(*stage), version.own_step);
                out.say(Mark::Note, &sentence, &[("stage", stage), ("own_step", &version.own_step)]);
            }
            Event::Recoded { to, lane, codec, zstd, bytes_per_s, takes_us, took_us, .. } => {
                let what = if *lane == Lane::Gradient { "gradients" } else { "activations" };
                let codec = format!("{codec:?}{}", if *zstd { " and zstd" } else { "" }).to_lowercase();
                let (takes, took) = (takes_us / 1000, took_us / 1000);
                let sentence = format!(
                    "{what} to {} go as {codec} from now on: {takes} ms instead of {took}, at {}/s",
                    Peer(*to),
                    Bytes(*bytes_per_s),
                );
                out.say(Mark::Note, &sentence, &[("peer", to), ("bytes_per_s", bytes_per_s)]);
            }
            Event::Fenced { why, .. } => {
                out.say(Mark::Warning, &format!("starting over as a new incarnation: {why}"), &[])
            }
            Event::Penalised { peer, severity: Severity::Hostile, why } => {
                out.say(Mark::Warning, &format!("{} is kept away: {why}", Peer(*peer)), &[("peer", peer)]);
            }
            Event::RunEnded { why } => out.say(Mark::Done, &format!("the run has ended: {why}"), &[]),
            _ => {}
        }
        if let Some(trouble) = self.troubles.hear(record) {
            self.out.trouble(&trouble);
        }
    }

    /// How it stands.
    pub fn show(&mut self, state: &State) {
        self.losses = show::losses(state.loss, state.held_out_loss).or(self.losses.take());
        let text = self.text(state);
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if self.line_at.elapsed() >= LINE_EVERY && !self.out.style().json => {
                self.line_at = Instant::now();
                let loss = state.loss.map_or("unknown".into(), |loss| format!("{loss:.3}"));
                let fields: [(&str, &dyn std::fmt::Display); 4] = [
                    ("step", &state.step),
                    ("loss", &loss),
                    ("peers", &state.peers.len()),
                    ("up_bytes", &state.given.bytes_up),
                ];
                self.out.say(Mark::Note, &text, &fields);
            }
            None => {}
        }
        self.troubles.see(state).iter().for_each(|trouble| self.out.trouble(trouble));
        self.advise(state);
    }

    /// What it came to.
    pub fn end(self) {
        if let Some(losses) = &self.losses {
            self.out.done(&format!("the last {losses}"));
        }
    }

    fn text(&self, state: &State) -> String {
        if let Some(waiting) =
            state.waiting.as_ref().filter(|w| state.utc_ms.saturating_sub(w.since_utc_ms) > WAIT_NAMED)
        {
            let since = Span::from(state.utc_ms.saturating_sub(waiting.since_utc_ms));
            return format!("waiting for {} since {since}", waiting.what);
        }
        let fetching = state.mine.iter().find_map(|mine| Some((mine.stage, mine.fetched_percent?)));
        if let Some((stage, percent)) = fetching {
            return format!("{percent} % of the weights of {} are here", self.stage(stage));
        }
        let end = state.steps_end.map_or(String::new(), |end| format!("/{end}"));
        let mut text = format!("step {}{end}", Count(state.step));
        if let Some(losses) = show::losses(state.loss, state.held_out_loss) {
            text.push_str(&format!("  {losses}"));
        }
        if let Some(rate) = state.tokens_per_s {
            text.push_str(&format!("  {}", show::tokens_per_s(rate)));
        }
        let others = state.peers.iter().filter(|peer| peer.connected).count();
        text.push_str(&match others {
            0 => "  alone".to_string(),
            n => format!("  {}", counted(n as u64, "other peer")),
        });
        if let Some(left) = state.remaining() {
            text.push_str(&format!("  {} left", Span(left)));
        }
        if state.phase == Phase::Draining {
            text = "draining: finishing or handing on what was accepted".into();
        }
        text
    }

    /// Says once what would help, when a wait has become long.
    fn advise(&mut self, state: &State) {
        let Some(waiting) = &state.waiting else { return self.advised = None };
        let long = state.utc_ms.saturating_sub(waiting.since_utc_ms) > WAIT_ADVISED;
        // A stage without a replica was said with its own advice.
        if long && !self.troubles.said_empty() && self.advised.as_ref() != Some(&waiting.what) {
            self.advised = Some(waiting.what.clone());
            self.out.warn(&format!("still waiting for {}. Another peer helps: skein invite", waiting.what));
        }
    }

    /// What the manifest means by a hash.
    fn of_blob(&self, blob: Digest) -> String {
        match self.frozen.iter().position(|frozen| *frozen == Some(blob)) {
            Some(stage) => format!("frozen weights of {}", self.stage(stage as u16)),
            None => "tokenizer".into(),
        }
    }

    fn stage(&self, stage: u16) -> String {
        match self.first_layers.get(usize::from(stage)) {
            Some((_, 1)) if self.first_layers.len() > 1 => {
                let (first, _) = self.first_layers[usize::from(stage)];
                format!("stage {stage} (layer {first})")
            }
            Some((first, layers)) => format!("stage {stage} (layers {first}-{})", first + layers.saturating_sub(1)),
            None => format!("stage {stage}"),
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if let Some(trouble) = self.troubles.rest() {
            self.out.trouble(&trouble);
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            self.out.bars().remove(bar);
        }
    }
}
