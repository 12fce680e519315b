//! Kernels of averaging: slices in, slices out, one order of summation.

pub mod clip;
pub mod noloco;
pub mod staleness;
mod sum;
