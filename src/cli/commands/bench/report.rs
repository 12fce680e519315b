//! `skein bench report`: every bench, one after the other, as the text of BENCHMARKS.md. In: a Python with torch, a text. Out:
//! Markdown. Each measurement is a process of its own, run as a user would run it.

use std::{
    fmt::Write as _,
    process::{Command, Stdio},
};

use jiff::Timestamp;

use super::machine;
use crate::cli::{
    args::BenchReport,
    context::Context,
    failure::{Failure, Report},
};

/// Measurements that belong together.
struct Section {
    /// What `--only` calls it.
    name: &'static str,
    title: &'static str,
    /// What the figures mean, what is aimed at, what others reach.
    lead: &'static str,
    /// Command lines after `skein`. `FILE` and `PYTHON` stand for what was given.
    runs: &'static [&'static str],
}

const SECTIONS: &[Section] = &[
    Section {
        name: "stage",
        title: "Stage, beside PyTorch in turns",
        lead: "Llama-like models, AdamW, subnormals flushed on both sides, the same threads; PyTorch is \
               `pipeline/benches/stage.py`, in f32. bf16x3, the first choice of the presets, is f32 of which products need 16 bits \
               of 24 (PyTorch's `high`); f32 has the same bits on every processor. A turn is ours and then theirs; OF IT is the median of the turns. The aim is 120 %. \
               One small model is measured at step 300, where a trained model makes other numbers than a fresh one.",
        runs: &[
            "bench stage --hidden 256 --layers 8 --heads 8 --ffn 688 --vocab 256 --sequence 128 --batch 8 --threads 2 --steps 24 --rounds 3 --arithmetic f32 --data FILE --torch PYTHON",
            "bench stage --hidden 256 --layers 8 --heads 8 --ffn 688 --vocab 256 --sequence 128 --batch 8 --threads 1 --steps 16 --rounds 3 --arithmetic f32 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1376 --vocab 256 --sequence 256 --batch 4 --threads 2 --steps 10 --rounds 3 --arithmetic f32 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1376 --vocab 256 --sequence 256 --batch 4 --threads 1 --steps 6 --rounds 3 --arithmetic f32 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --steps 6 --rounds 2 --arithmetic f32 --data FILE --torch PYTHON",
            "bench stage --hidden 256 --layers 8 --heads 8 --ffn 688 --vocab 256 --sequence 128 --batch 8 --threads 2 --steps 24 --rounds 3 --arithmetic bf16x3 --data FILE --torch PYTHON",
            "bench stage --hidden 256 --layers 8 --heads 8 --ffn 688 --vocab 256 --sequence 128 --batch 8 --threads 1 --steps 16 --rounds 3 --arithmetic bf16x3 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1376 --vocab 256 --sequence 256 --batch 4 --threads 2 --steps 10 --rounds 3 --arithmetic bf16x3 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1376 --vocab 256 --sequence 256 --batch 4 --threads 1 --steps 6 --rounds 3 --arithmetic bf16x3 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --steps 6 --rounds 2 --arithmetic bf16x3 --data FILE --torch PYTHON",
            "bench stage --hidden 256 --layers 8 --heads 8 --ffn 688 --vocab 256 --sequence 128 --batch 8 --threads 2 --steps 300 --arithmetic bf16x3 --data FILE --torch PYTHON",
            "bench stage --hidden 256 --layers 8 --heads 8 --ffn 688 --vocab 256 --sequence 128 --batch 8 --threads 2 --steps 24 --rounds 3 --arithmetic bf16 --data FILE --torch PYTHON",
            "bench stage --hidden 512 --layers 8 --heads 8 --ffn 1376 --vocab 256 --sequence 256 --batch 4 --threads 2 --steps 10 --rounds 3 --arithmetic bf16 --data FILE --torch PYTHON",
        ],
    },
    Section {
        name: "finetune",
        title: "Fine-tuning, beside PEFT",
        lead: "LoRA of rank 16 beside frozen weights, one process, the same threads; PEFT right after, in f32. bf16x3 is the first choice of \
               a run. A round is what one replica sends to another in f32, before its codec. The aim is 120 %.",
        runs: &[
            "bench finetune --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --arithmetic f32 --torch PYTHON",
            "bench finetune --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --arithmetic bf16x3 --torch PYTHON",
            "bench finetune --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --arithmetic bf16x3 --targets q,k,v,o,gate,up,down --torch PYTHON",
            "bench finetune --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --arithmetic bf16x3 --base-precision int8",
            "bench finetune --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --threads 2 --arithmetic bf16x3 --base-precision int4",
        ],
    },
    Section {
        name: "generate",
        title: "Reading and answering, beside transformers",
        lead: "One process that reads a prompt, answers one reader, and sixteen at once; IT is `transformers` with the same threads, right \
               after. The aim is 120 %, and sixteen at once at four times one.",
        runs: &[
            "bench generate --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --threads 2 --torch PYTHON",
        ],
    },
    Section {
        name: "through",
        title: "Answering through a swarm",
        lead: "The same model cut into two stages that are processes, two replicas each, one of which is killed while it answers; beside one \
               process with as many threads. Aims: 100 tok/s for one reader (Petals 33.5 of its own models), four times as many for \
               sixteen, and under a second between two tokens where a replica dies.",
        runs: &[
            "bench generate --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --threads 2 --prompt 128 --tokens 128 --stages 2 --replicas 2",
        ],
    },
    Section {
        name: "codec",
        title: "Codecs",
        lead: "One core, 16 MiB of normal values. GB/s count the f32 side and stand beside a plain copy of it; decoding includes the \
               check for values that are not finite or absurdly large. Aims: int8 10 GB/s in and 15 out at 0.27 of the bytes and an \
               error below 8e-3 (hivemind with two threads: 0.57, 0.84 and 1.6e-2), int4 3, sparse 2.",
        runs: &["bench codec"],
    },
    Section {
        name: "loss",
        title: "What codecs cost in loss",
        lead: "The same training with other codecs, at equal steps. Aims: int8 within 0.5 % of f32, int4 with error feedback within 2 %.",
        runs: &["bench codec --loss"],
    },
    Section {
        name: "link",
        title: "Link",
        lead: "Two processes on this machine, our data plane over QUIC, beside quinn by itself (same cipher) in the same turns, and plain \
               TCP without a cipher. Datagrams between processes of one machine may be longer than Ethernet's, which quinn by itself \
               does not try. Aims: bodies of 8 MiB at 90 % of quinn, 64 KiB there and back in 0.4 ms, a hop of an activation of \
               1 x 256 x 512 in 4 ms (hivemind 17 ms).",
        runs: &["bench link"],
    },
    Section {
        name: "shaped",
        title: "Narrow link",
        lead: "A link of that rate, round trip and loss, with a queue of as much as is on its way, in the same process: it needs the \
               processor too. Aims: 90 % filled, 60 % where 0.5 % is lost by chance; an urgent body of 64 KiB beside bulk, there and a \
               word back, in 80 ms.",
        runs: &["bench link --shape 100mbit,50ms --seconds 10", "bench link --shape 100mbit,50ms,0.5% --seconds 10"],
    },
    Section {
        name: "average",
        title: "Averaging",
        lead: "A round of 40 MiB of f32 among replicas that are processes. Measured elsewhere, 4 peers on two idle cores: hivemind 1.005 s, \
               gloo's all-reduce (no encryption, no faults) 0.077 s. The aim is 0.2 s.",
        runs: &["bench average --replicas 2", "bench average --replicas 4"],
    },
    Section {
        name: "swarm",
        title: "Swarm",
        lead: "Peers that are processes, one thread each, beside one process with as many threads. The aim is 90 %. Others, of one PyTorch \
               process: two stages over gloo 78 %, hivemind with two remote experts 52 %, Petals with two servers 35 %.",
        runs: &[
            "bench swarm",
            "bench swarm --hidden 512 --layers 8 --heads 8 --ffn 1408 --vocab 4096 --sequence 256 --batch 8 --lora-rank 16",
        ],
    },
    Section {
        name: "peer",
        title: "Peer",
        lead: "Aims: a process serves within 2 s, holds less than 60 MB while idle. hivemind's hash table among 16 peers: 280 ms to start, 23 ms \
               (p95 30) to store, 19 ms (26) to find.",
        runs: &["bench peer"],
    },
    Section {
        name: "memory",
        title: "Memory",
        lead: "What a stage takes at most by the plan that admits it, the most that its peer held by the count of its allocator, and the \
               most that the system gave its process. The aim is 10 % beyond the account and one constant.",
        runs: &["bench memory"],
    },
    Section {
        name: "demo",
        title: "Demo",
        lead: "Six peers, three stages, one peer killed, one late.",
        runs: &["demo"],
    },
];

