//! What the value of a key may be. In: TOML values and texts of flags and variables. Out: a checked value, or what is wrong.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use serde::{Deserialize, Deserializer, de};
use skein_protocol::unit;
use toml::Value;

use super::{Device, Memory, StageChoice, Token};

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text {
        bytes_max: usize,
    },
    Flag,
    Count {
        min: i64,
        max: i64,
    },
    Size {
        auto: bool,
        min: u64,
    },
    /// 0, or between the two.
    Duration {
        min_s: u64,
        max_s: u64,
    },
    Choice(&'static [&'static str]),
    Device,
    Stage,
    Roles,
    Ips,
    Addresses,
    Socket,
    Token,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    NotAllowed,
    NoUnit { could_be: &'static str, example: String },
}

impl Kind {
    /// The extremes, in words.
    pub fn allowed(&self) -> String {
        match self {
            Kind::Text { bytes_max } => format!("text of at most {bytes_max} bytes"),
            Kind::Flag => "true or false".into(),
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Size { auto, min } => {
                format!("{}a size of at least {}", if *auto { "\"auto\" or " } else { "" }, unit::bytes(*min))
            }
            Kind::Duration { min_s, max_s } => format!(
                "0s, or from {} to {}",
                unit::duration(Duration::from_secs(*min_s)),
                unit::duration(Duration::from_secs(*max_s))
            ),
            Kind::Choice(words) => words.join(", "),
            Kind::Device => "auto, cpu, cuda, cuda:N, metal".into(),
            Kind::Stage => "auto, or the number of a stage".into(),
            Kind::Roles => "a list of: train".into(),
            Kind::Ips => "a list of IP addresses".into(),
            Kind::Addresses => "a list of HOST:PORT or multiaddresses".into(),
            Kind::Socket => "IP:PORT, or empty".into(),
            Kind::Token => "auto, or text of 16 to 128 letters and digits".into(),
        }
    }

    /// What a flag or a variable says, as the TOML value that a file would hold. Lists are separated by commas.
    pub(super) fn read_text(&self, text: &str) -> Value {
        let text = text.trim();
        match self {
            Kind::Flag => match text {
                "true" | "1" | "yes" | "on" => Value::Boolean(true),
                "false" | "0" | "no" | "off" => Value::Boolean(false),
                other => Value::String(other.into()),
            },
            Kind::Count { .. } | Kind::Stage => {
                text.parse().map(Value::Integer).unwrap_or_else(|_| Value::String(text.into()))
            }
            Kind::Roles | Kind::Ips | Kind::Addresses => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Value::Array(words.map(|word| Value::String(word.into())).collect())
            }
            _ => Value::String(text.into()),
        }
    }

    pub(super) fn check(&self, value: &Value) -> Result<(), Wrong> {
        let fine = match self {
            Kind::Text { bytes_max } => value.as_str().is_some_and(|text| text.len() <= *bytes_max),
            Kind::Flag => value.is_bool(),
            Kind::Count { min, max } => value.as_integer().is_some_and(|n| (*min..=*max).contains(&n)),
            Kind::Size { auto, min } => return self.check_size(value, *auto, *min),
            Kind::Duration { min_s, max_s } => return self.check_duration(value, *min_s, *max_s),
            Kind::Choice(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Kind::Device => value.as_str().is_some_and(|text| Device::try_from(text.to_string()).is_ok()),
            Kind::Stage => match value {
                Value::String(text) => text == "auto",
                Value::Integer(n) => u16::try_from(*n).is_ok(),
                _ => false,
            },
            Kind::Roles => all(value, |text| text == "train"),
            Kind::Ips => all(value, |text| text.parse::<IpAddr>().is_ok()),
            Kind::Addresses => all(value, |text| address(text).is_some()),
            Kind::Socket => value.as_str().is_some_and(|text| text.is_empty() || text.parse::<SocketAddr>().is_ok()),
            Kind::Token => value.as_str().is_some_and(|text| Token::try_from(text.to_string()).is_ok()),
        };
        if fine { Ok(()) } else { Err(Wrong::NotAllowed) }
    }

    fn check_size(&self, value: &Value, auto: bool, min: u64) -> Result<(), Wrong> {
        let no_unit =
            |number: String| Wrong::NoUnit { could_be: "bytes, MB or MiB", example: format!("\"{number}MiB\"") };
        match value {
            Value::Integer(n) => Err(no_unit(n.to_string())),
            Value::Float(x) => Err(no_unit(x.to_string())),
            Value::String(text) if auto && text == "auto" => Ok(()),
            Value::String(text) => match unit::parse_bytes(text) {
                Ok(bytes) if bytes >= min => Ok(()),
                Err(unit::BadQuantity::NoUnit(number)) if is_number(&number) => Err(no_unit(number)),
                _ => Err(Wrong::NotAllowed),
            },
            _ => Err(Wrong::NotAllowed),
        }
    }

    fn check_duration(&self, value: &Value, min_s: u64, max_s: u64) -> Result<(), Wrong> {
        let no_unit =
            |number: String| Wrong::NoUnit { could_be: "seconds, minutes or hours", example: format!("\"{number}m\"") };
        match value {
            Value::Integer(n) => Err(no_unit(n.to_string())),
            Value::Float(x) => Err(no_unit(x.to_string())),
            Value::String(text) => match unit::parse_duration(text) {
                Ok(duration) if duration.is_zero() => Ok(()),
                Ok(duration) if (min_s..=max_s).contains(&duration.as_secs()) => Ok(()),
                Err(unit::BadQuantity::NoUnit(number)) if is_number(&number) => Err(no_unit(number)),
                _ => Err(Wrong::NotAllowed),
            },
            _ => Err(Wrong::NotAllowed),
        }
    }
}

