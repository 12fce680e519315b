//! The Manifest: what every peer of a run agrees on. Shared, canonical, hashed, signed.

pub mod manifest;

pub use manifest::*;
