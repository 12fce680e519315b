//! What this process holds in memory, by what it is for, beside what the person gave. In: the stages that are served, what the
//! worker and the network say, the handles, what the allocator counted. Out: one account. What no part of it explains (stacks, tables
//! of the network, pages that the allocator has not given back) is the difference to what the system says is resident. Pages of files
//! (code, weights and states that are mapped from the disk) count nowhere: the system drops them when it needs room.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};
use skein_pipeline::{
    model::cost,
    peer::view::{MyState, View},
};
use skein_protocol::Manifest;

/// What a process holds beside its account: stacks, tables of the network, small blocks, what the allocator keeps. Allowed for,
/// not measured: `skein bench memory` shows how far off it is.
pub const BESIDE: u64 = 48 << 20;

/// Bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What the person gave for stages.
    pub budget: u64,
    /// Of the stages that are served: the weights that stay as they are, beside adapters.
    #[serde(default)]
    pub frozen: u64,
    /// Two versions of what is trained of them.
    pub parameters: u64,
    pub gradients: u64,
    /// Moments.
    pub optimizer: u64,
    /// Slow weights and outer momentum.
    pub averaging: u64,
    /// Inputs of micro-batches, and what their backward needs.
    pub kept: u64,
    /// Work space of one forward or backward.
    pub scratch: u64,
    /// Keys and values of the texts that are being generated.
    #[serde(default)]
    pub caches: u64,
    /// A round in the air, and a state that is made for a joiner or the disk while the worker is at it.
    pub passing: u64,
    /// Bodies: activations and gradients on their way, states and rounds of others.
    pub blobs: u64,
    /// Bodies that are being read from the network.
    pub network: u64,
    /// What the allocator counted: all of the above as it is, rather than as it is planned, but for what lies on a card or is
    /// mapped from the disk. 0 where nobody counts.
    #[serde(default)]
    pub held: u64,
    /// The most that was ever held at one time; where nobody counts, the most that was accounted for.
    pub most: u64,
    /// What the system says, without pages of files: now, and the most that was seen. 0 where it does not say.
    pub resident: u64,
    pub resident_most: u64,
}

impl Account {
    /// Everything that is accounted for by what it is for.
    pub fn total(&self) -> u64 {
        [
            self.frozen,
            self.parameters,
            self.gradients,
            self.optimizer,
            self.averaging,
            self.kept,
            self.scratch,
            self.caches,
            self.passing,
        ]
        .into_iter()
        .chain([self.blobs, self.network])
        .fold(0, u64::saturating_add)
    }

    /// The stages that are served or being loaded.
    fn add_stages(&mut self, manifest: &Manifest, view: &View) {
        self.caches = view.caches;
        let here = view.mine.iter().filter(|mine| matches!(mine.state, MyState::Loading | MyState::Serving));
        for mine in here {
            let cost::Memory { frozen, parameters, gradients, optimizer, averaging, scratch, .. } =
                cost::memory(manifest, mine.stage);
            self.frozen += frozen;
            self.parameters += parameters;
            self.gradients += gradients;
            self.optimizer += optimizer;
            self.averaging += averaging;
            self.scratch += scratch;
        }
    }
}

/// What the worker's thread says of itself, which the driver reads.
#[derive(Clone, Debug, Default)]
pub struct AtWork {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    kept: AtomicU64,
    /// Of rounds in the air.
    rounds: AtomicU64,
    /// Of the job at hand.
    job: AtomicU64,
    /// The most of both since somebody looked.
    most: AtomicU64,
}

impl AtWork {
    /// The worker begins a job that takes so much beyond the steady state.
    pub fn begins(&self, passing: u64) {
        self.shared.job.store(passing, Relaxed);
        self.shared.most.fetch_max(self.passing(), Relaxed);
    }

    /// It has ended; forwards keep so much, and rounds in the air hold so much.
    pub fn ended(&self, kept: u64, rounds: u64) {
        self.shared.kept.store(kept, Relaxed);
        self.shared.rounds.store(rounds, Relaxed);
        self.shared.job.store(0, Relaxed);
    }

    fn kept(&self) -> u64 {
        self.shared.kept.load(Relaxed)
    }

