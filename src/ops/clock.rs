//! Instants of a computation: of this machine's clock, or on a GPU when what was asked for before is done.

use std::time::Instant;

use candle_core::{Device, Result};

/// An instant.
pub enum Mark {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Gpu(cudarc::driver::CudaEvent),
}

impl Mark {
    /// On a GPU, an event behind all that is queued, which nobody waits for here.
    pub fn now(device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            use candle_core::cuda_backend::WrapErr;
            let timed = cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
            return Ok(Self::Gpu(device.cuda_stream().record_event(Some(timed)).w()?));
        }
        device.synchronize()?; // does nothing on the CPU
        Ok(Self::Host(Instant::now()))
    }

    /// Seconds since an earlier instant on the same device, once both have come.
    ///
    /// # Errors
    /// What a GPU reports of anything that it was asked for in between.
    pub fn since(&self, earlier: &Self) -> Result<f64> {
        match (self, earlier) {
            (Self::Host(now), Self::Host(earlier)) => Ok((*now - *earlier).as_secs_f64()),
            #[cfg(feature = "cuda")]
            (Self::Gpu(now), Self::Gpu(earlier)) => {
                use candle_core::cuda_backend::WrapErr;
                Ok(f64::from(earlier.elapsed_ms(now).w()?) / 1e3)
            }
            #[cfg(feature = "cuda")]
            _ => candle_core::bail!("instants of several devices"),
        }
    }
}
