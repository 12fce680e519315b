//! P6: no gradient enters a sum that is older than the manifest allows.

use skein_protocol::event::Event;

use super::{Findings, Line, Property, Summary, once::name};

#[derive(Debug)]
pub struct Staleness {
    bound: u32,
    /// How many were so many steps late; the last place is for all that were more.
    counts: Vec<u64>,
}

/// Steps that are told apart.
const TOLD_APART: usize = 256;

impl Staleness {
    pub fn new(bound: u32) -> Self {
        Staleness { bound, counts: Vec::new() }
    }

    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let Event::Added { id, stage, staleness, .. } = &line.record.event else { return };
        let place = (*staleness as usize).min(TOLD_APART);
        if self.counts.len() <= place {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
        if *staleness > self.bound {
            found.add(Property::P6, format!("{} was added at stage {stage} {staleness} steps late", name(id)));
        }
    }

    pub fn finish(self, summary: &mut Summary) {
        summary.staleness = self.counts;
    }
}

/// Below which `share` of what was counted lies.
pub fn quantile(counts: &[u64], share: f64) -> u32 {
    let all: u64 = counts.iter().sum();
    let wanted = (all as f64 * share).ceil().max(1.0) as u64;
    let mut so_far = 0;
    let found = counts.iter().position(|count| {
        so_far += count;
        so_far >= wanted
    });
    found.unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_least_that_enough_do_not_exceed() {
        assert_eq!(quantile(&[], 0.5), 0);
        assert_eq!([0.5, 0.51, 0.99, 1.0].map(|share| quantile(&[5, 4, 0, 1], share)), [0, 1, 3, 3]);
    }
}
