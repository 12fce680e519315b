//! The Manifest: what every peer of a run agrees on. Shared, canonical, hashed, signed.

pub mod check;
pub mod manifest;
pub mod preset;
mod schema;
pub mod text;

pub use check::{Problem, Severity, check};
pub use manifest::*;
pub use preset::{PRESETS, preset};
