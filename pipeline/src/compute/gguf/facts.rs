//! The values of a GGUF file that say what a model is. In: the values. Out: [`ModelConfig`], or the key that no engine here computes.
//! And back.
//!
//! Llama and Mistral are one architecture there; which of the two a file of ours was, and what llama.cpp has no key for, is noted
//! under `skein.`, which other programs pass over.

use std::{collections::BTreeMap, f64::consts::TAU};

use skein_protocol::run::{Family, ModelConfig, RopeScaling, Window};

use super::{container::Value, names::ROPE_FACTORS};

/// Whether a family is one architecture or another there, and turns pairs that lie side by side.
pub fn architecture(family: Family) -> (&'static str, bool) {
    match family {
        Family::Llama | Family::Mistral => ("llama", true),
        Family::Qwen2 => ("qwen2", false),
        Family::Qwen3 => ("qwen3", false),
    }
}

pub fn write(family: Family, model: &ModelConfig) -> Vec<(String, Value)> {
    let (architecture, _) = architecture(family);
    let mut values = vec![("general.architecture".to_string(), Value::Text(architecture.into()))];
    let mut set = |key: &str, value: Value| values.push((format!("{architecture}.{key}"), value));
    let whole = |n: u32| Value::Whole(n.into());
    set("block_count", whole(model.layers));
    set("context_length", whole(model.context));
    set("embedding_length", whole(model.hidden));
    set("feed_forward_length", whole(model.ffn));
    set("attention.head_count", whole(model.heads));
    set("attention.head_count_kv", whole(model.kv_heads));
    set("attention.key_length", whole(model.head()));
    set("attention.value_length", whole(model.head()));
    set("attention.layer_norm_rms_epsilon", Value::Real(model.norm_eps));
    set("rope.dimension_count", whole(model.head()));
    set("rope.freq_base", Value::Real(model.rope_theta));
    set("vocab_size", whole(model.vocab));
    if let Some(window) = model.window {
        set("attention.sliding_window", whole(window.size));
    }
    if let Some(RopeScaling::Linear { factor }) = model.rope_scaling {
        set("rope.scaling.type", Value::Text("linear".into()));
        set("rope.scaling.factor", Value::Real(factor));
    }
    let mut note = |key: &str, value: Value| values.push((format!("skein.{key}"), value));
    if family == Family::Mistral {
        note("family", Value::Text("mistral".into()));
    }
    if let Some(window) = model.window {
        note("window_from", whole(window.from));
    }
    if let Some(RopeScaling::Llama3 { factor, low, high, original }) = model.rope_scaling {
        note("rope.factor", Value::Real(factor));
        note("rope.low", Value::Real(low));
        note("rope.high", Value::Real(high));
        note("rope.original", whole(original));
    }
    values
}

/// By how much each angle is divided, where a scaling says so for each of them; `head / 2` of them.
pub fn rope_factors(model: &ModelConfig) -> Option<Vec<f32>> {
    let Some(RopeScaling::Llama3 { factor, low, high, original }) = model.rope_scaling else { return None };
    let (head, original) = (model.head(), f64::from(original));
    let one = |pair: u32| {
        let wave = TAU * model.rope_theta.powf(f64::from(2 * pair) / f64::from(head));
        let turns = original / wave;
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some((0..head / 2).map(|pair| one(pair) as f32).collect())
}

/// What else of a file is asked beside its values.
pub struct Beside<'a> {
    /// Rows of the embedding.
    pub vocab: u32,
    pub has_head: bool,
    /// [`ROPE_FACTORS`]
    pub factors: Option<&'a [f32]>,
}

/// # Errors
/// A key that is missing, or a value that no engine here computes; `Err(Ok(name))`: another architecture.
pub fn read(
    values: &BTreeMap<String, Value>,
    beside: &Beside<'_>,
) -> Result<(Family, ModelConfig), Result<String, String>> {
    let get = |key: &str| values.get(key);
    let architecture = match get("general.architecture") {
        Some(Value::Text(name)) => name.as_str(),
        _ => return Err(Err("general.architecture is missing: not the file of a language model".into())),
    };
    let family = match (architecture, get("skein.family")) {
        ("llama", Some(Value::Text(name))) if name == "mistral" => Family::Mistral,
        ("llama", _) => Family::Llama,
        ("qwen2", _) => Family::Qwen2,
        ("qwen3", _) => Family::Qwen3,
        (other, _) => return Err(Ok(other.into())),
    };
    model(values, architecture, family, beside).map(|model| (family, model)).map_err(Err)
}

