//! Our own real runs beside their simulation. In: pairs of throughputs that somebody else measured. Out: a table.

use serde::{Deserialize, Serialize};

use super::{Row, Table};

/// One topology under one churn script: real processes behind a shaping proxy, and the same at protocol fidelity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub topology: String,
    pub churn: String,
    pub simulated_tokens_per_s: f64,
    pub measured_tokens_per_s: f64,
}

/// Medians of the gaps may be this large, and no gap larger than the second: the bar that Helix sets.
const MEDIAN: f64 = 0.10;
const LARGEST: f64 = 0.15;
/// Measured throughputs nearer to each other than this have no order: repeated real runs differ as much.
const TIE: f64 = 0.03;

/// `fill`: part of a simulated link that bodies get.
pub fn loopback(rows: &[Measured], fill: f64) -> Table {
    let gap = |row: &Measured| row.simulated_tokens_per_s / row.measured_tokens_per_s - 1.0;
    let mut sizes: Vec<f64> = rows.iter().map(|row| gap(row).abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let row = |row: &Measured| Row {
        what: format!("{}, {}", row.topology, row.churn),
        ours: format!("{:.0}", row.simulated_tokens_per_s),
        theirs: format!("{:.0}", row.measured_tokens_per_s),
        gap: format!("{:+.1}%", 100.0 * gap(row)),
        holds: Some(gap(row).abs() <= LARGEST),
    };
    let mut table: Vec<Row> = rows.iter().map(row).collect();
    if !rows.is_empty() {
        let median = (sizes[(sizes.len() - 1) / 2] + sizes[sizes.len() / 2]) / 2.0;
        table.push(Row {
            what: "median gap".into(),
            gap: format!("{:.1}%", 100.0 * median),
            holds: Some(median <= MEDIAN),
            ..Row::default()
        });
        let (wrong, pairs) = inversions(rows);
        table.push(Row {
            what: format!(
                "same ranking: pairs in the other order, of {pairs} that differ by more than {:.0}%",
                100.0 * TIE
            ),
            ours: wrong.to_string(),
            theirs: "0".into(),
            gap: format!("tau {:.2}, rho {:.2}", tau(rows), rho(rows)),
            holds: Some(wrong == 0),
        });
    }
    Table {
        title: "Our own runs: real processes against simulation".into(),
        source: "8 real processes of this program on one machine, through the shaping proxy; tokens/s".into(),
        how: vec![
            "The same manifest, links and churn script, once as processes and once at protocol fidelity with devices as fast as one thread here."
                .into(),
            format!(
                "Bodies get {:.0}% of a simulated link: one number, fitted to these rows.",
                100.0 * fill
            ),
            "tau is Kendall's, rho is Spearman's rank correlation of simulated and measured throughput.".into(),
        ],
        bound: format!(
            "median gap at most {:.0}%, largest at most {:.0}%, same ranking.",
            100.0 * MEDIAN,
            100.0 * LARGEST
        ),
        rows: table,
    }
}

fn pairs(rows: &[Measured]) -> impl Iterator<Item = (&Measured, &Measured)> {
    (0..rows.len()).flat_map(move |a| (a + 1..rows.len()).map(move |b| (&rows[a], &rows[b])))
}

/// Pairs that differ in reality, and those of them that the simulation puts the other way round.
fn inversions(rows: &[Measured]) -> (usize, usize) {
    let differ = |a: f64, b: f64| (a - b).abs() > TIE * a.max(b);
    let told = pairs(rows).filter(|(a, b)| differ(a.measured_tokens_per_s, b.measured_tokens_per_s));
    let wrong = |(a, b): &(&Measured, &Measured)| {
        let real = a.measured_tokens_per_s < b.measured_tokens_per_s;
        real != (a.simulated_tokens_per_s < b.simulated_tokens_per_s)
    };
    let told: Vec<_> = told.collect();
    (told.iter().filter(|pair| wrong(pair)).count(), told.len())
}

/// Kendall's rank correlation, without ties.
fn tau(rows: &[Measured]) -> f64 {
    let sign = |(a, b): (&Measured, &Measured)| {
        let simulated = a.simulated_tokens_per_s.total_cmp(&b.simulated_tokens_per_s) as i32;
        f64::from(simulated * a.measured_tokens_per_s.total_cmp(&b.measured_tokens_per_s) as i32)
    };
    let signs: Vec<f64> = pairs(rows).map(sign).collect();
    super::mean(&signs)
}

/// Spearman's rank correlation, without ties.
fn rho(rows: &[Measured]) -> f64 {
    let n = rows.len() as f64;
    let ranks = |of: fn(&Measured) -> f64| -> Vec<f64> {
        rows.iter().map(|row| rows.iter().filter(|other| of(other) < of(row)).count() as f64).collect()
    };
    let (a, b) = (ranks(|row| row.simulated_tokens_per_s), ranks(|row| row.measured_tokens_per_s));
    let squares: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    if n < 2.0 { 1.0 } else { 1.0 - 6.0 * squares / (n * (n * n - 1.0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(pairs: &[(f64, f64)]) -> Vec<Measured> {
        let row = |(simulated, real): &(f64, f64)| Measured {
            topology: "t".into(),
            churn: "c".into(),
            simulated_tokens_per_s: *simulated,
            measured_tokens_per_s: *real,
        };
        pairs.iter().map(row).collect()
    }

    #[test]
    fn near_and_in_order_holds() {
        let table = loopback(&measured(&[(105.0, 100.0), (210.0, 200.0), (290.0, 300.0)]), 0.8);
        assert!(table.broken().is_empty(), "{table:?}");
        assert_eq!((tau(&measured(&[(1.0, 1.0), (2.0, 2.0)])), rho(&measured(&[(1.0, 2.0), (2.0, 1.0)]))), (1.0, -1.0));
    }

    #[test]
    fn another_order_a_far_one_and_a_poor_median_do_not_hold() {
        let broken = |pairs: &[(f64, f64)]| loopback(&measured(pairs), 0.8).broken().len();
        assert_eq!(broken(&[(100.0, 104.0), (99.0, 110.0)]), 1, "the order");
        assert_eq!(broken(&[(100.0, 100.0), (240.0, 200.0), (300.0, 300.0)]), 1, "one that is far");
        assert_eq!(broken(&[(112.0, 100.0), (224.0, 200.0), (336.0, 300.0)]), 1, "the median");
        assert_eq!(broken(&[(101.0, 100.0), (100.0, 101.0)]), 0, "no order among equals");
        assert_eq!(broken(&[]), 0);
    }
}
