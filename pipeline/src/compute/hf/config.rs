//! `config.json`: what a family's file says, and what it means where it says nothing. In: the file. Out: [`ModelConfig`], or the
//! key that no engine here computes. And back, for other programs.
//!
//! What an absent key means differs from family to family; it was read in `transformers` 5.

use std::path::Path;

use serde_json::{Map, Value, json};
use skein_protocol::run::{Family, ModelConfig, RopeScaling, Window};

use super::HfError;

pub fn read(file: &Value, path: &Path) -> Result<(Family, ModelConfig), HfError> {
    let fields = Fields::of(file, path);
    let family = family(&fields)?;
    fields.refuse_other("hidden_act", &json!("silu"), "the gate of the MLP is SiLU in every family here")?;
    for key in ["attention_bias", "mlp_bias"] {
        fields.refuse_other(key, &json!(false), "biases are computed where Qwen2 has them, not here")?;
    }
    let (hidden, layers, heads) =
        (fields.need("hidden_size")?, fields.need("num_hidden_layers")?, fields.need("num_attention_heads")?);
    let kv_heads = match family {
        Family::Mistral if !fields.has("num_key_value_heads") => 8,
        _ => fields.whole("num_key_value_heads")?.unwrap_or(heads),
    };
    let head = match family {
        Family::Qwen2 => None,
        Family::Qwen3 => Some(fields.whole("head_dim")?.unwrap_or(128)),
        Family::Llama | Family::Mistral => fields.whole("head_dim")?,
    };
    let (rope_theta, rope_scaling) = rope(&fields)?;
    let config = ModelConfig {
        hidden,
        layers,
        heads,
        kv_heads,
        ffn: fields.need("intermediate_size")?,
        vocab: fields.need("vocab_size")?,
        context: fields.need("max_position_embeddings")?,
        rope_theta,
        tie_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        norm_eps: fields.real("rms_norm_eps")?.unwrap_or(1e-6),
        // What follows from hidden and heads is not said again.
        head: head.filter(|head| head.checked_mul(heads) != Some(hidden)),
        rope_scaling,
        window: window(&fields, family, layers)?,
        qkv_bias: family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
    };
    Ok((family, config))
}

fn family(fields: &Fields<'_>) -> Result<Family, HfError> {
    match fields.text("model_type") {
        Some("llama") => Ok(Family::Llama),
        Some("mistral") => Ok(Family::Mistral),
        Some("qwen2") => Ok(Family::Qwen2),
        Some("qwen3") => Ok(Family::Qwen3),
        other => {
            let named = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
            match named.or(other) {
                Some(name) => Err(HfError::Family(name.into())),
                None => Err(fields.unreadable("model_type is missing: not the config.json of a language model")),
            }
        }
    }
}

/// Theta and scaling. Recent files keep both under `rope_parameters`; older ones write `rope_theta` and `rope_scaling`, whose kind
/// is called `rope_type` or `type`.
fn rope(fields: &Fields<'_>) -> Result<(f64, Option<RopeScaling>), HfError> {
    let table = |key| fields.get(key).and_then(Value::as_object).filter(|table| !table.is_empty());
    let inner = Fields { map: table("rope_scaling").or(table("rope_parameters")), path: fields.path };
    let theta = match inner.real("rope_theta")? {
        Some(theta) => theta,
        None => fields.real("rope_theta")?.unwrap_or(10_000.0),
    };
    for fields in [&inner, fields] {
        fields.refuse_other("partial_rotary_factor", &json!(1.0), "all of a head is turned in every family here")?;
    }
    let factor = || inner.real("factor")?.ok_or_else(|| inner.unreadable("the scaling of positions has no factor"));
    let scaling = match inner.text("rope_type").or(inner.text("type")).unwrap_or("default") {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: factor()? }),
        "llama3" => {
            let original = match inner.whole("original_max_position_embeddings")? {
                Some(original) => original,
                None => fields.need("max_position_embeddings")?,
            };
            Some(RopeScaling::Llama3 {
                factor: factor()?,
                low: inner.real("low_freq_factor")?.unwrap_or(1.0),
                high: inner.real("high_freq_factor")?.unwrap_or(4.0),
                original,
            })
        }
        other => {
            let why = "positions are scaled by default, linear or llama3".into();
            return Err(HfError::Unsupported { key: "rope_type".into(), value: other.into(), why });
        }
    };
    Ok((theta, scaling))
}

