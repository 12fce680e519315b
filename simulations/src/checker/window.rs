//! P7: what is open is bounded by the window. A feeder has at most `in_flight_max` ids open, and mints only so far behind one
//! that is stuck, so no replica keeps more of it than what is over and not told yet.

use std::collections::BTreeMap;

use skein_protocol::{Incarnation, MicroBatchId, PeerId, event::Event};

use super::{Findings, Given, Line, Property};

#[derive(Debug)]
pub struct Window {
    open_max: usize,
    reach_max: u64,
    feeders: BTreeMap<(PeerId, Incarnation), Feeder>,
}

/// One incarnation of a feeder.
#[derive(Debug, Default)]
struct Feeder {
    minted: u64,
    /// Ids that are not over, and how many were minted before each.
    open: BTreeMap<MicroBatchId, u64>,
}

impl Feeder {
    /// From the first that is not over to the last.
    fn reach(&self) -> u64 {
        self.minted - self.open.values().min().unwrap_or(&self.minted)
    }
}

impl Window {
    pub fn new(given: &Given) -> Self {
        let open_max = given.in_flight_max as usize;
        Window { open_max, reach_max: given.reach_max, feeders: BTreeMap::new() }
    }

    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        match &line.record.event {
            Event::Minted { id, .. } => {
                let feeder = self.feeders.entry((id.feeder, id.incarnation)).or_default();
                feeder.open.insert(*id, feeder.minted);
                feeder.minted += 1;
                let (open, reach) = (feeder.open.len(), feeder.reach());
                if open > self.open_max {
                    found.add(Property::P7, format!("one feeder has {open} ids open"));
                }
                if reach > self.reach_max {
                    let what = format!("the ids of one feeder reach {reach} beyond the first that is not over");
                    found.add(Property::P7, what);
                }
            }
            Event::Completed { id, .. } | Event::Measured { id, .. } | Event::Voided { id, .. } => {
                if let Some(feeder) = self.feeders.get_mut(&(id.feeder, id.incarnation)) {
                    feeder.open.remove(id);
                }
            }
            // What was open under an incarnation that is over is nobody's.
            Event::Started { incarnation, .. } => {
                let me = line.record.peer;
                self.feeders.retain(|(feeder, of), _| *feeder != me || of >= incarnation);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::event::Record;

    const FEEDER: PeerId = PeerId([1; 32]);

    fn id(incarnation: Incarnation, index: u16) -> MicroBatchId {
        MicroBatchId { feeder: FEEDER, incarnation, step: 0, index }
    }

    fn minted(id: MicroBatchId) -> Event {
        Event::Minted { id, samples: 1 }
    }

    fn completed(id: MicroBatchId) -> Event {
        Event::Completed { id, path: Vec::new(), loss: 1.0, tokens: 1 }
    }

    fn found(events: Vec<Event>) -> (usize, Window) {
        let (mut window, mut found) =
            (Window::new(&Given { in_flight_max: 2, reach_max: 4, ..Given::default() }), Findings::default());
        for event in events {
            let record = Record { at: 0, utc: 0, peer: FEEDER, seq: 0, event };
            window.on_line(&Line { at: 0, record }, &mut found);
        }
        (found.broken.len(), window)
    }

    #[test]
    fn who_mints_on_behind_an_id_that_is_stuck_goes_beyond_the_window() {
        let on = |last| (1..=last).flat_map(|index| [minted(id(1, index)), completed(id(1, index))]);
        let stuck = |last| std::iter::once(minted(id(1, 0))).chain(on(last)).collect::<Vec<_>>();
        assert_eq!(found(stuck(3)).0, 0);
        assert_eq!(found(stuck(4)).0, 1);
        assert_eq!(found(on(100).collect()).0, 0, "nothing is stuck");
    }

    #[test]
    fn who_has_more_open_than_the_window_is_found() {
        let open = |last| (0..last).map(|index| minted(id(1, index))).collect();
        assert_eq!(found(open(2)).0, 0);
        assert_eq!(found(open(3)).0, 1);
    }

    #[test]
    fn a_new_incarnation_begins_a_window_of_its_own() {
        let first = (0..2).map(|index| minted(id(1, index)));
        let second = (0..2).map(|index| minted(id(2, index)));
        let started = std::iter::once(Event::Started { peer: FEEDER, incarnation: 2 });
        let (broken, window) = found(first.chain(started).chain(second).collect());
        assert_eq!((broken, window.feeders.len()), (0, 1));
    }
}
