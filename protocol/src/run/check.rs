//! What is wrong with a Manifest: every value out of range, every two values that contradict each other, and what this build
//! cannot do yet, all at once. In: a typed Manifest. Out: problems by key. It knows no text and no machine: whether a device is
//! large enough is asked elsewhere.

use std::ops::RangeInclusive;

use super::manifest::*;
use crate::{
    codec::{coded_len_max, nominal_error},
    wire::{
        limits::{BODY_MAX, MANIFEST_MAX, STAGES_MAX, STATE_MAX},
        membership::BITMAP_MAX,
    },
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key that would be changed first: `averaging.every`.
    pub key: &'static str,
    /// What is wrong and why, to be read after the key and its value.
    pub what: String,
    pub severity: Severity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The run cannot be trained as written.
    Error,
    /// It can, but it will not do what somebody may expect.
    Remark,
}

/// Everything that is wrong with `manifest`, in the order of its sections. Empty: nothing.
///
/// An owner of zeros is no problem here: files leave it out, and who starts the run fills it in.
pub fn check(manifest: &Manifest) -> Vec<Problem> {
    let mut found = Found::default();
    found.run(&manifest.run);
    found.model(&manifest.model);
    found.stages(manifest);
    found.train(manifest);
    found.optimizer(manifest);
    found.averaging(manifest);
    found.codecs(&manifest.codecs);
    found.rest(manifest);
    found.contradictions(manifest);
    found.not_built(manifest);
    found.list.extend(limits_of_wire(manifest));
    found.list
}

