//! The tokenizer of a model as values of a GGUF file. In: the text files of a folder. Out: what llama.cpp reads instead of them; and
//! back, from its files.
//!
//! Two kinds have words there: byte-level BPE ("gpt2"), whose way to split a text goes by name, and BPE over characters that falls back
//! to bytes ("llama"), as SentencePiece makes it. A file of ours holds `tokenizer.json` as a whole besides, under the key that the
//! format has for it, so that it comes back as it was.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::container::Value;
use crate::compute::hf::Texts;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const WHOLE: &str = "tokenizer.huggingface.json";
/// Written for a space.
const SPACE: &str = "\u{2581}";

/// What a token is.
mod sort {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER: i64 = 4;
    pub const UNUSED: i64 = 5;
    pub const BYTE: i64 = 6;
}

/// Names for ways to split a text before its pieces become tokens, and the pattern of each, as its makers' `tokenizer.json` has it.
const SPLITS: [(&str, &str); 3] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "tekken",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// `vocab`: rows of the embedding, which is how many tokens a file has. Without a tokenizer only that is said.
///
/// # Errors
/// A tokenizer that the format has no words for, or one of more tokens.
pub fn write(texts: &Texts, vocab: usize) -> Result<Vec<(String, Value)>, String> {
    let Some(whole) = texts.get(TOKENIZER) else {
        return Ok(vec![("tokenizer.ggml.model".into(), Value::Text("no_vocab".into()))]);
    };
    let file: Json = serde_json::from_slice(whole).map_err(|error| format!("{TOKENIZER}: {error}"))?;
    let tokens = Tokens::of(&file, vocab)?;
    let mut values = match is_byte_level(&file) {
        true => gpt2(&file)?,
        false => llama(&file, &tokens)?,
    };
    let mut set = |key: &str, value: Value| values.push((format!("tokenizer.ggml.{key}"), value));
    let object = |name: &str| -> Map<String, Json> {
        texts.get(name).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    };
    let (config, generation) = (object(CONFIG), object(GENERATION));
    let role = |role: &str| {
        let named = config.get(role).map(|value| value.get("content").unwrap_or(value));
        named.and_then(Json::as_str).and_then(|name| tokens.id(name))
    };
    let mut ends: Vec<i64> = role("eos_token").into_iter().collect();
    for end in ids(generation.get("eos_token_id")) {
        if !ends.contains(&end) && (end as usize) < vocab {
            ends.push(end);
        }
    }
    // Where nothing is said llama.cpp takes token 11 for both, which is text in a vocabulary of bytes; the first seldom is.
    let bos = role("bos_token").or(ids(generation.get("bos_token_id")).first().copied());
    set("bos_token_id", Value::Whole(bos.or(ends.first().copied()).unwrap_or(0)));
    set("eos_token_id", Value::Whole(ends.first().copied().unwrap_or(0)));
    if let Some(end) = ends.get(1) {
        set("eot_token_id", Value::Whole(*end));
    }
    for (key, name) in [("unknown_token_id", "unk_token"), ("padding_token_id", "pad_token")] {
        if let Some(id) = role(name) {
            set(key, Value::Whole(id));
        }
    }
    let opens = config.get("add_bos_token").and_then(Json::as_bool).unwrap_or_else(|| opens(&file["post_processor"]));
    set("add_bos_token", Value::Flag(opens && bos.is_some()));
    set("add_eos_token", Value::Flag(false));
    set("tokens", Value::Texts(tokens.texts));
    set("token_type", Value::Wholes(tokens.sorts));
    let template = texts.get(TEMPLATE).and_then(|bytes| String::from_utf8(bytes.clone()).ok());
    if let Some(template) = template.or_else(|| template_of(config.get("chat_template")?)) {
        values.push(("tokenizer.chat_template".into(), Value::Text(template)));
    }
    values.push((WHOLE.into(), Value::Text(String::from_utf8_lossy(whole).into_owned())));
    Ok(values)
}

/// All tokens by their id.
struct Tokens {
    texts: Vec<String>,
    sorts: Vec<i64>,
    by_text: BTreeMap<String, i64>,
}

