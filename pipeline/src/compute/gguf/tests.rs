//! Models of every family that go out and come back, and files that are damaged.

use std::{fs, path::Path};

use candle_core::{Device as Candle, quantized::gguf_file::Content};
use skein_protocol::run::{Arithmetic, Family, ModelConfig, RopeScaling, Window};

use super::{Kept, names, write_gguf};
use crate::{
    compute::{
        Device, engine,
        hf::{self, Checkpoint, HfError, Texts},
    },
    exact::{Settings, StageInput},
    model::{StageModel, init, tests::tiny},
};

fn families() -> Vec<(Family, ModelConfig)> {
    let tiny = || ModelConfig { hidden: 32, ffn: 64, vocab: 300, ..tiny() };
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 };
    let window = Some(Window { size: 5, from: 1 });
    vec![
        (Family::Llama, ModelConfig { rope_scaling: Some(llama3), head: Some(6), ..tiny() }),
        (Family::Llama, ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..tiny() }),
        (Family::Llama, ModelConfig { tie_embeddings: true, norm_eps: 1e-5, rope_theta: 5e5, ..tiny() }),
        (Family::Mistral, ModelConfig { window: Some(Window { size: 5, from: 0 }), ..tiny() }),
        (Family::Qwen2, ModelConfig { qkv_bias: true, window, ..tiny() }),
        (Family::Qwen3, ModelConfig { qk_norm: true, head: Some(6), ..tiny() }),
    ]
}

fn made(config: &ModelConfig) -> (StageModel, Vec<f32>) {
    let model = StageModel::whole(config.clone()).unwrap();
    let mut weights = init::initial(&model, 5);
    weights.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 97) as f32 * 1e-3);
    (model, weights)
}

fn logits(path: &Path) -> Vec<f32> {
    let (model, weights) = Checkpoint::open(path).unwrap().whole().unwrap();
    let settings = Settings::still(4, 1);
    let mut engine = engine(Device::Cpu { threads: 1 }, Arithmetic::F32, model, settings, weights).unwrap();
    engine.infer(1, 0, StageInput::Tokens(&[3, 290, 7, 11])).unwrap()
}

#[test]
fn every_family_says_the_same_from_a_file_as_from_a_folder() {
    for (family, config) in families() {
        let dir = tempfile::tempdir().unwrap();
        let stages = [made(&config)];
        hf::write(dir.path(), family, &stages).unwrap();
        let texts = hf::texts(dir.path()).unwrap();
        let expected = logits(dir.path());
        let of_folder = Checkpoint::open(dir.path()).unwrap();
        for (kept, most) in [(Kept::F32, 0.0), (Kept::F16, 1e-2), (Kept::Bf16, 5e-2), (Kept::Q8, 5e-2)] {
            let file = dir.path().join("model.gguf");
            let written = write_gguf(&file, "tiny", family, &stages, &texts, kept).unwrap();
            assert_eq!(written.bytes, fs::metadata(&file).unwrap().len());
            let checkpoint = Checkpoint::open(&file).unwrap();
            assert_eq!((checkpoint.family, &checkpoint.config), (family, &config), "{kept:?}");
            checkpoint.byte_level().unwrap();
            let apart = logits(&file).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart <= most, "{family:?} {kept:?}: {apart} apart");
            if kept == Kept::F32 {
                assert_eq!(checkpoint.whole().unwrap().1, stages[0].1);
                assert_eq!(checkpoint.digest().unwrap(), of_folder.digest().unwrap());
            }
        }
    }
}

