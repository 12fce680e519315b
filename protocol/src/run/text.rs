//! `run.toml`: a Manifest as people write it. In: a text. Out: the typed Manifest and who says to have signed it, or every problem
//! with its line and column. Out again: a commented text that reads back equal. It verifies no signature and reads no file.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    check::{Severity, check},
    manifest::*,
    schema::{self, KEYS, Key},
};
use crate::{PeerId, unit};

/// Bytes of a text: far above any Manifest that could travel.
pub const TEXT_MAX: usize = 1 << 20;

/// What a text holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub manifest: Manifest,
    /// As written; who trusts it verifies it first.
    pub signature: Option<Signature>,
    /// Remarks only: with an error there is no `Parsed`.
    pub remarks: Vec<TextProblem>,
}

/// `[signature]` of a signed file: over the Manifest's canonical form, not over the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    pub peer: PeerId,
    pub signature: [u8; 64],
}

/// A problem, and where the text has it. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextProblem {
    pub line: usize,
    pub column: usize,
    /// Dotted path; empty where the text is no TOML.
    pub key: String,
    pub what: String,
    pub severity: Severity,
}

/// Reads a Manifest. `owner` is taken where the text names none.
///
/// # Errors
/// All problems of the first kind that occurs, in the order of the text: what is no TOML; keys that are unknown, missing or of
/// a wrong type; what [`check`] finds.
pub fn parse(text: &str, owner: Option<PeerId>) -> Result<Parsed, Vec<TextProblem>> {
    let places = Places { text, keys: BTreeMap::new() };
    if text.len() > TEXT_MAX {
        return Err(vec![places.at(0, "", format!("has {} bytes, at most {TEXT_MAX}", text.len()))]);
    }
    let (mut document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| {
            places.at(error.span().map_or(0, |span| span.start), "", error.message().to_string())
        };
        return Err(in_order(errors.iter().map(problem).collect()));
    }
    let mut reader = Reader { places, tables: BTreeSet::new(), found: Vec::new() };
    reader.walk("", document.get_ref());
    reader.missing();
    let Reader { places, found, .. } = reader;
    if !found.is_empty() {
        return Err(in_order(found));
    }
    let signature = document.get_mut().remove("signature").and_then(|table| signature(table.get_ref()));
    complete(document.get_mut(), owner);
    let manifest = Manifest::deserialize(toml::Deserializer::from(document))
        .map_err(|error| vec![places.at(error.span().map_or(0, |span| span.start), "", error.message().to_string())])?;
    let found = check(&manifest)
        .into_iter()
        .map(|problem| TextProblem { severity: problem.severity, ..places.of(problem.key, problem.what) })
        .collect();
    let found = in_order(found);
    match found.iter().any(|problem| problem.severity == Severity::Error) {
        true => Err(found),
        false => Ok(Parsed { manifest, signature, remarks: found }),
    }
}

fn in_order(mut found: Vec<TextProblem>) -> Vec<TextProblem> {
    found.sort_by_key(|problem| (problem.line, problem.column));
    found
}

/// Where each key of the text stands: the offset of its name, and of its value.
struct Places<'t> {
    text: &'t str,
    keys: BTreeMap<String, (usize, usize)>,
}

impl Places<'_> {
    fn at(&self, offset: usize, key: &str, what: String) -> TextProblem {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or("");
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        TextProblem { line, column, key: key.to_string(), what, severity: Severity::Error }
    }

    /// At the value of `key`, else of the nearest section above it.
    fn of(&self, key: &str, what: String) -> TextProblem {
        let mut path = key;
        loop {
            match (self.keys.get(path), path.rsplit_once('.')) {
                (Some((_, value)), _) => return self.at(*value, key, what),
                (None, Some((above, _))) => path = above,
                (None, None) => return self.at(0, key, what),
            }
        }
    }
}

struct Reader<'t> {
    places: Places<'t>,
    /// Sections that are there, and are sections.
    tables: BTreeSet<String>,
    found: Vec<TextProblem>,
}

