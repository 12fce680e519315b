//! Adapters as Python's PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`. In: a folder, or stages and their
//! adapters. Out: the adapters of a stage, or a folder that PEFT loads.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skein_protocol::run::Lora;

use super::{CONFIG_MAX, HfError, Written, config::Fields, json, tensors::Tensors, write::Weights};
use crate::{
    compute::folder,
    model::{BadModel, StageModel},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Before the name of a model's own tensor.
const PREFIX: &str = "base_model.model.";

/// What a run calls the matrices, and what PEFT does.
const TARGETS: [(&str, &str); 7] = [
    ("q", "q_proj"),
    ("k", "k_proj"),
    ("v", "v_proj"),
    ("o", "o_proj"),
    ("gate", "gate_proj"),
    ("up", "up_proj"),
    ("down", "down_proj"),
];

/// A folder whose configuration and header were read.
#[derive(Debug)]
pub struct AdapterFolder {
    pub lora: Lora,
    /// The model that it was made for, as its makers called it.
    pub base: Option<String>,
    tensors: Tensors,
}

impl AdapterFolder {
    /// # Errors
    /// Files that are missing, damaged or pickled; a kind of adapter that no engine here computes.
    pub fn open(dir: &Path) -> Result<Self, HfError> {
        let path = dir.join(CONFIG);
        let file = json(&path, CONFIG_MAX)?;
        let fields = Fields::of(&file, &path);
        let lora = lora(&fields)?;
        let base = fields.text("base_model_name_or_path").map(str::to_string);
        let weights = dir.join(WEIGHTS);
        if !weights.exists() && dir.join("adapter_model.bin").exists() {
            return Err(HfError::Pickle(dir.join("adapter_model.bin")));
        }
        Ok(AdapterFolder { lora, base, tensors: Tensors::of_file(weights)? })
    }

    /// The adapters of a stage, which [`StageModel::adapted`] made with these.
    ///
    /// # Errors
    /// Tensors that are missing or of other shapes: the adapter of another model.
    pub fn read(&self, model: &StageModel) -> Result<Vec<f32>, HfError> {
        self.tensors.read_stage(model, |name| format!("{PREFIX}{name}"))
    }
}

fn lora(fields: &Fields<'_>) -> Result<Lora, HfError> {
    let unsupported = |key: &str, value: &Value, why: &str| {
        Err(HfError::Unsupported { key: key.into(), value: value.to_string(), why: why.into() })
    };
    match fields.text("peft_type") {
        Some("LORA") => {}
        other => return unsupported("peft_type", &json!(other), "the adapters that are read are LORA"),
    }
    let why = "only plain LoRA beside the matrices of the layers is computed";
    for (key, only) in [
        ("bias", json!("none")),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("modules_to_save", Value::Null),
        ("layers_to_transform", Value::Null),
        ("layer_replication", Value::Null),
        ("target_parameters", Value::Null),
    ] {
        fields.refuse_other(key, &only, why)?;
    }
    let rank = fields.whole("r")?.unwrap_or(8);
    let alpha = match fields.real("lora_alpha")?.unwrap_or(8.0) {
        alpha if alpha.fract() == 0.0 && (1.0..=65_536.0).contains(&alpha) => alpha as u32,
        alpha => return unsupported("lora_alpha", &json!(alpha), "a whole number from 1 to 65536"),
    };
    let named = fields.set("target_modules");
    let all = named.and_then(Value::as_str) == Some("all-linear");
    let list = named.and_then(Value::as_array);
    let is_named = |peft: &str| list.is_some_and(|list| list.iter().any(|name| name == peft));
    let targets: Vec<String> =
        TARGETS.iter().filter(|(_, peft)| all || is_named(peft)).map(|(ours, _)| ours.to_string()).collect();
    if list.is_some_and(|list| list.len() != targets.len()) || targets.is_empty() {
        return unsupported("target_modules", named.unwrap_or(&Value::Null), "some of q_proj to down_proj, by name");
    }
    Ok(Lora { rank, alpha, targets, dropout_percent: 0, base: Default::default() })
}

/// Writes the adapters of one model, stages in order, each with its flat buffer, into `dir`, which exists. `base`: what the model
/// beside them is called.
///
/// # Errors
/// Disk full, or not writable: no file is left half written. Stages without adapters.
pub fn write_adapter(dir: &Path, base: &str, stages: &[(StageModel, Vec<f32>)]) -> Result<Written, HfError> {
    let Some(lora) = stages.first().and_then(|(model, _)| model.lora()) else {
        return Err(BadModel::Adapters { rank: 0, targets: Vec::new() }.into());
    };
    let targets = TARGETS.iter().filter(|(ours, _)| lora.targets.iter().any(|target| target == ours));
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": f64::from(lora.dropout_percent) / 100.0,
        "target_modules": targets.map(|(_, peft)| *peft).collect::<Vec<_>>(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
        "modules_to_save": null,
        "layers_to_transform": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    });
    let config = serde_json::to_vec_pretty(&config).expect("plain data");
    let weights = Weights::of(stages, |name| format!("{PREFIX}{name}"))?;
    let file = |name: &str| -> PathBuf { dir.join(name) };
    let io = |path: PathBuf| move |source| HfError::Io { path, source };
    folder::write_with(&file(WEIGHTS), |out| weights.write(out)).map_err(io(file(WEIGHTS)))?;
    // Last: without it the folder is no adapter.
    folder::write(&file(CONFIG), &config).map_err(io(file(CONFIG)))?;
    let parameters = stages.iter().map(|(model, _)| model.values() as u64).sum();
    let files = vec![file(WEIGHTS), file(CONFIG)];
    Ok(Written { files, bytes: weights.len() + config.len() as u64, parameters })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::{init, tests::tiny};

    fn stages(targets: &[&str]) -> Vec<(StageModel, Vec<f32>)> {
        let targets = targets.iter().map(|target| target.to_string()).collect();
        let lora = Lora { rank: 3, alpha: 6, targets, dropout_percent: 0, base: Default::default() };
        let stage = |first, layers, embedding, head| {
            let frozen = StageModel::new(tiny(), first, layers, embedding, head).unwrap();
            let model = StageModel::adapted(frozen, lora.clone()).unwrap();
            let mut weights = init::initial(&model, 3);
            weights.iter_mut().enumerate().for_each(|(i, v)| *v += i as f32 * 1e-3);
            (model, weights)
        };
        vec![stage(0, 1, true, false), stage(1, 2, false, true)]
    }

    #[test]
    fn adapters_read_back_as_they_were_stage_by_stage() {
        for targets in [&["q", "v"][..], &["down"], &["q", "k", "v", "o", "gate", "up", "down"]] {
            let dir = tempfile::tempdir().unwrap();
            let stages = stages(targets);
            let written = write_adapter(dir.path(), "some/model", &stages).unwrap();
            let bytes: u64 = written.files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
            assert_eq!(written.bytes, bytes);
            let read = AdapterFolder::open(dir.path()).unwrap();
            assert_eq!((&read.lora, read.base.as_deref()), (stages[0].0.lora().unwrap(), Some("some/model")));
            for (model, weights) in &stages {
                assert_eq!(read.read(model).unwrap(), *weights, "{targets:?}");
            }
        }
    }

    #[test]
    fn adapters_of_other_kinds_and_of_other_models_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let made = stages(&["q", "v"]);
        write_adapter(dir.path(), "some/model", &made).unwrap();
        let other = stages(&["q", "o"]).remove(0).0;
        let told = AdapterFolder::open(dir.path()).unwrap().read(&other).unwrap_err().to_string();
        assert!(told.contains("o_proj.lora_A.weight is missing"), "{told}");
        let path = dir.path().join(CONFIG);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, key) in [
            ("\"LORA\"", "\"IA3\"", "peft_type"),
            ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
            ("\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 4}", "rank_pattern"),
            ("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"),
            ("\"v_proj\"", "\"c_attn\"", "target_modules"),
            ("\"lora_alpha\": 6", "\"lora_alpha\": 6.5", "lora_alpha"),
        ] {
            assert!(text.contains(from), "{from}");
            fs::write(&path, text.replace(from, to)).unwrap();
            let told = AdapterFolder::open(dir.path()).unwrap_err();
            assert!(matches!(&told, HfError::Unsupported { key: told, .. } if told == key), "{told}");
        }
        fs::write(&path, text).unwrap();
        fs::rename(dir.path().join(WEIGHTS), dir.path().join("adapter_model.bin")).unwrap();
        assert!(matches!(AdapterFolder::open(dir.path()), Err(HfError::Pickle(_))));
    }
}
