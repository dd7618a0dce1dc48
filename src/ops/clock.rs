//! Timestamps: of the host's clock or, on a GPU, of an event in its stream.

use std::time::Instant;

use candle_core::{Device, Result};

/// A timestamp.
pub enum Timestamp {
    /// Time of this machine's clock.
    Host(Instant),
    /// Event on a GPU's stream.
    #[cfg(feature = "cuda")]
    Gpu(cudarc::driver::CudaEvent),
}

impl Timestamp {
    /// Takes a timestamp; on a GPU, records an event after all queued work, without waiting for it.
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

    /// Returns the seconds since an earlier timestamp on the same device, waiting for both.
    ///
    /// # Errors
    /// Fails with any error of the GPU's work in between.
    pub fn since(&self, earlier: &Self) -> Result<f64> {
        match (self, earlier) {
            (Self::Host(now), Self::Host(earlier)) => Ok((*now - *earlier).as_secs_f64()),
            #[cfg(feature = "cuda")]
            (Self::Gpu(now), Self::Gpu(earlier)) => {
                use candle_core::cuda_backend::WrapErr;
                Ok(f64::from(earlier.elapsed_ms(now).w()?) / 1e3)
            }
            #[cfg(feature = "cuda")]
            _ => candle_core::bail!("timestamps of different devices"),
        }
    }
}
