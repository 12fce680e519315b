//! P6: no gradient enters a sum that is older than the manifest allows.

use serde::{Deserialize, Serialize};
use skein_protocol::event::Event;

use super::{Findings, Line, Property, Summary, once::name};

/// Steps that are told apart; the last place is for all that were more.
const TOLD_APART: usize = 256;

/// How many gradients were so many own steps late.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(Vec<u64>);

impl Counts {
    pub fn add(&mut self, staleness: u32) {
        let place = (staleness as usize).min(TOLD_APART);
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] += 1;
    }

    /// Below which `share` of what was counted lies.
    pub fn quantile(&self, share: f64) -> u32 {
        let all: u64 = self.0.iter().sum();
        let wanted = (all as f64 * share).ceil().max(1.0) as u64;
        let mut so_far = 0;
        let found = self.0.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        });
        found.unwrap_or(0) as u32
    }
}

#[derive(Debug)]
pub struct Staleness {
    bound: u32,
    counts: Counts,
}

impl Staleness {
    pub fn new(bound: u32) -> Self {
        Staleness { bound, counts: Counts::default() }
    }

    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let Event::Added { id, stage, staleness, .. } = &line.record.event else { return };
        self.counts.add(*staleness);
        if *staleness > self.bound {
            found.add(Property::P6, format!("{} was added at stage {stage} {staleness} steps late", name(id)));
        }
    }

    pub fn finish(self, summary: &mut Summary) {
        summary.staleness = self.counts;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_least_that_enough_do_not_exceed() {
        assert_eq!(Counts::default().quantile(0.5), 0);
        assert_eq!([0.5, 0.51, 0.99, 1.0].map(|share| Counts(vec![5, 4, 0, 1]).quantile(share)), [0, 1, 3, 3]);
        let mut late = Counts::default();
        late.add(100_000);
        assert_eq!(late.quantile(1.0), TOLD_APART as u32);
    }
}