/// What is told of a demo, by the names of its last document.
const DEMO: &[&str] = &[
    "tokens",
    "tokens_per_s",
    "wall_s",
    "loss_first",
    "loss_last",
    "rounds",
    "disagreement",
    "repair_ms_max",
    "joiner_ms",
    "lost",
    "doubled",
    "overlapped",
    "bytes_activations",
    "bytes_gradients",
    "bytes_averaging",
    "bytes_if_f32",
];

pub fn run(args: &BenchReport, context: &Context) -> Result<u8, Report> {
    let known: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
    if let Some(unknown) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        let message = format!("--only {unknown}: the sections are {}", known.join(", "));
        return Err(Failure::Usage { message }.into());
    }
    let chosen = |section: &&Section| args.only.is_empty() || args.only.iter().any(|name| name == section.name);
    context.out.print(&head());
    let mut failed = 0;
    for section in SECTIONS.iter().filter(chosen) {
        context.out.print(&format!("## {}\n\n{}\n", section.title, folded(section.lead)));
        for group in grouped(section.runs, args, context) {
            failed += u8::from(group.failed);
            context.out.print(&group.text);
        }
    }
    Ok(u8::from(failed > 0))
}

/// Command lines and the one table of what they measured; or what went wrong.
struct Group {
    text: String,
    failed: bool,
}

