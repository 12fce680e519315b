//! Arguments of `skein simulate`, and of what belongs to it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Clone, Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples
  skein simulate                                  a small swarm, in seconds: how a report looks
  skein simulate list                             the questions that come with the program
  skein simulate one_straggler --seeds 5          with an interval over five seeds
  skein simulate my.toml --set churn=spot --set upload=10Mbit/s
  skein simulate sweep one_straggler --over peers=12,24 --over upload=10Mbit/s,50Mbit/s
  skein simulate explain sim-home_upload          what limits it, and what would help most
  skein simulate check --seeds 200                look for a bug of the protocol

Figures
  docs/simulator.md lists every key of a scenario. Exit code 10 with --check: a property was violated, or
  what the scenario expects did not come true."
)]
pub struct Simulate {
    #[command(subcommand)]
    pub what: Option<SimulateWhat>,
    /// A built-in scenario (`skein simulate list`) or a file
    #[arg(default_value = "first", value_name = "SCENARIO")]
    pub scenario: String,
    #[command(flatten)]
    pub ask: Ask,
    /// The folder of the report [default: sim-SCENARIO]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the report even into a folder that holds something else
    #[arg(long)]
    pub force: bool,
    /// Also write every event (events.jsonl in the report)
    #[arg(long)]
    pub events: bool,
    /// End with exit code 10 if a property was violated or the scenario's expectation was not met
    #[arg(long)]
    pub check: bool,
}

/// What is asked of a scenario, beside what stands in it.
#[derive(Clone, Debug, Default, Args)]
pub struct Ask {
    /// Of everything that is drawn by chance
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// So many seeds, from the first on; figures come with their 95 % interval
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: Option<u32>,
    /// Simulated time, e.g. 6h
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub duration: Option<String>,
    /// Peers beside the feeder
    #[arg(long, value_name = "N")]
    pub peers: Option<u32>,
    /// Any value of the scenario, e.g. churn=spot or network.up=20Mbit/s
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// auto, protocol (every frame of real peers, to 2,000 of them) or fleet (flows and ticks, to 1,000,000)
    #[arg(long, value_name = "WHICH")]
    pub fidelity: Option<String>,
    /// none, curve (a published law, an estimate) or real (a tiny model that is really trained)
    #[arg(long, value_name = "WHICH")]
    pub learning: Option<String>,
}

