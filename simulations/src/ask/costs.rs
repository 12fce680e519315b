//! Money and energy of an outcome: what its scenario assumes, beside what its devices did.

use std::collections::BTreeMap;

use skein_pipeline::model::cost::stage_flops;

use crate::{
    cost::{self, Prices, Rented, Use, Watts, Work},
    outcome::{Cost, Outcome},
    scenario::World,
};

/// Part of a device's power that it draws while it waits.
const IDLE: f64 = 0.3;

/// All that a scenario assumes of prices and powers.
pub struct Assumed {
    prices: Prices,
    rented: Option<Rented>,
    watts: BTreeMap<String, Watts>,
    flops_per_token: f64,
}

impl Assumed {
    pub fn of(world: &World) -> Assumed {
        let said = &world.scenario.cost;
        let prices = Prices {
            usd_per_kwh: said.usd_per_kwh.unwrap_or(world.prices.usd_per_kwh),
            usd_per_peer_hour: said.usd_per_peer_hour,
            usd_per_gb_up: said.usd_per_gb_up,
        };
        let rented = world.prices.machine.get(&said.reference).map(|machine| Rented {
            name: said.reference.clone(),
            usd_per_hour: machine.usd_per_hour,
            flops_peak: machine.peak,
            mfu: said.reference_mfu,
            watts: machine.watts,
        });
        let manifest = &world.setup.manifest;
        let flops: u64 = (0..manifest.stages.count).map(|stage| stage_flops(manifest, stage)).sum();
        let watts = |watts: f64| Watts { busy: watts, idle: IDLE * watts };
        Assumed {
            prices,
            rented,
            watts: world.people.iter().map(|person| (person.device.clone(), watts(person.watts))).collect(),
            flops_per_token: flops as f64 / manifest.tokens_per_micro_batch() as f64,
        }
    }

    /// `uses`: what devices did, where the rows do not have all of them. Nothing where nothing was trained, or where nobody knows
    /// the rented machine.
    pub fn cost(&self, outcome: &Outcome, uses: Option<Vec<Use>>) -> Option<Cost> {
        let watts = |device: &str| self.watts.get(device).copied();
        let uses = match uses {
            Some(uses) => uses.into_iter().filter_map(|of| Some(Use { watts: watts(&of.device)?, ..of })).collect(),
            None => cost::uses(&outcome.rows, watts).ok()?,
        };
        cost::cost(&Work::of(outcome, self.flops_per_token, uses), &self.prices, self.rented.as_ref()?)
    }
}
