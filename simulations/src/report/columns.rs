//! The time series as few enough columns to draw: neighbours are put together so that sums stay sums, and what must not be
//! overlooked (nobody at a stage, the largest staleness) is not averaged away.

use crate::outcome::{Sample, Traffic};

/// Some samples as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    pub from_s: f64,
    pub to_s: f64,
    pub tokens_per_s: f64,
    pub goodput: f64,
    /// At its end.
    pub alive: u32,
    pub serving: u32,
    pub traffic: Traffic,
    /// The largest of its samples.
    pub staleness_p50: u32,
    pub staleness_p99: u32,
    /// Mean over tokens.
    pub loss: Option<f64>,
    /// The largest.
    pub disagreement: Option<f64>,
    /// Of each stage: the fewest replicas, and the mean busy part.
    pub replicas: Vec<u32>,
    pub busy: Vec<f64>,
}

/// At most `most` columns, each of equally many samples but the last.
pub fn columns(series: &[Sample], most: usize) -> Vec<Column> {
    let each = series.len().div_ceil(most.max(1)).max(1);
    series.chunks(each).map(together).collect()
}

fn together(samples: &[Sample]) -> Column {
    let last = samples.last().expect("a chunk holds a sample");
    let length: f64 = samples.iter().map(|sample| real(sample.for_s)).sum();
    let tokens: u64 = samples.iter().map(|sample| sample.tokens).sum();
    let mut column = Column {
        to_s: real(last.at_s),
        from_s: real(last.at_s) - length,
        tokens_per_s: if length > 0.0 { tokens as f64 / length } else { 0.0 },
        goodput: mean(samples.iter().map(|sample| (sample.goodput, sample.for_s))).unwrap_or(f64::NAN),
        alive: last.alive,
        serving: last.serving,
        staleness_p50: samples.iter().map(|sample| sample.staleness_p50).max().unwrap_or(0),
        staleness_p99: samples.iter().map(|sample| sample.staleness_p99).max().unwrap_or(0),
        loss: mean(samples.iter().filter_map(|sample| Some((sample.loss?, sample.tokens.max(1) as f64)))),
        disagreement: samples
            .iter()
            .filter_map(|sample| sample.disagreement)
            .filter(|value| value.is_finite())
            .fold(None, |most: Option<f64>, value| Some(most.map_or(value, |most| most.max(value)))),
        ..Column::default()
    };
    for sample in samples {
        column.traffic.activations += sample.traffic.activations;
        column.traffic.gradients += sample.traffic.gradients;
        column.traffic.averaging += sample.traffic.averaging;
        column.traffic.weights += sample.traffic.weights;
        column.traffic.control += sample.traffic.control;
    }
    let stages = samples.iter().map(|sample| sample.replicas.len().max(sample.busy.len())).max().unwrap_or(0);
    for stage in 0..stages {
        column
            .replicas
            .push(samples.iter().map(|sample| sample.replicas.get(stage).copied().unwrap_or(0)).min().unwrap_or(0));
        let busy = samples.iter().filter_map(|sample| Some((f64::from(*sample.busy.get(stage)?), sample.for_s)));
        column.busy.push(mean(busy).unwrap_or(0.0));
    }
    column
}

/// Of pairs of value and weight; what is no number does not count.
fn mean(pairs: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut sum, mut weight) = (0.0, 0.0);
    for (value, of) in pairs {
        if value.is_finite() && of.is_finite() && of > 0.0 {
            sum += value * of;
            weight += of;
        }
    }
    (weight > 0.0).then(|| sum / weight)
}

fn real(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_of_one_sample_is_still_a_hole_among_a_thousand() {
        let mut series: Vec<Sample> = (1..=1000)
            .map(|at| Sample {
                at_s: f64::from(at),
                for_s: 1.0,
                tokens: 10,
                goodput: 1.0,
                replicas: vec![3, 2],
                ..Sample::default()
            })
            .collect();
        series[500].replicas[1] = 0;
        series[501].goodput = f64::NAN;
        let columns = columns(&series, 300);
        assert!(columns.len() <= 300);
        assert_eq!(columns.iter().filter(|column| column.replicas[1] == 0).count(), 1);
        assert!(columns.iter().all(|column| (column.tokens_per_s - 10.0).abs() < 1e-9 && column.goodput == 1.0));
    }

    #[test]
    fn no_sample_gives_no_column() {
        assert!(columns(&[], 300).is_empty());
    }
}
