//! What a feeder does with its data.

use skein_simulations::{Plan, Role, Setup, Simulation, Small};

use crate::common::{assert_sound, seconds};

#[test]
fn data_that_ends_is_fed_to_its_last_record() {
    // More than the window holds at first, so that records wait in memory when the file is at its end.
    for records in [1, 5, 13, 24] {
        let peers = [Role::feeder(), Role::host(0), Role::host(1)].into_iter().map(Plan::new).collect();
        let setup = Setup { records: Some(records), ..Setup::new(records, Small::demo(2).manifest(), peers) };
        let mut sim = Simulation::new(setup);
        assert!(sim.run_completed(seconds(60), records as usize), "{records}: {:#?}", sim.summary());
        sim.run_for(seconds(5));
        assert_eq!(sim.summary().completed, records);
        assert_sound(&sim, &format!("{records} records"));
    }
}
