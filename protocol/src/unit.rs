//! Quantities with units, as people write and read them. A bare number is no quantity.

/// Bytes in the largest binary unit that divides them, else in bytes: `1GiB`, `1536MiB`, `10B`.
pub fn bytes(n: u64) -> String {
    for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if n >= size && n.is_multiple_of(size) {
            return format!("{}{unit}", n / size);
        }
    }
    format!("{n}B")
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    #[error("{0} has no unit")]
    NoUnit(String),
    #[error("{0} is not a size; write 4GiB, 500MB or 0B")]
    NotASize(String),
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
