//! The keys of a scenario: path, kind, and the short words of `--set`. In: a path or a value. Out: what it should be, in words.
//! Which values go together is [`super::check`]'s.

use skein_protocol::{
    slip::nearest,
    table::{self, may, need},
};
use toml::Value;

use super::problem::unknown;
use crate::world::{access::Accesses, adversary::Lie, churn, devices, regions, unit};

/// Items of `[[fault]]` are `fault.*`.
pub type Key = table::Key<Kind>;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    /// A name of models, or their sizes as a table.
    Model,
    Word(&'static [&'static str]),
    Whole(u64, u64),
    Real(f64, f64),
    /// true or false.
    Flag,
    Time,
    TimeOrEmpty,
    RateOrEmpty,
    Size,
    /// A device or a probe's file -> share.
    Devices,
    /// An access or a mix -> share.
    Accesses,
    Churn,
    /// A file, or nothing.
    File,
}

pub const MODELS: [&str; 8] = ["tiny", "demo", "124m", "350m", "1b3", "7b", "13b", "30b"];
pub const CODECS: &[&str] = &["f32", "bf16", "int16", "int8", "int4"];
const OF_AVERAGING: &[&str] = &["f32", "bf16", "int16", "int8", "int4", "sparse"];
pub const LIES: &[&str] = &{
    let mut names = [""; Lie::ALL.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = Lie::ALL[i].0;
        i += 1;
    }
    names
};
const FAULTS: &[&str] = &[
    "die",
    "restart",
    "leave",
    "crowd",
    "partition",
    "mute",
    "swizzle",
    "slow",
    "pause",
    "skew",
    "disk_full",
    "disk_torn",
    "latency",
];
const CAUSES: &[&str] =
    &["compute", "upload", "download", "latency", "imbalance", "stage imbalance", "churn", "staleness"];

/// Of `simulate.seed`: TOML's whole numbers end here.
const SEED_MAX: u64 = i64::MAX as u64;
/// Peers of the largest scenario.
pub const PEERS_MAX: u64 = 1_000_000;