/// What of `manifest` does not fit the wire's limits: its own bytes, the progress of a feeder, an activation, a state, a round of
/// averaging. A peer that accepts a stranger's Manifest reserves nothing by a size that has not passed this.
pub fn limits_of_wire(manifest: &Manifest) -> Vec<Problem> {
    let mut found = Found::default();
    let own = minicbor::to_vec(manifest).map_or(usize::MAX, |bytes| bytes.len());
    if own > MANIFEST_MAX {
        found.error("run", format!("the whole manifest has {own} bytes, at most {MANIFEST_MAX} travel"));
    }
    if manifest.stages.split.len() > STAGES_MAX {
        found.error("stages.split", format!("more than {STAGES_MAX} stages"));
        return found.list;
    }
    let (model, train) = (&manifest.model.config, &manifest.train);
    let told = 8 * BITMAP_MAX;
    if train.in_flight_max as usize > told {
        let got = train.in_flight_max;
        let what = format!("cannot be {got}: the progress that a feeder tells has a bit for each of {told} ids");
        found.error("train.in_flight_max", what);
    }
    let hidden = u64::from(model.hidden);
    let activation = coded_len_max(manifest.tokens_per_micro_batch().saturating_mul(hidden));
    if activation > BODY_MAX {
        let what = format!(
            "{} sequences of {} tokens and hidden = {hidden} make activations of {}, one message carries {}",
            train.micro_batch,
            train.sequence,
            mib(activation),
            mib(BODY_MAX)
        );
        found.error("train.micro_batch", what);
    }
    let prompt = u64::from(model.context).saturating_mul(hidden).saturating_mul(4);
    if prompt > BODY_MAX {
        let (prompt, max) = (mib(prompt), mib(BODY_MAX));
        found.error(
            "model.config.context",
            format!("hidden states of a whole context have {prompt}, one message carries {max}"),
        );
    }
    let (stage, parameters) = largest_stage(manifest);
    // Parameters, two moments, slow weights and outer momentum, in f32.
    let state = parameters.saturating_mul(20);
    if state > STATE_MAX {
        found.error("stages.split", format!("the state of stage {stage} has {}, at most 1 TiB travel", mib(state)));
    }
    // Difference, slow weights and momentum, as long as a receiver takes them.
    let round = coded_len_max(parameters.saturating_mul(3));
    if averages(manifest) && round > BODY_MAX {
        let (round, max) = (mib(round), mib(BODY_MAX));
        found.error(
            "stages.split",
            format!("stage {stage} has {parameters} parameters: its averaging rounds send up to {round}, one message carries {max}"),
        );
    }
    found.list
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn averages(manifest: &Manifest) -> bool {
    manifest.averaging.rule != AveragingRule::None && !manifest.lock_step()
}

/// The stage with the most parameters, and their number.
fn largest_stage(manifest: &Manifest) -> (usize, u64) {
    let model = &manifest.model.config;
    if let Some(lora) = manifest.lora() {
        let layers = manifest.stages.split.iter().enumerate().map(|(stage, layers)| (*layers, stage));
        let (layers, stage) = layers.max().unwrap_or_default();
        return (stage, lora.layer_values(model).saturating_mul(u64::from(layers)));
    }
    let (d, f) = (u64::from(model.hidden), u64::from(model.ffn));
    let kv = (d / u64::from(model.heads.max(1))).saturating_mul(u64::from(model.kv_heads));
    let attention = d.saturating_mul(d.saturating_add(kv)).saturating_mul(2);
    let layer = attention.saturating_add(d.saturating_mul(f).saturating_mul(3)).saturating_add(2 * d);
    let table = u64::from(model.vocab).saturating_mul(d);
    let split = &manifest.stages.split;
    let parameters = |(stage, layers): (usize, &u32)| {
        let first = if stage == 0 { table } else { 0 };
        let last = if stage + 1 == split.len() { table.saturating_add(d) } else { 0 };
        (layer.saturating_mul(u64::from(*layers)).saturating_add(first).saturating_add(last), stage)
    };
    let (parameters, stage) = split.iter().enumerate().map(parameters).max().unwrap_or_default();
    (stage, parameters)
}

#[derive(Default)]
struct Found {
    list: Vec<Problem>,
}

impl Found {
    fn error(&mut self, key: &'static str, what: impl Into<String>) {
        self.list.push(Problem { key, what: what.into(), severity: Severity::Error });
    }

    fn remark(&mut self, key: &'static str, what: impl Into<String>) {
        self.list.push(Problem { key, what: what.into(), severity: Severity::Remark });
    }

    fn whole(&mut self, key: &'static str, value: impl Into<u64>, allowed: RangeInclusive<u64>) {
        let value = value.into();
        if !allowed.contains(&value) {
            self.error(key, format!("cannot be {value}; allowed: {} to {}", allowed.start(), allowed.end()));
        }
    }

    /// `low..=high`; what is not a number is in no range.
    fn real(&mut self, key: &'static str, value: f64, allowed: RangeInclusive<f64>) {
        if !allowed.contains(&value) {
            self.error(key, format!("cannot be {value:?}; allowed: {:?} to {:?}", allowed.start(), allowed.end()));
        }
    }

    fn distinct<T: Ord>(&mut self, key: &'static str, items: &[T]) {
        let mut sorted: Vec<&T> = items.iter().collect();
        sorted.sort();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            self.error(key, "names the same twice");
        }
    }

    fn run(&mut self, run: &Run) {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if run.name.is_empty() || run.name.len() > 32 || !run.name.bytes().all(letter) {
            self.error("run.name", "must be 1 to 32 of the characters a-z, 0-9 and -");
        }
        if run.about.len() > 280 {
            self.error("run.about", format!("has {} bytes, at most 280", run.about.len()));
        }
        if run.about.chars().any(char::is_control) {
            self.error("run.about", "has control characters or line breaks");
        }
        if run.protocol != PROTOCOL {
            let got = run.protocol;
            self.error("run.protocol", format!("the run speaks protocol {got}, this build speaks {PROTOCOL}"));
        }
        match (run.revision, run.parent) {
            (0, Some(_)) => self.error("run.parent", "revision 0 has no parent"),
            (1.., None) => self.error("run.parent", "a revision above 0 needs the hash of the one before"),
            (0, None) | (1.., Some(_)) => {}
        }
        self.distinct("run.delegates", &run.delegates);
        if run.starts != "now" && !is_rfc3339(&run.starts) {
            self.error("run.starts", "must be now, or a time like 2026-11-24T18:00:00Z");
        }
        let ends = &run.ends;
        if let Some(steps) = ends.steps {
            self.whole("run.ends.steps", steps, 1..=1_000_000_000_000);
        }
        if let Some(tokens) = ends.tokens {
            self.whole("run.ends.tokens", tokens, 1..=1_000_000_000_000_000_000);
        }
        if ends.until.as_ref().is_some_and(|until| !is_rfc3339(until)) {
            self.error("run.ends.until", "must be a time like 2026-12-24T18:00:00Z");
        }
        if let Some(loss) = ends.loss {
            self.real("run.ends.loss", loss, 1e-6..=1e3);
        }
    }

    fn model(&mut self, model: &Model) {
        let c = &model.config;
        self.whole("model.config.hidden", c.hidden, 2..=65_536);
        self.whole("model.config.layers", c.layers, 1..=1024);
        self.whole("model.config.heads", c.heads, 1..=1024);
        self.whole("model.config.kv_heads", c.kv_heads, 1..=1024);
        self.whole("model.config.ffn", c.ffn, 1..=262_144);
        self.whole("model.config.vocab", c.vocab, 2..=1 << 20);
        self.whole("model.config.context", c.context, 8..=1 << 20);
        self.real("model.config.rope_theta", c.rope_theta, 1.0..=1e12);
        self.real("model.config.norm_eps", c.norm_eps, 1e-12..=0.1);
        if c.head.is_none() && c.heads > 0 && !c.hidden.is_multiple_of(c.heads) {
            self.error("model.config.hidden", format!("{} is not a multiple of heads = {}", c.hidden, c.heads));
        } else if c.heads > 0 && !c.head().is_multiple_of(2) {
            let from = if c.head.is_some() { "head" } else { "hidden / heads" };
            self.error("model.config.heads", format!("{from} is {}; a head's width must be even", c.head()));
        }
        if let Some(head) = c.head {
            self.whole("model.config.head", head, 2..=1024);
        }
        if let Some(window) = c.window {
            self.whole("model.config.window.size", window.size, 1..=1 << 20);
            self.whole("model.config.window.from", window.from, 0..=u64::from(c.layers.max(1)) - 1);
        }
        match c.rope_scaling {
            None => {}
            Some(RopeScaling::Linear { factor }) => {
                self.real("model.config.rope_scaling.factor", factor, 1e-3..=1e6);
            }
            Some(RopeScaling::Llama3 { factor, low, high, original }) => {
                self.real("model.config.rope_scaling.factor", factor, 1e-3..=1e6);
                self.real("model.config.rope_scaling.low", low, 1e-3..=1e6);
                self.real("model.config.rope_scaling.high", high, 1e-3..=1e6);
                self.whole("model.config.rope_scaling.original", original, 1..=1 << 20);
                if low >= high {
                    self.error("model.config.rope_scaling.low", format!("{low:?} must be below high = {high:?}"));
                }
            }
        }
        for (key, has, set, of) in [
            ("model.config.qkv_bias", model.family == Family::Qwen2, c.qkv_bias, "qwen2"),
            ("model.config.qk_norm", model.family == Family::Qwen3, c.qk_norm, "qwen3"),
        ] {
            if has != set {
                self.error(key, format!("{set}: true is what the family {of} has, and no other"));
            }
        }
        if model.family == Family::Llama && c.window.is_some() {
            self.error("model.config.window", "the family llama has none");
        }
        if c.kv_heads > 0 && !c.heads.is_multiple_of(c.kv_heads) {
            self.error("model.config.kv_heads", format!("{} does not divide heads = {}", c.kv_heads, c.heads));
        }
        if model.chat_template.is_some() {
            self.remark("model.chat_template", "has no effect yet: the template is that of the owner's folder");
        }
        if model.tokenizer == Tokenizer::Byte && c.vocab < 256 {
            self.error("model.config.vocab", format!("the byte tokenizer has 256 tokens, vocab = {}", c.vocab));
        }
    }

    fn stages(&mut self, manifest: &Manifest) {
        let (Stages { count, split, .. }, layers) = (&manifest.stages, manifest.model.config.layers);
        let most = u64::from(layers).clamp(1, STAGES_MAX as u64);
        self.whole("stages.count", *count, 1..=most);
        if split.len() != usize::from(*count) {
            self.error("stages.split", format!("has {} stages, stages.count = {count}", split.len()));
        }
        if split.contains(&0) {
            self.error("stages.split", "each stage needs a layer");
        }
        let sum: u64 = split.iter().map(|&n| u64::from(n)).sum();
        if sum != u64::from(layers) {
            self.error("stages.split", format!("sums to {sum}, model.config.layers = {layers}"));
        }
        if *count > 1 && manifest.model.config.tie_embeddings {
            self.remark(
                "model.config.tie_embeddings",
                "embedding and head are in different stages: they begin equal and are trained apart",
            );
        }
    }

    fn train(&mut self, manifest: &Manifest) {
        let (train, context) = (&manifest.train, manifest.model.config.context);
        self.whole("train.sequence", train.sequence, 8..=u64::from(context.max(8)));
        self.whole("train.micro_batch", train.micro_batch, 1..=65_536);
        self.whole("train.micro_batches_per_step", train.micro_batches_per_step, 1..=65_535);
        if train.in_flight_max == 0 {
            self.error("train.in_flight_max", "cannot be 0: no micro-batch would ever be sent");
        }
        self.real("train.clip", train.clip, 0.0..=1e6);
        if train.arithmetic.is_empty() {
            self.error("train.arithmetic", "peers must be allowed some arithmetic");
        }
        self.distinct("train.arithmetic", &train.arithmetic.iter().map(|a| *a as u8).collect::<Vec<_>>());
        if let Some(lora) = &train.lora {
            let most = lora.rank_max(&manifest.model.config);
            if u64::from(lora.rank) > most {
                let what = format!("is {}: the smallest of the matrices has rank {most} itself", lora.rank);
                self.error("train.lora.rank", what);
            }
            self.whole("train.lora.rank", lora.rank, 1..=65_536);
            self.whole("train.lora.alpha", lora.alpha, 1..=65_536);
            self.whole("train.lora.dropout_percent", lora.dropout_percent, 0..=99);
            self.distinct("train.lora.targets", &lora.targets);
            let known = ["q", "k", "v", "o", "gate", "up", "down"];
            if lora.targets.is_empty() || lora.targets.iter().any(|target| !known.contains(&target.as_str())) {
                self.error("train.lora.targets", format!("must be some of {}", known.join(", ")));
            }
        }
        match (train.method, &train.lora) {
            (Method::Lora, None) => self.error("train.method", "lora needs train.lora = { rank, alpha, targets }"),
            (Method::Full, Some(_)) => self.remark("train.lora", "has no effect while train.method = \"full\""),
            (Method::Lora, Some(_)) | (Method::Full, None) => {}
        }
    }

    fn optimizer(&mut self, manifest: &Manifest) {
        let (rule, ends) = (&manifest.optimizer, &manifest.run.ends);
        self.real("optimizer.lr", rule.lr, 1e-12..=100.0);
        for (key, beta) in [("optimizer.beta1", rule.beta1), ("optimizer.beta2", rule.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                self.error(key, format!("cannot be {beta:?}; allowed: 0 and above, below 1"));
            }
        }
        self.real("optimizer.eps", rule.eps, 1e-20..=1.0);
        self.real("optimizer.decay", rule.decay, 0.0..=100.0);
        if rule.lr * rule.decay >= 1.0 {
            self.error("optimizer.decay", "times optimizer.lr is 1 or more: a step would erase the weights");
        }
        let schedule = &rule.schedule;
        self.whole("optimizer.schedule.warmup", schedule.warmup, 0..=1_000_000_000);
        self.whole("optimizer.schedule.stable_percent", schedule.stable_percent, 0..=100);
        self.whole("optimizer.schedule.final_percent", schedule.final_percent, 0..=100);
        if schedule.kind != ScheduleKind::Constant && ends.steps.is_none() && ends.tokens.is_none() {
            self.remark(
                "optimizer.schedule.kind",
                "without run.ends.steps or run.ends.tokens the rate stays at its full height",
            );
        }
        if ends.steps.is_some_and(|steps| schedule.warmup > steps) {
            self.remark("optimizer.schedule.warmup", "is longer than the run: the full rate is never reached");
        }
    }

    fn averaging(&mut self, manifest: &Manifest) {
        let (averaging, bound) = (&manifest.averaging, manifest.staleness.bound);
        self.whole("staleness.bound", bound, 0..=64);
        self.whole("averaging.group", averaging.group, 2..=16);
        if averaging.rule != AveragingRule::None {
            self.whole("averaging.every", averaging.every, 1..=1_000_000);
        }
        if !(0.0..1.0).contains(&averaging.alpha) {
            self.error("averaging.alpha", format!("cannot be {:?}; allowed: 0 and above, below 1", averaging.alpha));
        }
        self.real("averaging.beta", averaging.beta, 1e-6..=10.0);
        // Roots of x^2 - (1 + alpha - gamma) x + alpha lie in the unit circle where 0 < gamma < 2 (1 + alpha).
        let most = 2.0 * (1.0 + averaging.alpha.clamp(0.0, 1.0));
        if !(averaging.gamma > 0.0 && averaging.gamma < most) {
            self.error(
                "averaging.gamma",
                format!(
                    "cannot be {:?}: above 0 and below 2 (1 + alpha) = {most:?}, or replicas drift apart",
                    averaging.gamma
                ),
            );
        }
        let carries = manifest.codecs.error_feedback;
        if carries && (averaging.codec == Codec::F32 || averaging.rule == AveragingRule::None) {
            self.remark("codecs.error_feedback", "has no effect: nothing is lost of a difference");
        }
        if averaging.rule == AveragingRule::Noloco && averaging.group != 2 {
            self.error("averaging.group", "noloco averages in pairs; only rule = \"groups\" has larger groups");
        }
        if averaging.rule != AveragingRule::None && bound == 0 {
            self.remark("averaging.rule", "has no effect: with staleness.bound = 0 one replica a stage serves");
        }
    }

    fn codecs(&mut self, codecs: &Codecs) {
        for (key, list) in [("codecs.forward", &codecs.forward), ("codecs.backward", &codecs.backward)] {
            if list.is_empty() {
                self.error(key, "needs a codec");
            }
            self.distinct(key, list);
            for codec in list.iter().filter(|codec| nominal_error(**codec) > codecs.error_max) {
                let (loses, most) = (nominal_error(*codec), codecs.error_max);
                let name = format!("{codec:?}").to_lowercase();
                self.error(key, format!("lists {name}, which loses {loses} of a tensor: codecs.error_max is {most:?}"));
            }
        }
        self.real("codecs.error_max", codecs.error_max, 0.0..=1.0);
        if codecs.forward.contains(&Codec::Int4) {
            self.remark(
                "codecs.forward",
                "int4 activations cost the demo 5 to 9 % of its loss: skein bench codec --loss",
            );
        }
    }

    fn rest(&mut self, manifest: &Manifest) {
        let Manifest { data, admission, privacy, checkpoint, .. } = manifest;
        if let Some(eval) = &data.eval {
            self.whole("data.eval.every", eval.every, 1..=1_000_000_000);
        }
        match (data.from, data.listed.is_empty()) {
            (DataFrom::Listed, true) => self.error("data.listed", "data.from = \"listed\" needs a list of blobs"),
            (DataFrom::Owner | DataFrom::Members, false) => {
                self.error("data.listed", "blobs are listed only with data.from = \"listed\"");
            }
            (DataFrom::Listed, false) | (DataFrom::Owner | DataFrom::Members, true) => {}
        }
        self.distinct("data.listed", &data.listed);
        self.distinct("admission.members", &admission.members);
        self.whole("admission.peers_max", admission.peers_max, 1..=1_000_000);
        self.whole("admission.per_subnet_max", admission.per_subnet_max, 1..=1_000_000);
        self.whole("admission.memory_min", admission.memory_min.0, 0..=1 << 50);
        if admission.memory_min.0 > 0 {
            self.remark("admission.memory_min", "is checked by each peer for itself: nobody else can measure it");
        }
        self.real("privacy.noise.sigma", privacy.noise.sigma, 0.0..=1e3);
        self.real("privacy.noise.clip", privacy.noise.clip, 1e-6..=1e6);
        self.real("privacy.noise.delta", privacy.noise.delta, 1e-20..=0.5);
        self.whole("privacy.group_min", privacy.group_min, 2..=64);
        self.whole("checkpoint.every", checkpoint.every, 1..=1_000_000_000);
        self.whole("checkpoint.copies_min", checkpoint.copies_min, 1..=64);
    }

    /// Each value may stand alone, the two do not go together.
    fn contradictions(&mut self, manifest: &Manifest) {
        let Manifest { stages, train, staleness, averaging, checkpoint, privacy, .. } = manifest;
        if stages.pin_ends && stages.count < 3 {
            self.error("stages.pin_ends", "first and last stage on the owner leave nothing to share: stages.count < 3");
        }
        if stages.pin_ends && !manifest.run.delegates.is_empty() {
            self.error("run.delegates", "their data would leave them: with stages.pin_ends its tokens go to the owner");
        }
        match &manifest.model.weights {
            Weights::Seed { .. } if train.method == Method::Lora => {
                self.error(
                    "train.method",
                    "lora trains beside base weights: model.weights needs a blob, not init_seed",
                );
            }
            Weights::Blob { stages: given, .. } => {
                let wanted = if train.method == Method::Lora { usize::from(stages.count) } else { 0 };
                if given.len() != wanted {
                    let what = format!("names the weights of {} stages, it must name {wanted}", given.len());
                    self.error("model.weights.stages", what);
                }
            }
            Weights::Seed { .. } => {}
        }
        let oldest = u64::from(staleness.bound) * u64::from(train.micro_batches_per_step);
        if !manifest.lock_step() && u64::from(train.in_flight_max) > oldest {
            self.error(
                "train.in_flight_max",
                format!(
                    "is above staleness.bound * train.micro_batches_per_step = {oldest}: the oldest would be refused"
                ),
            );
        }
        if averages(manifest) && u64::from(averaging.every) > checkpoint.every {
            self.error(
                "averaging.every",
                format!(
                    "is larger than checkpoint.every = {}: a checkpoint would hold replicas that never agreed",
                    checkpoint.every
                ),
            );
        }
        if privacy.masked_average && averaging.robust != Robust::None {
            self.error("privacy.masked_average", "hides what averaging.robust must see: set it to none");
        }
        if privacy.noise.sigma > 0.0 && manifest.data.from == DataFrom::Listed {
            self.error("privacy.noise", "protects nothing: data.from = \"listed\" is open to everyone");
        }
    }

    /// What the Manifest can say and this build cannot do yet, one line each.
    fn not_built(&mut self, manifest: &Manifest) {
        let Manifest { run, averaging, data, admission, privacy, .. } = manifest;
        let not_yet = |what: &str| format!("this build cannot do it yet: {what}");
        for (missing, key, what) in [
            (run.starts != "now", "run.starts", "runs start now"),
            (run.ends.until.is_some(), "run.ends.until", "runs end by steps, tokens or loss"),
            (
                manifest.lora().is_some_and(|lora| lora.dropout_percent > 0),
                "train.lora.dropout_percent",
                "adapters are trained without dropout",
            ),
            (
                matches!(averaging.rule, AveragingRule::Gossip | AveragingRule::Groups),
                "averaging.rule",
                "the rule is noloco or none",
            ),
            (
                matches!(averaging.robust, Robust::CenteredClip | Robust::Trimmed),
                "averaging.robust",
                "robust is clip or none",
            ),
            (data.from != DataFrom::Owner, "data.from", "data comes from the owner and its delegates"),
            (data.eval.is_some(), "data.eval", "there is no evaluation on held-out data"),
            (!admission.open, "admission.open", "there are no tokens; close a run with admission.members"),
            (privacy.noise.sigma > 0.0, "privacy.noise", "no noise is added"),
            (privacy.masked_average, "privacy.masked_average", "averages are not masked"),
        ] {
            if missing {
                self.error(key, not_yet(what));
            }
        }
    }
}

