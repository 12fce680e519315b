//! The command line as clap sees it. Only shapes and help; what a command does stands in its own file under `commands`.

mod bench;
mod simulate;
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::bench::{
    Bench, BenchAverage, BenchCodec, BenchFinetune, BenchGenerate, BenchLink, BenchMemory, BenchPeer, BenchReport,
    BenchShape, BenchSimulate, BenchStage, BenchSwarm,
};
pub use self::simulate::{
    Ask, Probe, Replay, ShapeArgs, Simulate, SimulateCheck, SimulateCompare, SimulateExplain, SimulateReplay,
    SimulateShow, SimulateSweep, SimulateValidate, SimulateWhat,
};
pub use self::train::{Course, Finetune, Train};
use super::out::Colour;
use crate::config::Flag;

/// Grouped by what a person wants; clap's own list would be alphabetical.
const FIRST_SCREEN: &str = "\
skein {version} — train a language model together, over the open internet

Start here
  demo        A whole swarm on this machine, in one minute
  train       Train a model from scratch on my data, with whoever joins
  finetune    Adapt a model to my data (LoRA), with whoever joins
  join        Join a run with an invite and help where help is needed

Work
  host        Serve the stage that I choose
  chat        Talk to a model
  serve       An OpenAI-compatible API on this machine
  generate    Complete a prompt, with the live swarm or a saved model
  export      Save the model of a run for other programs
  eval        How well a model says held-out data

  simulate    Ask what a swarm would do, without one

Look
  status  peers  replay             Care   stop  explain
Keep
  run  model  invite  config  key  bench  probe  shape  completions

skein COMMAND --help: flags, examples     skein explain: words and error codes
";

#[derive(Debug, Parser)]
#[command(
    name = "skein",
    version,
    long_version = super::bug::version(),
    help_template = FIRST_SCREEN,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Configuration file instead of the platform's
    #[arg(long, global = true, value_name = "FILE", env = "SKEIN_CONFIG", help_heading = "Everywhere")]
    pub config: Option<PathBuf>,
    /// What this machine gives: home-cpu, home-gpu, laptop, datacenter, relay, observer, or a file
    #[arg(long, global = true, value_name = "NAME", env = "SKEIN_PROFILE", help_heading = "Everywhere")]
    pub profile: Option<String>,
    /// One folder for key, checkpoints and runs; two peers on one machine need two
    #[arg(long, global = true, value_name = "DIR", env = "SKEIN_HOME", help_heading = "Everywhere")]
    pub home: Option<PathBuf>,
    /// Results for programs: one JSON document, or one object a line
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Colours on the terminal
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", help_heading = "Everywhere")]
    pub color: Colour,
    /// Lines instead of bars
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub no_progress: bool,
    /// Warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Everywhere")]
    pub quiet: bool,
    /// More of the log; twice for all of it
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    pub verbose: u8,
    /// A file that gets the whole log
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub log_file: Option<String>,
    /// text or json
    #[arg(long, global = true, value_name = "FORM", help_heading = "Everywhere")]
    pub log_format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// A whole swarm on this machine, in one minute
    Demo(Demo),
    /// Train a model from scratch on my data, with whoever joins
    Train(Train),
    /// Adapt a model to my data (LoRA), with whoever joins
    Finetune(Finetune),
    /// Join a run with an invite and help where help is needed
    Join(Join),
    /// Serve the stage that I choose
    Host(Host),
    /// Talk to a model: one in a folder, or the run of the peer that runs here
    Chat(Chat),
    /// An OpenAI-compatible API on this machine
    Serve(ServeArgs),
    /// Complete a prompt, with the live swarm or a saved model
    Generate(Generate),
    /// Save the model of a run as a Hugging Face folder
    Export(Export),
    /// Perplexity of a saved model on data, and how many answers it says word for word
    Eval(Eval),
    /// What the peer that runs here does
    Status(Status),
    /// Whom the peer that runs here knows
    Peers(Peers),
    /// Let the peer that runs here leave
    Stop(Stop),
    /// Write, check and show manifests
    #[command(subcommand)]
    Run(Run),
    /// What a model is, whether it is computed rightly here, and models of the Hub
    #[command(subcommand)]
    Model(Model),
    /// The one word by which others join
    Invite(Invite),
    /// What this machine gives, and where each value comes from
    #[command(subcommand)]
    Config(Config),
    /// The identity of this peer
    #[command(subcommand)]
    Key(KeyCommand),
    /// Ask what a swarm would do, without one
    Simulate(Simulate),
    /// What happened in a run, from the event logs of its peers
    Replay(Replay),
    /// Measure what this machine can give, for a scenario
    Probe(Probe),
    /// Peers of this machine behind narrow links: to try a swarm before anybody else is asked
    Shape(ShapeArgs),
    /// Measure this machine
    #[command(subcommand)]
    Bench(Bench),
    /// What a word or an error code means
    Explain(Explain),
    /// Completions for a shell
    Completions(Completions),
}

