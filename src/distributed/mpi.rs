//! Communication by MPI, through rsmpi: Open MPI or MPICH, on machines with and without GPUs.
//!
//! Every call begins with a non-blocking barrier that is polled, so that the wait can end: a rank that waits longer
//! than the time-out announces itself to the others, those that wait in the same call reply, and silent ranks are
//! named. After the barrier the data moves by one of MPI's collectives, watched in the same way.
//!
//! rsmpi's own requests cannot be abandoned while their buffers live, hence MPI's C functions. A buffer of an abandoned
//! operation is never freed: MPI may still write to it, and the process is about to end.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::{ManuallyDrop, forget};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::AsRaw;

use super::{AllGather, Communicator, Pending, RankInfo, Traffic, pieces};

mod numbers;
mod rank_list;
mod request;

use numbers::Numbers;
use rank_list::RankList;
use request::{InFlightGather, int, start};

/// Time that the others have to announce themselves.
const GRACE: Duration = Duration::from_secs(2);

/// Wait after which a rank listens for announcements.
const LISTEN: Duration = Duration::from_millis(100);

/// Wait after which polling sleeps in between.
const SPIN: Duration = Duration::from_micros(300);

/// Limit of MPI's signed 32-bit counts: longer vectors are summed in parts.
const MOST: usize = 1 << 30;

/// One rank of a world that MPI started.
pub struct Mpi {
    /// MPI, which is finalised only in [`finish`](Communicator::finish), because that waits for all ranks.
    universe: Cell<Option<ManuallyDrop<Universe>>>,
    world: Arc<World>,
}

/// State that all calls need.
struct World {
    /// The only thread that may call MPI.
    thread: ThreadId,
    /// Communicator of collectives. Freed with MPI only, because freeing one is itself a collective.
    world: ManuallyDrop<SimpleCommunicator>,
    /// Communicator of announcements.
    waiting_room: ManuallyDrop<SimpleCommunicator>,
    place: RankInfo,
    timeout: Duration,
    /// Number of calls so far, which identifies the next one.
    calls: AtomicU64,
    traffic: Mutex<Traffic>,
}

// SAFETY: MPI's handles are used only by the thread that made them: every call begins in `next_place` or `here`, which
// refuse others.
unsafe impl Send for World {}
unsafe impl Sync for World {}

impl Mpi {
    /// Starts MPI. `place` is the environment's rank, and MPI must agree.
    pub fn open(place: &RankInfo, timeout: Duration) -> anyhow::Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.context("MPI was started before")?;
        let universe = ManuallyDrop::new(universe);
        let all = universe.world();
        let (rank, world_size) = (all.rank() as usize, all.size() as usize);
        ensure!(
            (rank, world_size) == (place.rank, place.world_size),
            "the environment says rank {} of {}, but MPI says {rank} of {world_size}: mpirun or srun belongs to another MPI \
             than the one that this vtrain was built with",
            place.rank,
            place.world_size
        );
        let (world, waiting_room) = (ManuallyDrop::new(all.duplicate()), ManuallyDrop::new(all.duplicate()));
        let world = World {
            thread: std::thread::current().id(),
            world,
            waiting_room,
            place: *place,
            timeout,
            calls: AtomicU64::new(0),
            traffic: Mutex::default(),
        };
        Ok(Self {
            universe: Cell::new(Some(universe)),
            world: Arc::new(world),
        })
    }
}

impl World {
    /// Checks that MPI may be called on this thread.
    fn here(&self) -> anyhow::Result<()> {
        let here = std::thread::current().id() == self.thread;
        ensure!(here, "MPI was called on another thread than the one that started it");
        Ok(())
    }

