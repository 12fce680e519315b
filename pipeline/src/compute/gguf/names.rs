//! What llama.cpp calls a tensor, and in which order it keeps its rows. In: our names. Out: theirs.
//!
//! Its Llama turns neighbouring values of a head as pairs; ours, as `transformers`, those half a head apart. The rows of q and k of
//! that architecture are therefore in another order in its files. Qwen's are not: it turns them as ours.

use skein_protocol::run::ModelConfig;

use crate::model::{EMBEDDING, FINAL_NORM, HEAD, Param};

/// Factors of the angles, where long contexts have other ones.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

const OF_LAYERS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Nothing: llama.cpp has no such tensor.
pub fn theirs(ours: &str) -> Option<String> {
    match ours {
        EMBEDDING => return Some("token_embd.weight".into()),
        FINAL_NORM => return Some("output_norm.weight".into()),
        HEAD => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = ours.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, end) = rest.rsplit_once('.')?;
    let (_, theirs) = OF_LAYERS.iter().find(|(name, _)| *name == part)?;
    Some(format!("blk.{layer}.{theirs}.{end}"))
}

/// How many heads the rows of a tensor are, where their order differs.
pub fn turned(param: &Param, config: &ModelConfig, interleaved: bool) -> Option<usize> {
    let heads = match &param.name {
        name if name.ends_with(".self_attn.q_proj.weight") => config.heads,
        name if name.ends_with(".self_attn.k_proj.weight") => config.kv_heads,
        _ => return None,
    };
    interleaved.then_some(heads as usize)
}

/// Which of our rows is row `row` of theirs, of `rows` in all that are `heads` heads.
pub fn our_row(row: usize, rows: usize, heads: usize) -> usize {
    let size = rows / heads.max(1);
    let (head, within) = (row / size, row % size);
    head * size + (within % 2) * (size / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StageModel, tests::tiny};

    #[test]
    fn every_parameter_has_a_name_and_each_another_one() {
        let config = ModelConfig { qk_norm: true, qkv_bias: true, ..tiny() };
        let model = StageModel::whole(config).unwrap();
        let mut names: Vec<String> = model.params().iter().map(|param| theirs(&param.name).unwrap()).collect();
        assert!(names.contains(&"blk.1.attn_k.bias".to_string()) && names.contains(&"blk.0.attn_q_norm.weight".into()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), model.params().len());
        assert_eq!(theirs("model.layers.0.self_attn.q_proj.lora_A.weight"), None);
    }

    #[test]
    fn halves_of_a_head_become_pairs() {
        let rows: Vec<usize> = (0..12).map(|row| our_row(row, 12, 2)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
