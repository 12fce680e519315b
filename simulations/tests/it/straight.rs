//! Activations go from stage to stage, never through the feeder.

use std::{cell::RefCell, rc::Rc};

use skein_protocol::wire::{Frame, flow};
use skein_simulations::What;

use crate::common::{assert_sound, demo, seconds};

#[derive(Default)]
struct Seen {
    /// Forwards that the feeder sent, by the receiver's stage.
    fed: Vec<u16>,
    labels: u64,
    finished: u64,
    /// Forwards and gradients between others.
    activations: u64,
    gradients: u64,
    /// Anything else of a micro-batch with a body, from or to the feeder.
    detours: Vec<String>,
}

#[test]
fn no_activation_and_no_gradient_passes_the_feeder() {
    let mut sim = demo(71, 3, 2);
    let seen = Rc::new(RefCell::new(Seen::default()));
    let watch = seen.clone();
    sim.hook(move |moment| {
        let mut seen = watch.borrow_mut();
        let What::Sent { to, frame: Frame::Flow(frame) } = moment.what else { return Vec::new() };
        match (frame, moment.peer == 0, to == 0) {
            (flow::Frame::Forward(forward), true, false) => seen.fed.push(forward.stage),
            (flow::Frame::Labels(_), true, false) => seen.labels += 1,
            (flow::Frame::Finished(_), false, true) => seen.finished += 1,
            (flow::Frame::Forward(_), false, false) => seen.activations += 1,
            (flow::Frame::Backward(_), false, false) => seen.gradients += 1,
            (flow::Frame::Forward(_) | flow::Frame::Backward(_) | flow::Frame::Labels(_), ..) => {
                seen.detours.push(format!("{frame:?}"));
            }
            _ => {}
        }
        Vec::new()
    });
    assert!(sim.run_completed(seconds(60), 200), "{:#?}", sim.summary());
    let summary = assert_sound(&sim, "straight");
    let seen = seen.borrow();
    assert!(seen.detours.is_empty(), "{:?}", seen.detours);
    assert!(seen.fed.iter().all(|stage| *stage == 0), "the feeder sends to stage 0 only");
    // Two hops each way, and no more, for every id; up to the window is under way at the end.
    let window = u64::from(sim.manifest().train.in_flight_max);
    for (what, count) in [("activations", seen.activations), ("gradients", seen.gradients)] {
        assert!((400..=400 + 2 * window).contains(&count), "{what}: {count}");
    }
    assert_eq!(summary.hops, seen.activations);
    assert!(seen.labels >= 200 && seen.finished >= 200);
}
