//! A run that begins with a model in a folder: its weights, its tokenizer, another peer, and the folder that comes out of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use skein::text::Tokenizer;
use skein_pipeline::{
    compute::hf::{self, Checkpoint},
    model::{StageModel, init},
};
use skein_protocol::run::{Family, ModelConfig};

use crate::{
    api,
    model::small,
    process::{Skein, alone, invite, text},
};

/// A small Qwen3 with a tokenizer of its own.
fn model(folder: &Path) -> Vec<f32> {
    let tokenizer = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/text/golden/byte-level");
    fs::create_dir(folder).unwrap();
    let config = ModelConfig {
        layers: 3,
        heads: 4,
        kv_heads: 2,
        ffn: 48,
        context: 128,
        tie_embeddings: true,
        norm_eps: 1e-6,
        head: Some(16),
        qk_norm: true,
        ..small(Tokenizer::open(&tokenizer).unwrap().vocabulary())
    };
    let model = StageModel::whole(config).unwrap();
    let weights = init::initial(&model, 3);
    hf::write(folder, Family::Qwen3, &[(model, weights.clone())]).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(tokenizer.join(name), folder.join(name)).unwrap();
    }
    weights
}

#[test]
fn a_model_in_a_folder_is_trained_on_with_others_and_comes_out_as_one() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let before = model(&at("model"));
    text(&at("data.txt"));
    let shown = |name: &str| at(name).display().to_string();
    let (folder, data, out) = (shown("model"), shown("data.txt"), shown("out"));
    let train = [
        "train",
        "--model",
        &folder,
        "--data",
        &data,
        "--run-name",
        "tale",
        "--stages",
        "2",
        "--sequence",
        "32",
        "--micro-batch",
        "4",
        "--lr",
        "1e-3",
    ];
    let mut owner = Skein::start(&at("owner"), &train);
    let invite = invite(&mut owner);
    owner.wait_for("Stepped");
    // The friend has no folder: what it serves comes from the owner.
    let mut friend = Skein::start(&at("friend"), &["join", &invite]);
    friend.wait_for("Serving");
    friend.wait_for("Stepped");
    let there = owner.ask(&["generate", "tale", "The", "--max-tokens", "4", "--seed", "1"]);
    assert!(there.status.success(), "{}", String::from_utf8_lossy(&there.stderr));
    api::a_run_converses_in_its_own_words(&at("owner"), "tale");
    // It has the tokenizer, too: whoever is in the run can talk to the model.
    let elsewhere = friend.ask(&["generate", "tale", "The", "--max-tokens", "4"]);
    assert!(elsewhere.status.success(), "{}", String::from_utf8_lossy(&elsewhere.stderr));
    let exported = owner.ask(&["export", "tale", "--out", &out]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    friend.leave();

    // The owner's next start knows where the model lies.
    owner.leave();
    let mut owner = Skein::start(&at("owner"), &["train", "--run", "tale", "--data", &data]);
    owner.wait_for("Stepped");
    owner.leave();

    assert_eq!(
        fs::read(at("out").join("tokenizer.json")).unwrap(),
        fs::read(at("model").join("tokenizer.json")).unwrap()
    );
    let trained = Checkpoint::open(&at("out")).unwrap();
    assert_eq!((trained.family, trained.config.qk_norm, trained.config.head), (Family::Qwen3, true, Some(16)));
    // Two stages undo the tie: what follows the embedding and stands before the head is comparable.
    let (model, after) = trained.whole().unwrap();
    let layers = model.blocks()[1].1.start..model.blocks()[model.blocks().len() - 1].1.start;
    let moved = before[layers.clone()].iter().zip(&after[layers]).filter(|(a, b)| a != b).count();
    assert!(moved > 1000, "{moved} of the layers' weights moved");
}
