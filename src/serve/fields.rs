//! A request's JSON, field by field. In: a body. Out: values of the right kind, or an error that names the field. What nobody
//! took in the end is refused, unless it surely changes no answer.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// Fields that say something about the asker or his accounting, and nothing about the answer.
const IGNORED: [&str; 8] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

pub struct Fields(Map<String, Value>);

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(_) => Err(ApiError::not_json("The request is not a JSON object.")),
            Err(error) => Err(ApiError::not_json(format!("The request is not JSON: {error}."))),
        }
    }

    pub fn of(value: Value, name: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields(map)),
            _ => Err(ApiError::invalid(name, format!("`{name}` is not an object."))),
        }
    }

    /// Nothing where it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name)
            .map(|value| match value {
                Value::String(text) => Ok(text),
                _ => Err(ApiError::invalid(name, format!("`{name}` is not a string."))),
            })
            .transpose()
    }

    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(ApiError::invalid(name, format!("`{name}` is neither true nor false."))),
        }
    }

    pub fn number(&mut self, name: &str, allowed: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|value| allowed.contains(value)) {
            Some(value) => Ok(Some(value as f32)),
            None => {
                let (least, most) = (allowed.start(), allowed.end());
                Err(ApiError::invalid(name, format!("`{name}` is {value}; it can be a number from {least} to {most}.")))
            }
        }
    }

    pub fn whole(&mut self, name: &str, allowed: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let whole =
            value.as_u64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        match whole.filter(|value| allowed.contains(value)) {
            Some(value) => Ok(Some(value)),
            None => {
                let (least, most) = (allowed.start(), allowed.end());
                let range = match *most {
                    u64::MAX => format!("{least} or more"),
                    most => format!("a whole number from {least} to {most}"),
                };
                Err(ApiError::invalid(name, format!("`{name}` is {value}; it can be {range}.")))
            }
        }
    }

    /// Refuses what was not taken and is not among `more`, which `within` names. What is let pass is told.
    pub fn finish(self, within: &str, more: &[&str]) -> Result<Vec<String>, ApiError> {
        let mut ignored = Vec::new();
        for (name, value) in self.0 {
            let full = if within.is_empty() { name.clone() } else { format!("{within}.{name}") };
            if IGNORED.contains(&name.as_str()) || more.contains(&name.as_str()) {
                ignored.push(full);
            } else if !value.is_null() {
                let message = format!("`{full}` is not supported here, and leaving it out could change the answer.");
                return Err(ApiError::unsupported(&full, message));
            }
        }
        Ok(ignored)
    }
}
