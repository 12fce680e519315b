//! The keys of `run.toml`: path, kind, and whether it must be there. In: a path or a value. Out: what it should be, in words. What
//! values mean, and which go together, is [`super::check`]'s.

use toml::de::DeValue;

use crate::{
    PeerId,
    hash::Digest,
    slip,
    table::{self, may, need},
    unit,
};

pub type Key = table::Key<Kind>;

/// What a value is, before anyone asks what it means.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    Texts,
    Word(&'static [&'static str]),
    Words(&'static [&'static str]),
    /// Up to this number.
    Whole(u64),
    Wholes(u64),
    Real,
    Flag,
    Blob,
    Blobs,
    Peer,
    Peers,
    /// A number of bytes with its unit.
    Size,
    Signature,
    /// This word, or a table whose keys stand below.
    OrTable(&'static str),
    /// A blob, or nothing between the quotes.
    OrEmpty,
    /// A peer, or nothing between the quotes.
    PeerOrEmpty,
}

const U8: Kind = Kind::Whole(u8::MAX as u64);
const U16: Kind = Kind::Whole(u16::MAX as u64);
const U32: Kind = Kind::Whole(u32::MAX as u64);
const U64: Kind = Kind::Whole(u64::MAX);
const CODEC: &[&str] = &["f32", "bf16", "int8", "int4", "sparse", "int16"];

