//! In lock-step the split does not change a bit: three stages in three processes, three in one, and one in one.

use std::{fs, path::Path};

use serde_json::Value;
use skein_protocol::run::{AveragingRule, Codec, preset::preset, text as toml};

use crate::process::{Skein, alone, invite, text};

const STEPS: u64 = 50;

fn manifest(path: &Path, split: &[u32]) {
    let mut manifest = preset("demo").unwrap();
    manifest.run.name = format!("lock-{}", split.len());
    manifest.run.ends.steps = Some(STEPS);
    let model = &mut manifest.model.config;
    (model.hidden, model.layers, model.heads, model.kv_heads, model.ffn, model.context) = (32, 3, 2, 2, 64, 32);
    manifest.stages.count = split.len() as u16;
    manifest.stages.split = split.to_vec();
    (manifest.train.sequence, manifest.train.micro_batch, manifest.train.micro_batches_per_step) = (32, 2, 2);
    manifest.train.in_flight_max = 2;
    manifest.staleness.bound = 0;
    manifest.averaging.rule = AveragingRule::None;
    (manifest.codecs.forward, manifest.codecs.backward) = (vec![Codec::F32], vec![Codec::F32]);
    // Without an owner it is whoever trains it.
    let text: String = toml::write(&manifest)
        .lines()
        .filter(|line| !line.starts_with("owner"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(path, text).unwrap();
}

/// Losses in the order of completion, and the final weights.
fn result(owner: Skein, model: &Path) -> (Vec<Value>, Vec<u8>) {
    let (lines, status) = owner.finish();
    assert!(status.success());
    let losses = lines.iter().filter(|line| line["type"] == "Completed").map(|line| line["loss"].clone()).collect();
    (losses, fs::read(model.join("model.safetensors")).unwrap())
}

fn train(dir: &Path, split: &[u32], others: bool) -> (Vec<Value>, Vec<u8>) {
    fs::create_dir_all(dir).unwrap();
    let (run, data, model) = (dir.join("run.toml"), dir.join("data.txt"), dir.join("model"));
    manifest(&run, split);
    text(&data);
    let (run, data, out) = (run.display().to_string(), data.display().to_string(), model.display().to_string());
    let mut args = vec!["train", "--run", &run, "--data", &data, "--out", &out];
    if others {
        args.push("--no-serve");
    }
    let mut owner = Skein::start(&dir.join("owner"), &args);
    let mut serving = Vec::new();
    if others {
        let invite = invite(&mut owner);
        for stage in 0..split.len() {
            let home = dir.join(format!("peer-{stage}"));
            serving.push(Skein::start(&home, &["host", &invite, "--stage", &stage.to_string()]));
        }
    }
    result(owner, &model)
}

#[test]
fn three_processes_equal_one() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let three = train(&dir.path().join("three"), &[1, 1, 1], true);
    let together = train(&dir.path().join("together"), &[1, 1, 1], false);
    let whole = train(&dir.path().join("whole"), &[3], false);
    assert_eq!(three.0.len() as u64, STEPS * 2);
    assert_eq!(three.0, together.0, "losses of three processes and of one");
    assert_eq!(three.0, whole.0, "losses of three stages and of one");
    assert!(three.1 == together.1 && three.1 == whole.1, "the final weights differ");
}