impl Reader<'_> {
    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let section = schema::is_section(&path);
            let (name_at, value_at) = (name.span().start, value.span().start);
            // The value of `[section]` begins wherever its first key does: the name is what a reader looks for.
            let shown_at = if section { name_at } else { value_at };
            self.places.keys.insert(path.clone(), (name_at, shown_at));
            match (value.get_ref(), schema::find(&path)) {
                (DeValue::Table(inner), _) if section => {
                    self.walk(&path, inner);
                    self.tables.insert(path);
                }
                (value, Some(key)) => {
                    if let Err(what) = key.kind.accepts(value) {
                        self.found.push(self.places.at(value_at, &path, what));
                    }
                }
                (_, None) if section => {
                    let what = format!("is a section: [{path}], or {path} = {{ … }}");
                    self.found.push(self.places.at(value_at, &path, what));
                }
                (_, None) => {
                    let hint = schema::nearest(&path).map_or(String::new(), |near| format!("; did you mean {near}?"));
                    self.found.push(self.places.at(name_at, &path, format!("is not a setting{hint}")));
                }
            }
        }
    }

    fn missing(&mut self) {
        let has = |places: &Places<'_>, path: &str| places.keys.contains_key(path);
        for Key { path, need, .. } in KEYS {
            let (section, _) = path.rsplit_once('.').expect("every key is in a section");
            let wanted = *need && (self.tables.contains(section) || schema::is_required(section));
            if wanted && !has(&self.places, path) {
                self.found.push(self.places.of(path, "is missing".into()));
            }
        }
        let seed = has(&self.places, "model.weights.init_seed");
        let blob = has(&self.places, "model.weights.blob");
        if seed == blob && (seed || !has(&self.places, "model.weights.sources")) {
            let what = "needs init_seed, or else blob: { init_seed = 1 }";
            self.found.push(self.places.of("model.weights", what.into()));
        } else if seed && has(&self.places, "model.weights.sources") {
            self.found.push(self.places.of("model.weights.sources", "are of a blob; init_seed has none".into()));
        } else if !blob && !seed {
            self.found.push(self.places.of("model.weights.blob", "is missing".into()));
        }
    }
}

/// Drops what is written empty and means absent, and adds what may be left out.
fn complete(document: &mut DeTable<'_>, owner: Option<PeerId>) {
    fn section<'a, 't>(document: &'a mut DeTable<'t>, name: &'static str) -> Option<&'a mut DeTable<'t>> {
        match document.get_mut(name)?.get_mut() {
            DeValue::Table(table) => Some(table),
            _ => None,
        }
    }
    fn is_empty(value: Option<&Spanned<DeValue<'_>>>) -> bool {
        value.and_then(|value| value.get_ref().as_str()).is_some_and(str::is_empty)
    }
    for (of, key) in [("run", "owner"), ("run", "parent"), ("model", "chat_template")] {
        if let Some(table) = section(document, of)
            && is_empty(table.get(key))
        {
            table.remove(key);
        }
    }
    if let Some(data) = section(document, "data") {
        let eval = data.get("eval").and_then(|eval| eval.get_ref().get("blob"));
        if is_empty(eval) {
            data.remove("eval");
        }
    }
    for name in ["data", "admission", "privacy"] {
        if !document.contains_key(name) {
            let empty = Spanned::new(0..0, DeValue::Table(DeTable::new()));
            document.insert(Spanned::new(0..0, Cow::Borrowed(name)), empty);
        }
    }
    if let Some(run) = section(document, "run")
        && !run.contains_key("owner")
    {
        let owner = DeValue::String(Cow::Owned(owner.unwrap_or_default().to_string()));
        run.insert(Spanned::new(0..0, Cow::Borrowed("owner")), Spanned::new(0..0, owner));
    }
}

/// Of a table whose values have passed the schema.
fn signature(table: &DeValue<'_>) -> Option<Signature> {
    let text = |key| table.get(key).and_then(|value| value.get_ref().as_str());
    Some(Signature { peer: text("peer")?.parse().ok()?, signature: schema::signature(text("signature")?)? })
}

/// A commented text of `manifest`: [`parse`] reads the same Manifest from it, if that is clean.
pub fn write(manifest: &Manifest) -> String {
    let mut out = Writer::default();
    out.run(&manifest.run);
    out.model(&manifest.model);
    out.stages_and_train(manifest);
    out.optimizer(&manifest.optimizer);
    out.agreeing(manifest);
    out.rest(manifest);
    out.text
}