pub const KEYS: &[Key] = &[
    need("question", Kind::Text),
    need("run.model", Kind::Model),
    need("run.model.hidden", Kind::Whole(2, 65_536)),
    need("run.model.layers", Kind::Whole(1, 1024)),
    need("run.model.heads", Kind::Whole(1, 1024)),
    may("run.model.kv_heads", Kind::Whole(0, 1024)),
    need("run.model.ffn", Kind::Whole(1, 262_144)),
    need("run.model.vocab", Kind::Whole(256, 1 << 20)),
    need("run.model.context", Kind::Whole(8, 1 << 20)),
    may("run.stages", Kind::Whole(0, 256)),
    may("run.sequence", Kind::Whole(0, 1 << 20)),
    may("run.micro_batch", Kind::Whole(1, 65_536)),
    may("run.micro_batches_per_step", Kind::Whole(1, 65_535)),
    may("run.in_flight_max", Kind::Whole(0, 8192)),
    may("run.staleness_bound", Kind::Whole(0, 64)),
    may("run.averaging_every", Kind::Whole(0, 1_000_000)),
    may("run.forward", Kind::Word(CODECS)),
    may("run.backward", Kind::Word(CODECS)),
    may("run.averaging", Kind::Word(OF_AVERAGING)),
    may("run.checkpoint_every", Kind::Whole(1, 1_000_000_000)),
    may("peers.count", Kind::Whole(1, PEERS_MAX)),
    may("peers.feeders", Kind::Whole(1, 1000)),
    may("peers.devices", Kind::Devices),
    may("peers.places", Kind::Word(&["planned", "even"])),
    may("peers.spread", Kind::Real(0.0, 2.0)),
    may("peers.owner_busy", Kind::Real(0.0, 0.99)),
    may("peers.owner_leaves", Kind::Real(0.001, 1.0)),
    may("peers.arrive_within", Kind::Time),
    may("peers.disk", Kind::Size),
    may("peers.memory_share", Kind::Real(0.01, 1.0)),
    may("network.access", Kind::Accesses),
    may("network.up", Kind::RateOrEmpty),
    may("network.down", Kind::RateOrEmpty),
    may("network.delay", Kind::TimeOrEmpty),
    may("network.regions", Kind::Word(&regions::MATRICES)),
    may("network.loss_percent", Kind::Real(0.0, 50.0)),
    may("network.relayed", Kind::Real(0.0, 1.0)),
    may("churn.preset", Kind::Churn),
    may("churn.hourly", Kind::Real(0.0, 1.0)),
    may("churn.warned", Kind::Real(0.0, 1.0)),
    may("churn.slower", Kind::Real(0.001, 1e6)),
    need("fault.*.at", Kind::Time),
    need("fault.*.what", Kind::Word(FAULTS)),
    may("fault.*.peers", Kind::Real(0.0, 1e6)),
    may("fault.*.stage", Kind::Whole(0, 255)),
    may("fault.*.lasts", Kind::Time),
    may("fault.*.factor", Kind::Real(-1e3, 1e3)),
    may("adversaries.share", Kind::Real(0.0, 1.0)),
    may("adversaries.kind", Kind::Word(LIES)),
    may("learning", Kind::Word(&["none", "curve", "real"])),
    may("cost.usd_per_kwh", Kind::Real(0.0, 1e3)),
    may("cost.usd_per_peer_hour", Kind::Real(0.0, 1e6)),
    may("cost.usd_per_gb_up", Kind::Real(0.0, 1e3)),
    may("cost.reference", Kind::Text),
    may("cost.reference_mfu", Kind::Real(0.01, 1.0)),
    may("cost.prices", Kind::File),
    may("simulate.duration", Kind::Time),
    may("simulate.fidelity", Kind::Word(&["auto", "protocol", "fleet"])),
    may("simulate.seed", Kind::Whole(0, SEED_MAX)),
    may("expect.tokens_per_s_min", Kind::Real(0.0, 1e15)),
    may("expect.goodput_min", Kind::Real(0.0, 1.0)),
    may("expect.lost_max", Kind::Whole(0, SEED_MAX)),
    may("expect.bottleneck", Kind::Word(CAUSES)),
    may("expect.recovers_min", Kind::Real(0.0, 1e6)),
    may("expect.answers", Kind::Flag),
];

/// Short words of `--set` and `--over`, and the keys that they stand for.
pub const SHORT: &[(&str, &str)] = &[
    ("peers", "peers.count"),
    ("feeders", "peers.feeders"),
    ("device", "peers.devices"),
    ("devices", "peers.devices"),
    ("access", "network.access"),
    ("regions", "network.regions"),
    ("upload", "network.up"),
    ("up", "network.up"),
    ("download", "network.down"),
    ("down", "network.down"),
    ("delay", "network.delay"),
    ("loss", "network.loss_percent"),
    ("relayed", "network.relayed"),
    ("churn", "churn.preset"),
    ("liars", "adversaries.share"),
    ("model", "run.model"),
    ("stages", "run.stages"),
    ("sequence", "run.sequence"),
    ("codec", "run.forward"),
    ("duration", "simulate.duration"),
    ("fidelity", "simulate.fidelity"),
    ("seed", "simulate.seed"),
];

/// The key that a word of `--set` stands for.
pub fn whole(word: &str) -> &str {
    SHORT.iter().find(|(short, _)| *short == word).map_or(word, |(_, path)| *path)
}

/// `fault.3.at` as `fault.*.at`.
pub fn general(path: &str) -> String {
    let part = |(i, part): (usize, &str)| {
        let number = i == 1 && path.starts_with("fault.") && part.bytes().all(|byte| byte.is_ascii_digit());
        if number { "*".to_string() } else { part.to_string() }
    };
    path.split('.').enumerate().map(part).collect::<Vec<_>>().join(".")
}

pub fn find(path: &str) -> Option<&'static Key> {
    table::find(KEYS, &general(path))
}

/// Whether keys stand below `path`.
pub fn is_section(path: &str) -> bool {
    table::is_section(KEYS, &general(path))
}

