//! Flags of `train` and `finetune`, most of which are the same.

use std::path::PathBuf;

use clap::Args;
use skein_protocol::run::BasePrecision;

use super::Give;
use crate::corpus::HoldOut;

/// `2%`, or `100`; `0` holds nothing out.
fn held_out(text: &str) -> Result<HoldOut, String> {
    let wrong = || "a share above 0% and below 100% (5%, not 0.05), or a number of records".to_string();
    match text.strip_suffix('%').map(str::trim) {
        None => text.parse().map(HoldOut::Count).map_err(|_| wrong()),
        Some(share) => {
            let percent = share.parse::<f64>().ok().filter(|percent| *percent > 0.0 && *percent < 100.0);
            percent.map(|percent| HoldOut::Share(percent / 100.0)).ok_or_else(wrong)
        }
    }
}

/// In what a model's own weights are held beside adapters, by name.
pub(super) fn base_precision(name: &str) -> Result<BasePrecision, String> {
    let known = BasePrecision::ALL.into_iter().find(|known| known.name() == name);
    known.ok_or_else(|| format!("there are {}", BasePrecision::ALL.map(BasePrecision::name).join(", ")))
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein train --data book.txt --preset tiny     a new run; prints the invite for others
  skein train --run my.toml --data book.txt     a run of your own making (skein run new)
  skein train --run tiny-verse --data book.txt  go on where it stopped")]
pub struct Train {
    /// Size of the model: tiny, small-124m, 350m, demo
    #[arg(long, value_name = "NAME", conflicts_with = "run")]
    pub preset: Option<String>,
    /// Go on training this model, all of it, instead of beginning from nothing: a folder as Hugging Face tools write it, a GGUF
    /// file, or hf:OWNER/NAME
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub course: Course,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The model stays as it is: small matrices beside its own are trained (LoRA), and only they are averaged, saved and exported.

Examples
  skein finetune ./model --data chats.jsonl              a new run; prints the invite for others
  skein finetune ./model --data chats.jsonl --dry-run    what would be learned, and what it takes
  skein finetune --run chats-model --data chats.jsonl    go on where it stopped
  skein finetune --run my.toml ./model --data chats.jsonl    a run of your own making (--dry-run prints one)
  skein finetune --run chats-model --data mine.jsonl     of a delegate: data of one's own, after skein join
  skein export chats-model --out ./adapter               what was learned, as PEFT reads it")]
pub struct Finetune {
    /// A model to adapt: a folder as Hugging Face tools write it, a GGUF file, or hf:OWNER/NAME; with --run
    /// only where it lies elsewhere now
    #[arg(value_name = "MODEL", required_unless_present = "run")]
    pub model: Option<PathBuf>,
    /// Rank of the matrices that are trained
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..))]
    pub lora_rank: u32,
    /// What they add is multiplied by this over the rank; default: twice the rank
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..))]
    pub lora_alpha: Option<u32>,
    /// The matrices that get one: some of q,k,v,o,gate,up,down
    #[arg(
        long,
        value_name = "LIST",
        default_value = "q,k,v,o,gate,up,down",
        value_delimiter = ',',
        conflicts_with = "run"
    )]
    pub targets: Vec<String>,
    /// In what the model's own weights are sent and held: as-is, bf16, int8 (8.5 bits a value) or int4 (4.5 bits, less exact)
    #[arg(long, value_name = "PRECISION", default_value = "as-is", conflicts_with = "run", value_parser = base_precision)]
    pub base_precision: BasePrecision,
    /// Train all weights of the model instead
    #[arg(long, conflicts_with_all = ["run", "lora_rank", "lora_alpha", "targets", "base_precision"])]
    pub full: bool,
    /// A peer that may add data of its own, by its id (skein key show); may be repeated
    #[arg(long, value_name = "PEER", conflicts_with = "run")]
    pub delegate: Vec<String>,
    #[command(flatten)]
    pub course: Course,
}

/// What is trained on, for how long, and what this machine gives for it.
#[derive(Clone, Debug, Args)]
pub struct Course {
    /// Files, folders or patterns: .txt, .md, .jsonl, .parquet; with a model also conversations and prompts with completions
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Leave out what cannot be read and count it, instead of stopping at the first
    #[arg(long)]
    pub skip_bad: bool,
    /// Keep so much of the data to measure with and never learn from it: a share such as 2%, or a number of records; 0: nothing.
    /// Default: 2% of 200 records and more of a model's, nothing of others
    #[arg(long, value_name = "SHARE|N", value_parser = held_out)]
    pub held_out: Option<HoldOut>,
    /// A manifest, or the name of a run that is known here
    #[arg(long, value_name = "FILE|NAME")]
    pub run: Option<String>,
    /// Learning rate at its highest; default: that of the preset, 2e-5 for all weights of a model, 2e-4 for LoRA
    #[arg(long, value_name = "RATE", conflicts_with = "run")]
    pub lr: Option<f64>,
    /// Name of a new run
    #[arg(long, value_name = "NAME", id = "run_name", long = "run-name", conflicts_with = "run")]
    pub run_name: Option<String>,
    /// End after so many run steps
    #[arg(long, value_name = "N", conflicts_with_all = ["run", "tokens"], value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// End after so many tokens
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u64).range(1..))]
    pub tokens: Option<u64>,
    /// End after so many passes over the data
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: Option<u64>,
    /// Stages to cut the model into
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u16).range(1..))]
    pub stages: Option<u16>,
    /// First and last stage on this machine alone: no token and no label leaves it
    #[arg(long, conflicts_with = "run")]
    pub private: bool,
    /// Tokens of one sequence
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..))]
    pub sequence: Option<u32>,
    /// Sequences of one micro-batch
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..))]
    pub micro_batch: Option<u32>,
    /// Of the first weights and of the order of the data
    #[arg(long, value_name = "N", conflicts_with = "run")]
    pub seed: Option<u64>,
    /// Save the model here when it ends; of a LoRA run the adapter
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Make, sign and show the run, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Only feed: leave the computing to others
    #[arg(long)]
    pub no_serve: bool,
    #[command(flatten)]
    pub give: Give,
}
