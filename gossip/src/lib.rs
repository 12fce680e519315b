//! Who is there, and agreeing on numbers without a leader. Pure: no clock, no socket, no random device.

pub mod average;
pub mod kernel;
pub mod membership;
mod shelf;
pub mod sorted;
pub mod spread;