/// `is no key`, with what may have been meant, or what there is.
pub fn no_key(path: &str) -> String {
    let general = general(path);
    let known: Vec<&str> = table::paths(KEYS).collect();
    let same_name = || known.iter().copied().find(|known| table::name(known) == table::name(&general));
    if let Some(near) = nearest(&general, known.iter().copied()).or_else(same_name) {
        return format!("is no key of a scenario; did you mean {}?", near.replace(".*", ""));
    }
    let section = path.split('.').next().unwrap_or_default();
    let mut here: Vec<&str> = known.iter().filter_map(|known| known.strip_prefix(section)?.strip_prefix('.')).collect();
    if here.is_empty() {
        here = known.iter().map(|known| known.split('.').next().unwrap_or_default()).collect();
    }
    here.sort_unstable();
    here.dedup();
    let here: Vec<&str> = here.into_iter().filter(|name| !name.contains('.') && *name != "*").collect();
    format!("is no key of a scenario; allowed here: {}", here.join(", "))
}

impl Kind {
    /// What is wrong with a value, to be read after its key.
    pub fn accepts(self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Kind::Text | Kind::File, Value::String(_)) => Ok(()),
            (Kind::Model, Value::String(name)) => match MODELS.contains(&name.as_str()) {
                true => Ok(()),
                false => {
                    Err(format!("{}, or {{ hidden, layers, heads, ffn, vocab, context }}", unknown(name, &MODELS)))
                }
            },
            (Kind::Model, Value::Table(_)) => Ok(()),
            (Kind::Word(words), Value::String(word)) => match words.contains(&word.as_str()) {
                true => Ok(()),
                false => Err(unknown(word, words)),
            },
            (Kind::Whole(low, high), Value::Integer(number)) => {
                let inside = u64::try_from(*number).is_ok_and(|number| (low..=high).contains(&number));
                inside.then_some(()).ok_or_else(|| format!("cannot be {number}; allowed: {low} to {high}"))
            }
            (Kind::Real(low, high), Value::Integer(_) | Value::Float(_)) => in_range(real(value), low, high),
            (Kind::Flag, Value::Boolean(_)) => Ok(()),
            (Kind::TimeOrEmpty | Kind::RateOrEmpty, Value::String(text)) if text.is_empty() => Ok(()),
            (Kind::Time | Kind::TimeOrEmpty, Value::String(text)) => unit::time(text).map(drop),
            (Kind::RateOrEmpty, Value::String(text)) => unit::rate(text).map(drop),
            (Kind::Size, Value::String(text)) => unit::size(text).map(drop),
            (Kind::Churn, Value::String(name)) => match name.strip_prefix("trace:") {
                Some("") => Err("names no file: trace:FILE".into()),
                Some(_) => Ok(()),
                None if churn::PRESETS.contains(&name.as_str()) => Ok(()),
                None => Err(format!("{}, trace:FILE", unknown(name, &churn::PRESETS))),
            },
            (Kind::Devices | Kind::Accesses, Value::Table(_)) => Ok(()),
            _ => Err(format!("is {}, and must be {}", value.type_str(), self.wants())),
        }
    }

    fn wants(self) -> String {
        match self {
            Kind::Text | Kind::File => "a text in quotes".into(),
            Kind::Model => format!("one of {}, or a table of sizes", MODELS.join(", ")),
            Kind::Word(words) => format!("one of {}", words.join(", ")),
            Kind::Whole(low, high) => format!("a whole number, {low} to {high}"),
            Kind::Real(low, high) => format!("a number, {low} to {high}"),
            Kind::Flag => "true or false".into(),
            Kind::Time | Kind::TimeOrEmpty => "a time with its unit in quotes, like \"10 ms\" or \"6 h\"".into(),
            Kind::RateOrEmpty => "a rate with its unit in quotes, like \"20 Mbit/s\"".into(),
            Kind::Size => "a size with its unit in quotes, like \"8 GiB\"".into(),
            Kind::Devices => "a table of shares, like { rtx4090 = 0.5, rtx3060 = 0.5 }".into(),
            Kind::Accesses => "a table of shares, like { cable = 0.5, fibre = 0.5 }".into(),
            Kind::Churn => format!("one of {}, trace:FILE", churn::PRESETS.join(", ")),
        }
    }

    /// Names that a table of shares may have, where it is one.
    pub fn names(self) -> Option<Vec<String>> {
        match self {
            Kind::Devices => Some(devices::table().into_keys().collect()),
            Kind::Accesses => Some(Accesses::table().names()),
            _ => None,
        }
    }

    /// The name of a file of `skein probe` where a device is named.
    pub fn is_file(self, name: &str) -> bool {
        matches!(self, Kind::Devices) && name.ends_with(".json")
    }

    /// What `--set key=text` means.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let refused = |value: &Value, what: String| match value {
            // Beside a key stands a text in any case: what it is not says more than that it is one.
            Value::String(text) if what.starts_with("is string,") => {
                what.replacen("is string", &format!("is \"{text}\""), 1)
            }
            _ => what,
        };
        let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let value = match self {
            Kind::Whole(..) | Kind::Real(..) => {
                let plain = text.replace('_', "");
                if let (Kind::Whole(low, high), Ok(number)) = (self, plain.parse::<i128>())
                    && i64::try_from(number).is_err()
                {
                    return Err(format!("cannot be {number}; allowed: {low} to {high}"));
                }
                let number = plain.parse::<i64>().map(Value::Integer);
                number
                    .or_else(|_| plain.parse::<f64>().map(Value::Float))
                    .unwrap_or_else(|_| Value::String(bare.into()))
            }
            Kind::Flag => match text {
                "true" => Value::Boolean(true),
                "false" => Value::Boolean(false),
                _ => Value::String(bare.into()),
            },
            Kind::Model | Kind::Devices | Kind::Accesses if text.starts_with('{') => {
                let table = toml::from_str::<toml::Table>(&format!("it = {text}"));
                let table = table.map_err(|error| format!("is no table: {}", error.message()))?;
                table.into_iter().next().map(|(_, value)| value).expect("`it` was written just above")
            }
            Kind::Devices | Kind::Accesses => shares(bare)?,
            _ => Value::String(bare.into()),
        };
        self.accepts(&value).map_err(|what| refused(&value, what)).map(|()| value)
    }
}

