//! How engines behave: one model in one stage or in many, gradients against differences, versions, generation.

mod bf16;
#[cfg(feature = "compute")]
mod candle;
#[cfg(feature = "compute")]
mod families;
#[cfg(feature = "compute")]
mod folder;
mod frozen;
mod generation;
mod gradients;
mod lock_step;
#[cfg(feature = "compute")]
mod oracle;
mod packed;
#[cfg(feature = "compute")]
mod reference;
mod support;
#[cfg(feature = "compute")]
mod threads;
mod versions;
