//! `skein simulate replay`: everything that happens in one simulation, an event a line, a column a peer.

use std::{path::Path, time::Duration};

use skein_simulations::{
    ask::{Far, LOOKED_AT, Watch, ask},
    checker::{Line, Property},
    engine::Time,
    outcome::{Fidelity, Learning},
    scenario::expand,
    world::unit,
};

use super::files::{Opened, of_report, open, refused, summary};
use crate::cli::{
    args::{Ask, SimulateReplay},
    chronicle::{Chronicle, clock},
    context::Context,
    failure::{Failure, Report},
};

pub fn run(args: &SimulateReplay, context: &Context) -> Result<u8, Report> {
    let (opened, seed) = what(args)?;
    let world = expand(&opened.document, &opened.files, seed).map_err(refused)?;
    let peers = (0..world.setup.peers.len()).map(|peer| (world.setup.key(peer).peer(), format!("p{peer}")));
    let mut watch = Printed {
        context,
        chronicle: match world.scenario.learning {
            Learning::Real => Chronicle::new(peers),
            Learning::None | Learning::Curve => Chronicle::new(peers).without_losses(),
        },
        from: time(args.from.as_deref())?.unwrap_or(0),
        until: time(args.until.as_deref())?.unwrap_or(Time::MAX),
        stop_at: args.until_broken.as_deref().map(property).transpose()?,
        only: args.peer,
        stopped: false,
    };
    if world.fidelity == Fidelity::Fleet {
        context
            .out
            .warn("At fleet fidelity there are no single events: --fidelity protocol has them, for up to 2,000 peers.");
    }
    let outcome = ask(&opened.document, &opened.files, seed, &mut watch).map_err(refused)?;
    for broken in &outcome.violations {
        context.out.warn(&format!("{} at {}: {}", broken.property, at(broken.at_s), broken.what));
    }
    context.out.done(&format!("seed {seed}, digest {}, {} events", outcome.digest, outcome.events));
    Ok(if outcome.violations.is_empty() { 0 } else { 10 })
}

/// As the lines of the history have it.
fn at(seconds: f64) -> String {
    clock(Duration::from_secs_f64(seconds.max(0.0)))
}

/// A seed of a scenario, or what a report says of itself.
fn what(args: &SimulateReplay) -> Result<(Opened, u64), Report> {
    if let Ok(seed) = args.what.parse::<u64>() {
        return Ok((open(&args.scenario, &Ask { seed: Some(seed), ..args.ask.clone() })?, seed));
    }
    let path = Path::new(&args.what);
    if !path.exists() {
        let message = format!("\"{}\" is neither a seed (a whole number) nor the folder of a report", args.what);
        return Err(Failure::Usage { message }.into());
    }
    let summary = summary(path)?;
    if !args.ask.changes().is_empty() {
        let message = "a report is replayed as it was: --seed, --set and the like go with a seed".into();
        return Err(Failure::Usage { message }.into());
    }
    // The seed that broke something, if one did.
    let broke = summary.violations.first().map(|violation| violation.seed);
    let seed = broke.or(summary.seeds.first().map(|seed| seed.seed)).unwrap_or(1);
    Ok((of_report(&summary, &[])?, seed))
}

fn time(text: Option<&str>) -> Result<Option<Time>, Report> {
    let read = |text: &str| {
        let why = |why| Report::from(Failure::Usage { message: format!("the time {why}") });
        unit::time(text).map_err(why)
    };
    text.map(read).transpose()
}

/// A property by its name; `any` is every one.
fn property(name: &str) -> Result<Option<Property>, Report> {
    if name.eq_ignore_ascii_case("any") {
        return Ok(None);
    }
    let found = LOOKED_AT.into_iter().find(|property| property.to_string().eq_ignore_ascii_case(name));
    let known = LOOKED_AT.map(|property| property.to_string()).join(", ");
    let wrong = || Failure::Usage {
        message: format!("{name} is no property that one simulation shows; those are {known}, and any"),
    };
    found.map(Some).ok_or_else(|| wrong().into())
}

/// Prints what it sees.
struct Printed<'c> {
    context: &'c Context,
    chronicle: Chronicle,
    from: Time,
    until: Time,
    /// Ends at the first violation of this one, or of any.
    stop_at: Option<Option<Property>>,
    only: Option<usize>,
    stopped: bool,
}

impl Watch for Printed<'_> {
    fn far(&mut self, far: &Far) -> bool {
        !self.stopped && far.simulated.as_nanos() < u128::from(self.until)
    }

    fn line(&mut self, line: &Line, peer: usize) {
        let wanted = self.only.is_none_or(|only| only == peer);
        if self.stopped || !wanted || line.at < self.from || line.at > self.until {
            return;
        }
        if self.context.out.style().json {
            self.context.out.record(&line.record);
        } else {
            self.context.out.print(&self.chronicle.line(Duration::from_nanos(line.at), line));
        }
    }

    fn broken(&mut self, property: Property) {
        self.stopped |= self.stop_at.is_some_and(|wanted| wanted.is_none_or(|wanted| wanted == property));
    }
}