/// `2026-11-24T18:00:00Z`, with a fraction or an offset where there is one.
fn is_rfc3339(text: &str) -> bool {
    let number = |range: std::ops::Range<usize>, allowed: RangeInclusive<u32>| {
        let digits = text.get(range).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|digits| digits.parse().ok()).is_some_and(|n| allowed.contains(&n))
    };
    let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !signs.iter().all(|(at, sign)| text.as_bytes().get(*at) == Some(sign)) {
        return false;
    }
    let date = number(0..4, 1970..=9999) && number(5..7, 1..=12) && number(8..10, 1..=31);
    let time = number(11..13, 0..=23) && number(14..16, 0..=59) && number(17..19, 0..=60);
    let Some(rest) = text.get(19..).filter(|rest| rest.is_ascii()) else { return false };
    let offset = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let at = text.len() - offset.len();
    let zone = match offset.as_bytes() {
        b"Z" => true,
        [b'+' | b'-', _, _, b':', _, _] => number(at + 1..at + 3, 0..=23) && number(at + 4..at + 6, 0..=59),
        _ => false,
    };
    date && time && zone && !rest.starts_with(".Z") && !rest.starts_with(".+") && !rest.starts_with(".-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PeerId, hash::Digest, run::preset};

    type Change = fn(&mut Manifest);

    fn demo() -> Manifest {
        preset("demo").expect("demo is a preset")
    }

    /// Keys of the errors that `change` brings into a clean manifest.
    fn errors(change: impl FnOnce(&mut Manifest)) -> Vec<&'static str> {
        let mut manifest = demo();
        change(&mut manifest);
        check(&manifest).into_iter().filter(|p| p.severity == Severity::Error).map(|p| p.key).collect()
    }

    #[test]
    fn the_demo_is_clean() {
        assert_eq!(check(&demo()), []);
    }

    #[test]
    fn the_contradictions_that_people_will_write_are_named() {
        let lora =
            || Lora { rank: 4, alpha: 8, targets: vec!["q".into()], dropout_percent: 0, base: Default::default() };
        assert!(errors(|m| m.averaging.every = m.checkpoint.every as u32 + 1).contains(&"averaging.every"));
        assert!(errors(|m| m.train.sequence = m.model.config.context + 1).contains(&"train.sequence"));
        let too_many = |m: &mut Manifest| {
            m.train.in_flight_max = m.staleness.bound * m.train.micro_batches_per_step + 1;
        };
        assert!(errors(too_many).contains(&"train.in_flight_max"));
        assert!(errors(|m| (m.stages.pin_ends, m.stages.count) = (true, 2)).contains(&"stages.pin_ends"));
        assert!(errors(|m| m.model.config.vocab = 255).contains(&"model.config.vocab"));
        assert!(errors(|m| m.stages.split[0] += 1).contains(&"stages.split"));
        assert!(errors(|m| m.stages.split = vec![6]).contains(&"stages.split"));
        assert!(errors(|m| m.averaging.gamma = 3.0).contains(&"averaging.gamma"));
        let masked = errors(|m| (m.privacy.masked_average, m.averaging.robust) = (true, Robust::Clip));
        assert_eq!(masked, ["privacy.masked_average", "privacy.masked_average"]);
        let both = errors(|m| (m.train.method, m.train.lora) = (Method::Lora, Some(lora())));
        assert_eq!(both, ["train.method"]);
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let found = errors(|m| {
            m.run.name = "Not A Name".into();
            m.run.about = "x".repeat(281);
            m.optimizer.lr = f64::NAN;
            m.optimizer.beta2 = 1.0;
            m.train.clip = f64::INFINITY;
            m.codecs.forward.clear();
            m.data.from = DataFrom::Listed;
            m.run.revision = 1;
        });
        let keys = [
            "run.name",
            "run.about",
            "run.parent",
            "train.clip",
            "optimizer.lr",
            "optimizer.beta2",
            "codecs.forward",
            "data.listed",
            "data.from",
        ];
        assert_eq!(found, keys);
    }

    #[test]
    fn a_family_has_what_it_has() {
        let found = errors(|m| (m.model.family, m.model.config.qkv_bias) = (Family::Qwen3, true));
        assert_eq!(found, ["model.config.qkv_bias", "model.config.qk_norm"]);
        assert!(errors(|m| (m.model.family, m.model.config.qk_norm) = (Family::Qwen3, true)).is_empty());
        let found = errors(|m| {
            m.model.config.window = Some(Window { size: 0, from: 99 });
            m.model.config.head = Some(7);
            m.model.config.rope_scaling =
                Some(RopeScaling::Llama3 { factor: 8.0, low: 4.0, high: 1.0, original: 8192 });
        });
        let keys = [
            "model.config.heads",
            "model.config.window.size",
            "model.config.window.from",
            "model.config.rope_scaling.low",
            "model.config.window",
        ];
        assert_eq!(found, keys);
    }

    #[test]
    fn what_is_not_built_is_an_error_that_says_so() {
        let blob = Digest([1; 32]);
        let changes: [(&str, Change); 5] = [
            ("averaging.rule", |m| m.averaging.rule = AveragingRule::Gossip),
            ("averaging.robust", |m| m.averaging.robust = Robust::Trimmed),
            ("data.from", |m| m.data.from = DataFrom::Members),
            ("admission.open", |m| m.admission.open = false),
            ("privacy.noise", |m| m.privacy.noise.sigma = 1.1),
        ];
        for (key, change) in changes {
            assert_eq!(errors(change), [key]);
        }
        let adapters = |named: usize, dropout_percent| {
            errors(|m| {
                m.model.weights = Weights::Blob { blob, sources: vec![], stages: vec![blob; named] };
                m.train.method = Method::Lora;
                m.train.lora = Some(Lora {
                    rank: 4,
                    alpha: 8,
                    targets: vec!["q".into()],
                    dropout_percent,
                    base: Default::default(),
                });
            })
        };
        let stages = usize::from(preset("demo").unwrap().stages.count);
        assert_eq!(adapters(stages, 0), [""; 0]);
        assert_eq!(adapters(stages, 5), ["train.lora.dropout_percent"]);
        assert_eq!(adapters(stages - 1, 0), ["model.weights.stages"]);
        let from_a_folder = errors(|m| {
            m.model.weights = Weights::Blob { blob, sources: vec![], stages: vec![] };
            m.model.tokenizer = Tokenizer::File { blob };
            m.train.loss = Loss::CompletionOnly;
        });
        assert!(from_a_folder.is_empty(), "{from_a_folder:?}");
        let listed = errors(|m| m.admission.members = vec![PeerId([1; 32])]);
        assert!(listed.is_empty(), "a closed list is built: {listed:?}");
    }

    #[test]
    fn a_codec_that_loses_more_than_the_budget_is_refused() {
        let lists = |forward, error_max| {
            errors(|m| (m.codecs.forward, m.codecs.error_max) = (vec![Codec::Int8, forward], error_max))
        };
        assert_eq!(lists(Codec::Int4, 0.02), ["codecs.forward"]);
        assert_eq!(lists(Codec::Int4, 0.1), [""; 0]);
        assert_eq!(lists(Codec::Sparse, 0.1), ["codecs.forward"]);
        assert_eq!(lists(Codec::Bf16, 2.0), ["codecs.error_max"]);
        assert_eq!(errors(|m| m.codecs.error_max = f64::NAN), ["codecs.error_max"]);
    }

    #[test]
    fn what_is_known_to_slow_learning_is_remarked() {
        let remarks = |forward: &[Codec], averaging, fed_back| {
            let mut manifest = demo();
            (manifest.codecs.forward, manifest.codecs.error_max) = (forward.to_vec(), 0.1);
            (manifest.averaging.codec, manifest.codecs.error_feedback) = (averaging, fed_back);
            check(&manifest).into_iter().map(|p| (p.key, p.severity)).collect::<Vec<_>>()
        };
        let int8 = [Codec::Int8];
        for (codec, fed_back) in
            [(Codec::Int4, false), (Codec::Int4, true), (Codec::Sparse, false), (Codec::Sparse, true)]
        {
            assert_eq!(remarks(&int8, codec, fed_back), []);
        }
        assert_eq!(remarks(&int8, Codec::F32, true), [("codecs.error_feedback", Severity::Remark)]);
        assert_eq!(remarks(&[Codec::Int4], Codec::Bf16, false), [("codecs.forward", Severity::Remark)]);
    }

    #[test]
    fn no_size_overflows_and_none_passes_the_wires_limits() {
        for big in [65_536u32, 1 << 20, u32::MAX] {
            let found = errors(|m| {
                let c = &mut m.model.config;
                (c.hidden, c.ffn, c.vocab, c.context, c.layers, c.kv_heads) = (big, big, big, big, big, big);
                m.train.sequence = big;
                m.train.micro_batch = big;
                m.train.micro_batches_per_step = big;
                m.train.in_flight_max = big;
                m.staleness.bound = big;
                m.stages.split = vec![big; 3];
            });
            for key in ["train.micro_batch", "model.config.context", "stages.split", "model.config.layers"] {
                assert!(found.contains(&key), "{key} at {big}: {found:?}");
            }
        }
        assert!(errors(|m| m.stages.split = vec![1; 100_000]).contains(&"stages.split"));
        assert!(errors(|m| m.run.delegates = vec![PeerId([1; 32]); 1000]).contains(&"run"));
        assert_eq!(errors(|m| m.train.micro_batch = 32_768), ["train.micro_batch"]);
        assert_eq!(errors(|m| m.model.config.ffn = 262_144), ["stages.split"]);
        assert_eq!(errors(|m| (m.model.config.ffn, m.averaging.rule) = (262_144, AveragingRule::None)), [""; 0]);
    }

    #[test]
    fn more_open_ids_than_a_progress_can_tell_are_refused() {
        let wide = |open: u32| {
            errors(|m| (m.train.in_flight_max, m.train.micro_batches_per_step, m.staleness.bound) = (open, 65_535, 64))
        };
        assert_eq!(wide(8 * BITMAP_MAX as u32), [""; 0]);
        assert_eq!(wide(8 * BITMAP_MAX as u32 + 1), ["train.in_flight_max"]);
        assert_eq!(wide(0), ["train.in_flight_max"]);
        let mut manifest = demo();
        manifest.train.in_flight_max = 65_536;
        assert_eq!(limits_of_wire(&manifest).iter().map(|p| p.key).collect::<Vec<_>>(), ["train.in_flight_max"]);
    }

    #[test]
    fn a_feeder_mints_on_behind_a_stuck_id_as_far_as_staleness_and_progress_allow() {
        let reach = |open, per_step, bound| {
            let mut m = demo();
            (m.train.in_flight_max, m.train.micro_batches_per_step, m.staleness.bound) = (open, per_step, bound);
            m.reach_max()
        };
        assert_eq!(reach(24, 16, 8), 48);
        assert_eq!(reach(24, 16, 2), 32, "the oldest would be refused");
        assert_eq!(reach(24, 16, 0), 24, "lock-step");
        assert_eq!(reach(32, 16, 2), 32);
        assert_eq!(reach(8_000, 65_535, 64), 8_192, "a progress has no more bits");
    }

    #[test]
    fn times_are_told_from_what_only_looks_like_them() {
        for good in ["2026-11-24T18:00:00Z", "2026-11-24T18:00:00.25Z", "2026-11-24T18:00:00+01:00"] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "tomorrow",
            "2026-13-24T18:00:00Z",
            "2026-11-24T18:00:00",
            "2026-11-24T18:00:00.Z",
            "2026-11-24 18:00:00Z",
            "2026-11-24T18:00:00+ü1:00",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