#[test]
fn stages_go_into_one_file_and_come_out_of_it_one_by_one() {
    for tie in [false, true] {
        let config = ModelConfig { vocab: 256, tie_embeddings: tie, ..tiny() };
        let part = |first, layers, embedding, head| {
            let model = StageModel::new(config.clone(), first, layers, embedding, head).unwrap();
            let weights = init::initial(&model, 5);
            (model, weights)
        };
        let stages = [part(0, 1, true, false), part(1, config.layers - 1, false, true)];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.gguf");
        write_gguf(&file, "tiny", Family::Llama, &stages, &Texts::new(), Kept::F32).unwrap();
        let checkpoint = Checkpoint::open(&file).unwrap();
        assert!(checkpoint.texts().unwrap().is_empty());
        for (model, weights) in &stages {
            assert_eq!(checkpoint.read(model).unwrap(), *weights);
        }
    }
}

/// Half a head apart or side by side: the same angles turn the same pairs, so q times k stays what it was.
#[test]
fn rows_in_the_other_order_are_turned_as_pairs_to_the_same_values() {
    let row: Vec<f32> = (0..8).map(|i| (i * i) as f32 * 0.1 - 1.0).collect();
    let angle = |pair: usize| 0.3 + pair as f32;
    let turn = |a: f32, b: f32, by: f32| (a * by.cos() - b * by.sin(), a * by.sin() + b * by.cos());
    let mut halves = row.clone();
    for pair in 0..4 {
        (halves[pair], halves[pair + 4]) = turn(row[pair], row[pair + 4], angle(pair));
    }
    let theirs: Vec<f32> = (0..8).map(|at| row[names::our_row(at, 8, 1)]).collect();
    let mut pairs = theirs.clone();
    for pair in 0..4 {
        (pairs[2 * pair], pairs[2 * pair + 1]) = turn(theirs[2 * pair], theirs[2 * pair + 1], angle(pair));
    }
    let back: Vec<f32> = (0..8).map(|at| halves[names::our_row(at, 8, 1)]).collect();
    assert_eq!(pairs, back);
}

#[test]
fn another_reader_finds_the_names_types_and_values_that_it_expects() {
    let (family, config) = families().swap_remove(0);
    let stages = [made(&config)];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    write_gguf(&file, "tiny", family, &stages, &hf::byte_texts(&config), Kept::Q8).unwrap();
    let mut reader = fs::File::open(&file).unwrap();
    let content = Content::read(&mut reader).unwrap();
    let text = |key: &str| content.metadata[key].to_string().unwrap().clone();
    let whole = |key: &str| content.metadata[key].to_u64().unwrap();
    assert_eq!((text("general.architecture"), text("tokenizer.ggml.model")), ("llama".into(), "gpt2".into()));
    assert_eq!((whole("llama.vocab_size"), whole("llama.rope.dimension_count")), (300, 6));
    assert_eq!(content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), 300, "as many as rows");
    let mut read =
        |name: &str| content.tensor(&mut reader, name, &Candle::Cpu).unwrap().dequantize(&Candle::Cpu).unwrap();
    assert_eq!(read("rope_freqs.weight").dims(), [3]);
    let ours = &stages[0].0.params()[0];
    let embedding = read("token_embd.weight");
    assert_eq!(embedding.dims(), [300, 32]);
    let values = embedding.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let most = stages[0].1[ours.range()].iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most < 1e-3, "{most}");
}

