//! Checks the simulator against what is known otherwise: closed forms, published numbers, and what must hold whatever the
//! numbers are. In: nothing but seeds. Out: tables of ours beside theirs, and the page that shows them.
//!
//! Each file makes the tables of one source. A table that cannot reproduce something says so in its notes.

mod bamboo;
mod closed;
mod helix;
mod layout;
mod loopback;
mod metamorphic;
mod rebalance;
mod swarm;
mod worldwide;

use serde::{Deserialize, Serialize};

pub use closed::{bubble, delayed, flows, groups, network};
pub use loopback::{Measured, loopback};
pub use metamorphic::metamorphic;
pub use rebalance::rebalance;
pub use swarm::{latency, overlap, square_cube};

pub use bamboo::bamboo;
pub use helix::helix;
pub use worldwide::worldwide;

/// Ours beside theirs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub title: String,
    /// Where the other numbers come from.
    pub source: String,
    /// How ours come about, what is counted, and what is not reproduced and why: sentences.
    pub how: Vec<String>,
    /// What a row has to keep, in words.
    pub bound: String,
    pub rows: Vec<Row>,
}

/// One number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub what: String,
    pub ours: String,
    pub theirs: String,
    pub gap: String,
    /// Whether the bound is kept; a row without a bound is context.
    pub holds: Option<bool>,
}

impl Table {
    /// Rows whose bound is broken.
    pub fn broken(&self) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.holds == Some(false)).collect()
    }
}

impl Row {
    /// Two numbers with so many decimals, at most `bound` (a part of theirs) apart.
    fn relative(what: impl Into<String>, ours: f64, theirs: f64, decimals: usize, bound: f64) -> Row {
        let gap = if theirs == 0.0 { ours.abs() } else { ours / theirs - 1.0 };
        Row {
            what: what.into(),
            ours: format!("{ours:.decimals$}"),
            theirs: format!("{theirs:.decimals$}"),
            gap: format!("{:+.2}%", 100.0 * gap),
            holds: Some(gap.abs() <= bound),
        }
    }

    /// Two numbers at most `bound` (in their unit) apart.
    fn absolute(what: impl Into<String>, ours: f64, theirs: f64, decimals: usize, bound: f64) -> Row {
        let gap = ours - theirs;
        Row {
            what: what.into(),
            ours: format!("{ours:.decimals$}"),
            theirs: format!("{theirs:.decimals$}"),
            gap: format!("{gap:+.decimals$}"),
            holds: Some(gap.abs() <= bound),
        }
    }
}

/// All tables but that of the loopback runs, which others measure. `say` hears what is under way.
pub fn all(say: &mut dyn FnMut(&str)) -> Vec<Table> {
    type Make = fn() -> Table;
    const TABLES: [(&str, Make); 13] = [
        ("transfers of SimGrid", flows),
        ("the pipeline's bubble", bubble),
        ("averaging in groups", groups),
        ("gradients that come late", delayed),
        ("SWARM's latency table", latency),
        ("the same table with overlap", overlap),
        ("the square-cube law", square_cube),
        ("DT-FM's 64 GPUs worldwide", worldwide),
        ("Bamboo's spot instances", bamboo),
        ("Helix' own gap", helix),
        ("rebalancing", rebalance),
        ("metamorphic checks", metamorphic),
        ("the network's transfers", network),
    ];
    let make = |(what, make): (&str, Make)| {
        say(what);
        make()
    };
    TABLES.into_iter().map(make).collect()
}

/// The page: `machine` and `date` are the caller's, since this crate knows neither.
pub fn markdown(tables: &[Table], machine: &str, date: &str) -> String {
    let checked: Vec<&Row> = tables.iter().flat_map(|table| &table.rows).filter(|row| row.holds.is_some()).collect();
    let held = checked.iter().filter(|row| row.holds == Some(true)).count();
    let mut page = String::from("# Validation\n\n");
    page += "Ours beside what is known otherwise. Made by `skein simulate validate`; every number of ours comes from a seed ";
    page += "and is the same on every machine.\n\n";
    page += &format!("Made on {date}, {machine}. {held} of {} rows with a bound keep it.\n", checked.len());
    for table in tables {
        page += &format!("\n## {}\n\nSource: {}\n\n", table.title, table.source);
        for sentence in &table.how {
            page += &format!("- {sentence}\n");
        }
        page += &format!("\nBound: {}\n\n", table.bound);
        page += "| what | ours | theirs | gap | holds |\n|---|---:|---:|---:|---|\n";
        for Row { what, ours, theirs, gap, holds } in &table.rows {
            let holds = match holds {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let cell = |text: &str| text.replace('|', "\\|");
            page += &format!("| {} | {} | {} | {} | {holds} |\n", cell(what), cell(ours), cell(theirs), cell(gap));
        }
    }
    page
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_counts_what_holds_and_shows_what_does_not() {
        let rows = vec![
            Row::relative("near", 101.0, 100.0, 1, 0.02),
            Row::absolute("far", 2.0, 1.0, 2, 0.5),
            Row { what: "context".into(), ..Row::default() },
        ];
        let table = Table { title: "T".into(), rows, ..Table::default() };
        assert_eq!(table.broken().len(), 1);
        let page = markdown(&[table], "a machine", "2026-01-01");
        for part in
            ["1 of 2 rows", "## T", "| near | 101.0 | 100.0 | +1.00% | yes |", "| far | 2.00 | 1.00 | +1.00 | **no** |"]
        {
            assert!(page.contains(part), "{part} in {page}");
        }
    }
}
