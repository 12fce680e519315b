//! A model in a folder is adapted by four peers, one of which dies: what it learns, what comes out, what stays as it was.

use std::{fmt::Write, fs, path::Path};

use serde_json::Value;
use skein::home::Home;
use skein_pipeline::{
    compute::{
        self, Device,
        hf::{self, AdapterFolder, Checkpoint},
    },
    exact::{IGNORE, Settings, StageInput},
    model::{StageModel, init},
};
use skein_protocol::{
    hash,
    run::{Arithmetic, Family, ModelConfig, Optimizer, OptimizerKind, Schedule},
};

use crate::{
    model::small,
    process::{Skein, alone, invite, manifest_of},
};

const KEYS: usize = 16;
const VALUES: u8 = 8;
/// Bytes of a record: two digits, a space, a key, `=`, a value.
const RECORD: usize = 6;

/// What `key` means, in a table of its own for each of both lessons.
fn value(key: usize, lesson: usize) -> u8 {
    b'a' + ((key * 5 + 3 * lesson + key / 8) % usize::from(VALUES)) as u8
}

fn key(key: usize) -> char {
    char::from(b'A' + key as u8)
}

/// The prompt of the `n`-th record: its number is noise.
fn prompt(n: usize) -> String {
    format!("{:02} {}=", (n * 37 + n / 16) % 100, key(n % KEYS))
}

/// A small model of bytes that has learned the first table: what a base is to those who adapt it.
fn base(folder: &Path) {
    let config = ModelConfig { hidden: 64, heads: 4, kv_heads: 2, ffn: 128, ..small(256) };
    let model = StageModel::whole(config).unwrap();
    let optimizer = Optimizer {
        kind: OptimizerKind::Adamw,
        lr: 3e-3,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        decay: 0.0,
        schedule: Schedule::default(),
    };
    let settings = Settings { optimizer, clip: 1.0, ..Settings::still(RECORD - 1, KEYS) };
    let weights = init::initial(&model, 1);
    let device = Device::Cpu { threads: 1 };
    let mut engine = compute::engine(device, Arithmetic::F32, model.clone(), settings, weights).unwrap();
    for step in 0..400 {
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for i in 0..KEYS {
            let n = step * KEYS + i;
            tokens.extend(prompt(n).bytes().map(u32::from));
            targets.extend([IGNORE; RECORD - 2].into_iter().chain([u32::from(value(n % KEYS, 0))]));
        }
        engine.forward(1, StageInput::Tokens(&tokens)).unwrap();
        engine.loss_backward(1, &targets, 1.0).unwrap();
        engine.step(3e-3).unwrap();
    }
    fs::create_dir(folder).unwrap();
    hf::write(folder, Family::Llama, &[(model, engine.params().to_vec())]).unwrap();
}

fn records(path: &Path, numbers: std::ops::Range<usize>) {
    let mut text = String::new();
    for n in numbers {
        let (prompt, completion) = (prompt(n), char::from(value(n % KEYS, 1)));
        writeln!(text, r#"{{"prompt": "{prompt}", "completion": "{completion}"}}"#).unwrap();
    }
    fs::write(path, text).unwrap();
}

/// Of a hundred answers those that are right, by `skein eval`.
fn exact(asks: &Skein, args: &[&str], held_out: &str) -> f64 {
    let all = [&["eval"], args, &["--data", held_out, "--sequence", "16", "--json"]].concat();
    let done = asks.ask(&all);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let found: Value = serde_json::from_slice(&done.stdout).unwrap();
    100.0 * found["exact"].as_f64().unwrap() / found["answers"].as_f64().unwrap()
}

#[test]
fn four_peers_adapt_a_model_one_is_killed_and_the_adapter_says_what_they_learned() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shown = |name: &str| at(name).display().to_string();
    base(&at("model"));
    // Held out are numbers that no record of the lesson has before its key.
    records(&at("lesson.jsonl"), 0..1200);
    records(&at("held.jsonl"), 1200..1300);
    let (folder, lesson, held) = (shown("model"), shown("lesson.jsonl"), shown("held.jsonl"));
    let before = fs::read(at("model").join("model.safetensors")).unwrap();
    let finetune = [
        "finetune",
        &folder,
        "--data",
        &lesson,
        "--run-name",
        "table",
        "--stages",
        "2",
        "--sequence",
        "32",
        "--micro-batch",
        "8",
        "--lr",
        "5e-3",
        "--steps",
        "400",
        "--out",
    ];
    let out = shown("adapter");
    let mut owner = Skein::start(&at("owner"), &[&finetune[..], &[&out]].concat());
    let invite = invite(&mut owner);
    owner.wait_for("Stepped");
    assert!(exact(&owner, &[&folder], &held) < 40.0, "the base has learned another table");
    let mut friends: Vec<Skein> =
        ["ann", "bob", "eve"].iter().map(|name| Skein::start(&at(name), &["join", &invite])).collect();
    for friend in &mut friends {
        // What stands beside the adapters comes from the owner, or from who had it before.
        friend.wait_for("Shelved");
        friend.wait_for("Stepped");
    }
    friends.remove(0).kill();
    let (lines, status) = owner.finish();
    assert!(status.success(), "{lines:#?}");
    let asks = friends.remove(0);
    let learned = exact(&asks, &[&folder, "--adapter", &out], &held);
    assert!(learned > 95.0, "{learned} % of what was held out");

    // The adapter is that of PEFT, and small; the model beside it is the one that was there.
    let adapter = AdapterFolder::open(&at("adapter")).unwrap();
    assert_eq!((adapter.lora.rank, adapter.lora.alpha, adapter.lora.targets.len()), (16, 32, 7));
    assert_eq!(fs::read(at("model").join("model.safetensors")).unwrap(), before);
    let manifest = manifest_of(&at("owner"));
    for blob in manifest.blobs() {
        let bytes = Home::at(&at("owner")).shelf().get(blob).unwrap().expect("the owner has all of it");
        assert_eq!(hash::blob(&[&bytes]), blob);
    }
    let got = manifest.blobs().into_iter().filter(|blob| Home::at(&at("bob")).shelf().get(*blob).unwrap().is_some());
    assert!(got.count() > 0, "a friend keeps what stands beside its adapters");
    // Merged by itself it says the same.
    let merged = shown("merged");
    let done = asks.ask(&["model", "merge", &folder, &out, "--out", &merged]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(exact(&asks, &[&merged], &held), learned);
    assert!(Checkpoint::open(&at("merged")).is_ok());
}
