//! The tables for other programs: `series.csv` (a row a sample), `peers.csv`, `stages.csv`. A column `seed` comes first, so that
//! several seeds stand in one file. What is not known is an empty cell.

use std::fmt::Write;

use crate::outcome::Outcome;

pub fn series(outcomes: &[Outcome]) -> String {
    let stages = outcomes
        .iter()
        .flat_map(|outcome| &outcome.series)
        .map(|sample| sample.replicas.len().max(sample.busy.len()))
        .max()
        .unwrap_or(0);
    let mut text = String::from(
        "seed,at_s,for_s,alive,serving,tokens,tokens_per_s,completed,goodput,activations_bytes,gradients_bytes,\
         averaging_bytes,weights_bytes,control_bytes,staleness_p50,staleness_p99,loss,disagreement",
    );
    for stage in 0..stages {
        write!(text, ",replicas_{stage}").expect("text grows");
    }
    for stage in 0..stages {
        write!(text, ",busy_{stage}").expect("text grows");
    }
    text.push('\n');
    for outcome in outcomes {
        for sample in &outcome.series {
            let per_s = if sample.for_s > 0.0 { sample.tokens as f64 / sample.for_s } else { f64::NAN };
            let traffic = &sample.traffic;
            let mut row = Row::new(outcome.seed);
            row.real(sample.at_s).real(sample.for_s).whole(sample.alive.into()).whole(sample.serving.into());
            row.whole(sample.tokens).real(per_s).whole(sample.completed).real(sample.goodput);
            row.whole(traffic.activations).whole(traffic.gradients).whole(traffic.averaging).whole(traffic.weights);
            row.whole(traffic.control).whole(sample.staleness_p50.into()).whole(sample.staleness_p99.into());
            row.real(sample.loss.unwrap_or(f64::NAN)).real(sample.disagreement.unwrap_or(f64::NAN));
            for stage in 0..stages {
                match sample.replicas.get(stage) {
                    Some(replicas) => row.whole(u64::from(*replicas)),
                    None => row.real(f64::NAN),
                };
            }
            for stage in 0..stages {
                // As it was measured: a longer number would be that of the wider type.
                row.word(&sample.busy.get(stage).filter(|busy| busy.is_finite()).map_or(String::new(), f32::to_string));
            }
            row.end(&mut text);
        }
    }
    text
}

pub fn peers(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "seed,peer,device,access,region,stage,alive_s,serving_s,busy_s,sending_s,sent_bytes,received_bytes,joined,died\n",
    );
    for outcome in outcomes {
        for peer in &outcome.rows {
            let mut row = Row::new(outcome.seed);
            row.whole(peer.peer.into()).word(&peer.device).word(&peer.access).word(&peer.region);
            row.word(&peer.stage.map_or(String::new(), |stage| stage.to_string()));
            row.real(peer.alive_s).real(peer.serving_s).real(peer.busy_s).real(peer.sending_s);
            row.whole(peer.sent).whole(peer.received).whole(peer.joined.into()).whole(peer.died.into());
            row.end(&mut text);
        }
    }
    text
}

pub fn stages(outcomes: &[Outcome]) -> String {
    let mut text = String::from("seed,stage,replicas,replicas_min,busy,sending,receiving,completed,empty_s\n");
    for outcome in outcomes {
        for stage in &outcome.by_stage {
            let mut row = Row::new(outcome.seed);
            row.whole(stage.stage.into()).real(stage.replicas).whole(stage.replicas_min.into());
            row.real(stage.busy).real(stage.sending).real(stage.receiving).whole(stage.completed).real(stage.empty_s);
            row.end(&mut text);
        }
    }
    text
}

pub(super) struct Row {
    text: String,
}

impl Row {
    fn new(seed: u64) -> Row {
        Row { text: seed.to_string() }
    }

    pub(super) fn starting(word: &str) -> Row {
        Row { text: quoted(word) }
    }

    pub(super) fn whole(&mut self, value: u64) -> &mut Row {
        write!(self.text, ",{value}").expect("text grows");
        self
    }

    pub(super) fn real(&mut self, value: f64) -> &mut Row {
        self.text.push(',');
        if value.is_finite() {
            write!(self.text, "{value}").expect("text grows");
        }
        self
    }

    pub(super) fn word(&mut self, word: &str) -> &mut Row {
        self.text.push(',');
        self.text.push_str(&quoted(word));
        self
    }

    pub(super) fn end(self, text: &mut String) {
        text.push_str(&self.text);
        text.push('\n');
    }
}

/// By RFC 4180: quotes around what holds a comma, a quote or a line's end.
pub(super) fn quoted(word: &str) -> String {
    if word.contains([',', '"', '\n', '\r']) { format!("\"{}\"", word.replace('"', "\"\"")) } else { word.into() }
}