fn model(
    values: &BTreeMap<String, Value>,
    architecture: &str,
    family: Family,
    beside: &Beside<'_>,
) -> Result<ModelConfig, String> {
    let get = |key: &str| values.get(&format!("{architecture}.{key}"));
    let number = |value: &Value, key: &str| match value {
        Value::Whole(n) => u32::try_from(*n).map_err(|_| format!("{architecture}.{key} is {n}")),
        other => Err(format!("{architecture}.{key} is {other:?}, a whole number is expected")),
    };
    let whole = |key: &str| get(key).map(|value| number(value, key)).transpose();
    let need = |key: &str| whole(key)?.ok_or_else(|| format!("{architecture}.{key} is missing"));
    let real = |key: &str| match get(key) {
        None => Ok(None),
        Some(Value::Real(n)) => Ok(Some(*n)),
        Some(other) => Err(format!("{architecture}.{key} is {other:?}, a number is expected")),
    };
    if whole("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err("it has experts, which are not computed here".into());
    }
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let follows = hidden / heads.max(1);
    let turned = whole("rope.dimension_count")?;
    let head = whole("attention.key_length")?.or(turned).unwrap_or(follows);
    if whole("attention.value_length")?.is_some_and(|value| value != head) {
        return Err("its values are not as wide as its keys".into());
    }
    if turned.is_some_and(|turned| turned != head) {
        return Err("only a part of each head is turned; all of it is, here".into());
    }
    let noted = |key: &str| values.get(&format!("skein.{key}"));
    let window = match (whole("attention.sliding_window")?, noted("window_from")) {
        (Some(size), Some(Value::Whole(from))) if size > 0 => {
            u32::try_from(*from).ok().map(|from| Window { size, from })
        }
        // In other files it stands for layers that none of these architectures has.
        _ => None,
    };
    let config = ModelConfig {
        hidden,
        layers: need("block_count")?,
        heads,
        kv_heads: whole("attention.head_count_kv")?.unwrap_or(heads),
        ffn: need("feed_forward_length")?,
        vocab: beside.vocab,
        context: need("context_length")?,
        rope_theta: real("rope.freq_base")?.unwrap_or(10_000.0),
        tie_embeddings: !beside.has_head,
        norm_eps: real("attention.layer_norm_rms_epsilon")?.ok_or("attention.layer_norm_rms_epsilon is missing")?,
        head: Some(head).filter(|head| head.checked_mul(heads) != Some(hidden)),
        rope_scaling: None,
        window,
        qkv_bias: family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
    };
    let kind = match get("rope.scaling.type") {
        Some(Value::Text(kind)) => kind.as_str(),
        _ => "none",
    };
    let factor = real("rope.scaling.factor")?.or(real("rope.scale_linear")?).filter(|factor| *factor != 1.0);
    let rope_scaling = match (kind, factor, beside.factors) {
        (_, _, Some(factors)) => Some(llama3(&config, &noted, factors)?),
        ("linear" | "none", Some(factor), None) => Some(RopeScaling::Linear { factor }),
        ("linear" | "none", None, None) => None,
        (other, ..) => return Err(format!("positions are scaled by {other}; none, linear and llama3 are computed")),
    };
    Ok(ModelConfig { rope_scaling, ..config })
}

/// A file has only the factors. In one that is not ours they are those of Llama 3 or they are not known.
fn llama3<'a>(
    config: &ModelConfig,
    noted: &impl Fn(&str) -> Option<&'a Value>,
    factors: &[f32],
) -> Result<RopeScaling, String> {
    let largest = factors.iter().copied().fold(1.0, f32::max);
    let scaling = match (noted("rope.factor"), noted("rope.low"), noted("rope.high"), noted("rope.original")) {
        (Some(Value::Real(factor)), Some(Value::Real(low)), Some(Value::Real(high)), Some(Value::Whole(original))) => {
            RopeScaling::Llama3 {
                factor: *factor,
                low: *low,
                high: *high,
                original: u32::try_from(*original).unwrap_or(0),
            }
        }
        _ => RopeScaling::Llama3 { factor: largest.into(), low: 1.0, high: 4.0, original: 8192 },
    };
    let expected = rope_factors(&ModelConfig { rope_scaling: Some(scaling), ..config.clone() }).unwrap_or_default();
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs();
    match expected.len() == factors.len() && factors.iter().zip(&expected).all(near) {
        true => Ok(scaling),
        false => Err(format!("{ROPE_FACTORS} are not the factors of Llama 3, which are the only ones computed")),
    }
}
