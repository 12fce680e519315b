//! Quantities with units, as scenarios and tables of the world write them: times, rates, sizes. In: a text. Out: whole
//! nanoseconds, bytes a second, bytes, or a sentence that says what is allowed. A bare number is no quantity.

use crate::engine::Time;

const TIMES: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
];

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// In bits a second.
const RATES: &[(&str, u64)] = &[
    ("bit/s", 1),
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
    ("Tbit/s", 1_000_000_000_000),
    ("kb/s", 1_000),
    ("Mb/s", 1_000_000),
    ("Gb/s", 1_000_000_000),
    ("B/s", 8),
    ("kB/s", 8_000),
    ("MB/s", 8_000_000),
    ("GB/s", 8_000_000_000),
    ("KiB/s", 8 << 10),
    ("MiB/s", 8 << 20),
    ("GiB/s", 8 << 30),
];

/// A year.
const TIME_MAX: u64 = 365 * 86_400_000_000_000;
/// A pebibyte, or that a second.
const AMOUNT_MAX: u64 = 1 << 50;

/// Nanoseconds of `10 ms`, `1.5 h`, `6 h`.
pub fn time(text: &str) -> Result<Time, String> {
    let example = "write a time with its unit (ns, us, ms, s, min, h, d), like 10 ms or 6 h";
    let value = quantity(text, TIMES, example)?;
    let whole = u64::try_from(value.whole()).ok().filter(|ns| *ns <= TIME_MAX);
    whole.ok_or_else(|| format!("\"{text}\" is too long: at most 365 d"))
}

/// Bytes a second of `20 Mbit/s`, `100MB/s`.
pub fn rate(text: &str) -> Result<u64, String> {
    let example = "write a rate with its unit (kbit/s, Mbit/s, Gbit/s, MB/s), like 20 Mbit/s";
    let value = quantity(text, RATES, example)?;
    let whole = u64::try_from(value.whole() / 8).ok().filter(|rate| *rate <= AMOUNT_MAX);
    match whole {
        Some(0) => Err(format!("\"{text}\" is less than a byte a second")),
        Some(rate) => Ok(rate),
        None => Err(format!("\"{text}\" is more than a pebibyte a second")),
    }
}

/// Bytes of `8 GiB`, `500MB`.
pub fn size(text: &str) -> Result<u64, String> {
    let example = "write a size with its unit (kB, MB, GB, MiB, GiB), like 8 GiB";
    let value = quantity(text, SIZES, example)?;
    let whole = u64::try_from(value.whole()).ok().filter(|size| *size <= AMOUNT_MAX);
    whole.ok_or_else(|| format!("\"{text}\" is more than a pebibyte"))
}

/// A decimal number of units, kept exact: `digits * unit / 10^places`.
struct Quantity {
    digits: u128,
    places: u32,
    unit: u64,
}

impl Quantity {
    fn whole(&self) -> u128 {
        self.digits * u128::from(self.unit) / 10u128.pow(self.places)
    }
}

fn quantity(text: &str, units: &[(&str, u64)], example: &str) -> Result<Quantity, String> {
    let trimmed = text.trim();
    if trimmed.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        return Err(format!("\"{text}\" is negative: {example}"));
    }
    let at = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(at);
    let unit = unit.trim();
    if unit.is_empty() && !number.is_empty() {
        return Err(format!("\"{text}\" has no unit: {example}"));
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    // Longer numbers would not mean more, and 10^18 * the largest unit still fits.
    if digits.is_empty() || digits.len() > 18 || fraction.contains('.') {
        return Err(format!("\"{text}\" does not begin with a number: {example}"));
    }
    let Some((_, unit)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("\"{text}\" has a unit that is not known here, \"{unit}\": {example}"));
    };
    let digits = digits.parse().map_err(|_| format!("\"{text}\" does not begin with a number: {example}"))?;
    Ok(Quantity { digits, places: fraction.len() as u32, unit: *unit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        assert_eq!(time("10 ms"), Ok(10_000_000));
        assert_eq!(time("6h"), Ok(21_600_000_000_000));
        assert_eq!(time("1.7 h"), Ok(6_120_000_000_000));
        assert_eq!(time("0 s"), Ok(0));
        assert_eq!(time(" 50 us "), Ok(50_000));
        assert_eq!(rate("20 Mbit/s"), Ok(2_500_000));
        assert_eq!(rate("20Mb/s"), Ok(2_500_000));
        assert_eq!(rate("1.5 Gbit/s"), Ok(187_500_000));
        assert_eq!(rate("100 MB/s"), Ok(100_000_000));
        assert_eq!(size("8 GiB"), Ok(8 << 30));
        assert_eq!(size("0.5 kB"), Ok(500));
    }

    #[test]
    fn what_is_no_quantity_says_what_to_write() {
        for (result, part) in [
            (time("10"), "has no unit"),
            (time("10 minutes"), "\"minutes\""),
            (time(""), "does not begin with a number"),
            (time("ms"), "does not begin with a number"),
            (time("1.2.3 s"), "number"),
            (time("-3 s"), "is negative"),
            (time("inf s"), "number"),
            (time("400 d"), "at most 365 d"),
            (time("99999999999999999999 s"), "number"),
            (rate("20"), "like 20 Mbit/s"),
            (rate("0 Mbit/s"), "less than a byte"),
            (rate("20 Mbit"), "\"Mbit\""),
            (rate("900000 Tbit/s"), "pebibyte"),
            (size("8"), "like 8 GiB"),
            (size("8 gib"), "\"gib\""),
        ] {
            let said = result.expect_err(part);
            assert!(said.contains(part), "{said} should say {part}");
        }
    }
}
