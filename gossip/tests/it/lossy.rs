//! Rounds in a network that loses, doubles and reorders frames, over many seeds.

use std::time::Duration;

use skein_protocol::event::RoundOutcome;

use crate::world::{Trouble, World};

#[test]
fn whatever_the_network_does_rounds_end_one_way_and_nothing_is_left_over() {
    let (mut both, mut neither) = (0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed, 2 + seed as usize % 4, 6);
        world.trouble = match seed % 3 {
            0 => Trouble { lost: 0.15, ..Trouble::default() },
            1 => Trouble { doubled: 0.3, late: Duration::from_millis(400), ..Trouble::default() },
            _ => Trouble { lost: 0.1, doubled: 0.1, late: Duration::from_secs(3), ..Trouble::default() },
        };
        for step in 0..60 {
            for n in 0..world.replicas.len() {
                world.step(n, 0.01 * ((step + n) % 5) as f32);
            }
            world.run_for(Duration::from_millis(300));
        }
        // Longer than every deadline.
        world.run_for(Duration::from_secs(200));
        world.assert_settled(&format!("seed {seed}"));
        for replica in &world.replicas {
            let count = |outcome| replica.ended.iter().filter(|ended| ended.outcome == outcome).count() as u32;
            let adopted = count(RoundOutcome::Both) + count(RoundOutcome::OneSided) + count(RoundOutcome::Copied);
            assert!(replica.adopted <= adopted, "seed {seed}: an adopted round ends as one");
            assert!(count(RoundOutcome::Neither) <= replica.rolled_back, "seed {seed}");
            both += count(RoundOutcome::Both);
            neither += count(RoundOutcome::Neither);
        }
    }
    assert!(both > 500 && neither > 20, "{both} both, {neither} neither: the network was too kind or too cruel");
}
