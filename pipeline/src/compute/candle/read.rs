//! Reading results back to the host: the one place where an engine waits for its device.
//!
//! From CUDA through one page-locked buffer that is used again, which the device fills by itself; elsewhere as candle does it.

use candle_core::Tensor;

use super::Result;
#[cfg(feature = "cuda")]
use super::cuda::PageLocked;

#[derive(Default)]
pub struct ReadBack {
    #[cfg(feature = "cuda")]
    buffer: PageLocked,
}

impl ReadBack {
    /// The values of tensors of f32 that lie on one device, in one wait.
    pub fn read(&mut self, tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
        #[cfg(feature = "cuda")]
        if let Some(candle_core::Device::Cuda(device)) = tensors.first().map(|tensor| tensor.device()) {
            return self.buffer.read(device, tensors);
        }
        tensors.iter().map(|tensor| Ok(tensor.flatten_all()?.to_vec1()?)).collect()
    }
}
