//! How machines are connected: the table `data/access.toml`, single accesses and mixes of them.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{network::Access, unit};
use crate::engine::Time;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    down: String,
    up: String,
    delay: String,
    jitter: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    access: BTreeMap<String, Row>,
    mix: BTreeMap<String, BTreeMap<String, f64>>,
}

/// The table: accesses by name, and names that stand for shares of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Accesses {
    pub access: BTreeMap<String, Access>,
    pub mix: BTreeMap<String, BTreeMap<String, f64>>,
}

/// An access whose delay has this mean, and this standard deviation as a part of it. Links draw uniformly from the delay up to
/// the jitter more, so that the span is sqrt(12) deviations wide.
pub fn of(up: u64, down: u64, mean: Time, deviation: f64) -> Access {
    let span = (mean as f64 * deviation * 12f64.sqrt()).min(mean as f64);
    let jitter = span as Time;
    let delay = mean - jitter / 2;
    Access { delay: Duration::from_nanos(delay), jitter: Duration::from_nanos(jitter), up, down }
}

impl Accesses {
    pub fn table() -> Self {
        let File { access, mix } = super::table(include_str!("../../data/access.toml"));
        let read = |(name, row): (String, Row)| {
            let rate = |text: &str| unit::rate(text).expect("the table's rates are rates");
            let mean = unit::time(&row.delay).expect("the table's delays are times");
            (name, of(rate(&row.up), rate(&row.down), mean, row.jitter))
        };
        Accesses { access: access.into_iter().map(read).collect(), mix }
    }

    /// Accesses and mixes.
    pub fn names(&self) -> Vec<String> {
        self.mix.keys().chain(self.access.keys()).cloned().collect()
    }

    /// Shares of single accesses, mixes taken apart.
    pub fn shares(&self, of: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
        let mut shares: BTreeMap<String, f64> = BTreeMap::new();
        for (name, share) in of {
            match self.mix.get(name) {
                Some(parts) => {
                    parts.iter().for_each(|(part, of)| *shares.entry(part.clone()).or_default() += share * of)
                }
                None => *shares.entry(name.clone()).or_default() += share,
            }
        }
        shares.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_and_its_mixes_are_whole() {
        let table = Accesses::table();
        let cable = table.access["cable"];
        assert_eq!((cable.up, cable.down), (2_500_000, 37_500_000));
        assert_eq!(cable.delay + cable.jitter / 2, Duration::from_millis(8));
        for (name, parts) in &table.mix {
            let sum: f64 = parts.values().sum();
            assert!((sum - 1.0).abs() < 1e-9, "{name} sums to {sum}");
            assert!(parts.keys().all(|part| table.access.contains_key(part)), "{name}");
        }
    }

    #[test]
    fn a_mix_is_taken_apart() {
        let table = Accesses::table();
        let shares = table.shares(&[("home".into(), 0.5), ("cable".into(), 0.5)].into());
        let cable = shares.iter().find(|(name, _)| name == "cable").unwrap().1;
        assert!((cable - 0.65).abs() < 1e-12, "{cable}");
        assert_eq!(shares.len(), 7);
    }
}
