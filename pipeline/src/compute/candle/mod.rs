//! The engine on candle's tensors: CUDA and Metal, and the CPU where it is tested.
//!
//! Forward and backward are written out, layer by layer, with the formulas and the order of [`crate::exact`]; nothing is
//! recorded for automatic differentiation. Weights, gradients and the optimizer's state stay on the device, in f32;
//! [`Precision::Bf16`] rounds operands and results of matrix products, and nothing else. Work is queued: the host waits once where a forward or a
//! backward hands its result over, and once a step for the norms.

mod adapters;
mod attention;
mod block;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod frozen;
mod head;
mod operators;
mod optimizer;
mod read;
mod sum;
mod weights;

use candle_core::{Device, Tensor};

pub use self::{engine::Candle, operators::Precision};
use crate::exact::EngineError;

type Result<T, E = EngineError> = std::result::Result<T, E>;

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        match error {
            // A person reads the words, not where they come from.
            candle_core::Error::WithBacktrace { inner, .. } => (*inner).into(),
            error => EngineError::Device(error.to_string()),
        }
    }
}

/// Opens the device; never falls back to another.
///
/// # Errors
/// This build, or this machine, has no such device.
pub fn device(device: super::Device) -> Result<Device> {
    Ok(match device {
        super::Device::Cpu { .. } => Device::Cpu,
        #[cfg(feature = "cuda")]
        super::Device::Cuda(index) => cuda::open(index)?,
        #[cfg(not(feature = "cuda"))]
        super::Device::Cuda(index) => Device::new_cuda(index)?,
        super::Device::Metal(index) => Device::new_metal(index)?,
    })
}

/// Computes a small product on the device and compares it: a driver that is missing, or a card that is broken, shows here.
///
/// # Errors
/// The device cannot be opened, or its numbers are wrong.
pub fn test(device: super::Device) -> Result<()> {
    const SIDE: usize = 64;
    let device = self::device(device)?;
    // Whole numbers below 2^24, which f32 holds exactly.
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 7) as f32).collect();
    let square = Tensor::from_slice(&values, (SIDE, SIDE), &device)?;
    let product: Vec<f32> = square.matmul(&square)?.flatten_all()?.to_vec1()?;
    let exact = |i: usize| (0..SIDE).map(|k| values[i / SIDE * SIDE + k] * values[k * SIDE + i % SIDE]).sum::<f32>();
    match product.iter().enumerate().find(|(i, value)| **value != exact(*i)) {
        None => Ok(()),
        Some((i, value)) => Err(EngineError::Device(format!("a product came out as {value}, not {}", exact(i)))),
    }
}
