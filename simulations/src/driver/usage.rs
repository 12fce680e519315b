//! What the time and the links of one peer went to, over all its processes. In: that something begins or ends. Out: sums.

use std::{collections::BTreeSet, time::Duration};

use skein_protocol::{Lane, Stage, event::Event};

use crate::{engine::Time, world::network::InUse};

/// Sums over the whole simulation; those of processes that died are in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerUse {
    pub alive: Duration,
    /// At least one stage is served.
    pub serving: Duration,
    /// Its worker is at a job.
    pub busy: Duration,
    /// Bodies take its uplink, and its downlink.
    pub sending: Duration,
    pub receiving: Duration,
    /// Its uplink, and its downlink, is what keeps something from going faster.
    pub up_full: Duration,
    pub down_full: Duration,
    /// Its worker has nothing to do while an uplink is full: its own, or that of who sends to it.
    pub idle_upload: Duration,
    /// Its worker has nothing to do while a downlink is full: its own, or that of whom it sends to.
    pub idle_download: Duration,
    /// Bytes that left it and that it got, by lane in the order of [`Lane::ALL`].
    pub sent: [u64; Lane::ALL.len()],
    pub received: [u64; Lane::ALL.len()],
}

/// What holds of a peer now, and the sums until the last change.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    sums: PeerUse,
    since: Time,
    alive: bool,
    busy: bool,
    links: InUse,
    serves: BTreeSet<Stage>,
}

impl Meter {
    fn settle(&mut self, now: Time) {
        let passed = Duration::from_nanos(now - self.since);
        self.since = now;
        let sums = &mut self.sums;
        let idle = self.alive && !self.busy;
        let links = self.links;
        // Its own links come first; of two that are full the uplink, which is the narrower one of most homes.
        let by_uplink = links.up_full || (links.sender_full && !links.down_full);
        let by_downlink = !by_uplink && (links.down_full || links.receiver_full);
        for (holds, sum) in [
            (self.alive, &mut sums.alive),
            (!self.serves.is_empty(), &mut sums.serving),
            (self.busy, &mut sums.busy),
            (links.sends, &mut sums.sending),
            (links.receives, &mut sums.receiving),
            (links.up_full, &mut sums.up_full),
            (links.down_full, &mut sums.down_full),
            (idle && by_uplink, &mut sums.idle_upload),
            (idle && by_downlink, &mut sums.idle_download),
        ] {
            if holds {
                *sum += passed;
            }
        }
    }

    pub fn sums(&self, now: Time) -> PeerUse {
        let mut meter = self.clone();
        meter.settle(now);
        meter.sums
    }

    pub fn on_started(&mut self, now: Time) {
        self.settle(now);
        self.alive = true;
    }

    pub fn on_ended(&mut self, now: Time) {
        self.settle(now);
        (self.alive, self.busy) = (false, false);
        self.serves.clear();
    }

    pub fn set_busy(&mut self, now: Time, busy: bool) {
        if self.busy != busy {
            self.settle(now);
            self.busy = busy;
        }
    }

    pub fn set_links(&mut self, now: Time, links: InUse) {
        if self.links != links {
            self.settle(now);
            self.links = links;
        }
    }

    pub fn on_event(&mut self, now: Time, event: &Event) {
        let changes = match event {
            Event::Serving { stage, .. } => (*stage, true),
            // Who looks for weights again, to stand by, serves no longer.
            Event::StageLeft { stage } | Event::Joining { stage, .. } => (*stage, false),
            _ => return,
        };
        self.settle(now);
        match changes {
            (stage, true) => self.serves.insert(stage),
            (stage, false) => self.serves.remove(&stage),
        };
    }

    pub fn sent(&mut self, lane: Lane, bytes: u64) {
        self.sums.sent[lane as usize] += bytes;
    }

    pub fn received(&mut self, lane: Lane, bytes: u64) {
        self.sums.received[lane as usize] += bytes;
    }
}