/// Runs the command lines in their order. Tables with the same columns become one.
fn grouped(runs: &[&str], args: &BenchReport, context: &Context) -> Vec<Group> {
    let mut groups: Vec<(Vec<String>, String, Vec<String>, bool)> = Vec::new();
    for line in runs {
        let line = match (&args.torch, line.split_once(" --torch")) {
            (None, Some((without, _))) => without,
            _ => line,
        };
        context.out.note(&format!("skein {line}"));
        let (header, rows, failed) = match measured(line, args) {
            Ok(table) => {
                let mut lines = table.lines().map(str::to_string);
                (lines.next().unwrap_or_default(), lines.collect(), false)
            }
            Err(why) => (format!("did not run: {why}"), Vec::new(), true),
        };
        match groups.last_mut() {
            Some((lines, same, all, _)) if *same == header && !failed => {
                lines.push(line.to_string());
                all.extend(rows);
            }
            _ => groups.push((vec![line.to_string()], header, rows, failed)),
        }
    }
    let group = |(lines, header, rows, failed): (Vec<String>, String, Vec<String>, bool)| {
        let commands: String = lines.iter().fold(String::new(), |text, line| text + "skein " + line + "\n");
        let table = if failed { format!("{header}\n") } else { markdown(&header, &rows) };
        Group { text: format!("```\n{commands}```\n\n{table}"), failed }
    };
    groups.into_iter().map(group).collect()
}

/// Runs one command line. Out: its table, tab-separated.
fn measured(line: &str, args: &BenchReport) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    for word in line.split(' ') {
        match (word, &args.torch) {
            ("FILE", _) => command.arg(&args.data),
            ("PYTHON", Some(python)) => command.arg(python),
            _ => command.arg(word),
        };
    }
    if line == "demo" {
        command.arg("--json");
    }
    let ended = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let ended = ended.map_err(|error| error.to_string())?;
    match ended.status.success() {
        true if line == "demo" => demo(&String::from_utf8_lossy(&ended.stdout)),
        true => Ok(String::from_utf8_lossy(&ended.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&ended.stderr).trim().lines().collect::<Vec<_>>().join(" ")),
    }
}

/// The last document of a demo as a table.
fn demo(said: &str) -> Result<String, String> {
    let last = said.lines().last().unwrap_or_default();
    let done: serde_json::Value = serde_json::from_str(last).map_err(|error| error.to_string())?;
    let row = |name: &&str| format!("{name}\t{}", done.get(name).unwrap_or(&serde_json::Value::Null));
    Ok(std::iter::once("WHAT\tVALUE".to_string()).chain(DEMO.iter().map(row)).collect::<Vec<_>>().join("\n"))
}

fn head() -> String {
    let text = format!(
        "Written by `skein bench report --data FILE --torch PYTHON`: {} {}, {}, {}.\n\
         FILE is a text whose bytes are the tokens, PYTHON one that has torch. On a machine that is shared figures move from minute to \
         minute: compare within one table, by ratio.",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        Timestamp::now().strftime("%Y-%m-%d"),
        machine(),
    );
    format!("# Benchmarks\n\n{}\n", folded(&text))
}

/// Lines of at most 120 columns.
fn folded(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 120 {
            lines.push(word.to_string());
        } else {
            let _ = write!(line, "{}{word}", if line.is_empty() { "" } else { " " });
        }
    }
    lines.join("\n")
}

fn markdown(header: &str, rows: &[String]) -> String {
    let line = |row: &str| format!("| {} |\n", row.replace('|', "\\|").split('\t').collect::<Vec<_>>().join(" | "));
    let rule = "|---".repeat(header.split('\t').count()) + "|\n";
    rows.iter().fold(line(header) + &rule, |text, row| text + &line(row))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn every_command_line_is_one_that_this_program_takes() {
        for line in SECTIONS.iter().flat_map(|section| section.runs) {
            let words = std::iter::once("skein").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_table_in_a_pipe_becomes_one_of_markdown() {
        let rows = ["1\t2 | 3".to_string()];
        assert_eq!(markdown("A\tB", &rows), "| A | B |\n|---|---|\n| 1 | 2 \\| 3 |\n");
    }

    #[test]
    fn long_text_is_folded_between_words() {
        let text = folded(&"word ".repeat(100));
        assert!(text.lines().count() > 3 && text.lines().all(|line| line.len() <= 120));
    }
}