/// What a peer gives and where it listens; each is also a key of the configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct Give {
    /// Memory for stages, e.g. 4GiB
    #[arg(long, value_name = "SIZE", help_heading = "What this machine gives")]
    pub memory: Option<String>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", help_heading = "What this machine gives")]
    pub device: Option<String>,
    /// Threads for computing
    #[arg(long, value_name = "N", help_heading = "What this machine gives")]
    pub threads: Option<u16>,
    /// UDP and TCP port
    #[arg(long, value_name = "PORT", help_heading = "What this machine gives")]
    pub port: Option<u16>,
    /// Label of this peer in tables
    #[arg(long, value_name = "NAME", help_heading = "What this machine gives")]
    pub name: Option<String>,
    /// Leave when stdin closes: for programs that start a peer
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
}

impl Give {
    /// As the topmost layer of the configuration.
    pub fn flags(&self) -> Vec<Flag> {
        let flag = |name, key, text: Option<String>| text.map(|text| Flag { name, key, text });
        [
            flag("--memory", "give.memory", self.memory.clone()),
            flag("--device", "give.device", self.device.clone()),
            flag("--threads", "give.threads", self.threads.map(|n| n.to_string())),
            flag("--port", "net.port", self.port.map(|n| n.to_string())),
            flag("--name", "me.name", self.name.clone()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein demo                           about a minute: six peers, one is killed, one comes late
  skein demo --seconds 20 --no-kill    a short one without a death
  skein demo --kill 4@30%              stop serving peer 4 at 30 percent
  skein demo --keep ./demo             keep the model, the event logs and each peer's home

Exit code
  0 only if the loss fell below half of the first (runs of 60 seconds or 600 steps and longer;
  below the first in shorter ones), no gradient was lost or counted twice, and the replicas of each
  stage agree within 2 %; else 10. Ctrl-C ends everything at once, leaves nothing but --keep: 130.

Figures
  --json ends with one DemoDone object, counted from the event logs of all peers, the dead one's
  included. completed counts micro-batches; applied, perished, refused, lost, doubled, overlapped
  count gradients, of which a micro-batch has one at each stage. Perished: gone with a replica that
  died before another had it. rounds counts a round of two replicas once. disagreement: the largest
  |phi - mean phi| / |mean phi| of living replicas right after their last round. repair_ms_max: from
  the kill to the first completion among the micro-batches that the dead peer had accepted.
  joined: late peers that computed a gradient; joiner_ms: from its start to the first of them.
  shortfalls: why the exit code is not 0.")]
pub struct Demo {
    /// Serving peers, each its own process
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub peers: u16,
    /// Stages of the model
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=6))]
    pub stages: u16,
    /// Seconds of the whole; default: 60
    #[arg(long, value_name = "N", conflicts_with = "steps", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// Run steps to train instead
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Your own text instead of the built-in fables
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Of weights, data order, fables and of who is killed
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Whom to kill (from 1) and when; default: by seed, half way
    #[arg(long, value_name = "PEER@PERCENT%", conflicts_with = "no_kill")]
    pub kill: Option<String>,
    /// Kill nobody
    #[arg(long)]
    pub no_kill: bool,
    /// Keep model, logs and homes in this folder
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein join skein1qpz4m…          the one command
  skein join                       back into the run of last time
  skein join skein1… --memory 2GiB --threads 2")]
pub struct Join {
    /// The invite, or the name of a run that is known here; nothing: the run of last time
    #[arg(value_name = "INVITE|NAME", env = "SKEIN_INVITE")]
    pub run: Option<String>,
    /// Give nothing, only watch
    #[arg(long)]
    pub observe: bool,
    /// Give up when nobody answers for so long, e.g. 20s; default: keep trying
    #[arg(long, value_name = "TIME")]
    pub wait: Option<String>,
    #[command(flatten)]
    pub give: Give,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein host skein1qpz4m… --stage 1     serve stage 1, and stay there
  skein host tiny-verse --stage 0 --stage 2")]
pub struct Host {
    /// The invite, or the name of a run that is known here; nothing: the run of last time
    #[arg(value_name = "INVITE|NAME")]
    pub run: Option<String>,
    /// Stage to serve, from 0; may be given more than once
    #[arg(long, value_name = "N", required = true)]
    pub stage: Vec<u16>,
    /// Give up when nobody answers for so long, e.g. 20s; default: keep trying
    #[arg(long, value_name = "TIME")]
    pub wait: Option<String>,
    #[command(flatten)]
    pub give: Give,
}

/// How one of the likely tokens is chosen.
#[derive(Clone, Debug, Args)]
pub struct Choice {
    /// 0: always the likeliest
    #[arg(long, default_value_t = 0.7, value_name = "X")]
    pub temperature: f32,
    /// Choose among the likeliest that together have this probability
    #[arg(long, default_value_t = 0.95, value_name = "X")]
    pub top_p: f32,
    /// Of the choices; nothing: another at each call
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein chat ./model                        with a folder as Hugging Face tools write it
  skein chat tiny-verse --seed 7            with the run of the peer that runs here
  printf 'hello\\nand again\\n' | skein chat ./model      a line is what you say once

While you talk
  /help lists what there is: /reset /system /seed /regenerate /save /stats /bye
  Ctrl-C stops an answer, Ctrl-D leaves")]
pub struct Chat {
    /// The run of the peer that runs here, a folder or GGUF file with a model, or hf:OWNER/NAME
    #[arg(value_name = "RUN|MODEL")]
    pub model: String,
    /// What the model is told before everything else
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    #[command(flatten)]
    pub choice: Choice,
    /// Say how fast each answer was
    #[arg(long)]
    pub stats: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein serve ./model                     http://127.0.0.1:4751/v1, for this machine only
  skein serve tiny-verse                  the run of the peer that runs here
  skein serve ./model --listen 0.0.0.0:4751 --api-key file:key.txt      for others, with a key

What programs need: the base URL that is printed, the name of the model, and the key or any word for one.")]
pub struct ServeArgs {
    /// The run of the peer that runs here, a folder or GGUF file with a model, or hf:OWNER/NAME
    #[arg(value_name = "RUN|MODEL")]
    pub model: String,
    /// Address and port; port 0: any free one
    #[arg(long, default_value = "127.0.0.1:4751", value_name = "ADDRESS")]
    pub listen: std::net::SocketAddr,
    /// What programs must show: the key itself, or file:PATH
    #[arg(long, value_name = "KEY|file:PATH")]
    pub api_key: Option<String>,
    /// Requests answered together; 32 more wait
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_concurrent: u16,
    /// What programs call the model; default: its folder or run
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How conversations are written for a model without a template of its own: `User: …`, `Assistant: …`
    #[arg(long, value_enum, value_name = "STYLE")]
    pub template: Option<TemplateStyle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TemplateStyle {
    Plain,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein generate tiny-verse \"The fox\"             from the live swarm, through the peer that runs here
  skein generate ./model \"The fox\" --seed 7       from a saved folder, without a network
  echo \"The fox\" | skein generate ./model")]
pub struct Generate {
    /// The run of the peer that runs here, a folder or GGUF file with a model, or hf:OWNER/NAME
    #[arg(value_name = "RUN|MODEL")]
    pub model: String,
    /// What to continue; nothing: stdin
    pub prompt: Option<String>,
    /// Tokens at most
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub max_tokens: u32,
    #[command(flatten)]
    pub choice: Choice,
    /// Say how fast it was
    #[arg(long)]
    pub stats: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein eval ./model --data held_out.jsonl
  skein eval ./model --adapter ./adapter --data held_out.jsonl --limit 200")]
pub struct Eval {
    /// A folder as Hugging Face tools or `skein export` write it, a GGUF file, hf:OWNER/NAME, or the run that the peer here works on
    #[arg(value_name = "MODEL|RUN")]
    pub model: PathBuf,
    /// Files, folders or patterns: .txt, .md, .jsonl or .parquet with `text`, `prompt` and `completion`, or `messages`
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// A LoRA adapter of PEFT beside the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Tokens of a record that are read; default: 512, or as many as the model reads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub sequence: Option<u32>,
    /// Only so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Leave out records that cannot be used, rather than stop at the first
    #[arg(long)]
    pub skip_bad: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein export tiny-verse --out ./model             config.json, model.safetensors and tokenizer files
  skein export chats --out ./adapter                of a LoRA run its adapter, as PEFT reads it
  skein export chats --merge --out ./model          the model with its adapter in it")]
pub struct Export {
    /// The run of the peer that runs here
    #[arg(value_name = "RUN")]
    pub run: String,
    /// A new or empty folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Of a LoRA run its adapter (the default)
    #[arg(long, conflicts_with_all = ["merge", "gguf"])]
    pub adapter: bool,
    /// Of a LoRA run the whole model, its adapter added to its weights
    #[arg(long, conflicts_with = "gguf")]
    pub merge: bool,
    /// One file for llama.cpp and its kin, with the tokenizer in it; of a LoRA run merged
    #[arg(long)]
    pub gguf: bool,
    /// Replace the model that is in the folder
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein status                  once
  skein status --watch          again and again
  skein status --wait ready     until this peer serves (or step=N, or finished)
  skein status --wait alive --timeout 4s    for a health check: it answers, whatever it waits for")]
pub struct Status {
    /// Show it again whenever it changes
    #[arg(long)]
    pub watch: bool,
    /// alive, ready, step=N or finished
    #[arg(long, value_name = "WHAT", conflicts_with = "watch")]
    pub wait: Option<String>,
    /// Give up waiting after so long, e.g. 30s
    #[arg(long, value_name = "TIME", requires = "wait")]
    pub timeout: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein peers
  skein peers --stage 1 --sort tokens")]
pub struct Peers {
    /// Whole ids, and addresses
    #[arg(long)]
    pub wide: bool,
    /// Only replicas of this stage
    #[arg(long, value_name = "N")]
    pub stage: Option<u16>,
    #[arg(long, value_enum, default_value_t, value_name = "BY")]
    pub sort: PeerOrder,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PeerOrder {
    #[default]
    Stage,
    Tokens,
    Rtt,
    Name,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein stop          finish or hand on what was accepted, save, leave
  skein stop --now    at once, like a second Ctrl-C")]
pub struct Stop {
    /// Without a drain
    #[arg(long)]
    pub now: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Run {
    /// Write a commented manifest to start from
    #[command(after_help = "\
Examples
  skein run new my-run --preset tiny > my.toml")]
    New(RunNew),
    /// Everything that is wrong with a manifest, and what it will cost
    #[command(after_help = "\
Examples
  skein run check my.toml")]
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Fields, hash and signer of a run, a file or an invite
    #[command(after_help = "\
Examples
  skein run show              the run of last time
  skein run show my.toml
  skein run show skein1qpz4m…")]
    Show {
        #[arg(value_name = "RUN|FILE|INVITE")]
        what: Option<String>,
    },
}

#[derive(Clone, Debug, Args)]
pub struct RunNew {
    /// [a-z0-9-], at most 32
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// tiny, small-124m, 350m, demo
    #[arg(long, default_value = "tiny", value_name = "NAME")]
    pub preset: String,
    /// Write here instead of stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long, requires = "out")]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein invite                      of the peer that runs here
  skein invite --show skein1qpz…    what an invite says, without contacting anybody")]
pub struct Invite {
    /// Decode this invite instead
    #[arg(long, value_name = "INVITE")]
    pub show: Option<String>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Model {
    /// Its family, sizes and what else is known before its weights are read
    #[command(after_help = "\
Examples
  skein model show ./model")]
    Show {
        /// A folder as Hugging Face tools write it, a GGUF file, or hf:OWNER/NAME
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Whether loss, logits, gradients and text are those that the library of its makers gives
    Check(ModelCheck),
    /// A model and a LoRA adapter as one model, for programs that know no adapters
    Merge(ModelMerge),
    /// From a folder to one GGUF file, as llama.cpp reads it, or back
    Convert(ModelConvert),
    /// Download a model of the Hugging Face Hub
    #[command(after_help = "\
HF_TOKEN: for models that need an account. HF_ENDPOINT: a mirror of the Hub.

Examples
  skein model pull hf:TinyOrg/Tiny-1B
  skein chat hf:TinyOrg/Tiny-1B             it stands wherever a folder can, and is downloaded when it is first needed")]
    Pull {
        /// As the Hub names it; @REVISION: a branch, tag or commit
        #[arg(value_name = "hf:OWNER/NAME[@REVISION]")]
        source: String,
    },
    /// Models of the Hub that are on this computer
    #[command(after_help = "\
Examples
  skein model list")]
    List,
    /// Remove one of them
    #[command(after_help = "\
Examples
  skein model rm hf:TinyOrg/Tiny-1B
  skein model rm hf:TinyOrg/Tiny-1B --yes")]
    Rm {
        /// As `skein model list` names it
        #[arg(value_name = "hf:OWNER/NAME[@REVISION]")]
        source: String,
        /// Without a question
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein model convert ./model --out model.gguf
  skein model convert ./model --out small.gguf --type q8_0
  skein model convert model.gguf --out ./model          a folder, with its weights in f32")]
pub struct ModelConvert {
    /// A folder as Hugging Face tools write it, a GGUF file, or hf:OWNER/NAME
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// A new file that ends in .gguf, or a new or empty folder
    #[arg(long, value_name = "FILE.gguf|DIR")]
    pub out: PathBuf,
    /// How a GGUF file keeps matrices
    #[arg(long, value_enum, default_value_t, value_name = "TYPE", id = "kept", long = "type")]
    pub kept: KeptType,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KeptType {
    F32,
    F16,
    #[default]
    Bf16,
    /// 8 bits a value, in blocks of 32
    #[value(name = "q8_0")]
    Q8,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein model merge ./model ./adapter --out ./merged")]
pub struct ModelMerge {
    /// A folder as Hugging Face tools write it, a GGUF file, or hf:OWNER/NAME
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// A LoRA adapter as PEFT writes it
    #[arg(value_name = "ADAPTER")]
    pub adapter: PathBuf,
    /// A new or empty folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A reference holds some token ids and what the library made of them. Python writes one:
  python pipeline/tests/families/reference.py ./model --out reference.json

Examples
  skein model check ./model --reference reference.json
  skein model check ./model --reference reference.json --stages 3     cut as a swarm would cut it")]
pub struct ModelCheck {
    /// A folder as Hugging Face tools write it, a GGUF file, or hf:OWNER/NAME
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// What the library gave
    #[arg(long, value_name = "FILE")]
    pub reference: PathBuf,
    /// Cut into so many stages, one behind the other on this machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub stages: u16,
    /// A LoRA adapter of PEFT beside the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Config {
    /// Every key and its value
    #[command(after_help = "\
Examples
  skein config show
  skein config show give.memory --origin")]
    Show {
        /// One key, or a section
        #[arg(value_name = "KEY")]
        key: Option<String>,
        /// Where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Where the file is
    Path,
    /// Everything that is wrong with a file
    Check {
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Peer id, label and file
    #[command(after_help = "\
Examples
  skein key show")]
    Show,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein explain               all words and codes
  skein explain staleness
  skein explain SK201")]
pub struct Explain {
    #[arg(value_name = "WORD|CODE")]
    pub word: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples
  skein completions bash > ~/.local/share/bash-completion/completions/skein")]
pub struct Completions {
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