/// `cable`, or `cable:0.3,fibre:0.7`.
fn shares(text: &str) -> Result<Value, String> {
    let mut table = toml::Table::new();
    for part in text.split(',') {
        let (name, share) = part.split_once(':').unwrap_or((part, "1"));
        let share = share.trim().parse::<f64>().map_err(|_| format!("has \"{share}\" for a share; write name:0.5"))?;
        table.insert(name.trim().into(), Value::Float(share));
    }
    Ok(Value::Table(table))
}

/// A number, whole or not.
pub fn real(value: &Value) -> f64 {
    value.as_float().or_else(|| value.as_integer().map(|number| number as f64)).unwrap_or(f64::NAN)
}

/// What is not a number is in no range.
pub fn in_range(value: f64, low: f64, high: f64) -> Result<(), String> {
    (low..=high).contains(&value).then_some(()).ok_or_else(|| format!("cannot be {value}; allowed: {low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::What;

    #[test]
    fn every_short_word_stands_for_a_key() {
        for (short, path) in SHORT {
            assert!(find(path).is_some(), "{short} -> {path}");
        }
    }

    #[test]
    fn every_fault_has_its_word() {
        let unknown = Value::String("?".into()).try_into::<What>().unwrap_err().to_string();
        let words: Vec<String> = FAULTS.iter().map(|word| format!("`{word}`")).collect();
        assert!(unknown.contains(&words.join(", ")), "{unknown}");
    }

    #[test]
    fn an_unknown_key_is_answered_with_what_was_meant() {
        assert!(no_key("peers.cuont").ends_with("did you mean peers.count?"));
        assert!(no_key("fault.0.pears").ends_with("did you mean fault.peers?"));
        assert!(no_key("network.count").ends_with("did you mean peers.count?"));
        assert!(no_key("churn.weather").contains("allowed here: hourly, preset, slower, warned"));
        assert!(no_key("weather").contains("allowed here: adversaries, churn, cost,"));
    }
}