/// Sliding windows: of all layers (Mistral), or from some layer on (Qwen).
fn window(fields: &Fields<'_>, family: Family, layers: u32) -> Result<Option<Window>, HfError> {
    let size = match fields.get("sliding_window") {
        None => Some(4096),
        Some(Value::Null) => None,
        Some(_) => fields.whole("sliding_window")?,
    };
    let (size, from) = match family {
        Family::Llama => return Ok(None),
        Family::Mistral => (size, 0),
        Family::Qwen2 | Family::Qwen3 => {
            let used = fields.flag("use_sliding_window")?.unwrap_or(false);
            (size.filter(|_| used), fields.whole("max_window_layers")?.unwrap_or(28))
        }
    };
    let Some(size) = size else { return Ok(None) };
    let from = match fields.get("layer_types").and_then(Value::as_array) {
        None => from,
        Some(types) => {
            let slides = |kind: &Value| kind == "sliding_attention";
            let from = types.iter().position(slides).unwrap_or(types.len());
            if !types[from..].iter().all(slides) {
                let why = "windows are computed from one layer on to the last".into();
                let value = Value::from(types.clone()).to_string();
                return Err(HfError::Unsupported { key: "layer_types".into(), value, why });
            }
            from as u32
        }
    };
    Ok((from < layers).then_some(Window { size, from }))
}

/// `config.json` of a model. `tied`: the head is the embedding.
pub fn write(family: Family, model: &ModelConfig, tied: bool) -> Value {
    let (architecture, model_type) = match family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Mistral => ("MistralForCausalLM", "mistral"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let mut file = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head(),
        "intermediate_size": model.ffn,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": true,
    });
    let size = json!(model.window.map(|window| window.size));
    match family {
        Family::Llama => {
            file["attention_bias"] = false.into();
            file["mlp_bias"] = false.into();
        }
        Family::Mistral => file["sliding_window"] = size,
        Family::Qwen2 | Family::Qwen3 => {
            file["use_sliding_window"] = model.window.is_some().into();
            file["sliding_window"] = size;
            file["max_window_layers"] = model.window.map_or(model.layers, |window| window.from).into();
        }
    }
    // Both spellings: recent readers take the first, older ones the second.
    let scaling = match model.rope_scaling {
        None => Map::new(),
        Some(RopeScaling::Linear { factor }) => table(json!({ "rope_type": "linear", "factor": factor })),
        Some(RopeScaling::Llama3 { factor, low, high, original }) => table(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        })),
    };
    if !scaling.is_empty() {
        let mut parameters = scaling.clone();
        parameters.insert("rope_theta".into(), model.rope_theta.into());
        file["rope_parameters"] = parameters.into();
        file["rope_scaling"] = scaling.into();
    }
    file
}

