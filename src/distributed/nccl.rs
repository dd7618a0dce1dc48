//! Communication by NCCL, with one GPU per rank. **Never run on a GPU so far.**
//!
//! All calls use our own stream, which waits for the tensors' stream, and vice versa. The host waits for sums and
//! messages, so that a missing rank ends the run; it does not wait for sharded weights, so that they are gathered while
//! a block runs. NCCL does not report which rank is missing: the error names the call.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure};
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, DType, Device, Storage, Tensor};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::result::{self, NcclError, NcclStatus};
use cudarc::nccl::sys;
use half::{bf16, f16};

use super::rendezvous::{Number, Rendezvous};
use super::{AllGather, Communicator, Pending, RankInfo, Traffic, lengths};

/// Polling interval.
const LOOK: Duration = Duration::from_micros(50);

/// One rank of a world of GPUs.
pub struct Nccl {
    world: Arc<World>,
}

struct World {
    /// Communicator; calls are made one at a time.
    handle: Mutex<Handle>,
    stream: Arc<CudaStream>,
    place: RankInfo,
    timeout: Duration,
    traffic: Mutex<Traffic>,
}

struct Handle(sys::ncclComm_t);

// SAFETY: NCCL lets any thread use a communicator, one at a time.
unsafe impl Send for Handle {}

/// Returns the number of GPUs that this process sees.
pub fn gpus() -> usize {
    let count = CudaContext::device_count();
    count.ok().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

impl Nccl {
    /// Finds the other ranks, and joins them.
    ///
    /// # Errors
    /// Fails without a GPU, if ranks did not arrive, and if NCCL refuses.
    pub fn open(place: &RankInfo, timeout: Duration) -> anyhow::Result<Self> {
        let RankInfo { rank, world_size, .. } = *place;
        let count = gpus();
        ensure!(
            count > 0,
            "this is rank {rank} of {world_size}, but NCCL needs a GPU for each, and there is none here"
        );
        let context =
            CudaContext::new(place.local_rank % count).map_err(|error| anyhow!("opening the GPU: {error}"))?;
        let stream = context
            .new_stream()
            .map_err(|error| anyhow!("opening the GPU: {error}"))?;
        let make = || {
            let made = result::get_uniqueid().map_err(|error| failed("making an id", &error))?;
            Ok(made.internal.map(|byte| byte.to_ne_bytes()[0]))
        };
        let number: Number = match world_size {
            1 => make()?,
            _ => Rendezvous::of(|name| std::env::var(name).ok())?.share(place, timeout, make)?,
        };
        let id = sys::ncclUniqueId {
            internal: number.map(|byte| byte as std::ffi::c_char),
        };
        let mut comm = null_mut();
        // SAFETY: an out-parameter that lives through the call; the context of this thread is the rank's own.
        unsafe { result::comm_init_rank(&mut comm, world_size.try_into()?, id, rank.try_into()?) }
            .map_err(|error| failed("joining the others", &error))?;
        let world = World {
            handle: Mutex::new(Handle(comm)),
            stream,
            place: *place,
            timeout,
            traffic: Mutex::default(),
        };
        Ok(Self { world: Arc::new(world) })
    }
}

impl World {
    /// Queues a call of NCCL on our stream.
    fn queue(
        &self,
        what: &str,
        call: impl FnOnce(sys::ncclComm_t, sys::cudaStream_t) -> Result<NcclStatus, NcclError>,
    ) -> anyhow::Result<CudaEvent> {
        let handle = lock(&self.handle);
        self.stream.context().bind_to_thread()?;
        call(handle.0, self.stream.cu_stream().cast()).map_err(|error| failed(what, &error))?;
        Ok(self.stream.record_event(None)?)
    }

    /// Waits until the queued call is done.
    fn wait(&self, what: &str, event: &CudaEvent, bytes: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        while !event.is_complete() {
            if started.elapsed() > self.timeout {
                bail!(
                    "{what} was not done within {} s (dist.timeout): a rank did not arrive, hangs, or the network is down. \
                     Look at what the others said last; if they are only slower, raise dist.timeout",
                    self.timeout.as_secs_f64()
                );
            }
            std::thread::sleep(LOOK);
        }
        let mut traffic = lock(&self.traffic);
        traffic.bytes += bytes as u64;
        traffic.moving += started.elapsed(); // includes waiting, which NCCL does not report separately
        Ok(())
    }

    /// Gathers each rank's bytes, by rank, all of the same length.
    fn gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let ours = self.stream.clone_htod(bytes)?;
        let mut all = self.stream.alloc_zeros::<u8>(bytes.len() * self.place.world_size)?;
        let what = "the exchange between all ranks";
        let event = {
            let (from, _from) = ours.device_ptr(&self.stream);
            let (to, _to) = all.device_ptr_mut(&self.stream);
            // SAFETY: both are memory of the card, `to` is large enough for one of each rank, and they live until the
            // event is over.
            self.queue(what, |comm, stream| unsafe {
                let (from, to) = (from as *const c_void, to as *mut c_void);
                result::all_gather(from, to, bytes.len(), sys::ncclDataType_t::ncclUint8, comm, stream)
            })?
        };
        self.wait(what, &event, bytes.len())?;
        Ok(self.stream.clone_dtoh(&all)?)
    }
}

