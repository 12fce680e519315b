//! A saved folder means the same to `transformers`: our logits beside the numbers that it gave for the same folders.
//!
//! `pipeline/tests/reference/logits.py` made the numbers and compares them again wherever Python has `torch` and
//! `transformers`; the folders it reads are written by the example `reference`.

#[path = "../reference/models.rs"]
mod models;

use skein_pipeline::{
    compute::hf,
    exact::{Engine, Exact, Settings, StageInput},
};
use skein_protocol::run::{Family, OptimizerKind};

use crate::support::settings;

/// Logits of every position, `[position, vocab]`, through a folder that is written and read again.
fn logits(name: &str) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    hf::write(dir.path(), Family::Llama, &models::stages(name)).unwrap();
    let (model, weights) = hf::Checkpoint::open(dir.path()).unwrap().whole().unwrap();
    let settings: Settings = settings(models::TOKENS.len(), 1, OptimizerKind::Adamw);
    let mut engine = Exact::new(model, settings, weights).unwrap();
    let step = |i: usize| engine.infer(1, i, StageInput::Tokens(&models::TOKENS[i..=i])).unwrap();
    (0..models::TOKENS.len()).flat_map(step).collect()
}

#[test]
fn a_saved_folder_gives_the_logits_of_transformers() {
    let reference = [
        ("untied", include_str!("../reference/untied.json")),
        ("tied", include_str!("../reference/tied.json")),
        ("split", include_str!("../reference/split.json")),
    ];
    for (name, numbers) in reference {
        let theirs: Vec<Vec<f32>> = serde_json::from_str(numbers).unwrap();
        let (theirs, ours) = (theirs.concat(), logits(name));
        assert_eq!(theirs.len(), ours.len(), "{name}");
        let largest = theirs.iter().fold(0f32, |most, v| most.max(v.abs()));
        assert!(largest > 2.0, "{name}: logits near zero would prove little: {largest}");
        let apart = theirs.iter().zip(&ours).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart < 1e-4, "{name}: logits differ by {apart}");
    }
}
