//! Every family is computed as Python's `transformers` computes it: loss, logits, every gradient and 64 tokens, in one stage and
//! over three. `pipeline/tests/families/make.py` made the checkpoints and the numbers.

use std::path::{Path, PathBuf};

use skein_pipeline::compute::{
    Device,
    hf::{self, AdapterFolder, Checkpoint},
    parity::{Reference, compare},
};
use skein_protocol::run::Family;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families").join(name)
}

fn agrees(name: &str, reference: &str) {
    let checkpoint = Checkpoint::open(&folder(name)).unwrap();
    let reference = Reference::read(&folder(name).join(reference)).unwrap();
    for stages in [1, 3] {
        let found = compare(&checkpoint, None, &reference, stages, Device::Cpu { threads: 2 }).unwrap();
        assert!(found.holds(), "{name} over {stages}: {found:?}");
        assert!(found.loss_abs.is_some() && found.logits_max_abs.is_some() && found.grads_max_rel.is_some());
    }
}

#[test]
fn llama_2_in_bf16_and_the_old_spelling() {
    agrees("llama2", "reference.json");
}

#[test]
fn llama_3_with_scaled_positions_and_a_tied_head() {
    agrees("llama3", "reference.json");
}

#[test]
fn llama_3_over_more_positions_than_it_was_first_trained_on() {
    agrees("llama3", "long.json");
}

#[test]
fn linear_scaling_in_f16() {
    agrees("linear", "reference.json");
}

#[test]
fn mistral_with_and_without_its_window() {
    agrees("mistral", "reference.json");
    agrees("mistral-full", "reference.json");
}

#[test]
fn qwen_2_with_biases_and_windows_in_some_layers() {
    agrees("qwen2", "reference.json");
}

#[test]
fn qwen_3_with_normalised_heads_in_shards() {
    agrees("qwen3", "reference.json");
}

/// PEFT's adapters beside a model: loss, logits, the gradients of every A and B.
#[test]
fn adapters_are_computed_as_peft_computes_them() {
    let checkpoint = Checkpoint::open(&folder("llama3")).unwrap();
    let adapter = AdapterFolder::open(&folder("lora")).unwrap();
    let reference = Reference::read(&folder("lora").join("reference.json")).unwrap();
    assert_eq!((adapter.lora.rank, adapter.lora.alpha, adapter.lora.targets.len()), (4, 8, 7));
    for stages in [1, 3] {
        let found = compare(&checkpoint, Some(&adapter), &reference, stages, Device::Cpu { threads: 2 }).unwrap();
        assert!(found.holds() && found.greedy_equal == Some(true), "over {stages}: {found:?}");
        assert!(found.grads_max_rel.is_some());
    }
}

#[test]
fn an_adapter_merged_into_its_model_gives_what_both_gave() {
    let (base, adapter) = (Checkpoint::open(&folder("llama3")).unwrap(), AdapterFolder::open(&folder("lora")).unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), b"not ours").unwrap();
    let merged = base.merged(&adapter).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    hf::write_with(&out, base.family, &[merged], &hf::texts(dir.path()).unwrap()).unwrap();
    assert_eq!(std::fs::read(out.join("tokenizer.model")).unwrap(), b"not ours");
    let mut reference = Reference::read(&folder("lora").join("reference.json")).unwrap();
    // The gradients are those of the adapter.
    reference.grad_norms = None;
    let merged = Checkpoint::open(&out).unwrap();
    let found = compare(&merged, None, &reference, 1, Device::Cpu { threads: 1 }).unwrap();
    assert!(found.holds() && found.greedy_equal == Some(true), "{found:?}");
}

#[test]
fn what_a_file_says_of_its_family_is_read() {
    for (name, family, set) in [
        ("llama2", Family::Llama, ""),
        ("llama3", Family::Llama, "scaling"),
        ("linear", Family::Llama, "scaling"),
        ("mistral", Family::Mistral, "window"),
        ("mistral-full", Family::Mistral, ""),
        ("qwen2", Family::Qwen2, "window"),
        ("qwen3", Family::Qwen3, ""),
    ] {
        let Checkpoint { family: found, config, .. } = Checkpoint::open(&folder(name)).unwrap();
        assert_eq!(found, family, "{name}");
        assert_eq!(config.rope_scaling.is_some(), set == "scaling", "{name}");
        assert_eq!(config.window.is_some(), set == "window", "{name}");
        assert_eq!((config.qkv_bias, config.qk_norm), (family == Family::Qwen2, family == Family::Qwen3), "{name}");
    }
}
