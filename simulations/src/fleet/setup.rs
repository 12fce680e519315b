//! What a fleet is told: the manifest, the peers as compact draws, and who comes and goes.

use std::time::Duration;

use skein_protocol::{Manifest, Stage};

use super::course::{Change, Life};

/// A peer as it was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peer {
    /// Floating-point operations a second, sustained, while nobody else uses the device.
    pub flops: f32,
    /// Bytes a second.
    pub up: f32,
    pub down: f32,
    /// One way to the backbone: two peers of one region are the sum of theirs apart.
    pub delay_us: u32,
    /// What it gives; a stage that takes more is none of its.
    pub memory_mib: u32,
    /// Where it serves, told beforehand; none: where it helps most.
    pub place: Option<Stage>,
    /// Places in the names of the setup.
    pub device: u8,
    pub access: u8,
    pub region: u8,
}

/// Those who feed data, all alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feeders {
    pub count: u32,
    pub up: f64,
    pub delay_us: u32,
}

/// What a device still does while its owner sits at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Owner {
    /// Part of its speed that is left, 0 to 1.
    pub leaves: f64,
}

/// Words for what peers name by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub devices: Vec<String>,
    pub accesses: Vec<String>,
    pub regions: Vec<String>,
}

pub struct Setup {
    pub seed: u64,
    pub manifest: Manifest,
    pub feeders: Feeders,
    pub peers: Vec<Peer>,
    pub names: Names,
    /// One way between regions beside what peers have to the backbone, microseconds; empty: nothing.
    pub between_us: Vec<Vec<u32>>,
    pub life: Life,
    /// What happens beside that, by time: faults, traces, crowds.
    pub changes: Vec<Change>,
    pub owner: Owner,
    pub duration: Duration,
    /// Micro-batches for which a replica keeps room, where that is not what all feeders together may open: a replica of many
    /// gets its part of them.
    pub memory_window: Option<u32>,
    /// None: a minute, or a hundredth of a short duration.
    pub tick: Option<Duration>,
    /// Number of the first peer in what is reported: feeders come before.
    pub first: u32,
    /// Peers whose rows, and changes that, are in the outcome at most: the rest is in the sums.
    pub rows_max: usize,
    /// What of the scenario is not followed. Sentences.
    pub remarks: Vec<String>,
}

/// Ticks into which a duration is cut at least.
const TICKS_MIN: u32 = 100;

impl Setup {
    /// Nobody comes or goes after the beginning.
    pub fn new(seed: u64, manifest: Manifest, peers: Vec<Peer>, duration: Duration) -> Self {
        Setup {
            seed,
            manifest,
            feeders: Feeders { count: 1, up: 125e6, delay_us: 5_000 },
            peers,
            names: Names::default(),
            between_us: Vec::new(),
            life: Life::steady(),
            changes: Vec::new(),
            owner: Owner { leaves: 0.2 },
            duration,
            memory_window: None,
            tick: None,
            first: 0,
            remarks: Vec::new(),
            rows_max: 1000,
        }
    }

    pub(super) fn tick(&self) -> Duration {
        let short = Duration::from_secs(60).min(self.duration / TICKS_MIN);
        self.tick.unwrap_or(short).clamp(Duration::from_millis(1), self.duration.max(Duration::from_millis(1)))
    }
}
