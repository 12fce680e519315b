//! Two summaries side by side: the difference of each headline figure, with its 95% interval. With the same seeds on both sides the
//! difference is taken seed by seed, since equal seeds draw equal worlds; otherwise by Welch's t (unequal variances).

use serde::{Deserialize, Serialize};

use super::{
    estimate::{Estimate, student_t},
    numbers::{bytes, figure},
    summary::{Seed, Summary},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    /// Whether differences were taken seed by seed.
    pub paired: bool,
    pub differences: Vec<Difference>,
    /// What makes the two hard to compare. Sentences.
    pub remarks: Vec<String>,
}

/// One figure: that of B less that of A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub what: String,
    pub a: f64,
    pub b: f64,
    pub difference: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

impl Difference {
    /// The interval does not hold 0: it is more than chance.
    pub fn clear(&self) -> Option<bool> {
        Some(self.low? > 0.0 || self.high? < 0.0)
    }
}

type Part = fn(&Seed) -> Option<f64>;

pub fn compare(a: &Summary, b: &Summary) -> Comparison {
    let same: Vec<u64> = a.seeds.iter().map(|seed| seed.seed).collect();
    let paired = b.seeds.iter().map(|seed| seed.seed).eq(same.iter().copied());
    let figures: [(&str, Part); 6] = [
        ("tokens/s", |seed| Some(seed.tokens_per_s)),
        ("goodput", |seed| Some(seed.goodput)),
        ("bytes a peer", |seed| Some(seed.bytes_per_peer)),
        ("staleness p99", |seed| Some(f64::from(seed.totals.staleness_p99))),
        ("loss", |seed| seed.totals.loss_last),
        ("USD per 10^9 tokens", |seed| seed.usd_per_billion_tokens),
    ];
    let differences = figures.into_iter().filter_map(|(what, part)| difference(what, a, b, part, paired)).collect();
    let mut remarks = Vec::new();
    if a.fidelity != b.fidelity {
        remarks.push("The two ran at different fidelities: part of the difference is that of the models.".into());
    }
    if a.skein != b.skein {
        remarks.push(format!("The two ran with different versions: {} and {}.", a.skein, b.skein));
    }
    if (a.duration_s - b.duration_s).abs() > 1e-9 {
        remarks.push("The two simulated different times.".into());
    }
    if a.config == b.config && paired {
        remarks.push("Both are the same scenario with the same seeds: there is nothing to differ.".into());
    }
    let which = match (a.seeds.len() < 2, b.seeds.len() < 2) {
        (true, true) => Some("both"),
        (true, false) => Some("A"),
        (false, true) => Some("B"),
        (false, false) => None,
    };
    if let Some(which) = which {
        remarks.push(format!("One seed says nothing about chance: run {which} with --seeds 5 for intervals."));
    }
    Comparison { a: a.scenario.clone(), b: b.scenario.clone(), paired, differences, remarks }
}

fn difference(what: &str, a: &Summary, b: &Summary, part: Part, paired: bool) -> Option<Difference> {
    let values = |summary: &Summary| -> Vec<f64> { summary.seeds.iter().filter_map(part).collect() };
    let (left, right) = (values(a), values(b));
    let (of_a, of_b) = (Estimate::of(&left)?, Estimate::of(&right)?);
    let difference = of_b.mean - of_a.mean;
    let half = if paired && left.len() == right.len() {
        let each: Vec<f64> = left.iter().zip(&right).map(|(a, b)| b - a).collect();
        Estimate::of(&each)?.half()
    } else {
        welch(&of_a, &of_b)
    };
    Some(Difference {
        what: what.into(),
        a: of_a.mean,
        b: of_b.mean,
        difference,
        low: half.map(|half| difference - half),
        high: half.map(|half| difference + half),
    })
}

/// Half the interval; the degrees of freedom are those of Welch and Satterthwaite.
fn welch(a: &Estimate, b: &Estimate) -> Option<f64> {
    let (m, n) = (f64::from(a.seeds), f64::from(b.seeds));
    if m < 2.0 || n < 2.0 {
        return None;
    }
    let (of_a, of_b) = (a.deviation * a.deviation / m, b.deviation * b.deviation / n);
    let both = of_a + of_b;
    if both <= 0.0 {
        return Some(0.0);
    }
    let freedom = both * both / (of_a * of_a / (m - 1.0) + of_b * of_b / (n - 1.0));
    Some(student_t(freedom) * both.sqrt())
}

impl Comparison {
    /// As a table for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("A: {}\nB: {}\n\n", plain(&self.a), plain(&self.b));
        text.push_str(&format!("  {:<20} {:>12} {:>12} {:>12}   {}\n", "", "A", "B", "B - A", "95 % interval"));
        for row in &self.differences {
            let written: fn(f64) -> String = match row.what.as_str() {
                "goodput" => |part| format!("{:.2} %", part * 100.0),
                "bytes a peer" => bytes,
                _ => figure,
            };
            let interval = match (row.low, row.high, row.clear()) {
                (Some(low), Some(high), Some(clear)) => {
                    format!("{} to {}{}", written(low), written(high), if clear { "" } else { "  (may be chance)" })
                }
                _ => "-".into(),
            };
            text.push_str(&format!(
                "  {:<20} {:>12} {:>12} {:>12}   {interval}\n",
                row.what,
                written(row.a),
                written(row.b),
                written(row.difference)
            ));
        }
        if self.paired && self.differences.iter().any(|row| row.low.is_some()) {
            text.push_str("\nThe differences are taken seed by seed.\n");
        }
        for remark in &self.remarks {
            text.push_str(remark);
            text.push('\n');
        }
        text
    }
}

fn plain(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(80).collect()
}
