//! Where peers are: delays between regions, and how many live in each. The matrices of `data/regions/`, each with its source.

use serde::Deserialize;

use crate::engine::Time;

/// Names of the matrices.
pub const MATRICES: [&str; 4] = ["one", "population", "aws", "gcp"];

/// A square matrix of delays, and shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Regions {
    pub names: Vec<String>,
    /// Part of the peers in each.
    pub shares: Vec<f64>,
    /// Hours that its clocks are ahead of UTC.
    pub utc: Vec<f64>,
    /// One way from region to region, beside the last miles. Symmetric.
    pub delay: Vec<Vec<Time>>,
    /// Bytes a second that one stream between two regions gets at most; 0: not known, no limit.
    pub stream: Vec<Vec<u64>>,
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    source: String,
    /// The delays are round trips.
    halve: bool,
    /// Between peers of one region, ms.
    within: f64,
    region: Vec<Region>,
    #[serde(default)]
    between: Vec<Between>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Region {
    name: String,
    weight: u32,
    utc: f64,
    within: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Between {
    a: String,
    b: String,
    ms: f64,
    #[serde(default)]
    gbit: f64,
    /// Not of the source.
    #[serde(default, rename = "filled")]
    _filled: bool,
}

/// One of [`MATRICES`].
pub fn matrix(name: &str) -> Option<Regions> {
    Some(of(super::table(match name {
        "one" => include_str!("../../data/regions/one.toml"),
        "population" => include_str!("../../data/regions/population.toml"),
        "aws" => include_str!("../../data/regions/aws.toml"),
        "gcp" => include_str!("../../data/regions/gcp.toml"),
        _ => return None,
    })))
}

fn of(file: File) -> Regions {
    let count = file.region.len();
    let number = |name: &str| {
        file.region.iter().position(|region| region.name == name).expect("delays are between regions that are listed")
    };
    let part = if file.halve { 0.5 } else { 1.0 };
    let ns = |ms: f64| (ms * part * 1e6).round() as Time;
    let mut delay = vec![vec![Time::MAX; count]; count];
    let mut stream = vec![vec![0; count]; count];
    for (i, region) in file.region.iter().enumerate() {
        delay[i][i] = ns(region.within.unwrap_or(file.within));
    }
    for between in &file.between {
        let (a, b) = (number(&between.a), number(&between.b));
        for (from, to) in [(a, b), (b, a)] {
            delay[from][to] = ns(between.ms);
            stream[from][to] = (between.gbit * 125e6).round() as u64;
        }
    }
    let all: u32 = file.region.iter().map(|region| region.weight).sum();
    Regions {
        shares: file.region.iter().map(|region| f64::from(region.weight) / f64::from(all)).collect(),
        utc: file.region.iter().map(|region| region.utc).collect(),
        names: file.region.into_iter().map(|region| region.name).collect(),
        delay,
        stream,
        source: file.source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_matrix_is_whole_and_symmetric() {
        for name in MATRICES {
            let regions = matrix(name).unwrap();
            let count = regions.names.len();
            for a in 0..count {
                for b in 0..count {
                    assert!(
                        regions.delay[a][b] < 1_000_000_000,
                        "{name}: {} to {}",
                        regions.names[a],
                        regions.names[b]
                    );
                    assert_eq!(
                        (regions.delay[a][b], regions.stream[a][b]),
                        (regions.delay[b][a], regions.stream[b][a])
                    );
                }
            }
            assert!((regions.shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        assert_eq!(matrix("mars"), None);
    }

    #[test]
    fn known_pairs_have_their_published_values() {
        let delay = |matrix: &Regions, a: &str, b: &str| {
            let number = |name: &str| matrix.names.iter().position(|known| known == name).unwrap();
            matrix.delay[number(a)][number(b)]
        };
        let aws = matrix("aws").unwrap();
        assert_eq!(delay(&aws, "sydney", "frankfurt"), 132_500_000);
        assert_eq!(aws.stream[0][1], 98_750_000);
        let population = matrix("population").unwrap();
        assert_eq!(delay(&population, "eu", "na_east"), 70_000_000);
        assert_eq!(delay(&population, "west_asia", "west_asia"), 5_000_000);
        assert!((population.shares[0] - 5599.0 / 11326.0).abs() < 1e-9);
        assert_eq!(delay(&matrix("gcp").unwrap(), "london", "australia"), 132_000_000);
        assert_eq!(matrix("one").unwrap().delay, [[0]]);
    }
}
