//! `skein bench`: what this machine can do, measured. In: what to measure. Out: a table, or one document. Every figure that
//! others' are compared with stands beside one that was taken in the same minutes.

mod average;
mod codec;
mod finetune;
mod generate;
mod link;
mod loss;
mod memory;
mod peer;
mod report;
mod shape;
mod simulate;
mod stage;
mod swarm;
mod torch;

use std::time::Duration;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

pub use self::link::loopback_rate;

use crate::cli::{
    args::Bench,
    context::Context,
    failure::{Failure, Report},
};

pub fn run(args: &Bench, context: &Context) -> Result<u8, Report> {
    match args {
        Bench::Stage(args) => stage::run(args, context),
        Bench::Generate(args) => generate::run(args, context),
        Bench::Finetune(args) => finetune::run(args, context),
        Bench::Codec(args) => codec::run(args, context),
        Bench::Link(args) => link::run(args, context),
        Bench::Average(args) => average::run(args, context),
        Bench::Swarm(args) => swarm::run(args, context),
        Bench::Peer(args) => peer::run(args, context),
        Bench::Simulate(args) => simulate::run(args, context),
        Bench::Report(args) => report::run(args, context),
        Bench::Memory(args) => memory::run(args, context),
    }
}

/// What is measured on, in a few words.
pub fn machine() -> String {
    let kinds = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(kinds);
    let cpu = system.cpus().first().map_or("unknown processor", |cpu| cpu.brand().trim());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = system.total_memory() >> 30;
    let kind = System::long_os_version().unwrap_or_else(|| std::env::consts::OS.into());
    format!("{cpu} ({threads} threads), {memory} GiB, {kind}")
}

fn other(error: impl std::fmt::Display) -> Report {
    Failure::Other { message: error.to_string() }.into()
}

/// A folder that is gone when the bench is over.
pub fn scratch() -> Result<tempfile::TempDir, Report> {
    let made = tempfile::Builder::new().prefix("skein-bench-").tempdir();
    made.map_err(|error| crate::home::file::refused(&std::env::temp_dir(), 0, error).into())
}

/// The value below which `share` of them lie; nothing of nothing.
fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(values[(last as f64 * share).round() as usize])
}

fn millis(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(ms) if ms < 10.0 => format!("{ms:.2} ms"),
        Some(ms) if ms < 100.0 => format!("{ms:.1} ms"),
        Some(ms) => format!("{ms:.0} ms"),
    }
}

/// What the system says about a process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Used {
    /// Bytes in memory.
    resident: u64,
    cpu: Duration,
}

fn used(pid: u32) -> Option<Used> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing().with_memory().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
    let process = system.process(pid)?;
    Some(Used { resident: process.memory(), cpu: Duration::from_millis(process.accumulated_cpu_time()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_values_are_values_among_them() {
        assert_eq!(quantile(&mut [], 0.5), None);
        assert_eq!(quantile(&mut [3.0], 0.95), Some(3.0));
        assert_eq!(quantile(&mut [5.0, 1.0, 3.0], 0.5), Some(3.0));
        assert_eq!(quantile(&mut [5.0, 1.0, 3.0], 0.95), Some(5.0));
    }

    #[test]
    fn this_process_is_seen() {
        let seen = used(std::process::id()).expect("it runs");
        assert!(seen.resident > 1 << 20, "{seen:?}");
        assert_eq!(used(u32::MAX - 1), None);
    }
}
