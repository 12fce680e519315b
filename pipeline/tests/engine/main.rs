//! How engines behave: one model in one stage or in many, gradients against differences, versions, generation.

#[cfg(feature = "compute")]
mod candle;
#[cfg(feature = "compute")]
mod folder;
mod generation;
mod gradients;
mod lock_step;
mod support;
#[cfg(feature = "compute")]
mod threads;
mod versions;