impl Tokens {
    fn of(file: &Json, vocab: usize) -> Result<Tokens, String> {
        let model = file["model"]["vocab"]
            .as_object()
            .ok_or("its model is no BPE, the only kind that GGUF has words for here")?;
        let texts: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
        let mut tokens = Tokens { texts, sorts: vec![sort::UNUSED; vocab], by_text: BTreeMap::new() };
        let unknown = file["model"]["unk_token"].as_str();
        let falls_back = file["model"]["byte_fallback"] == true;
        for (text, id) in model {
            let sort = match text.as_str() {
                text if Some(text) == unknown => sort::UNKNOWN,
                text if falls_back && byte_of(text).is_some() => sort::BYTE,
                _ => sort::NORMAL,
            };
            tokens.set(text, id, sort)?;
        }
        for added in file["added_tokens"].as_array().into_iter().flatten() {
            let Some(text) = added["content"].as_str() else { continue };
            let sort = match added["special"] == true {
                _ if Some(text) == unknown => sort::UNKNOWN,
                true => sort::CONTROL,
                false => sort::USER,
            };
            tokens.set(text, &added["id"], sort)?;
        }
        Ok(tokens)
    }

    fn set(&mut self, text: &str, id: &Json, sort: i64) -> Result<(), String> {
        let (vocab, place) = (self.texts.len(), id.as_u64().and_then(|id| usize::try_from(id).ok()));
        let place = place.filter(|place| *place < vocab);
        let place = place.ok_or_else(|| format!("its token {text:?} is number {id}, and the model has {vocab}"))?;
        self.texts[place] = text.into();
        self.sorts[place] = sort;
        self.by_text.insert(text.into(), place as i64);
        Ok(())
    }

    fn id(&self, text: &str) -> Option<i64> {
        self.by_text.get(text).copied()
    }
}

/// Merges in their order, in either spelling.
fn merges(file: &Json) -> Vec<(&str, &str)> {
    let pairs = file["model"]["merges"].as_array().into_iter().flatten();
    pairs
        .filter_map(|merge| match merge.as_str() {
            Some(text) => text.split_once(' '),
            None => Some((merge.get(0)?.as_str()?, merge.get(1)?.as_str()?)),
        })
        .collect()
}

/// The parts of a processor that may be a sequence of them, under `key`.
fn parts<'a>(value: &'a Json, key: &str) -> Vec<&'a Json> {
    match value.get(key).and_then(Json::as_array) {
        Some(list) => list.iter().flat_map(|part| parts(part, key)).collect(),
        None if value.is_null() => vec![],
        None => vec![value],
    }
}

fn is_byte_level(file: &Json) -> bool {
    parts(&file["pre_tokenizer"], "pretokenizers").iter().any(|part| part["type"] == "ByteLevel")
}

fn gpt2(file: &Json) -> Result<Vec<(String, Value)>, String> {
    let merges = merges(file);
    let splits = parts(&file["pre_tokenizer"], "pretokenizers");
    let own = |part: &Json| part["use_regex"] == true;
    let pre = match &splits[..] {
        // Nothing is merged, so it does not matter where.
        _ if merges.is_empty() => Some("gpt-2"),
        [bytes] if own(bytes) => Some("gpt-2"),
        [digits, bytes] if digits["type"] == "Digits" && digits["individual_digits"] == true && own(bytes) => {
            Some("smollm")
        }
        [split, bytes] if split["type"] == "Split" && split["behavior"] == "Isolated" && !own(bytes) => {
            let pattern = split["pattern"]["Regex"].as_str();
            SPLITS.iter().find(|(_, known)| Some(*known) == pattern).map(|(name, _)| *name)
        }
        _ => None,
    };
    let pre = pre.ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().map(|(name, _)| *name).collect();
        format!("splits a text in a way that is not known by name; gpt-2, smollm, {} are", known.join(", "))
    })?;
    let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    Ok(vec![
        ("tokenizer.ggml.model".into(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::Text(pre.into())),
        ("tokenizer.ggml.merges".into(), Value::Texts(merges)),
    ])
}

/// There a pair is merged by the score of what it makes: that of the first merge which makes it.
fn llama(file: &Json, tokens: &Tokens) -> Result<Vec<(String, Value)>, String> {
    if file["model"]["byte_fallback"] != true {
        return Err(
            "is neither byte-level BPE nor BPE that falls back to bytes, and GGUF has words for no other".into()
        );
    }
    let mut prefix = false;
    for part in parts(&file["normalizer"], "normalizers") {
        match part["type"].as_str() {
            Some("Prepend") if part["prepend"] == SPACE => prefix = true,
            Some("Replace") if part["pattern"]["String"] == " " && part["content"] == SPACE => {}
            _ => return Err("changes a text before it is split, beyond its spaces: GGUF has no words for that".into()),
        }
    }
    for part in parts(&file["pre_tokenizer"], "pretokenizers") {
        match part["type"].as_str() {
            Some("Metaspace") => prefix |= part["prepend_scheme"] != "never" && part["add_prefix_space"] != false,
            _ => return Err("splits a text otherwise than at its spaces: GGUF has no words for that".into()),
        }
    }
    let mut scores = vec![0.0; tokens.texts.len()];
    let mut rank = BTreeMap::new();
    for (at, (left, right)) in merges(file).into_iter().enumerate() {
        rank.entry(format!("{left}{right}")).or_insert(at);
    }
    for (id, text) in tokens.texts.iter().enumerate() {
        if tokens.sorts[id] == sort::NORMAL {
            scores[id] = rank.get(text).map_or(-1e9, |rank| -(*rank as f32));
        }
    }
    Ok(vec![
        ("tokenizer.ggml.model".into(), Value::Text("llama".into())),
        ("tokenizer.ggml.pre".into(), Value::Text("default".into())),
        ("tokenizer.ggml.scores".into(), Value::Reals(scores)),
        ("tokenizer.ggml.add_space_prefix".into(), Value::Flag(prefix)),
    ])
}

