//! One answer to one scenario at one seed. In: a document. Out: an [`Outcome`].
//!
//! A simulation goes on in intervals; after each whoever watches may stop it, and a world in which nothing can be completed any
//! more ends with the reason.

mod costs;
mod flows;
mod protocol;

use std::time::Duration;

use skein_pipeline::model::cost;
use skein_protocol::Manifest;

use crate::{
    checker::{Line, Property},
    curve::{self, Curve},
    engine::{SECOND, Time},
    outcome::{Cause, Ended, Fidelity, Learning, Outcome, Planned, SCHEMA, Sample},
    scenario::{Document, Fault, Files, Refused, Trouble, World, expand},
};

use protocol::Protocol;
pub use protocol::{LOOKED_AT, Live};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Far {
    pub simulated: Duration,
    pub of: Duration,
    pub events: u64,
    pub tokens: u64,
    pub alive: u32,
}

/// Looks on.
pub trait Watch {
    /// Whether it goes on.
    fn far(&mut self, far: &Far) -> bool;

    /// Something that a peer said. Only at protocol fidelity.
    fn line(&mut self, line: &Line, peer: usize) {
        let _ = (line, peer);
    }

    /// The last line broke a property.
    fn broken(&mut self, property: Property) {
        let _ = property;
    }
}

/// Nobody looks.
pub struct Unwatched;

impl Watch for Unwatched {
    fn far(&mut self, _: &Far) -> bool {
        true
    }
}

/// # Errors
/// The scenario contradicts itself.
pub fn ask(document: &Document, files: &Files, seed: u64, watch: &mut dyn Watch) -> Result<Outcome, Refused> {
    let world = expand(document, files, seed)?;
    let (assumed, learning) = (costs::Assumed::of(&world), world.scenario.learning);
    let manifest = world.setup.manifest.clone();
    let (mut outcome, uses) = match world.fidelity {
        Fidelity::Protocol => (Protocol::new(world).run(watch), None),
        Fidelity::Fleet => {
            let (outcome, uses) = flows::run(world, watch);
            (outcome, Some(uses))
        }
    };
    // What a modelled worker says of its loss and its rounds is made up.
    if learning != Learning::Real || outcome.fidelity == Fidelity::Fleet {
        forget_learning(&mut outcome);
    }
    match learning {
        Learning::None => {}
        Learning::Curve => estimate(&mut outcome, &manifest),
        Learning::Real if outcome.fidelity == Fidelity::Fleet => {
            outcome.learning = Learning::None;
            outcome.remarks.push("At fleet fidelity nothing is really trained: there is no loss.".into());
        }
        Learning::Real => {}
    }
    name_the_limit(&mut outcome);
    outcome.cost = assumed.cost(&outcome, uses);
    Ok(outcome)
}

/// The loss by the published law: a step of all replicas of a stage together is the batch.
fn estimate(outcome: &mut Outcome, manifest: &Manifest) {
    let of_replica = (u64::from(manifest.train.micro_batches_per_step) * manifest.tokens_per_micro_batch()) as f64;
    let replicas = |sample: &Sample| f64::from(sample.serving) / f64::from(manifest.stages.count.max(1));
    let law = Curve::new(outcome.parameters, u64::from(manifest.model.config.vocab));
    curve::follow(law, &mut outcome.series, &mut outcome.totals, |sample| of_replica * replicas(sample).max(1.0));
    outcome.remarks.push(curve::REMARK.into());
}

fn forget_learning(outcome: &mut Outcome) {
    outcome.series.iter_mut().for_each(|sample| (sample.loss, sample.disagreement) = (None, None));
    (outcome.totals.loss_first, outcome.totals.loss_last) = (None, None);
}

/// Where everybody is there and nothing comes to its end, what the devices waited for is the reason.
fn name_the_limit(outcome: &mut Outcome) {
    let Ended::Stuck { stage: None, why, .. } = &mut outcome.ended else { return };
    let (cause, _) = outcome.shares.lost()[0];
    let share = outcome.shares.of(cause);
    let waits = match cause {
        Cause::Upload => "waiting for uplinks",
        Cause::Download => "waiting for downlinks",
        Cause::Churn => "joining and fetching weights",
        _ => return,
    };
    // A few of many may wait for something else by chance.
    if share >= 0.2 {
        why.push_str(&format!("; {:.0} % of the devices' time was {waits}", 100.0 * share));
    }
}

/// Everything that a world is before anything happened, for an outcome.
pub fn blank(world: &World) -> Outcome {
    let manifest = &world.setup.manifest;
    let parameters = (0..manifest.stages.count).map(|stage| cost::stage_parameters(manifest, stage));
    Outcome {
        schema: SCHEMA,
        skein: env!("CARGO_PKG_VERSION").into(),
        scenario: world.name.clone(),
        question: world.question.clone(),
        text: world.text.clone(),
        seed: world.seed,
        fidelity: world.fidelity,
        learning: world.scenario.learning,
        config: world.config.clone(),
        digest: String::new(),
        peers: world.people.iter().filter(|person| !person.feeds()).count() as u32,
        stages: manifest.stages.count,
        parameters: parameters.sum(),
        simulated_s: 0.0,
        duration_s: seconds(world.duration),
        events: 0,
        ended: Ended::Finished,
        totals: Default::default(),
        shares: Default::default(),
        series: Vec::new(),
        changes: Vec::new(),
        planned: planned(world),
        rows: Vec::new(),
        by_stage: Vec::new(),
        cost: None,
        properties: Vec::new(),
        violations: Vec::new(),
        remarks: world.remarks.clone(),
    }
}

fn planned(world: &World) -> Vec<Planned> {
    let begins = world.troubles.iter().zip(&world.scenario.faults).filter(|(trouble, _)| trouble.at < world.duration);
    let planned = |(trouble, fault): (&Trouble, &Fault)| Planned {
        at_s: seconds(trouble.at),
        until_s: seconds(trouble.until.min(world.duration)),
        what: fault.what.name(),
        peers: trouble.whom.len() as u32,
    };
    begins.map(planned).collect()
}

fn seconds(time: Time) -> f64 {
    time as f64 / SECOND as f64
}
