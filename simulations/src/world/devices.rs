//! What machines can do: the table `data/devices.toml`, and the file that `skein probe` writes of one machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::unit;
use crate::worker::modelled::Device;

/// A machine of the table, or a probed one.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    pub name: String,
    /// Bytes that its device has.
    pub memory: u64,
    pub device: Device,
    /// Operations a second that its maker promises, where that is known.
    pub peak: Option<f64>,
    /// Under load.
    pub watts: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    memory: String,
    peak: Option<f64>,
    effective: Option<f64>,
    mfu: Option<f64>,
    watts: f64,
    noise: f64,
}

/// All machines of the table, by name.
pub fn table() -> BTreeMap<String, Machine> {
    let rows: BTreeMap<String, Row> = super::table(include_str!("../../data/devices.toml"));
    let machine = |(name, row): (String, Row)| {
        let reached = row.peak.zip(row.mfu).map(|(peak, mfu)| peak * mfu);
        let flops = row.effective.or(reached).expect("a device has an effective speed, or a peak and a part of it");
        let memory = unit::size(&row.memory).expect("the table's sizes are sizes");
        let device = Device { flops, noise: row.noise };
        (name.clone(), Machine { name, memory, device, peak: row.peak, watts: row.watts })
    };
    rows.into_iter().map(machine).collect()
}

/// Number of the form of a probe's file.
pub const PROBE: u32 = 1;

/// What `skein probe` measured of a machine, as JSON. A scenario names the file where it would name a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// [`PROBE`]: a reader of another one refuses.
    pub probe: u32,
    pub device: String,
    /// Bytes that training may have.
    pub memory: u64,
    /// Sustained operations a second of forward and backward.
    pub flops: f64,
    /// Relative spread of the time of a job.
    #[serde(default)]
    pub noise: f64,
    /// Bytes a second.
    #[serde(default)]
    pub disk_read: f64,
    #[serde(default)]
    pub disk_write: f64,
    #[serde(default)]
    pub loopback: f64,
    /// Codec -> bytes of f32 that are encoded, and decoded, a second.
    #[serde(default)]
    pub codecs: BTreeMap<String, CodecSpeed>,
    /// Under load, where it could be measured.
    #[serde(default)]
    pub watts: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecSpeed {
    pub encode: f64,
    pub decode: f64,
}

impl Probe {
    /// # Errors
    /// What is wrong with the file, with its line, to be read after its name.
    pub fn read(text: &str) -> Result<Self, String> {
        let probe: Probe = serde_json::from_str(text).map_err(|error| format!("is no file of skein probe: {error}"))?;
        let known = |value: f64| value.is_finite() && value >= 0.0;
        if probe.probe != PROBE {
            return Err(format!(
                "is a probe of form {}, this build reads form {PROBE}: run skein probe again",
                probe.probe
            ));
        }
        if !(known(probe.flops) && probe.flops > 0.0) {
            return Err(format!("flops = {} is not a speed", probe.flops));
        }
        if probe.memory == 0 {
            return Err("memory = 0: a device has some".into());
        }
        if !(0.0..1.0).contains(&probe.noise) {
            return Err(format!("noise = {} is not below 1", probe.noise));
        }
        Ok(probe)
    }

    /// As a device of a scenario. Watts that could not be measured are a desktop's.
    pub fn machine(&self) -> Machine {
        let device = Device { flops: self.flops, noise: self.noise };
        let watts = self.watts.unwrap_or(120.0);
        Machine { name: self.device.clone(), memory: self.memory, device, peak: None, watts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_core_that_was_measured_and_cards_as_published() {
        let table = table();
        assert_eq!(table["core"].device, Device::CORE);
        assert_eq!(table["a100"].device.flops, 241e12);
        assert_eq!(table["rtx4090"].memory, 24 << 30);
        for machine in table.values() {
            assert!(machine.peak.is_none_or(|peak| machine.device.flops < peak), "{machine:?}");
            assert!(machine.watts > 0.0 && machine.memory > 0);
        }
    }

    #[test]
    fn a_probe_stands_in_for_a_device_and_a_broken_one_says_what_is_wrong() {
        let text = r#"{ "probe": 1, "device": "my machine", "memory": 17179869184, "flops": 2.5e12,
            "codecs": { "int8": { "encode": 1e9, "decode": 2e9 } } }"#;
        let machine = Probe::read(text).unwrap().machine();
        assert_eq!((machine.name.as_str(), machine.memory, machine.device.flops), ("my machine", 16 << 30, 2.5e12));
        for (from, to, part) in [
            ("2.5e12", "0", "not a speed"),
            ("\"probe\": 1", "\"probe\": 2", "form 2"),
            ("\"flops\"", "\"flop\"", "line 1"),
            ("17179869184", "0", "memory"),
        ] {
            let said = Probe::read(&text.replace(from, to)).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
    }
}