    /// Beyond the steady state.
    fn passing(&self) -> u64 {
        self.shared.job.load(Relaxed).saturating_add(self.shared.rounds.load(Relaxed))
    }

    /// The most since this was asked before.
    fn take_passing_most(&self) -> u64 {
        self.shared.most.swap(0, Relaxed).max(self.passing())
    }
}

/// Keeps the account of one process.
#[derive(Debug, Default)]
pub struct Books {
    most: u64,
    resident_most: u64,
}

impl Books {
    /// `counted`: bytes that the allocator holds, and the most that it ever held.
    #[allow(clippy::too_many_arguments)]
    pub fn account(
        &mut self,
        budget: u64,
        manifest: &Manifest,
        view: &View,
        at_work: &AtWork,
        blobs: u64,
        network: u64,
        counted: Option<(u64, u64)>,
    ) -> Account {
        let mut account = Account { budget, kept: at_work.kept(), blobs, network, ..Account::default() };
        account.add_stages(manifest, view);
        // Jobs are shorter than the time between two looks: what one of them took is remembered until the next.
        self.most = self.most.max(account.total().saturating_add(at_work.take_passing_most()));
        let (held, most) = counted.unwrap_or((0, self.most));
        let resident = resident().unwrap_or_default();
        self.resident_most = self.resident_most.max(resident);
        Account { passing: at_work.passing(), held, most, resident, resident_most: self.resident_most, ..account }
    }
}

/// What the system says this process holds, without pages of files.
pub fn resident() -> Option<u64> {
    said("RssAnon:")
}

/// The most that this process ever held, pages of files with it.
pub fn peak() -> Option<u64> {
    said("VmHWM:")
}

#[cfg(target_os = "linux")]
fn said(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(not(target_os = "linux"))]
fn said(_: &str) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use skein_pipeline::peer::view::MineView;

    use super::*;
    use crate::node::sample_manifest;

    fn serving(stages: &[u16], state: MyState) -> View {
        let mine = |stage: &u16| MineView {
            stage: *stage,
            state,
            version: None,
            micro_batches: 0,
            micro_batches_per_s: 0.0,
            rounds: 0,
            rounds_rolled_back: 0,
            fetched: None,
        };
        View { mine: stages.iter().map(mine).collect(), ..View::default() }
    }

    #[test]
    fn the_account_is_the_plan_of_the_stages_and_what_is_kept_beside() {
        let manifest = sample_manifest(2);
        let (mut books, at_work) = (Books::default(), AtWork::default());
        at_work.begins(0);
        at_work.ended(1000, 0);
        let account = books.account(1 << 30, &manifest, &serving(&[0, 1], MyState::Serving), &at_work, 200, 30, None);
        let planned = [0, 1].map(|stage| cost::memory(&manifest, stage));
        let fixed: u64 = planned.iter().map(|memory| memory.steady() - memory.kept).sum();
        assert_eq!((account.total(), account.most), (fixed + 1230, fixed + 1230));
        assert_eq!(account.parameters, planned.iter().map(|memory| memory.parameters).sum::<u64>());
        // A stage that is only looked for takes nothing yet, and what was is remembered.
        at_work.ended(0, 0);
        let after = books.account(1 << 30, &manifest, &serving(&[0, 1], MyState::Looking), &at_work, 0, 0, None);
        assert_eq!((after.total(), after.most), (0, fixed + 1230));
        let counted = books.account(1 << 30, &manifest, &serving(&[0], MyState::Serving), &at_work, 0, 0, Some((7, 9)));
        assert_eq!((counted.held, counted.most), (7, 9), "as it is, where somebody counts");
        // So is what a job took between two looks, a round that is in the air included.
        at_work.ended(0, 400);
        at_work.begins(5000);
        at_work.ended(0, 300);
        let again = books.account(1 << 30, &manifest, &serving(&[0, 1], MyState::Serving), &at_work, 0, 0, None);
        assert_eq!((again.passing, again.most), (300, fixed + 5400));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_resident() {
        // Other tests of this process take and give back meanwhile: only what is held here is known.
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let (resident, peak) = (resident().expect("it runs"), peak().expect("it runs"));
        assert!((block.len() as u64..=peak).contains(&resident), "{resident} {peak}");
    }
}