pub const KEYS: &[Key] = &[
    need("run.name", Kind::Text),
    may("run.about", Kind::Text),
    need("run.protocol", U16),
    may("run.revision", U32),
    may("run.parent", Kind::OrEmpty),
    may("run.owner", Kind::PeerOrEmpty),
    may("run.delegates", Kind::Peers),
    may("run.starts", Kind::Text),
    may("run.ends.steps", U64),
    may("run.ends.tokens", U64),
    may("run.ends.until", Kind::Text),
    may("run.ends.loss", Kind::Real),
    need("model.family", Kind::Word(&["llama", "mistral", "qwen2", "qwen3"])),
    need("model.config.hidden", U32),
    need("model.config.layers", U32),
    need("model.config.heads", U32),
    need("model.config.kv_heads", U32),
    need("model.config.ffn", U32),
    need("model.config.vocab", U32),
    need("model.config.context", U32),
    may("model.config.rope_theta", Kind::Real),
    may("model.config.tie_embeddings", Kind::Flag),
    may("model.config.norm_eps", Kind::Real),
    may("model.config.head", U32),
    need("model.config.rope_scaling.kind", Kind::Word(&["linear", "llama3"])),
    need("model.config.rope_scaling.factor", Kind::Real),
    may("model.config.rope_scaling.low", Kind::Real),
    may("model.config.rope_scaling.high", Kind::Real),
    may("model.config.rope_scaling.original", U32),
    need("model.config.window.size", U32),
    may("model.config.window.from", U32),
    may("model.config.qkv_bias", Kind::Flag),
    may("model.config.qk_norm", Kind::Flag),
    may("model.weights.init_seed", U64),
    may("model.weights.blob", Kind::Blob),
    may("model.weights.sources", Kind::Texts),
    may("model.weights.stages", Kind::Blobs),
    may("model.tokenizer", Kind::OrTable("byte")),
    need("model.tokenizer.blob", Kind::Blob),
    may("model.chat_template", Kind::OrEmpty),
    need("stages.count", U16),
    need("stages.split", Kind::Wholes(u32::MAX as u64)),
    may("stages.pin_ends", Kind::Flag),
    may("train.method", Kind::Word(&["full", "lora"])),
    need("train.lora.rank", U32),
    need("train.lora.alpha", U32),
    need("train.lora.targets", Kind::Texts),
    may("train.lora.dropout_percent", U8),
    may("train.lora.base", Kind::Word(&["as-is", "bf16", "int8", "int4"])),
    need("train.sequence", U32),
    need("train.micro_batch", U32),
    need("train.micro_batches_per_step", U32),
    need("train.in_flight_max", U32),
    may("train.loss", Kind::Word(&["next-token", "completion-only"])),
    may("train.clip", Kind::Real),
    may("train.arithmetic", Kind::Words(&["f32", "bf16", "repeatable", "bf16x3"])),
    may("train.recompute", Kind::Word(&["when-needed", "always"])),
    may("train.seed", U64),
    may("optimizer.kind", Kind::Word(&["adamw", "nadamw", "sgd"])),
    need("optimizer.lr", Kind::Real),
    may("optimizer.beta1", Kind::Real),
    may("optimizer.beta2", Kind::Real),
    may("optimizer.eps", Kind::Real),
    may("optimizer.decay", Kind::Real),
    may("optimizer.schedule.kind", Kind::Word(&["constant", "linear", "cosine", "wsd"])),
    may("optimizer.schedule.warmup", U64),
    may("optimizer.schedule.stable_percent", U8),
    may("optimizer.schedule.final_percent", U8),
    need("staleness.bound", U32),
    may("staleness.weight", Kind::Word(&["none", "inverse-sqrt", "inverse"])),
    may("averaging.rule", Kind::Word(&["noloco", "gossip", "groups", "none"])),
    may("averaging.group", U32),
    need("averaging.every", U32),
    may("averaging.alpha", Kind::Real),
    may("averaging.beta", Kind::Real),
    may("averaging.gamma", Kind::Real),
    may("averaging.codec", Kind::Word(CODEC)),
    may("averaging.robust", Kind::Word(&["none", "clip", "centered-clip", "trimmed"])),
    need("codecs.forward", Kind::Words(CODEC)),
    need("codecs.backward", Kind::Words(CODEC)),
    may("codecs.error_feedback", Kind::Flag),
    may("codecs.entropy", Kind::Word(&["none", "zstd"])),
    may("codecs.error_max", Kind::Real),
    may("data.from", Kind::Word(&["owner", "members", "listed"])),
    may("data.listed", Kind::Blobs),
    need("data.eval.every", U64),
    need("data.eval.blob", Kind::OrEmpty),
    may("admission.open", Kind::Flag),
    may("admission.members", Kind::Peers),
    may("admission.peers_max", U32),
    may("admission.per_subnet_max", U32),
    may("admission.memory_min", Kind::Size),
    need("privacy.noise.sigma", Kind::Real),
    need("privacy.noise.clip", Kind::Real),
    need("privacy.noise.delta", Kind::Real),
    may("privacy.masked_average", Kind::Flag),
    may("privacy.group_min", U32),
    need("checkpoint.every", U64),
    may("checkpoint.copies_min", U32),
    need("signature.peer", Kind::Peer),
    need("signature.signature", Kind::Signature),
];

pub fn find(path: &str) -> Option<&'static Key> {
    table::find(KEYS, path)
}

/// Whether keys stand below `path`.
pub fn is_section(path: &str) -> bool {
    table::is_section(KEYS, path)
}

/// Sections whose needed keys are missed even where the section is.
pub fn is_required(section: &str) -> bool {
    let always = ["run", "model", "model.config", "stages", "train", "optimizer", "staleness", "averaging", "codecs"];
    always.contains(&section) || section == "checkpoint"
}