/// [`write()`], and `[signature]` below it.
pub fn write_signed(manifest: &Manifest, signature: &Signature) -> String {
    let hex = data_encoding::HEXLOWER.encode(&signature.signature);
    let mut out = Writer { text: write(manifest) };
    out.section("signature");
    out.line("peer", quoted(&signature.peer), "");
    out.line("signature", quoted(&hex), "over the manifest, not over this text");
    out.text
}

#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    fn section(&mut self, name: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        writeln!(self.text, "{gap}[{name}]").expect("writing to a String cannot fail");
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display, comment: &str) {
        let line = format!("{key} = {value}");
        let result = match comment {
            "" => writeln!(self.text, "{line}"),
            _ => writeln!(self.text, "{line:<31} # {comment}"),
        };
        result.expect("writing to a String cannot fail");
    }

    fn run(&mut self, run: &Run) {
        self.section("run");
        self.line("name", quoted(&run.name), "[a-z0-9-]{1,32}; a label: the identity is the hash");
        self.line("about", quoted(&run.about), "at most 280 bytes");
        self.line("protocol", run.protocol, "wire version");
        self.line("revision", run.revision, "successor of `parent`");
        self.line("parent", quoted(&optional(run.parent)), "hash of the revision before");
        self.line("owner", quoted(&run.owner), "signs");
        self.line("delegates", list(&run.delegates), "may feed data for the owner");
        self.line("starts", quoted(&run.starts), "now, or RFC 3339");
        let ends = [
            run.ends.steps.map(|steps| format!("steps = {steps}")),
            run.ends.tokens.map(|tokens| format!("tokens = {tokens}")),
            run.ends.until.as_ref().map(|until| format!("until = {}", quoted(until))),
            run.ends.loss.map(|loss| format!("loss = {}", real(loss))),
        ];
        self.line("ends", table(ends.into_iter().flatten()), "steps | tokens | until | loss; first reached wins");
    }

    fn model(&mut self, model: &Model) {
        let c = &model.config;
        self.section("model");
        self.line("family", word(&model.family), "llama | mistral | qwen2 | qwen3");
        let mut config = vec![
            format!("hidden = {}", c.hidden),
            format!("layers = {}", c.layers),
            format!("heads = {}", c.heads),
            format!("kv_heads = {}", c.kv_heads),
            format!("ffn = {}", c.ffn),
            format!("vocab = {}", c.vocab),
            format!("context = {}", c.context),
            format!("rope_theta = {}", real(c.rope_theta)),
            format!("tie_embeddings = {}", c.tie_embeddings),
            format!("norm_eps = {}", real(c.norm_eps)),
        ];
        config.extend(c.head.map(|head| format!("head = {head}")));
        config.extend(c.rope_scaling.map(|scaling| format!("rope_scaling = {}", rope_scaling(scaling))));
        let window = |w: Window| format!("window = {{ size = {}, from = {} }}", w.size, w.from);
        config.extend(c.window.map(window));
        config.extend(c.qkv_bias.then(|| "qkv_bias = true".to_string()));
        config.extend(c.qk_norm.then(|| "qk_norm = true".to_string()));
        self.line("config", table(config), "");
        let weights = match &model.weights {
            Weights::Seed { init_seed } => table([format!("init_seed = {init_seed}")]),
            Weights::Blob { blob, sources, stages } => {
                let mut fields = vec![format!("blob = {}", quoted(blob)), format!("sources = {}", list(sources))];
                fields.extend((!stages.is_empty()).then(|| format!("stages = {}", list(stages))));
                table(fields)
            }
        };
        self.line("weights", weights, "init_seed; or blob and sources: fixed by the hash, sources are only hints");
        let tokenizer = match &model.tokenizer {
            Tokenizer::Byte => quoted(&"byte"),
            Tokenizer::File { blob } => table([format!("blob = {}", quoted(blob))]),
        };
        self.line("tokenizer", tokenizer, "byte, or { blob }");
        self.line("chat_template", quoted(&optional(model.chat_template)), "blob; empty = none");
    }

    fn stages_and_train(&mut self, manifest: &Manifest) {
        let Manifest { stages, train, .. } = manifest;
        self.section("stages");
        self.line("count", stages.count, "1 to layers");
        self.line("split", numbers(&stages.split), "layers a stage");
        self.line("pin_ends", stages.pin_ends, "true = first and last stage only on the data owner");
        self.section("train");
        self.line("method", word(&train.method), "full | lora");
        if let Some(lora) = &train.lora {
            let fields = [
                format!("rank = {}", lora.rank),
                format!("alpha = {}", lora.alpha),
                format!("targets = {}", list(&lora.targets)),
                format!("dropout_percent = {}", lora.dropout_percent),
                format!("base = {}", word(&lora.base)),
            ];
            self.line("lora", table(fields), "base, of what stands beside: as-is | bf16 | int8 | int4");
        }
        self.line("sequence", train.sequence, "tokens, 8 to context");
        self.line("micro_batch", train.micro_batch, "sequences");
        self.line("micro_batches_per_step", train.micro_batches_per_step, "that one replica adds up before it steps");
        self.line("in_flight_max", train.in_flight_max, "ids a feeder may have open");
        self.line("loss", word(&train.loss), "next-token | completion-only");
        self.line("clip", real(train.clip), "gradient norm of each block; 0 = off");
        self.line("arithmetic", words(&train.arithmetic), "that peers may use: bf16x3, f32, bf16, repeatable");
        self.line("recompute", word(&train.recompute), "always | when-needed");
        self.line("seed", train.seed, "order of the data");
    }

    fn optimizer(&mut self, rule: &Optimizer) {
        self.section("optimizer");
        self.line("kind", word(&rule.kind), "adamw | nadamw | sgd");
        self.line("lr", real(rule.lr), "");
        self.line("beta1", real(rule.beta1), "nadamw with 0.99 looks ahead over stale gradients");
        self.line("beta2", real(rule.beta2), "");
        self.line("eps", real(rule.eps), "");
        self.line("decay", real(rule.decay), "of matrices");
        let schedule = [
            format!("kind = {}", word(&rule.schedule.kind)),
            format!("warmup = {}", rule.schedule.warmup),
            format!("stable_percent = {}", rule.schedule.stable_percent),
            format!("final_percent = {}", rule.schedule.final_percent),
        ];
        self.line("schedule", table(schedule), "constant | linear | cosine | wsd");
    }

    fn agreeing(&mut self, manifest: &Manifest) {
        let Manifest { staleness, averaging, codecs, .. } = manifest;
        self.section("staleness");
        self.line("bound", staleness.bound, "own steps, to 64; older gradients are not added; 0 = lock-step");
        self.line("weight", word(&staleness.weight), "none | inverse-sqrt | inverse");
        self.section("averaging");
        self.line("rule", word(&averaging.rule), "noloco | gossip | groups | none");
        self.line("group", averaging.group, "2 to 16; more than 2 with rule = \"groups\" only");
        self.line("every", averaging.every, "own steps");
        self.line("alpha", real(averaging.alpha), "");
        self.line("beta", real(averaging.beta), "");
        self.line("gamma", real(averaging.gamma), "");
        self.line("codec", word(&averaging.codec), "of the differences: f32 | bf16 | int8 | int4 | sparse");
        self.line("robust", word(&averaging.robust), "none | clip | centered-clip | trimmed");
        self.section("codecs");
        self.line(
            "forward",
            words(&codecs.forward),
            "allowed for activations; another than the first where it is faster",
        );
        self.line("backward", words(&codecs.backward), "allowed for gradients");
        self.line(
            "error_feedback",
            codecs.error_feedback,
            "what averaging.codec loses of a difference stays for the next",
        );
        self.line("entropy", word(&codecs.entropy), "none | zstd");
        self.line(
            "error_max",
            real(codecs.error_max),
            "part of a tensor that its codec may lose: int8 0.006, int4 0.09",
        );
    }

    fn rest(&mut self, manifest: &Manifest) {
        let Manifest { data, admission, privacy, checkpoint, .. } = manifest;
        self.section("data");
        self.line("from", word(&data.from), "owner | members (each on its own data) | listed");
        self.line("listed", list(&data.listed), "blobs when from = \"listed\"");
        if let Some(eval) = &data.eval {
            let fields = [format!("every = {}", eval.every), format!("blob = {}", quoted(&eval.blob))];
            self.line("eval", table(fields), "");
        }
        self.section("admission");
        self.line("open", admission.open, "close a run with members");
        self.line("members", list(&admission.members), "peer ids; not empty = closed list");
        self.line("peers_max", admission.peers_max, "");
        self.line("per_subnet_max", admission.per_subnet_max, "/24 and /48, for unproved peers");
        self.line("memory_min", quoted(&unit::bytes(admission.memory_min.0)), "");
        self.section("privacy");
        let noise = [
            format!("sigma = {}", real(privacy.noise.sigma)),
            format!("clip = {}", real(privacy.noise.clip)),
            format!("delta = {}", real(privacy.noise.delta)),
        ];
        self.line("noise", table(noise), "at the data owner; sigma 0 = off");
        self.line("masked_average", privacy.masked_average, "secure sums in groups");
        self.line("group_min", privacy.group_min, "");
        self.section("checkpoint");
        self.line("every", checkpoint.every, "run steps; signed version announcements");
        self.line("copies_min", checkpoint.copies_min, "copies of each stage that the swarm holds");
    }
}

