//! Who takes over from a peer that was killed, told as soon as it is known. In: the feeder's events as they come, and the event
//! logs of the peers that serve, read on from where they were at the kill. Out: one sentence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use skein_protocol::{
    MicroBatchId, PeerId,
    event::{Event, Record},
};

use crate::{
    cli::show::{Peer, Span, counted},
    node::log::Tail,
};

/// What was not taken over by then is seen in the figures at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Micro-batches that the feeder has minted and not got back.
#[derive(Default)]
pub struct Open(BTreeSet<MicroBatchId>);

impl Open {
    pub fn hear(&mut self, event: &Event) {
        match event {
            Event::Minted { id, .. } => drop(self.0.insert(*id)),
            Event::Completed { id, .. } | Event::Measured { id, .. } | Event::Voided { id, .. } => {
                _ = self.0.remove(id)
            }
            _ => {}
        }
    }
}

pub struct Takeover {
    dead: PeerId,
    killed: Instant,
    /// Milliseconds since 1970.
    killed_utc: u64,
    /// What it had accepted and was open then, and of that what still is.
    held: usize,
    open: BTreeSet<MicroBatchId>,
    /// From the kill to the first of these that was done.
    first: Option<Duration>,
    resent: BTreeMap<PeerId, BTreeSet<MicroBatchId>>,
    /// Logs of those that may send again.
    logs: Vec<Tail>,
}

impl Takeover {
    /// `log`: the dead peer's last lines. `logs`: those of the others, from here on.
    pub fn new(dead: PeerId, killed_utc: u64, log: &[Record], open: &Open, logs: Vec<Tail>) -> Takeover {
        let accepted = log.iter().filter_map(|record| match &record.event {
            Event::Accepted { id, .. } if open.0.contains(id) => Some(*id),
            _ => None,
        });
        let open: BTreeSet<MicroBatchId> = accepted.collect();
        Takeover {
            dead,
            killed: Instant::now(),
            killed_utc,
            held: open.len(),
            open,
            first: None,
            resent: BTreeMap::new(),
            logs,
        }
    }

    /// An event of any peer.
    pub fn hear(&mut self, record: &Record) {
        match &record.event {
            Event::Resent { id, from, to, .. } if *from == self.dead => {
                self.resent.entry(*to).or_default().insert(*id);
            }
            Event::Completed { id, .. } | Event::Measured { id, .. } | Event::Voided { id, .. }
                if self.open.remove(id) =>
            {
                // What was done before the kill is heard of after it.
                let Some(took) = record.utc.checked_sub(self.killed_utc).filter(|ms| *ms > 0) else {
                    self.held -= 1;
                    return;
                };
                if matches!(record.event, Event::Completed { .. }) {
                    self.first.get_or_insert(Duration::from_millis(took));
                }
            }
            _ => {}
        }
    }

    /// Reads what the peers wrote since the last look. Whether all is known that will be.
    pub fn look(&mut self) -> bool {
        for record in self.logs.iter_mut().flat_map(Tail::read).collect::<Vec<_>>() {
            if matches!(record.event, Event::Resent { .. }) {
                self.hear(&record);
            }
        }
        self.open.is_empty() || self.killed.elapsed() > PATIENCE
    }

    pub fn sentence(&self) -> String {
        let dead = Peer(self.dead);
        if self.held == 0 && self.resent.is_empty() {
            return format!("{dead} held nothing that others waited for");
        }
        let sent = |(to, ids): (&PeerId, &BTreeSet<MicroBatchId>)| {
            format!("{} re-sent to {}", counted(ids.len() as u64, "micro-batch"), Peer(*to))
        };
        let mut parts: Vec<String> = self.resent.iter().map(sent).collect();
        if parts.is_empty() {
            parts.push(format!("nothing of {dead} had to be sent again"));
        }
        parts.push(match self.first {
            Some(took) => format!("the first that {dead} held was done {} after the kill", Span(took)),
            None if self.held == 0 => format!("{dead} had accepted none of it"),
            None => format!("none of the {} that {dead} held is done yet", self.held),
        });
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::wire::flow::Hop;

    use super::*;

    const DEAD: PeerId = PeerId([1; 32]);
    const HEIR: PeerId = PeerId([2; 32]);
    const FEEDER: PeerId = PeerId([3; 32]);

    fn id(index: u16) -> MicroBatchId {
        MicroBatchId { feeder: FEEDER, incarnation: 1, step: 0, index }
    }

    fn record(peer: PeerId, utc: u64, event: Event) -> Record {
        Record { at: 0, utc, peer, seq: 0, event }
    }

    fn accepted(index: u16) -> Record {
        record(DEAD, 0, Event::Accepted { id: id(index), stage: 1, from: FEEDER })
    }

    fn completed(index: u16, utc: u64) -> Record {
        let path: Vec<Hop> = Vec::new();
        record(FEEDER, utc, Event::Completed { id: id(index), path, loss: 1.0, tokens: 1 })
    }

    fn resent(index: u16, from: PeerId) -> Record {
        record(FEEDER, 0, Event::Resent { id: id(index), stage: 1, from, to: HEIR, why: String::new() })
    }

    fn open(indices: &[u16]) -> Open {
        let mut open = Open::default();
        for index in indices {
            open.hear(&Event::Minted { id: id(*index), samples: 1 });
        }
        open
    }

    #[test]
    fn who_took_over_what_and_when_the_first_of_it_was_done() {
        let mut before = open(&[1, 2, 3, 4, 5]);
        before.hear(&completed(1, 0).event);
        let log = [accepted(1), accepted(2), accepted(3), accepted(5)];
        let mut takeover = Takeover::new(DEAD, 1_000, &log, &before, Vec::new());
        // One that was done when it died,
        takeover.hear(&completed(5, 999));
        // one that it did not hold, and one that another peer let go.
        takeover.hear(&completed(4, 1_100));
        takeover.hear(&resent(4, FEEDER));
        for index in [2, 3] {
            takeover.hear(&resent(index, DEAD));
        }
        assert!(!takeover.look());
        takeover.hear(&completed(3, 1_900));
        takeover.hear(&completed(2, 2_500));
        assert!(takeover.look());
        assert_eq!(
            takeover.sentence(),
            format!(
                "2 micro-batches re-sent to {}, the first that {} held was done 900 ms after the kill",
                Peer(HEIR),
                Peer(DEAD)
            )
        );
    }

    #[test]
    fn a_peer_that_held_nothing_is_said_to_have_held_nothing() {
        let mut takeover = Takeover::new(DEAD, 0, &[accepted(1)], &open(&[2]), Vec::new());
        assert!(takeover.look() && takeover.sentence().ends_with("held nothing that others waited for"));
    }
}
