//! How far simulation and prototype of others lie apart: a bar for our own loopback runs, not a test.

use super::{Row, Table};

/// Tokens a second in Helix' simulator and in its prototype: what, simulated, measured.
const PAIRS: [(&str, f64, f64); 12] = [
    ("30B offline, Helix", 339.6, 321.2),
    ("30B offline, Swarm", 151.6, 142.9),
    ("30B offline, separate", 309.0, 295.1),
    ("30B online, Helix", 216.7, 198.0),
    ("30B online, Swarm", 104.9, 102.3),
    ("30B online, separate", 189.8, 173.1),
    ("70B offline, Helix", 252.1, 223.4),
    ("70B offline, Swarm", 124.7, 111.7),
    ("70B offline, separate", 124.3, 110.0),
    ("70B online, Helix", 141.6, 148.3),
    ("70B online, Swarm", 69.8, 81.1),
    ("70B online, separate", 84.0, 80.1),
];

pub fn helix() -> Table {
    let gaps: Vec<f64> = PAIRS.iter().map(|(_, simulated, measured)| simulated / measured - 1.0).collect();
    let mut sizes: Vec<f64> = gaps.iter().map(|gap| gap.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let median = (sizes[5] + sizes[6]) / 2.0;
    let row = |((what, simulated, measured), gap): (&(&str, f64, f64), &f64)| Row {
        what: (*what).into(),
        ours: format!("{simulated:.1}"),
        theirs: format!("{measured:.1}"),
        gap: format!("{:+.1}%", 100.0 * gap),
        holds: None,
    };
    Table {
        title: "How near others come: Helix".into(),
        source: "Mei et al., \"Helix\", ASPLOS 2025: single cluster, tokens/s of its simulator and of its prototype".into(),
        how: vec![
            "Nothing of ours is in this table: \"ours\" is Helix' simulator, \"theirs\" Helix' prototype. It is the bar for the \
             table of our own loopback runs."
                .into(),
            format!("Median gap {:.1}%, largest {:.1}%.", 100.0 * median, 100.0 * sizes[11]),
        ],
        bound: "none: context.".into(),
        rows: PAIRS.iter().zip(&gaps).map(row).collect(),
    }
}