fn quoted(text: &(impl ToString + ?Sized)) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// Shortest digits that read back as the same number.
fn real(value: f64) -> String {
    if value.is_nan() { "nan".into() } else { format!("{value:?}") }
}

fn rope_scaling(scaling: RopeScaling) -> String {
    match scaling {
        RopeScaling::Linear { factor } => table([r#"kind = "linear""#.into(), format!("factor = {}", real(factor))]),
        RopeScaling::Llama3 { factor, low, high, original } => table([
            r#"kind = "llama3""#.into(),
            format!("factor = {}", real(factor)),
            format!("low = {}", real(low)),
            format!("high = {}", real(high)),
            format!("original = {original}"),
        ]),
    }
}

/// The name of an enum's value, in quotes.
fn word(value: &impl serde::Serialize) -> String {
    toml::Value::try_from(value).expect("a variant without fields is its name").to_string()
}

fn bracketed(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn words<T: serde::Serialize>(items: &[T]) -> String {
    bracketed(items.iter().map(word))
}

fn list<T: ToString>(items: &[T]) -> String {
    bracketed(items.iter().map(quoted))
}

fn numbers(items: &[u32]) -> String {
    bracketed(items.iter().map(u32::to_string))
}

fn table(fields: impl IntoIterator<Item = String>) -> String {
    let fields: Vec<String> = fields.into_iter().collect();
    if fields.is_empty() { "{}".into() } else { format!("{{ {} }}", fields.join(", ")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        hash::Digest,
        run::{PRESETS, preset},
    };

    fn problems(text: &str) -> Vec<(usize, usize, String, String)> {
        let found = parse(text, None).expect_err("the text has a problem");
        found.into_iter().map(|p| (p.line, p.column, p.key, p.what)).collect()
    }

    /// The demo with `from` replaced, and the line where that stands.
    fn demo_with(from: &str, to: &str) -> (String, usize) {
        let text = write(&preset("demo").unwrap());
        assert!(text.contains(from), "{from} is not in\n{text}");
        let line = text[..text.find(from).unwrap()].matches('\n').count() + 1;
        (text.replacen(from, to, 1), line)
    }

    #[test]
    fn every_preset_survives_being_written_and_read() {
        for name in PRESETS {
            let manifest = preset(name).unwrap();
            let parsed = parse(&write(&manifest), None).unwrap();
            assert_eq!(parsed, Parsed { manifest, signature: None, remarks: vec![] }, "{name}");
        }
    }

    #[test]
    fn every_key_survives_being_written_and_read() {
        let digest = Digest([7; 32]);
        let mut m = preset("demo").unwrap();
        m.run.about = "\"quotes\", \\ and = # [brackets]".into();
        (m.run.revision, m.run.parent) = (3, Some(digest));
        m.run.owner = PeerId([3; 32]);
        m.run.delegates = vec![PeerId([4; 32]), PeerId([5; 32])];
        m.run.ends = Ends { steps: Some(9000), tokens: Some(1 << 40), until: None, loss: Some(1.25) };
        m.model.weights = Weights::Seed { init_seed: u64::MAX };
        m.train.lora = Some(Lora {
            rank: 8,
            alpha: 16,
            targets: vec!["q".into(), "v".into()],
            dropout_percent: 5,
            base: BasePrecision::Int4,
        });
        m.train.arithmetic = vec![Arithmetic::F32, Arithmetic::Repeatable];
        m.optimizer.eps = 1e-20;
        m.admission.members = vec![PeerId([6; 32])];
        m.admission.memory_min = Size(1_000_000_007);
        m.model.chat_template = Some(digest);
        let signature = Signature { peer: m.run.owner, signature: [0xab; 64] };
        let parsed = parse(&write_signed(&m, &signature), Some(PeerId([9; 32]))).unwrap();
        assert_eq!((parsed.manifest, parsed.signature), (m, Some(signature)));
        let keys: Vec<String> = parsed.remarks.into_iter().map(|p| p.key).collect();
        assert_eq!(keys, ["model.chat_template", "train.lora", "admission.memory_min"]);
    }

    #[test]
    fn an_owner_left_out_is_who_starts_the_run() {
        let me = PeerId([8; 32]);
        let text = include_str!("../../../configs/run/demo.toml");
        assert_eq!(parse(text, Some(me)).unwrap().manifest.run.owner, me);
        let (empty, _) = demo_with(&format!("owner = \"{}\"", PeerId::default()), "owner = \"\"");
        assert_eq!(parse(&empty, Some(me)).unwrap().manifest.run.owner, me);
    }

    #[test]
    fn all_unknown_keys_and_wrong_types_come_at_once_with_their_places() {
        let text = "[run]\nnam = \"x\"\nprotocol = \"one\"\n\n[averagin]\n[train]\nsequenze = 3\nclip = true\nmicro_batch = -1\n\
            [admission]\nmemory_min = 1\nmembers = [\"nobody\"]\n[codecs]\nforward = [\"int9\"]\n";
        let found = problems(text);
        let said = |line, column, key: &str, part: &str| {
            let hit =
                found.iter().any(|(l, c, k, what)| (*l, *c, k.as_str()) == (line, column, key) && what.contains(part));
            assert!(hit, "{line}:{column} {key} {part}\n{found:#?}");
        };
        said(2, 1, "run.nam", "did you mean run.name?");
        said(3, 12, "run.protocol", "whole number");
        said(5, 2, "averagin", "did you mean averaging?");
        said(7, 1, "train.sequenze", "did you mean train.sequence?");
        said(8, 8, "train.clip", "number");
        said(9, 15, "train.micro_batch", "whole number");
        said(11, 14, "admission.memory_min", "1MiB");
        said(12, 11, "admission.members", "peer id");
        said(14, 11, "codecs.forward", "int9");
        said(1, 2, "run.name", "missing");
        said(6, 2, "train.in_flight_max", "missing");
        said(1, 1, "optimizer.lr", "missing");
        said(1, 1, "model.weights", "init_seed");
        assert!(found.is_sorted_by_key(|p| (p.0, p.1)));
    }

    #[test]
    fn a_contradiction_stands_at_its_keys_line() {
        let (text, line) = demo_with("every = 6 ", "every = 500 ");
        let found = problems(&text);
        assert_eq!((found.len(), found[0].0, found[0].1, found[0].2.as_str()), (1, line, 9, "averaging.every"));
        let (text, line) = demo_with("vocab = 256", "vocab = 200");
        let found = problems(&text);
        assert_eq!((found.len(), found[0].0, found[0].2.as_str()), (1, line, "model.config.vocab"));
        // A section that the text leaves out: the problem stands at the beginning.
        let (text, _) = demo_with("warmup = 20", "warmup = 99999999999");
        assert_eq!(problems(&text)[0].2, "optimizer.schedule.warmup");
    }

    #[test]
    fn weights_are_one_of_two_kinds() {
        let blob = Digest([1; 32]);
        for (weights, part) in [
            (format!("{{ init_seed = 1, blob = \"{blob}\" }}"), "init_seed"),
            ("{}".into(), "init_seed"),
            ("{ sources = [] }".into(), "missing"),
            ("{ init_seed = 1, sources = [] }".into(), "of a blob"),
            ("3".into(), "section"),
        ] {
            let (text, line) = demo_with("weights = { init_seed = 1 }", &format!("weights = {weights}"));
            let found = problems(&text);
            assert!(found.iter().any(|p| p.0 == line && p.3.contains(part)), "{weights}: {found:?}");
        }
        let (text, _) = demo_with("weights = { init_seed = 1 }", &format!("weights = {{ blob = \"{blob}\" }}"));
        assert_eq!(
            parse(&text, None).unwrap().manifest.model.weights,
            Weights::Blob { blob, sources: vec![], stages: vec![] }
        );
    }

    #[test]
    fn what_is_no_toml_says_where() {
        let found = problems("[run]\nname = \n[model\n");
        assert_eq!(found[0].0, 2, "{found:?}");
        assert!(found.len() >= 2, "{found:?}");
        assert_eq!(problems(&" ".repeat(TEXT_MAX + 1)).len(), 1);
        assert!(problems("").iter().any(|p| p.2 == "run.name"));
    }

    #[test]
    fn a_bad_signature_table_is_refused() {
        let text = write(&preset("demo").unwrap());
        assert_eq!(
            problems(&format!("{text}\n[signature]\npeer = \"{}\"\n", PeerId::default()))[0].2,
            "signature.signature"
        );
        let short = format!("{text}\n[signature]\npeer = \"{}\"\nsignature = \"abcd\"\n", PeerId::default());
        assert!(problems(&short)[0].3.contains("128"));
    }

    #[test]
    fn what_only_some_families_have_is_written_where_it_is_set() {
        let plain = preset("demo").unwrap();
        assert!(!write(&plain).contains("qk_norm") && !write(&plain).contains("rope_scaling"));
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        for rope_scaling in [llama3, RopeScaling::Linear { factor: 2.5 }] {
            let mut m = plain.clone();
            let c = &mut m.model.config;
            (c.head, c.rope_scaling, c.window) = (Some(64), Some(rope_scaling), Some(Window { size: 4096, from: 1 }));
            for (family, qkv_bias, qk_norm) in [(Family::Qwen2, true, false), (Family::Qwen3, false, true)] {
                let c = &mut m.model.config;
                (c.qkv_bias, c.qk_norm) = (qkv_bias, qk_norm);
                m.model.family = family;
                assert_eq!(parse(&write(&m), None).unwrap().manifest, m);
                let bytes = minicbor::to_vec(&m).unwrap();
                assert_eq!(minicbor::decode::<Manifest>(&bytes).unwrap(), m);
            }
        }
        // A signed run stays what it is: what is not set takes no byte.
        let bytes = minicbor::to_vec(&plain.model.config).unwrap();
        assert_eq!(bytes[0], 0x80 + 10);
        assert_eq!(minicbor::decode::<ModelConfig>(&bytes).unwrap(), plain.model.config);
    }

    proptest! {
        #[test]
        fn texts_never_panic(text in "[\\[\\]a-z\"= \n0-9.{},#ü]{0,200}", cut in 0usize..4000, flip in 0usize..4000) {
            let _ = parse(&text, None);
            let mut demo = write(&preset("demo").unwrap()).into_bytes();
            let flip = flip % demo.len();
            demo[flip] = b"\"[]{}=\n.0"[flip % 9];
            demo.truncate(cut);
            let _ = parse(&String::from_utf8_lossy(&demo), None);
        }

        #[test]
        fn numbers_survive_being_written_and_read(lr in 1e-12f64..100.0, seed: u64, init_seed: u64, theta in 1.0f64..1e12, bytes in 0u64..1 << 50) {
            let mut m = preset("demo").unwrap();
            m.optimizer.lr = lr;
            m.optimizer.decay = 0.0;
            m.model.config.rope_theta = theta;
            m.model.weights = Weights::Seed { init_seed };
            m.train.seed = seed;
            m.admission.memory_min = Size(bytes);
            prop_assert_eq!(parse(&write(&m), None).unwrap().manifest, m);
        }
    }
}
