//! Numbers as people read them: 3 significant digits, IEC for memory, SI for traffic, durations in two units.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use skein_protocol::PeerId;

use super::petname;

/// Memory and disk: `4.00 GiB`, `634 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// Traffic: `10.5 GB`, `340 kB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic(pub u64);

/// `212 ms`, `3.1 s`, `42 s`, `2m 14s`, `3h 12m`, `4d 1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// `1 846`: digits in groups of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

/// `389 k`, `6.80 M`: when three digits say enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct About(pub f64);

/// `quiet-heron 12fa9c`: a label and the end of the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub PeerId);

impl From<u64> for Bytes {
    fn from(bytes: u64) -> Self {
        Bytes(bytes)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Span(duration)
    }
}

/// From milliseconds.
impl From<u64> for Span {
    fn from(millis: u64) -> Self {
        Span(Duration::from_millis(millis))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&scaled(self.0 as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"]))
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&scaled(self.0 as f64, 1000.0, &["B", "kB", "MB", "GB", "TB"]))
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(scaled(self.0, 1000.0, &["", "k", "M", "G", "T"]).trim_end())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str(" ")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{} ms", self.0.as_millis()),
            1..10 => write!(f, "{}.{} s", seconds, self.0.subsec_millis() / 100),
            10..60 => write!(f, "{seconds} s"),
            60..3_600 => write!(f, "{}m {}s", seconds / 60, seconds % 60),
            3_600..86_400 => write!(f, "{}h {}m", seconds / 3_600, seconds / 60 % 60),
            _ => write!(f, "{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", petname::of(&self.0), self.0.short())
    }
}

/// `1 peer`, `2 peers`, `1 846 micro-batches`.
pub fn counted(count: u64, word: &str) -> String {
    let ending = match count {
        1 => "",
        _ if word.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{} {word}{ending}", Count(count))
}

/// Bytes a second: `462 kB/s`.
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", scaled(bytes_per_s, 1000.0, &["B", "kB", "MB", "GB", "TB"]))
}

/// `1 180 tok/s`, `36.4 tok/s`.
pub fn tokens_per_s(rate: f64) -> String {
    if rate >= 100.0 { format!("{} tok/s", Count(rate.round() as u64)) } else { format!("{} tok/s", three(rate)) }
}

/// `loss 1.234 (1.301 held out)`.
pub fn losses(learned: Option<f32>, held_out: Option<f32>) -> Option<String> {
    let held_out = held_out.map_or(String::new(), |loss| format!(" ({loss:.3} held out)"));
    learned.map(|loss| format!("loss {loss:.3}{held_out}"))
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    // 999.6 would be shown as 1000.
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{} {}", three(value), units[unit]) }
}

fn three(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The time of day: milliseconds since 1970.
pub fn utc_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits_and_a_unit() {
        let shown = [0, 999, 1024, 634 << 20, 4 << 30, 17_179_869_184].map(|n| Bytes(n).to_string());
        assert_eq!(shown, ["0 B", "999 B", "1.00 KiB", "634 MiB", "4.00 GiB", "16.0 GiB"]);
        let shown = [0, 999_600, 10_500_000_000].map(|n| Traffic(n).to_string());
        assert_eq!(shown, ["0 B", "1.00 MB", "10.5 GB"]);
        assert_eq!(rate(462_000.0), "462 kB/s");
        assert_eq!(About(6_800_000.0).to_string(), "6.80 M");
        assert_eq!(About(12.0).to_string(), "12");
        assert_eq!(Count(1_234_567).to_string(), "1 234 567");
        assert_eq!((tokens_per_s(1180.2), tokens_per_s(36.42)), ("1 180 tok/s".into(), "36.4 tok/s".into()));
    }

    #[test]
    fn durations_have_at_most_two_units() {
        let shown = [212, 3_140, 42_000, 134_000, 11_520_000, 349_200_000].map(|ms| Span::from(ms as u64).to_string());
        assert_eq!(shown, ["212 ms", "3.1 s", "42 s", "2m 14s", "3h 12m", "4d 1h"]);
    }
}
