//! Writes the reports of made-up outcomes into a folder, to look at them: `cargo run -p skein-simulations --example page -- DIR`.

mod made_up;

use std::path::Path;

use skein_simulations::{
    outcome::{Ended, Fidelity, Outcome},
    report::{Folder, Point, Summary, Told, compare, sweep, text},
    scenario::Expect,
};

fn main() -> std::io::Result<()> {
    let place = std::path::PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "report".into()));
    let outcomes: Vec<Outcome> = (1..=5).map(|seed| made_up::outcome(seed, 500, 360)).collect();
    let expect = Expect { tokens_per_s_min: Some(15_000.0), goodput_min: Some(0.9), ..Expect::default() };
    let told = Told { expect, ..Told::default() };
    write(&place.join("good"), &Folder::of(&outcomes, &told, None))?;

    let mut bad = made_up::outcome(9, 60, 90);
    bad.fidelity = Fidelity::Fleet;
    bad.ended = Ended::Stuck {
        stage: Some(5),
        since_s: 14_400.0,
        why: "nobody serves it, and nobody who could is to come".into(),
    };
    write(&place.join("stuck"), &Folder::of(&[bad], &Told::default(), None))?;

    let mut points = Vec::new();
    for up in ["10 Mbit/s", "50 Mbit/s", "200 Mbit/s"] {
        for peers in [50, 100, 500] {
            let mut outcome = made_up::outcome(1, peers, 30);
            outcome.totals.tokens = outcome.totals.tokens * u64::from(peers) / 500;
            let over = vec![("peers".into(), peers.to_string()), ("upload".into(), up.into())];
            points.push(Point { over, outcomes: vec![outcome] });
        }
    }
    points[4].outcomes.clear();
    write(&place.join("sweep"), &sweep(&points))?;

    let all = Summary::of(&outcomes, &told).expect("there are outcomes");
    println!("\n{}", text(&all, 100, Some("good/report.html")));
    let slower: Vec<Outcome> = (1..=5).map(|seed| made_up::outcome(seed, 480, 360)).collect();
    let slower = Summary::of(&slower, &told).expect("there are outcomes");
    println!("{}", compare(&all, &slower).text());
    Ok(())
}

fn write(place: &Path, folder: &Folder) -> std::io::Result<()> {
    for (name, bytes) in &folder.files {
        let file = place.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file, bytes)?;
        println!("{:>9}  {}", bytes.len(), file.display());
    }
    Ok(())
}
