//! What candle does not do for a CUDA device by itself: one stream, memory that stays, and page-locked read-back.

use candle_core::{
    CudaDevice, Device, Storage, Tensor,
    cuda_backend::cudarc::driver::{CudaStream, DevicePtr, DriverError, PinnedHostSlice, result, sys},
};

use super::Result;
use crate::exact::EngineError;

fn failed(error: DriverError) -> EngineError {
    EngineError::Device(error.to_string())
}

/// Opens a card, with one stream for everything.
pub fn open(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: whatever is made on this device is queued on its one stream, which keeps the order that events would.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(cuda).map_err(failed)?;
    Ok(device)
}

/// Freed memory stays with the process: by default the driver takes it back at every wait, and maps it again after.
fn keep_memory(cuda: &CudaDevice) -> Result<(), DriverError> {
    let stream = cuda.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the context's device exists, so its default pool does; the attribute is read from a u64, as it is documented.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
    }
}

/// A page-locked buffer of the host, as large as the largest read.
#[derive(Default)]
pub struct PageLocked {
    buffer: Option<PinnedHostSlice<f32>>,
}

impl PageLocked {
    /// Copies contiguous tensors of f32, all on `device`, and waits once for all of them.
    pub fn read(&mut self, device: &CudaDevice, tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
        let stream = device.cuda_stream();
        let total = tensors.iter().map(|tensor| tensor.elem_count()).sum();
        if self.buffer.as_ref().is_none_or(|buffer| buffer.len() < total) {
            self.buffer = None;
            // SAFETY: every bit pattern is an f32, and only what a copy has filled is read. Without flags the memory is cached,
            // so that the host reads it quickly.
            self.buffer = Some(unsafe { stream.context().alloc_pinned_with_flags(total, 0) }.map_err(failed)?);
        }
        let Some(buffer) = &mut self.buffer else { return Ok(Vec::new()) };
        let host = buffer.as_mut_slice().map_err(failed)?;
        let queued = queue(&stream, tensors, host);
        // Also after an error: what was queued before it still writes to the buffer.
        stream.synchronize().map_err(failed)?;
        queued?;
        let mut rest = &*host;
        let take = |tensor: &&Tensor| {
            let (values, left) = rest.split_at(tensor.elem_count());
            rest = left;
            values.to_vec()
        };
        Ok(tensors.iter().map(take).collect())
    }
}

/// Queues copies of all tensors into `host`, one after the other.
fn queue(stream: &CudaStream, tensors: &[&Tensor], mut host: &mut [f32]) -> Result<()> {
    for tensor in tensors {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(EngineError::Device("what is read back lies elsewhere, or not in order".into()));
        };
        let values = storage.as_cuda_slice::<f32>()?.slice(start..end);
        let (from, _guard) = values.device_ptr(stream);
        let (to, left) = host.split_at_mut(end - start);
        // SAFETY: `to` is as long as the source, and the caller waits for the stream before it lets go of the tensors and the
        // buffer, or reads the buffer.
        unsafe { result::memcpy_dtoh_async(to, from, stream.cu_stream()) }.map_err(failed)?;
        host = left;
    }
    Ok(())
}
