//! What machines and power cost: `data/prices.toml`, or a user's table of the same form. Every number is an assumption.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// When, and from where.
    pub dated: String,
    pub usd_per_kwh: f64,
    /// Rented on demand, by name.
    pub machine: BTreeMap<String, Rented>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rented {
    pub usd_per_hour: f64,
    /// Operations a second that its makers promise.
    pub peak: f64,
    pub watts: f64,
}

impl Prices {
    pub fn table() -> Self {
        super::table(include_str!("../../data/prices.toml"))
    }

    /// # Errors
    /// What is wrong with the text, with its line, to be read after the file's name.
    pub fn read(text: &str) -> Result<Self, String> {
        let prices: Prices = toml::from_str(text).map_err(|error| {
            let before = &text[..error.span().map_or(0, |span| span.start).min(text.len())];
            format!("line {}: {}", before.matches('\n').count() + 1, error.message())
        })?;
        let good = |value: f64| value.is_finite() && value >= 0.0;
        for (name, machine) in &prices.machine {
            if !(good(machine.usd_per_hour) && good(machine.watts) && good(machine.peak) && machine.peak > 0.0) {
                return Err(format!("machine.{name}: prices and watts are numbers of at least 0, peaks are above"));
            }
        }
        good(prices.usd_per_kwh).then_some(prices).ok_or_else(|| "usd_per_kwh is a number of at least 0".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_as_a_users_would() {
        let text = include_str!("../../data/prices.toml");
        assert_eq!(Prices::read(text), Ok(Prices::table()));
        let said = Prices::read(&text.replace("watts = 8000", "watt = 8000")).unwrap_err();
        assert!(said.starts_with("line 10: unknown field"), "{said}");
        assert!(Prices::read(&text.replace("= 1.3\n", "= -1.3\n")).unwrap_err().contains("machine.a100"));
    }
}