fn table(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// The keys of a table. One that is `null` is absent.
pub struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub fn of(file: &'a Value, path: &'a Path) -> Self {
        Fields { map: file.as_object(), path }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.and_then(|map| map.get(key))
    }

    pub fn set(&self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|value| !value.is_null())
    }

    fn has(&self, key: &str) -> bool {
        self.set(key).is_some()
    }

    fn unreadable(&self, why: &str) -> HfError {
        HfError::Unreadable { path: self.path.into(), why: why.into() }
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.set(key).and_then(Value::as_str)
    }

    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, HfError> {
        let wrong = |value: &Value| self.unreadable(&format!("{key} is {value}, {what} is expected"));
        self.set(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    pub fn whole(&self, key: &str) -> Result<Option<u32>, HfError> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    fn need(&self, key: &str) -> Result<u32, HfError> {
        self.whole(key)?.ok_or_else(|| self.unreadable(&format!("{key} is missing")))
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>, HfError> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, HfError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// Refuses every value but `only`, which is also what an absent key means.
    pub fn refuse_other(&self, key: &str, only: &Value, why: &str) -> Result<(), HfError> {
        match self.set(key) {
            Some(value) if value != only && value.as_f64() != only.as_f64().or(Some(f64::NAN)) => {
                Err(HfError::Unsupported { key: key.into(), value: value.to_string(), why: why.into() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 512,
        })
    }

    fn with(changes: Value) -> Result<(Family, ModelConfig), HfError> {
        let mut file = plain();
        file.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        read(&file, Path::new("config.json"))
    }

    #[test]
    fn absent_keys_mean_what_the_family_says() {
        let (_, llama) = with(json!({})).unwrap();
        assert_eq!((llama.kv_heads, llama.head, llama.rope_theta, llama.norm_eps), (4, None, 10_000.0, 1e-6));
        assert!(llama.window.is_none() && !llama.tie_embeddings);
        let (_, mistral) = with(json!({ "model_type": "mistral", "num_attention_heads": 16 })).unwrap();
        assert_eq!((mistral.kv_heads, mistral.window), (8, Some(Window { size: 4096, from: 0 })));
        assert_eq!(with(json!({ "model_type": "mistral", "sliding_window": null })).unwrap().1.window, None);
        let (_, qwen2) = with(json!({ "model_type": "qwen2", "sliding_window": 8 })).unwrap();
        assert!(qwen2.qkv_bias && qwen2.window.is_none());
        let slides = json!({ "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8 });
        assert_eq!(with(slides.clone()).unwrap().1.window, None, "28 layers see everything");
        let mut some = slides;
        some["max_window_layers"] = 3.into();
        assert_eq!(with(some.clone()).unwrap().1.window, Some(Window { size: 8, from: 3 }));
        let (full, slides) = ("full_attention", "sliding_attention");
        some["layer_types"] = json!([full, slides, slides, slides]);
        assert_eq!(with(some.clone()).unwrap().1.window, Some(Window { size: 8, from: 1 }));
        some["layer_types"] = json!([full, slides, full, slides]);
        assert!(matches!(with(some), Err(HfError::Unsupported { key, .. }) if key == "layer_types"));
        let (_, qwen3) = with(json!({ "model_type": "qwen3" })).unwrap();
        assert_eq!((qwen3.head, qwen3.qk_norm), (Some(128), true));
    }

    #[test]
    fn positions_are_read_in_both_spellings() {
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 128 };
        let table = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128, "rope_theta": 5e5,
        });
        let new = with(json!({ "rope_parameters": table })).unwrap().1;
        assert_eq!((new.rope_theta, new.rope_scaling), (5e5, Some(llama3)));
        let old = with(json!({ "rope_theta": 7e4, "rope_scaling": { "type": "linear", "factor": 2 } })).unwrap().1;
        assert_eq!((old.rope_theta, old.rope_scaling), (7e4, Some(RopeScaling::Linear { factor: 2.0 })));
        let none = with(json!({ "rope_theta": 7e4, "rope_scaling": null })).unwrap().1;
        assert_eq!((none.rope_theta, none.rope_scaling), (7e4, None));
        assert!(
            with(json!({ "rope_scaling": { "type": "yarn", "factor": 2 } })).unwrap_err().to_string().contains("yarn")
        );
    }

    #[test]
    fn what_is_not_computed_is_refused_by_its_key() {
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("partial_rotary_factor", json!(0.5)),
        ] {
            let told = with(json!({ key: value })).unwrap_err();
            assert!(matches!(&told, HfError::Unsupported { key: told, .. } if told == key), "{told}");
        }
        assert!(with(json!({ "partial_rotary_factor": 1, "attention_bias": false })).is_ok());
        let named = with(json!({ "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"] })).unwrap_err();
        assert!(named.to_string().starts_with("Gemma2ForCausalLM is not supported; what is: llama"), "{named}");
        assert!(with(json!({ "hidden_size": null })).unwrap_err().to_string().contains("hidden_size is missing"));
        assert!(with(json!({ "hidden_size": -1 })).unwrap_err().to_string().contains("whole number"));
        assert!(read(&json!([]), Path::new("config.json")).is_err());
    }
}