/// Whether a text that stands alone begins with a token of its own.
fn opens(post_processor: &Json) -> bool {
    let parts = parts(post_processor, "processors");
    parts.iter().any(|part| part["single"].get(0).is_some_and(|first| first.get("SpecialToken").is_some()))
}

fn template_of(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Array(list) => {
            let default = list.iter().find(|one| one["name"] == "default")?;
            default["template"].as_str().map(str::to_string)
        }
        _ => None,
    }
}

/// One id or a list of them.
fn ids(value: Option<&Json>) -> Vec<i64> {
    match value {
        Some(Json::Array(list)) => list.iter().filter_map(Json::as_i64).filter(|id| *id >= 0).collect(),
        Some(one) => one.as_i64().into_iter().filter(|id| *id >= 0).collect(),
        None => vec![],
    }
}

/// The byte that `<0x0A>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The text files that a folder would have; none where the file has no tokenizer.
///
/// # Errors
/// A kind of tokenizer that is not read here, or values that do not fit together.
pub fn read(values: &BTreeMap<String, Value>) -> Result<Texts, String> {
    let get = |key: &str| values.get(&format!("tokenizer.ggml.{key}"));
    let model = match get("model") {
        Some(Value::Text(model)) if model != "no_vocab" => model.as_str(),
        _ => return Ok(Texts::new()),
    };
    let none = Vec::new();
    let tokens = match get("tokens") {
        Some(Value::Texts(tokens)) => tokens,
        _ => return Err("tokenizer.ggml.tokens is missing".into()),
    };
    let sorts = match get("token_type") {
        Some(Value::Wholes(sorts)) if sorts.len() == tokens.len() => sorts,
        None => &none,
        Some(_) => return Err("tokenizer.ggml.token_type does not fit its tokens".into()),
    };
    let sort = |id: usize| sorts.get(id).copied().unwrap_or(sort::NORMAL);
    let role = |key: &str| match get(key) {
        Some(Value::Whole(id)) => usize::try_from(*id).ok().filter(|id| *id < tokens.len()),
        _ => None,
    };
    // A number that only stands there because there had to be one is that of a letter.
    let mark = |key: &str| role(key).filter(|id| sorts.is_empty() || sort(*id) != sort::NORMAL);
    let flag = |key: &str| match get(key) {
        Some(Value::Flag(flag)) => Some(*flag),
        _ => None,
    };
    let whole = match values.get(WHOLE) {
        Some(Value::Text(whole)) => whole.clone().into_bytes(),
        _ => {
            let file = match model {
                "gpt2" => from_gpt2(tokens, &sort, get("pre"), get("merges"))?,
                "llama" => from_llama(tokens, &sort, get("scores"), flag("add_space_prefix").unwrap_or(true))?,
                other => return Err(format!("is a {other} there; gpt2 and llama are read")),
            };
            serde_json::to_vec(&file).map_err(|error| error.to_string())?
        }
    };
    let (bos, eos) = (mark("bos_token_id"), mark("eos_token_id"));
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    let roles = [
        ("bos_token", bos),
        ("eos_token", eos),
        ("unk_token", mark("unknown_token_id")),
        ("pad_token", mark("padding_token_id")),
    ];
    for (name, id) in roles {
        if let Some(id) = id {
            config[name] = tokens[id].clone().into();
        }
    }
    let starts = matches!(get("pre"), Some(Value::Text(pre)) if pre == "llama-bpe") || model == "llama";
    config["add_bos_token"] = (flag("add_bos_token").unwrap_or(starts) && bos.is_some()).into();
    if let Some(Value::Text(template)) = values.get("tokenizer.chat_template") {
        config["chat_template"] = template.clone().into();
    }
    let ends: Vec<usize> = [eos, mark("eot_token_id")].into_iter().flatten().collect();
    let mut generation = json!({ "eos_token_id": ends });
    if let Some(bos) = bos {
        generation["bos_token_id"] = bos.into();
    }
    let written = |value: &Json| serde_json::to_vec_pretty(value).map_err(|error| error.to_string());
    Ok([
        (TOKENIZER.to_string(), whole),
        (CONFIG.to_string(), written(&config)?),
        (GENERATION.to_string(), written(&generation)?),
    ]
    .into())
}