impl Communicator for Nccl {
    fn place(&self) -> RankInfo {
        self.world.place
    }

    fn is_distributed(&self) -> bool {
        true
    }

    fn all_reduce(&self, numbers: &Tensor) -> anyhow::Result<Tensor> {
        ensure!(
            numbers.dtype() == DType::F32,
            "a sum of {:?} over ranks",
            numbers.dtype()
        );
        let (world, what) = (&self.world, "the sum over all ranks");
        let sum = numbers.contiguous()?.copy()?;
        let device = card(&sum)?;
        world.stream.join(&device.cuda_stream())?;
        let to = address(&sum)?;
        // SAFETY: the copy is ours alone, and lives until the event is over.
        let event = world.queue(what, |comm, stream| unsafe {
            let (count, to) = (sum.elem_count(), to as *mut c_void);
            let (float, add) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
            result::all_reduce(to, to, count, float, add, comm, stream)
        })?;
        world.wait(what, &event, 4 * sum.elem_count())?;
        Ok(sum)
    }

    fn all_gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let lengths = lengths(&self.world.gather(&(bytes.len() as u64).to_le_bytes())?)?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let all = self.world.gather(&padded)?;
        let each = lengths.iter().enumerate();
        Ok(each
            .map(|(rank, length)| all[rank * longest..][..*length].to_vec())
            .collect())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let own = if self.is_first() { bytes } else { Vec::new() };
        Ok(self.all_gather(&own)?.swap_remove(0))
    }

    fn barrier(&self) -> anyhow::Result<()> {
        self.world.gather(&[0]).map(drop)
    }

    fn traffic(&self) -> Traffic {
        *lock(&self.world.traffic)
    }

    fn sharing(&self) -> Option<Arc<dyn AllGather>> {
        Some(Arc::new(Sharing(self.world.clone())))
    }

    fn finish(&self) {
        let handle = lock(&self.world.handle);
        // SAFETY: nothing is in progress, and no more calls are made: the process is about to end.
        let _ = unsafe { result::comm_finalize(handle.0) };
    }
}

/// All-gather for sharded weights.
struct Sharing(Arc<World>);

impl AllGather for Sharing {
    fn place(&self) -> RankInfo {
        self.0.place
    }

    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Pending>> {
        let part = part.contiguous()?;
        let device = card(&part)?;
        let all = Tensor::zeros(part.elem_count() * self.0.place.world_size, part.dtype(), part.device())?;
        let theirs = device.cuda_stream();
        self.0.stream.join(&theirs)?;
        let (from, to, bytes) = (
            address(&part)?,
            address(&all)?,
            part.elem_count() * part.dtype().size_in_bytes(),
        );
        // SAFETY: `all` is large enough for one part of each rank; both are kept until their stream waits for the
        // event.
        let event = self
            .0
            .queue("the exchange of weights between all ranks", |comm, stream| unsafe {
                let (from, to) = (from as *const c_void, to as *mut c_void);
                result::all_gather(from, to, bytes, sys::ncclDataType_t::ncclUint8, comm, stream)
            })?;
        lock(&self.0.traffic).bytes += bytes as u64;
        Ok(Box::new(InFlightGather {
            all,
            _part: part,
            event,
            stream: theirs,
        }))
    }
}

/// A gather in progress.
struct InFlightGather {
    all: Tensor,
    _part: Tensor,
    event: CudaEvent,
    /// Stream of the tensors.
    stream: Arc<CudaStream>,
}

impl Pending for InFlightGather {
    fn end(self: Box<Self>) -> anyhow::Result<Tensor> {
        self.stream.wait(&self.event)?;
        Ok(self.all.clone())
    }
}

impl Drop for InFlightGather {
    /// Frees their memory on their own stream, after NCCL is done with it.
    fn drop(&mut self) {
        let _ = self.stream.wait(&self.event); // a card that fails here fails at the next call
    }
}

fn card(tensor: &Tensor) -> anyhow::Result<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device),
        _ => bail!("NCCL needs GPUs, but this run is on the CPU: device: cuda, or vtrain launch --backend mpi"),
    }
}

/// Returns the address of a contiguous tensor's numbers.
fn address(tensor: &Tensor) -> anyhow::Result<u64> {
    match tensor.dtype() {
        DType::F32 => address_as::<f32>(tensor),
        DType::BF16 => address_as::<bf16>(tensor),
        DType::F16 => address_as::<f16>(tensor),
        other => bail!("{other:?} cannot be sent between ranks"),
    }
}

fn address_as<T: CudaDType + cudarc::driver::DeviceRepr>(tensor: &Tensor) -> anyhow::Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("expected a tensor on a GPU, got one on the CPU");
    };
    let slice = storage.as_cuda_slice::<T>()?;
    let stream = card(tensor)?.cuda_stream();
    let (start, _) = slice.device_ptr(&stream);
    Ok(start + (layout.start_offset() * size_of::<T>()) as u64)
}

fn failed(what: &str, error: &NcclError) -> anyhow::Error {
    anyhow!("NCCL: {what}: {:?}", error.0).context("NCCL_DEBUG=INFO says more")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