/// Blocks of llama.cpp that this program does not write.
#[test]
fn files_of_other_types_are_unpacked() {
    use candle_core::{
        Tensor,
        quantized::{GgmlDType, QTensor, gguf_file},
    };
    let config = ModelConfig { hidden: 32, ffn: 64, vocab: 256, ..tiny() };
    let (model, weights) = made(&config);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    for packed in [GgmlDType::Q4_0, GgmlDType::Q5_1, GgmlDType::Q8_0, GgmlDType::BF16] {
        let tensors: Vec<(String, QTensor)> = model
            .params()
            .iter()
            .map(|param| {
                let values = weights[param.range()].to_vec();
                let tensor = Tensor::from_vec(values, param.shape.clone(), &Candle::Cpu).unwrap();
                let kind = if param.is_matrix() { packed } else { GgmlDType::F32 };
                (names::theirs(&param.name).unwrap(), QTensor::quantize(&tensor, kind).unwrap())
            })
            .collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let set = |key: &str, n: u32| (format!("qwen2.{key}"), gguf_file::Value::U32(n));
        // A Qwen without its biases: named, not guessed.
        let mut values = vec![
            set("block_count", config.layers),
            set("context_length", config.context),
            set("embedding_length", config.hidden),
            set("feed_forward_length", config.ffn),
            set("attention.head_count", config.heads),
            set("attention.head_count_kv", config.kv_heads),
        ];
        values.push(("qwen2.attention.layer_norm_rms_epsilon".into(), gguf_file::Value::F32(1e-5)));
        let write = |architecture: &str| {
            let architecture = gguf_file::Value::String(architecture.into());
            let mut all: Vec<(&str, &gguf_file::Value)> = vec![("general.architecture", &architecture)];
            all.extend(values.iter().map(|(key, value)| (key.as_str(), value)));
            gguf_file::write(&mut fs::File::create(&file).unwrap(), &all, &tensors).unwrap();
        };
        write("qwen2");
        let told = Checkpoint::open(&file).unwrap_err();
        assert!(matches!(&told, HfError::Tensor { name, .. } if name.contains("attn_q.bias")), "{told}");
        write("mamba");
        assert!(matches!(Checkpoint::open(&file), Err(HfError::Family(name)) if name == "mamba"));
        values.iter_mut().for_each(|(key, _)| *key = key.replace("qwen2", "llama"));
        let architecture = gguf_file::Value::String("llama".into());
        let mut all: Vec<(&str, &gguf_file::Value)> = vec![("general.architecture", &architecture)];
        all.extend(values.iter().map(|(key, value)| (key.as_str(), value)));
        gguf_file::write(&mut fs::File::create(&file).unwrap(), &all, &tensors).unwrap();
        let read = Checkpoint::open(&file).unwrap().whole().unwrap().1;
        // q and k are in another order here; all else is where it was.
        let is_turned = |name: &str| name.contains("q_proj") || name.contains("k_proj");
        for param in model.params().iter().filter(|param| !is_turned(&param.name)) {
            let name = names::theirs(&param.name).unwrap();
            let (_, packed) = tensors.iter().find(|(of, _)| *of == name).unwrap();
            let unpacked = packed.dequantize(&Candle::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(read[param.range()], unpacked, "{name}");
        }
    }
}

#[test]
fn damaged_files_are_told() {
    let config = ModelConfig { vocab: 256, ..tiny() };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    write_gguf(&file, "tiny", Family::Llama, &[made(&config)], &Texts::new(), Kept::F32).unwrap();
    let bytes = fs::read(&file).unwrap();
    for (damage, said) in [
        (bytes[..bytes.len() - 64].to_vec(), "cut off"),
        (bytes[..300].to_vec(), "left"),
        (b"{\"a\":1}".to_vec(), "does not begin"),
        (b"GG".to_vec(), "too short"),
        ([&bytes[..8], &[0xff; 8], &bytes[16..]].concat(), "are announced"),
    ] {
        fs::write(&file, damage).unwrap();
        let told = Checkpoint::open(&file).unwrap_err().to_string();
        assert!(told.contains(said), "{told}");
    }
    let adapted = StageModel::adapted(
        StageModel::whole(config).unwrap(),
        skein_protocol::run::Lora {
            rank: 2,
            alpha: 2,
            targets: vec!["q".into()],
            dropout_percent: 0,
            base: Default::default(),
        },
    )
    .unwrap();
    let weights = vec![0.0; adapted.values()];
    let told = write_gguf(&file, "tiny", Family::Llama, &[(adapted, weights)], &Texts::new(), Kept::F32).unwrap_err();
    assert!(told.to_string().contains("no name in GGUF"), "{told}");
}
