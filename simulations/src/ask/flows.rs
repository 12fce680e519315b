//! Asking a fleet: flows and ticks. In: a world. Out: an outcome of the same form, and what its devices did.

use std::time::Duration;

use super::{Far, Watch, blank};
use crate::{
    cost::Use,
    fleet::{Fleet, Run, Setup},
    outcome::Outcome,
    scenario::World,
};

/// Ticks between two looks.
const LOOK: u32 = 8;

pub fn run(world: World, watch: &mut dyn Watch) -> (Outcome, Vec<Use>) {
    let about = blank(&world);
    let mut fleet = Fleet::new(Setup::of(&world));
    let of = Duration::from_nanos(world.duration);
    drop(world);
    'all: loop {
        for _ in 0..LOOK {
            if !fleet.step() {
                break 'all;
            }
        }
        let (tokens, alive) = fleet.so_far();
        if !watch.far(&Far { simulated: fleet.now(), of, events: fleet.events(), tokens, alive }) {
            break;
        }
    }
    let Run { mut outcome, uses } = fleet.finish();
    let Outcome { scenario, question, text, config, learning, planned, mut remarks, .. } = about;
    remarks.append(&mut outcome.remarks);
    (Outcome { scenario, question, text, config, learning, planned, remarks, ..outcome }, uses)
}