impl Kind {
    /// # Errors
    /// What is expected instead, in words.
    pub fn accepts(self, value: &DeValue<'_>) -> Result<(), String> {
        let each = |one: Kind, what: &str| match value {
            DeValue::Array(items) => items.iter().try_for_each(|item| one.accepts(item.get_ref())),
            _ => Err(format!("must be a list of {what}: […]")),
        };
        match self {
            Kind::Texts => return each(Kind::Text, "texts"),
            Kind::Words(words) => return each(Kind::Word(words), "words"),
            Kind::Wholes(most) => return each(Kind::Whole(most), "whole numbers"),
            Kind::Blobs => return each(Kind::Blob, "hashes"),
            Kind::Peers => return each(Kind::Peer, "peer ids"),
            _ => {}
        }
        let (text, wrong) = (value.as_str(), Err(self.expects()));
        let good = match self {
            Kind::Text => text.is_some(),
            Kind::Word(words) => match text {
                Some(text) if !words.contains(&text) => {
                    return Err(format!("cannot be {text:?}; allowed: {}", words.join(", ")));
                }
                text => text.is_some(),
            },
            Kind::Whole(most) => match value {
                DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).is_ok_and(|n| n <= most),
                _ => false,
            },
            Kind::Real => matches!(value, DeValue::Integer(_) | DeValue::Float(_)),
            Kind::Flag => matches!(value, DeValue::Boolean(_)),
            Kind::Blob => text.is_some_and(is_blob),
            Kind::Peer => text.is_some_and(|text| text.parse::<PeerId>().is_ok()),
            Kind::OrEmpty => text.is_some_and(|text| text.is_empty() || is_blob(text)),
            Kind::PeerOrEmpty => text.is_some_and(|text| text.is_empty() || text.parse::<PeerId>().is_ok()),
            Kind::Size => match (text, value) {
                (Some(text), _) => return unit::parse_bytes(text).map(|_| ()).map_err(|error| error.to_string()),
                (None, DeValue::Integer(n)) => {
                    return Err(format!("{n} has no unit, bytes or MiB? write \"{n}MiB\""));
                }
                (None, _) => false,
            },
            Kind::Signature => text.is_some_and(|text| signature(text).is_some()),
            Kind::OrTable(word) => text == Some(word),
            Kind::Texts | Kind::Words(_) | Kind::Wholes(_) | Kind::Blobs | Kind::Peers => false,
        };
        if good { Ok(()) } else { wrong }
    }

    fn expects(self) -> String {
        match self {
            Kind::Text | Kind::Texts => "must be a text in quotes".into(),
            Kind::Word(words) | Kind::Words(words) => format!("must be one of these, in quotes: {}", words.join(", ")),
            Kind::Whole(u64::MAX) | Kind::Wholes(u64::MAX) => "must be a whole number from 0".into(),
            Kind::Whole(most) | Kind::Wholes(most) => format!("must be a whole number from 0 to {most}"),
            Kind::Real => "must be a number".into(),
            Kind::Flag => "must be true or false".into(),
            Kind::Blob | Kind::Blobs => "must be a hash: b3: and 64 hexadecimal digits".into(),
            Kind::Peer | Kind::Peers => "must be a peer id: 12D3KooW and 44 more characters".into(),
            Kind::Size => "must be a size with its unit, in quotes: \"1GiB\"".into(),
            Kind::Signature => "must be 128 hexadecimal digits".into(),
            Kind::OrTable(word) => format!("must be {word:?} or a table"),
            Kind::OrEmpty => "must be a hash, b3: and 64 hexadecimal digits, or \"\" for none".into(),
            Kind::PeerOrEmpty => {
                "must be a peer id, 12D3KooW and 44 more characters, or \"\" for who starts the run".into()
            }
        }
    }
}

fn is_blob(text: &str) -> bool {
    text.strip_prefix("b3:").and_then(Digest::from_hex).is_some()
}

/// 64 bytes from hexadecimal digits.
pub fn signature(text: &str) -> Option<[u8; 64]> {
    data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// The known key or section that is at most two letters away, else the same key in another section.
pub fn nearest(path: &str) -> Option<&'static str> {
    let same_name = || KEYS.iter().map(|key| key.path).find(|near| table::name(near) == table::name(path));
    slip::nearest(path, table::paths(KEYS)).or_else(same_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_two_letters_finds_its_key() {
        assert_eq!(nearest("train.sequnece"), Some("train.sequence"));
        assert_eq!(nearest("averagin"), Some("averaging"));
        assert_eq!(nearest("run.lr"), Some("optimizer.lr"));
        assert_eq!(nearest("nonsense.altogether"), None);
        assert_eq!(nearest(&"x".repeat(100_000)), None);
    }
}
