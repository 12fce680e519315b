//! `skein simulate check`: a search for a seed at which a property of the protocol does not hold.

use serde_json::json;
use skein_simulations::{checker::Property, search};

use super::{in_parallel, progress::stopped_by_signal};
use crate::cli::{
    args::SimulateCheck,
    context::Context,
    failure::Report,
    progress::{Progress, Unit},
    show::counted,
};

pub fn run(args: &SimulateCheck, context: &Context) -> Result<u8, Report> {
    let out = &context.out;
    let seeds: Vec<u64> = (args.from..).take(args.seeds as usize).collect();
    let progress = Progress::start(out, "random scenarios", u64::from(args.seeds), Unit::Things);
    let (stopped, done) = (stopped_by_signal(), std::sync::atomic::AtomicU64::new(0));
    let found = in_parallel(&seeds, args.jobs, |_, seed| {
        if stopped.load(std::sync::atomic::Ordering::Relaxed) {
            return None;
        }
        let found = search::look(*seed, &|| !stopped.load(std::sync::atomic::Ordering::Relaxed))?;
        progress.at(1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        Some(found)
    });
    let found: Vec<search::Found> = found.into_iter().flatten().collect();
    let events: u64 = found.iter().map(|found| found.events).sum();
    let failed: Vec<&search::Found> = found.iter().filter(|found| !found.broken.is_empty()).collect();
    progress.done(&format!(
        "{} looked at, {events} events: {}",
        counted(found.len() as u64, "random scenario"),
        match failed.len() {
            _ if found.is_empty() => "nothing is known of any property".to_string(),
            0 => "every property held".to_string(),
            failed => format!("{failed} with violations"),
        }
    ));
    if out.style().json {
        let failed: Vec<_> = failed
            .iter()
            .map(|found| json!({ "seed": found.seed, "digest": found.digest, "scenario": found.text, "broken": found.broken }))
            .collect();
        let drawn: Vec<_> = found
            .iter()
            .map(|found| json!({ "seed": found.seed, "digest": found.digest, "scenario": found.text }))
            .collect();
        out.document(
            "simulate check",
            &json!({ "seeds": found.len(), "events": events, "failed": failed, "drawn": drawn }),
        );
    } else {
        for property in Property::ALL.into_iter().filter(|property| search::LOOKED_AT.contains(property)) {
            let broken = failed.iter().filter(|found| found.broken.iter().any(|(of, _)| *of == property)).count();
            let mark = match broken {
                _ if found.is_empty() => "not looked at".to_string(),
                0 => "held".to_string(),
                broken => format!("BROKEN at {}", counted(broken as u64, "seed")),
            };
            out.print(&format!("{:<4} {mark:<20} {}", property.to_string(), property.says()));
        }
        if context.verbose {
            found
                .iter()
                .for_each(|found| out.print(&format!("seed {:<5} {}", found.seed, search::in_short(&found.text))));
        }
        for found in &failed {
            out.print(&format!("\nseed {}: skein simulate check --from {} --seeds 1", found.seed, found.seed));
            found.broken.iter().for_each(|(property, what)| out.print(&format!("  {property}: {what}")));
            out.print(&format!("  the scenario that was drawn:\n{}", indented(&found.text)));
        }
    }
    match (failed.is_empty(), found.len() < seeds.len()) {
        (true, false) => Ok(0),
        (true, true) => {
            out.warn(&format!("It was stopped: {} of {} were looked at.", found.len(), seeds.len()));
            Ok(130)
        }
        (false, _) => Ok(10),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
