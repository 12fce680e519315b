//! Arguments of `skein bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use skein_protocol::run::{Arithmetic, BasePrecision};

use super::train::base_precision;
use crate::config::Device;

#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Tokens/s of forward, backward and step of a model on this machine
    Stage(BenchStage),
    /// Tokens/s of reading a prompt and of answering it, alone and with many readers
    Generate(BenchGenerate),
    /// Tokens/s of training adapters beside a frozen model
    Finetune(BenchFinetune),
    /// Throughput, latency and CPU time of messages between two processes, beside quinn by itself and plain TCP
    Link(BenchLink),
    /// Speed, bytes and error of each codec; with --loss, what they cost a run in loss
    Codec(BenchCodec),
    /// Seconds of an averaging round among replicas that are processes of their own
    Average(BenchAverage),
    /// Tokens/s of a swarm on this machine beside one process on the same cores
    Swarm(BenchSwarm),
    /// How fast a peer starts, what an idle one holds in memory, storing and finding among peers
    Peer(BenchPeer),
    /// Events a second of the network simulator, and how much faster than the world it is
    Simulate(BenchSimulate),
    /// All of it, as the text of BENCHMARKS.md
    Report(BenchReport),
    /// What peers hold in memory at most, beside what `status` accounts for
    Memory(BenchMemory),
}

/// Sizes of the model that is measured.
#[derive(Clone, Debug, Args)]
pub struct BenchShape {
    /// Sizes that are not given
    #[arg(long, default_value = "tiny", value_name = "NAME")]
    pub preset: String,
    /// Width of the hidden states
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub hidden: Option<u32>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub layers: Option<u32>,
    /// Attention heads, as many of keys as of queries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub heads: Option<u32>,
    /// Width of the feed-forward layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub ffn: Option<u32>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub vocab: Option<u32>,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub sequence: Option<u32>,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Option<u32>,
}

#[derive(Clone, Debug, Args)]
pub struct BenchGenerate {
    #[command(flatten)]
    pub shape: BenchShape,
    /// Of the processor
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: u16,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub prompt: u32,
    /// Tokens that are said after it
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub tokens: u32,
    /// Texts at the same time
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub clients: u32,
    /// Of the products: f32, bf16x3, bf16 or repeatable
    #[arg(long, default_value = "f32", value_name = "WHICH", value_parser = arithmetic_named)]
    pub arithmetic: Arithmetic,
    /// Also through a swarm on this machine, of so many stages that are processes of their own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub stages: Option<u16>,
    /// Processes of each stage; with 2, one of each is killed while it answers
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub replicas: u16,
    /// A Python that has torch and transformers: the same model there, right after
    #[arg(long, value_name = "PYTHON")]
    pub torch: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct BenchFinetune {
    #[command(flatten)]
    pub shape: BenchShape,
    /// Of the processor
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: u16,
    /// Of the adapters
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub rank: u32,
    /// Matrices with adapters: some of q, k, v, o, gate, up, down
    #[arg(long, default_value = "q,k,v,o", value_name = "WHICH", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Of the products: f32, bf16x3, bf16 or repeatable
    #[arg(long, default_value = "f32", value_name = "WHICH", value_parser = arithmetic_named)]
    pub arithmetic: Arithmetic,
    /// Of what stands beside the adapters: as-is, bf16, int8 or int4
    #[arg(long, default_value = "as-is", value_name = "PRECISION", value_parser = base_precision)]
    pub base_precision: BasePrecision,
    /// Micro-batches, a step each; the last half of them are measured
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// A Python that has torch, transformers and peft: the same model there, right after
    #[arg(long, value_name = "PYTHON")]
    pub torch: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct BenchStage {
    #[command(flatten)]
    pub shape: BenchShape,
    /// One stage of it; nothing: the whole model
    #[arg(long, value_name = "N")]
    pub stage: Option<u16>,
    /// Text whose bytes are the tokens; nothing: made-up tokens
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = device)]
    pub device: Device,
    /// Of the processor
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: u16,
    /// Of the products: f32, bf16x3, bf16 or repeatable
    #[arg(long, default_value = "f32", value_name = "WHICH", value_parser = arithmetic_named)]
    pub arithmetic: Arithmetic,
    /// Micro-batches, a step each; the last half of them (50 at most) are measured
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// A Python that has torch: the same model in PyTorch, in turns
    #[arg(long, value_name = "PYTHON", conflicts_with = "stage")]
    pub torch: Option<PathBuf>,
    /// Turns
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
}

fn arithmetic_named(name: &str) -> Result<Arithmetic, String> {
    match name {
        "f32" => Ok(Arithmetic::F32),
        "bf16x3" => Ok(Arithmetic::Bf16x3),
        "bf16" => Ok(Arithmetic::Bf16),
        "repeatable" => Ok(Arithmetic::Repeatable),
        _ => Err("there are f32, bf16x3, bf16 and repeatable".into()),
    }
}