fn is_number(text: &str) -> bool {
    text.parse::<f64>().is_ok()
}

fn all(value: &Value, fine: impl Fn(&str) -> bool) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(|item| item.as_str().is_some_and(&fine)))
}

/// `HOST:PORT`, `[IPv6]:PORT` or a multiaddress, as a multiaddress; a host and port mean QUIC.
pub fn address(text: &str) -> Option<Multiaddr> {
    let text = text.trim();
    if text.starts_with('/') {
        return text.parse().ok().filter(|address: &Multiaddr| !address.is_empty());
    }
    let (host, port) = match text.parse::<SocketAddr>() {
        Ok(socket) => (Protocol::from(socket.ip()), socket.port()),
        Err(_) => {
            let (host, port) = text.rsplit_once(':')?;
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            if host.is_empty() || !host.chars().all(plain) {
                return None;
            }
            (Protocol::Dns(host.to_string().into()), port.parse().ok()?)
        }
    };
    (port != 0).then(|| Multiaddr::empty().with(host).with(Protocol::Udp(port)).with(Protocol::QuicV1))
}

impl TryFrom<String> for Memory {
    type Error = unit::BadQuantity;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "auto" { Ok(Memory::Auto) } else { unit::parse_bytes(&text).map(Memory::Bytes) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is not allowed here")]
pub struct NotAllowed(String);

impl TryFrom<String> for Device {
    type Error = NotAllowed;
    fn try_from(text: String) -> Result<Self, NotAllowed> {
        match text.as_str() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "metal" => Ok(Device::Metal),
            other => match other.strip_prefix("cuda:").and_then(|number| number.parse().ok()) {
                Some(number) => Ok(Device::Cuda(number)),
                None => Err(NotAllowed(text)),
            },
        }
    }
}

/// A value that TOML may give as a word or as a number.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum WordOrNumber {
    Number(u16),
    Word(String),
}

impl TryFrom<WordOrNumber> for StageChoice {
    type Error = NotAllowed;
    fn try_from(value: WordOrNumber) -> Result<Self, NotAllowed> {
        match value {
            WordOrNumber::Number(stage) => Ok(StageChoice::Stage(stage)),
            WordOrNumber::Word(word) if word == "auto" => Ok(StageChoice::Auto),
            WordOrNumber::Word(word) => Err(NotAllowed(word)),
        }
    }
}

impl TryFrom<String> for Token {
    type Error = NotAllowed;
    fn try_from(text: String) -> Result<Self, NotAllowed> {
        if text == "auto" {
            return Ok(Token::Auto);
        }
        if (16..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Ok(Token::Fixed(text))
        } else {
            Err(NotAllowed("this token".into()))
        }
    }
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Multiaddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parsed = texts.into_iter().map(|text| address(&text).ok_or_else(|| de::Error::custom(NotAllowed(text))));
    parsed.collect()
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    unit::parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(de::Error::custom) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_unit_is_told_apart_from_nonsense() {
        let size = Kind::Size { auto: true, min: 1 << 20 };
        let text = |text: &str| size.check(&Value::String(text.into()));
        assert_eq!(text("auto"), Ok(()));
        assert_eq!(text("4GiB"), Ok(()));
        assert_eq!(text("1B"), Err(Wrong::NotAllowed));
        assert_eq!(text("much"), Err(Wrong::NotAllowed));
        let example = "\"2048MiB\"".to_string();
        let no_unit = Err(Wrong::NoUnit { could_be: "bytes, MB or MiB", example });
        assert_eq!(text("2048"), no_unit);
        assert_eq!(size.check(&Value::Integer(2048)), no_unit);
    }

    #[test]
    fn addresses_are_multiaddresses_or_host_and_port() {
        let text = |text: &str| address(text).map(|address| address.to_string());
        assert_eq!(text("192.0.2.7:4747").as_deref(), Some("/ip4/192.0.2.7/udp/4747/quic-v1"));
        assert_eq!(text("[2001:db8::1]:4747").as_deref(), Some("/ip6/2001:db8::1/udp/4747/quic-v1"));
        assert_eq!(text("geese.example:4747").as_deref(), Some("/dns/geese.example/udp/4747/quic-v1"));
        assert_eq!(text("/ip4/192.0.2.7/tcp/4747").as_deref(), Some("/ip4/192.0.2.7/tcp/4747"));
        for bad in ["", "/", "192.0.2.7", "a b:1", ":4747", "host:0", "host:x", "/ip4/nonsense"] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }
}