impl Ask {
    /// As `key=value`, in the order in which they apply: what is said in general first.
    pub fn changes(&self) -> Vec<String> {
        let short = [
            ("seed", self.seed.map(|n| n.to_string())),
            ("duration", self.duration.clone()),
            ("peers", self.peers.map(|n| n.to_string())),
            ("fidelity", self.fidelity.clone()),
            ("learning", self.learning.clone()),
        ];
        let short = short.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        self.set.iter().cloned().chain(short).collect()
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum SimulateWhat {
    /// The built-in scenarios, each with its question
    List,
    /// The text of a scenario, to begin one of your own with
    Show(SimulateShow),
    /// The same scenario at many values: a table and a heat map
    Sweep(SimulateSweep),
    /// What limits the swarm of a report, and the one change that would bring most
    Explain(SimulateExplain),
    /// Two reports beside each other
    Compare(SimulateCompare),
    /// Everything that happens, an event a line
    Replay(SimulateReplay),
    /// Search for a seed at which a property does not hold
    Check(SimulateCheck),
    /// Our results beside closed forms and published numbers
    Validate(SimulateValidate),
}

#[derive(Clone, Debug, Args)]
pub struct SimulateShow {
    #[arg(value_name = "SCENARIO")]
    pub scenario: String,
    /// As it would run, with every default and every --set
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub ask: Ask,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein simulate sweep first --over peers=6,12,24
  skein simulate sweep my.toml --over peers=50,100,500 --over upload=10Mbit/s,50Mbit/s --seeds 5
")]
pub struct SimulateSweep {
    #[arg(value_name = "SCENARIO")]
    pub scenario: String,
    /// A key and its values, e.g. peers=50,100,500; twice for a heat map
    #[arg(long, required = true, value_name = "KEY=A,B,C")]
    pub over: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
    /// The folder of the report [default: sweep-SCENARIO]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the report even into a folder that holds something else
    #[arg(long)]
    pub force: bool,
    /// Simulations at one time; each takes one core [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein simulate explain sim-first
  skein simulate explain sim-first --try          estimates beside what each change brings

Figures
  An estimate comes from the shares of time of the run as it was. It does not know what would
  queue up elsewhere; for the scenarios that come with the program it came within a third of what
  the change brought. --try simulates every change, at the seeds of the report.")]
pub struct SimulateExplain {
    /// The folder of a report, or its summary.json
    #[arg(value_name = "REPORT")]
    pub report: PathBuf,
    /// Simulate each change that is estimated: as many simulations as there are changes and seeds
    #[arg(long = "try")]
    pub tries: bool,
}

#[derive(Clone, Debug, Args)]
pub struct SimulateCompare {
    #[arg(value_name = "REPORT")]
    pub before: PathBuf,
    #[arg(value_name = "REPORT")]
    pub after: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein simulate replay 7                         seed 7 of the first scenario
  skein simulate replay 7 --scenario half_die --from 50s --until 70s
  skein simulate replay sim-half_die --until-broken any
")]
pub struct SimulateReplay {
    /// A seed (of the built-in scenario or --scenario), or the folder of a report
    #[arg(value_name = "SEED|REPORT")]
    pub what: String,
    /// The scenario of a seed
    #[arg(long, default_value = "first", value_name = "SCENARIO")]
    pub scenario: String,
    #[command(flatten)]
    pub ask: Ask,
    /// Begin at this simulated time
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Stop at this simulated time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Stop at the first violation of a property: P1, or any
    #[arg(long, value_name = "PROPERTY")]
    pub until_broken: Option<String>,
    /// Only what this peer says
    #[arg(long, value_name = "N")]
    pub peer: Option<usize>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein simulate check --seeds 200
  skein simulate check --from 4711 --seeds 1      one that failed, again
")]
pub struct SimulateCheck {
    /// Random scenarios to look at
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub seeds: u32,
    /// The first seed
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub from: u64,
    /// Simulations at one time; each takes one core [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein simulate validate --out simulations/VALIDATION.md
  skein simulate validate --loopback              beside real processes: half an hour
")]
pub struct SimulateValidate {
    /// Where the page is written; nothing: printed
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Also run swarms of real processes behind a shaping proxy: half an hour
    #[arg(long)]
    pub loopback: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein probe                                     then, in a scenario: devices = { \"probe.json\" = 1.0 }
")]
pub struct Probe {
    /// The file that is written, for `devices` of a scenario
    #[arg(long, default_value = "probe.json", value_name = "FILE")]
    pub out: PathBuf,
    /// What the machine is called in reports [default: its processor]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein replay ./demo/peer-1 ./demo/peer-2        two peers of a kept demo
  skein replay ./demo --check                     all of them: is everything counted once?
")]
pub struct Replay {
    /// Event logs of peers: files, or home folders
    #[arg(required = true, value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    /// Check the properties of the run rather than print its events; exit code 10 if one does not hold
    #[arg(long)]
    pub check: bool,
    /// Only what this peer says: the beginning of its id
    #[arg(long, value_name = "ID")]
    pub peer: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein shape 127.0.0.1:4801=20mbit/100mbit,15ms 127.0.0.1:4802=5mbit/50mbit,30ms,0.5%
")]
pub struct ShapeArgs {
    /// A peer that listens on this machine and its link: 127.0.0.1:4747=20mbit/100mbit,15ms,0.5%
    #[arg(required = true, value_name = "ADDRESS=UP/DOWN,DELAY[,LOSS]")]
    pub peers: Vec<String>,
    /// Of what is lost by chance
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// The first of the ports where others reach the peers [default: any]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}