/// A device by name, as in the configuration.
fn device(text: &str) -> Result<Device, String> {
    match Device::try_from(text.to_string()) {
        Ok(Device::Auto) => Err("a bench is of one device: name it".into()),
        named => named.map_err(|error| error.to_string()),
    }
}

#[derive(Clone, Debug, Args)]
pub struct BenchLink {
    /// Seconds of traffic for each size
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub seconds: u32,
    /// Measure over a narrow link instead: its rate, its round trip, and what it loses, as 100mbit,50ms,0.5%
    #[arg(long, value_name = "RATE,TRIP[,LOSS]")]
    pub shape: Option<crate::shape::Shape>,
    /// The process at the other end
    #[arg(long, hide = true)]
    pub far_end: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein bench codec                    16 MiB of normal values, one core, beside a plain copy
  skein bench codec --loss             a small model trained with each codec: minutes

Figures
  GB/s count the f32 side. ERROR is the root mean square of the error over that of the values,
  LARGEST the largest error where values have a standard deviation of 1. With --loss, each line is
  the same training with another codec; LOSS is the mean of the last eighth of its steps, compared
  seed by seed with the same training in f32.")]
pub struct BenchCodec {
    /// Size of the tensor
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub mib: u32,
    /// Measurements of each, in turn
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Train with each codec, and compare the losses
    #[arg(long)]
    pub loss: bool,
    /// Steps of each training
    #[arg(long, default_value_t = 240, value_name = "N", requires = "loss", value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub steps: u32,
    /// Trainings of each codec, from other weights and on other texts
    #[arg(long, default_value_t = 16, value_name = "N", requires = "loss", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub seeds: u32,
}

#[derive(Clone, Debug, Args)]
pub struct BenchAverage {
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=16))]
    pub replicas: u16,
    /// MiB of f32 parameters at each replica
    #[arg(long, default_value_t = 40, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=400))]
    pub mib: u32,
    /// One of the replicas, by its seed
    #[arg(long, hide = true)]
    pub replica: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub struct BenchSwarm {
    #[command(flatten)]
    pub shape: BenchShape,
    /// Train adapters of this rank beside a frozen model, instead of all weights
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub lora_rank: Option<u32>,
    /// Of what stands beside the adapters: as-is, bf16, int8 or int4
    #[arg(long, default_value = "as-is", value_name = "PRECISION", requires = "lora_rank", value_parser = base_precision)]
    pub base_precision: BasePrecision,
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub peers: u16,
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub stages: u16,
    /// Threads of each peer; 0: the cores shared out among them
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: u16,
    /// Seconds of each measurement, after it has warmed up
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u32,
    /// Measurements of each, in turn
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

#[derive(Clone, Debug, Args)]
pub struct BenchPeer {
    /// Starts to measure
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub starts: u16,
    /// Peers of the hash table
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=200))]
    pub peers: u16,
    /// Keys to store and to find
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein bench report --data book.txt --torch python3 > BENCHMARKS.md
  skein bench report --data book.txt --only link,shaped")]
pub struct BenchReport {
    /// Text whose bytes are the tokens of the stages
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// A Python that has torch; nothing: the stages are measured by themselves
    #[arg(long, value_name = "PYTHON")]
    pub torch: Option<PathBuf>,
    /// These sections: stage, finetune, generate, through, codec, loss, link, shaped, average, swarm, peer, memory, demo
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein bench memory                   models of 10, 25 and 57 M parameters, four peers each: minutes
  skein bench memory --widths 512

Figures
  PLANNED is what a stage takes at most by the plan that admits it, ACCOUNT the most that was held
  of blocks of 16 KiB and more, RESIDENT the most that the system gave the process, but for pages
  of files, which it may drop. OFF is by how much RESIDENT is more than ACCOUNT and BESIDE together,
  which is the same for every peer: stacks, tables of the network, what the allocator keeps.")]
pub struct BenchMemory {
    /// Widths of the models, each of 8 layers in two stages
    #[arg(long, default_values_t = [320, 512, 768], value_delimiter = ',', value_name = "N,N", value_parser = heads_of_32)]
    pub widths: Vec<u32>,
    /// Averaging rounds that each peer takes part in
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: u64,
}

fn heads_of_32(text: &str) -> Result<u32, String> {
    let width = text.parse().ok().filter(|width: &u32| width.is_multiple_of(32) && (32..=4096).contains(width));
    width.ok_or_else(|| "a width is a multiple of 32, 4096 at most".into())
}

#[derive(Clone, Debug, Args)]
pub struct BenchSimulate {
    /// At protocol fidelity
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub peers: u32,
    /// Simulated seconds of theirs
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub seconds: u32,
    /// As many as are to fit into memory
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub crowd: u32,
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub crowd_seconds: u32,
}
