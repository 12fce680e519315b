//! Quantities with units, as people write and read them. A bare number is no quantity.

use std::time::Duration;

/// Bytes in the largest binary unit that divides them, else in bytes: `1GiB`, `1536MiB`, `10B`.
pub fn bytes(n: u64) -> String {
    for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if n >= size && n.is_multiple_of(size) {
            return format!("{}{unit}", n / size);
        }
    }
    format!("{n}B")
}

const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration in the largest unit that divides it: `2h`, `90s`, `250ms`.
pub fn duration(value: Duration) -> String {
    let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    let (unit, size) =
        DURATIONS.into_iter().find(|(_, size)| millis >= *size && millis.is_multiple_of(*size)).unwrap_or(("s", 1_000));
    format!("{}{unit}", millis / size)
}

/// Reads `90s`, `10m`, `2h`, `7d`, `250ms`.
pub fn parse_duration(text: &str) -> Result<Duration, BadQuantity> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| BadQuantity::NoUnit(text.into()))?;
    let (number, unit) = text.split_at(split);
    let wrong = || BadQuantity::NotADuration(text.into());
    let (_, size) = DURATIONS.into_iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(size).map(Duration::from_millis).ok_or_else(wrong)
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    #[error("{0} has no unit")]
    NoUnit(String),
    #[error("{0} is not a size; write 4GiB, 500MB or 0B")]
    NotASize(String),
    #[error("{0} is not a duration; write 90s, 10m or 2h")]
    NotADuration(String),
}

/// Reads `4GiB`, `500MB`, `64 kB`, `0B`.
pub fn parse_bytes(text: &str) -> Result<u64, BadQuantity> {
    let text = text.trim();
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(|| BadQuantity::NoUnit(text.into()))?;
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim() {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(BadQuantity::NotASize(text.into())),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(|| BadQuantity::NotASize(text.into()));
    }
    let number: f64 = number.parse().map_err(|_| BadQuantity::NotASize(text.into()))?;
    let value = number * scale as f64;
    if value.is_finite() && value < u64::MAX as f64 {
        Ok(value as u64)
    } else {
        Err(BadQuantity::NotASize(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_survive_being_written_and_read() {
        for text in ["0s", "250ms", "90s", "10m", "2h", "7d"] {
            assert_eq!(duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("10"), Err(BadQuantity::NoUnit("10".into())));
        assert_eq!(parse_duration("10y"), Err(BadQuantity::NotADuration("10y".into())));
        assert!(parse_duration("99999999999999999999d").is_err());
    }
}