    /// Returns the number of a call that begins now, the same on all ranks.
    fn next_place(&self) -> anyhow::Result<u64> {
        self.here()?;
        Ok(self.calls.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Waits until all ranks have made this call; `what` names it.
    fn meet(&self, what: &str) -> anyhow::Result<()> {
        let place = self.next_place()?;
        let (started, comm) = (Instant::now(), self.world.as_raw());
        // SAFETY: a barrier has no buffers.
        let mut barrier = start((), |_, request| unsafe { ffi::MPI_Ibarrier(comm, request) })?;
        self.wait(&mut barrier, place, what)?;
        self.count(0, Duration::ZERO, started.elapsed());
        Ok(())
    }

    /// Waits for an operation that completes once all ranks have come to `place`.
    ///
    /// # Errors
    /// Names the ranks that did not arrive.
    fn wait<B>(&self, going: &mut InFlightGather<B>, place: u64, what: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut roll = RankList::new(&self.waiting_room, self.place, place);
        let (mut listened, mut deadline, mut asked) = (started, started + self.timeout, false);
        while !going.is_done()? {
            let waited = started.elapsed();
            if listened.elapsed() > LISTEN {
                roll.listen()?;
                listened = Instant::now();
            }
            if Instant::now() > deadline {
                if asked {
                    let missing = roll.missing();
                    ensure!(missing.is_empty(), self.absent(&missing, what));
                }
                roll.tell_all()?;
                (asked, deadline) = (true, Instant::now() + GRACE);
            }
            pause(waited);
        }
        Ok(())
    }

    fn absent(&self, missing: &[usize], what: &str) -> String {
        let list = |ranks: Vec<usize>| ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let came = (0..self.place.world_size)
            .filter(|rank| !missing.contains(rank))
            .collect();
        let who = match missing.len() {
            1 => "rank",
            _ => "ranks",
        };
        format!(
            "{who} {} did not come to {what} within {} s (dist.timeout), while these wait there: {}. Look at what the \
             missing said last; if they are only slower, raise dist.timeout",
            list(missing.to_vec()),
            self.timeout.as_secs_f64(),
            list(came)
        )
    }

    /// Runs the operation that `begin` starts, after the barrier: a rank may still stop during the transfer.
    fn carry<B>(
        &self,
        what: &str,
        bytes: usize,
        buffers: B,
        begin: impl FnOnce(&mut B, *mut ffi::MPI_Request) -> c_int,
    ) -> anyhow::Result<B> {
        let (started, place) = (Instant::now(), self.next_place()?);
        let mut going = start(buffers, begin)?;
        let done = self.wait(&mut going, place, what);
        let InFlightGather { buffers, .. } = going;
        if let Err(error) = done {
            forget(buffers); // MPI still uses them
            return Err(error);
        }
        self.count(bytes, started.elapsed(), Duration::ZERO);
        Ok(buffers)
    }

    fn count(&self, bytes: usize, moving: Duration, waiting: Duration) {
        let mut traffic = self.traffic.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        traffic.bytes += bytes as u64;
        traffic.moving += moving;
        traffic.waiting += waiting;
    }

    /// Returns the sum of all ranks' vectors.
    fn sum(&self, ours: Vec<f32>) -> anyhow::Result<Vec<f32>> {
        let count = int(ours.len())?;
        let (comm, sum) = (self.world.as_raw(), vec![0f32; ours.len()]);
        let bytes = size_of_val(&ours[..]);
        // SAFETY: both vectors have `count` elements, do not move, and live until MPI is done with them.
        let begin = |(ours, sum): &mut (Vec<f32>, Vec<f32>), request: *mut ffi::MPI_Request| unsafe {
            let (from, to) = (ours.as_ptr().cast::<c_void>(), sum.as_mut_ptr().cast::<c_void>());
            ffi::MPI_Iallreduce(from, to, count, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, comm, request)
        };
        let (_, sum) = self.carry("the sum over all ranks", bytes, (ours, sum), begin)?;
        Ok(sum)
    }

    /// Concatenates the ranks' bytes; `counts` holds each rank's length.
    fn gather(&self, ours: Vec<u8>, counts: &[usize]) -> anyhow::Result<Vec<u8>> {
        let all = vec![0u8; counts.iter().sum()];
        int(all.len())?;
        let (mut lengths, mut places) = (Vec::new(), Vec::new());
        let mut place = 0;
        for count in counts {
            lengths.push(int(*count)?);
            places.push(int(place)?);
            place += count;
        }
        let (count, comm, bytes) = (int(ours.len())?, self.world.as_raw(), ours.len());
        type Buffers = (Vec<u8>, Vec<u8>, Vec<c_int>, Vec<c_int>);
        // SAFETY: `all` holds the sum of `lengths`, of which each rank sends its own; nothing moves until MPI is done.
        let begin = |(ours, all, lengths, places): &mut Buffers, request: *mut ffi::MPI_Request| unsafe {
            let (from, to) = (ours.as_ptr().cast::<c_void>(), all.as_mut_ptr().cast::<c_void>());
            let (lengths, places, byte) = (lengths.as_ptr(), places.as_ptr(), ffi::RSMPI_UINT8_T);
            ffi::MPI_Iallgatherv(from, count, byte, to, lengths, places, byte, comm, request)
        };
        let buffers = (ours, all, lengths, places);
        Ok(self.carry("the exchange between all ranks", bytes, buffers, begin)?.1)
    }

    /// Returns each rank's number of bytes.
    fn lengths(&self, ours: usize) -> anyhow::Result<Vec<usize>> {
        let each = [size_of::<u64>()].repeat(self.place.world_size);
        let all = self.gather((ours as u64).to_le_bytes().to_vec(), &each)?;
        super::lengths(&all)
    }
}

impl Communicator for Mpi {
    fn place(&self) -> RankInfo {
        self.world.place
    }

    fn all_reduce(&self, numbers: &Tensor) -> anyhow::Result<Tensor> {
        ensure!(
            numbers.dtype() == DType::F32,
            "a sum of {:?} over ranks",
            numbers.dtype()
        );
        self.world.meet("the sum over all ranks")?;
        let length = numbers.dims1()?;
        let mut sums = Vec::new();
        for (from, count) in pieces(length, MOST) {
            let part = numbers.narrow(0, from, count)?;
            sums.push(self.world.sum(part.to_vec1()?)?);
        }
        let sum = match sums.len() {
            1 => sums.remove(0),
            _ => sums.concat(),
        };
        Ok(Tensor::from_vec(sum, length, numbers.device())?)
    }

    fn all_gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        self.world.meet("the exchange between all ranks")?;
        let lengths = self.world.lengths(bytes.len())?;
        let all = self.world.gather(bytes.to_vec(), &lengths)?;
        let mut rest = &all[..];
        let mut each = Vec::new();
        for length in lengths {
            let (own, others) = rest.split_at(length);
            each.push(own.to_vec());
            rest = others;
        }
        Ok(each)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        self.world.meet("the message of rank 0")?;
        let length = self.world.lengths(bytes.len())?[0];
        let mut bytes = bytes;
        bytes.resize(length, 0);
        let (count, comm) = (int(length)?, self.world.world.as_raw());
        // SAFETY: every rank's buffer has the length sent by rank 0, and lives until MPI is done.
        let begin = |bytes: &mut Vec<u8>, request: *mut ffi::MPI_Request| unsafe {
            ffi::MPI_Ibcast(bytes.as_mut_ptr().cast(), count, ffi::RSMPI_UINT8_T, 0, comm, request)
        };
        self.world.carry("the message of rank 0", length, bytes, begin)
    }

    fn barrier(&self) -> anyhow::Result<()> {
        self.world.meet("a common point")
    }

    fn traffic(&self) -> Traffic {
        *self
            .world
            .traffic
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn sharing(&self) -> Option<Arc<dyn AllGather>> {
        Some(Arc::new(Sharing(self.world.clone())))
    }

    fn finish(&self) {
        drop(self.universe.take().map(ManuallyDrop::into_inner));
    }
}

/// All-gather for sharded weights.
struct Sharing(Arc<World>);

impl AllGather for Sharing {
    fn place(&self) -> RankInfo {
        self.0.place
    }

    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Pending>> {
        let place = self.0.next_place()?;
        let part = part.to_device(&Device::Cpu)?.contiguous()?;
        let each = part.elem_count() * part.dtype().size_in_bytes();
        let (from, count, comm) = (numbers::address(&part)?, int(each)?, self.0.world.as_raw());
        let all = Numbers::zeros(part.dtype(), part.elem_count() * self.0.place.world_size)?;
        // SAFETY: the part is never written, `all` is large enough for one part per rank, and both stay in place until
        // MPI is done with them.
        let begin = |(_, all): &mut (Tensor, Numbers), request: *mut ffi::MPI_Request| unsafe {
            let (to, byte) = (all.address(), ffi::RSMPI_UINT8_T);
            ffi::MPI_Iallgather(from, count, byte, to, count, byte, comm, request)
        };
        let going = start((part, all), begin)?;
        self.0.count(each, Duration::ZERO, Duration::ZERO);
        Ok(Box::new(Shared {
            world: self.0.clone(),
            place,
            going: Some(going),
        }))
    }
}

/// A gather in progress.
struct Shared {
    world: Arc<World>,
    place: u64,
    going: Option<InFlightGather<(Tensor, Numbers)>>,
}

// SAFETY: the request is polled only by the thread that began it (`World::here`), and dropping it polls nothing.
unsafe impl Send for Shared {}

impl Pending for Shared {
    fn end(mut self: Box<Self>) -> anyhow::Result<Tensor> {
        self.world.here()?;
        let (world, started, place) = (self.world.clone(), Instant::now(), self.place);
        let going = self.going.as_mut().context("this gather has ended before")?;
        world.wait(going, place, "the exchange of weights between all ranks")?;
        world.count(0, started.elapsed(), Duration::ZERO);
        let done = self.going.take().context("this gather has ended before")?;
        done.buffers.1.into_tensor()
    }
}

impl Drop for Shared {
    /// Leaks buffers that MPI may still write to.
    fn drop(&mut self) {
        forget(self.going.take());
    }
}

/// Lets others have the core, for longer where the wait is long.
fn pause(waited: Duration) {
    match waited < SPIN {
        true => std::thread::yield_now(),
        false => std::thread::sleep((waited / 10).min(Duration::from_millis(1))),
    }
}