/// `tokenizer.json` of a model, with the tokens that are marks.
fn file(tokens: &[String], sort: &dyn Fn(usize) -> i64, parts: Json) -> Json {
    let added = tokens.iter().enumerate().filter_map(|(id, text)| {
        let special = match sort(id) {
            sort::CONTROL | sort::UNKNOWN => true,
            sort::USER => false,
            _ => return None,
        };
        Some(json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        }))
    });
    let mut file = json!({ "version": "1.0", "truncation": null, "padding": null, "post_processor": null });
    file["added_tokens"] = added.collect();
    if let (Some(file), Json::Object(parts)) = (file.as_object_mut(), parts) {
        file.extend(parts);
    }
    file
}

fn vocabulary(tokens: &[String], sort: &dyn Fn(usize) -> i64) -> Json {
    let used = tokens.iter().enumerate().filter(|(id, _)| sort(*id) != sort::UNUSED);
    Json::Object(used.map(|(id, text)| (text.clone(), id.into())).collect())
}

fn from_gpt2(
    tokens: &[String],
    sort: &dyn Fn(usize) -> i64,
    pre: Option<&Value>,
    merges: Option<&Value>,
) -> Result<Json, String> {
    let pre = match pre {
        Some(Value::Text(pre)) => pre.as_str(),
        _ => "gpt-2",
    };
    let bytes =
        |own: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": own });
    let sequence = |first: Json, own: bool| json!({ "type": "Sequence", "pretokenizers": [first, bytes(own)] });
    let known = SPLITS.iter().find(|(name, _)| *name == pre || (*name == "llama-bpe" && pre == "llama3"));
    let splits = match (pre, known) {
        (_, Some((_, pattern))) => sequence(
            json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }),
            false,
        ),
        ("gpt-2" | "gpt2", _) => bytes(true),
        ("smollm", _) => sequence(json!({ "type": "Digits", "individual_digits": true }), true),
        (other, _) => return Err(format!("splits a text as {other}, which is not known here")),
    };
    let merges = match merges {
        Some(Value::Texts(merges)) => merges.clone(),
        // An array of nothing has no type.
        _ => vec![],
    };
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": matches!(pre, "llama-bpe" | "llama3" | "tekken"),
        "vocab": vocabulary(tokens, sort), "merges": merges,
    });
    let normalizer = if pre == "qwen2" { json!({ "type": "NFC" }) } else { Json::Null };
    let parts = json!({ "normalizer": normalizer, "pre_tokenizer": splits, "decoder": bytes(true), "model": model });
    Ok(file(tokens, sort, parts))
}

/// Pairs are merged in the order of the scores of what they make, as SentencePiece does.
fn from_llama(
    tokens: &[String],
    sort: &dyn Fn(usize) -> i64,
    scores: Option<&Value>,
    prefix: bool,
) -> Result<Json, String> {
    let scores = match scores {
        Some(Value::Reals(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err("tokenizer.ggml.scores are missing or do not fit its tokens".into()),
    };
    let plain = |id: &usize| matches!(sort(*id), sort::NORMAL);
    let by_text: BTreeMap<&str, usize> =
        tokens.iter().enumerate().filter(|(id, _)| plain(id)).map(|(id, text)| (text.as_str(), id)).collect();
    let mut merges: Vec<(f32, usize, usize)> = Vec::new();
    for (id, text) in tokens.iter().enumerate().filter(|(id, _)| plain(id)) {
        for (at, _) in text.char_indices().skip(1).take(128) {
            if let (Some(left), Some(right)) = (by_text.get(&text[..at]), by_text.get(&text[at..])) {
                merges.push((scores[id], *left, *right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<[&str; 2]> =
        merges.iter().map(|(_, left, right)| [tokens[*left].as_str(), tokens[*right].as_str()]).collect();
    let unknown = (0..tokens.len()).find(|id| sort(*id) == sort::UNKNOWN).map(|id| tokens[id].as_str());
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary(tokens, sort), "merges": merges,
    });
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let before = match prefix {
        true => json!([{ "type": "Prepend", "prepend": SPACE }, replace]),
        false => json!([replace]),
    };
    let mut after = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        after.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let parts = json!({
        "normalizer": { "type": "Sequence", "normalizers": before },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": after },
        "model": model,
    });
    Ok(file(tokens, sort, parts))
}
