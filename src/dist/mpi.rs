//! Ranks that talk by MPI, through rsmpi: Open MPI or MPICH, on machines with and without GPUs.
//!
//! Every call begins with a barrier that is asked now and then whether it is done, so that it can end: a rank that waits
//! longer than the time-out tells the others that it is here, those who wait at the same place say so, too, and who stays
//! silent is named. Behind the barrier the numbers move by one of MPI's collectives, watched in the same way.
//!
//! rsmpi's own requests cannot be given up while their buffers live, hence MPI's C functions. A buffer of an operation
//! that was given up is never freed: MPI may still write to it, and the process is about to end.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::{ManuallyDrop, MaybeUninit, forget};
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

use super::{Communicator, Gather, Gathering, Place, Traffic, pieces};

mod numbers;

use numbers::Numbers;

/// How long the others have to say that they are here.
const GRACE: Duration = Duration::from_secs(2);

/// A wait that is longer looks for what others say.
const LISTEN: Duration = Duration::from_millis(100);

/// A wait that is longer sleeps in between.
const SPIN: Duration = Duration::from_micros(300);

/// MPI counts in 32 bits with a sign: longer vectors are summed in parts.
const MOST: usize = 1 << 30;

/// Of the messages between those who wait.
const HERE: c_int = 1;

/// One rank of a world that MPI started.
pub struct Mpi {
    /// MPI ends with it: only in [`finish`](Communicator::finish), since it waits for all ranks.
    universe: Cell<Option<ManuallyDrop<Universe>>>,
    world: Arc<World>,
    local_rank: usize,
}

/// All that calls need.
struct World {
    /// MPI may be called on it alone.
    thread: ThreadId,
    /// For collectives. Communicators go when MPI ends: to free one is a collective of its own.
    world: ManuallyDrop<SimpleCommunicator>,
    /// For those who wait.
    waiting_room: ManuallyDrop<SimpleCommunicator>,
    rank: usize,
    world_size: usize,
    timeout: Duration,
    /// Calls so far: where the ranks meet next.
    place: AtomicU64,
    traffic: Mutex<Traffic>,
}

// SAFETY: MPI's handles are used by the thread that made them alone: every call begins in `next_place` or `here`, which
// refuse others.
unsafe impl Send for World {}
unsafe impl Sync for World {}

/// What MPI does in the background, and the buffers that it does it to.
struct Going<B> {
    request: ffi::MPI_Request,
    buffers: B,
}

impl Mpi {
    /// Starts MPI. `place` is what the environment says, and MPI must agree.
    pub fn open(place: &Place, timeout: Duration) -> anyhow::Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.context("MPI was started before")?;
        let universe = ManuallyDrop::new(universe);
        let all = universe.world();
        let (rank, world_size) = (all.rank() as usize, all.size() as usize);
        ensure!(
            (rank, world_size) == (place.rank, place.world_size),
            "the environment says rank {} of {}, and MPI says {rank} of {world_size}: mpirun or srun is of another MPI \
             than the one that this vtrain was built with",
            place.rank,
            place.world_size
        );
        let (world, waiting_room) = (ManuallyDrop::new(all.duplicate()), ManuallyDrop::new(all.duplicate()));
        let world = World {
            thread: std::thread::current().id(),
            world,
            waiting_room,
            rank,
            world_size,
            timeout,
            place: AtomicU64::new(0),
            traffic: Mutex::default(),
        };
        Ok(Self {
            universe: Cell::new(Some(universe)),
            world: Arc::new(world),
            local_rank: place.local_rank,
        })
    }
}

impl World {
    /// Whether MPI may be called here.
    fn here(&self) -> anyhow::Result<()> {
        let here = std::thread::current().id() == self.thread;
        ensure!(here, "MPI was called on another thread than the one that started it");
        Ok(())
    }

    /// The number of a call that begins now, as all ranks count.
    fn next_place(&self) -> anyhow::Result<u64> {
        self.here()?;
        Ok(self.place.fetch_add(1, Ordering::Relaxed) + 1)
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

    /// Waits for what is done once all ranks have come to `place`.
    ///
    /// # Errors
    /// Those who did not come, by number.
    fn wait<B>(&self, going: &mut Going<B>, place: u64, what: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut roll = Roll::new(self, place);
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
        let came = (0..self.world_size).filter(|rank| !missing.contains(rank)).collect();
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

    /// Does what `begin` starts, now that all are here: one may stop all the same while numbers move.
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
        let Going { buffers, .. } = going;
        if let Err(error) = done {
            forget(buffers); // MPI still has them
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

    /// The sum of all ranks' numbers.
    fn sum(&self, ours: Vec<f32>) -> anyhow::Result<Vec<f32>> {
        let count = int(ours.len())?;
        let (comm, sum) = (self.world.as_raw(), vec![0f32; ours.len()]);
        let bytes = size_of_val(&ours[..]);
        // SAFETY: both vectors have `count` numbers, do not move, and live until MPI is done with them.
        let begin = |(ours, sum): &mut (Vec<f32>, Vec<f32>), request: *mut ffi::MPI_Request| unsafe {
            let (from, to) = (ours.as_ptr().cast::<c_void>(), sum.as_mut_ptr().cast::<c_void>());
            ffi::MPI_Iallreduce(from, to, count, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, comm, request)
        };
        let (_, sum) = self.carry("the sum over all ranks", bytes, (ours, sum), begin)?;
        Ok(sum)
    }

    /// The ranks' bytes one after the other; `counts` says how many each has.
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

    /// How much each rank has to say.
    fn lengths(&self, ours: usize) -> anyhow::Result<Vec<usize>> {
        let each = [size_of::<u64>()].repeat(self.world_size);
        let all = self.gather((ours as u64).to_le_bytes().to_vec(), &each)?;
        let (numbers, _) = all.as_chunks::<8>();
        let lengths = numbers.iter().map(|bytes| usize::try_from(u64::from_le_bytes(*bytes)));
        Ok(lengths.collect::<Result<_, _>>()?)
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.world.rank
    }

    fn world_size(&self) -> usize {
        self.world.world_size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
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
        // SAFETY: every rank's buffer has the length that rank 0 told, and lives until MPI is done.
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

    fn sharing(&self) -> Option<Arc<dyn Gather>> {
        Some(Arc::new(Sharing(self.world.clone())))
    }

    fn finish(&self) {
        drop(self.universe.take().map(ManuallyDrop::into_inner));
    }
}

/// For those who share numbers out.
struct Sharing(Arc<World>);

impl Gather for Sharing {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn world_size(&self) -> usize {
        self.0.world_size
    }

    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Gathering>> {
        let place = self.0.next_place()?;
        let part = part.to_device(&Device::Cpu)?.contiguous()?;
        let each = part.elem_count() * part.dtype().size_in_bytes();
        let (from, count, comm) = (numbers::address(&part)?, int(each)?, self.0.world.as_raw());
        let all = Numbers::zeros(part.dtype(), part.elem_count() * self.0.world_size)?;
        // SAFETY: the part is never written, `all` has room for one of each rank, and both stay where they are until MPI is
        // done with them.
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

/// Numbers that are on their way.
struct Shared {
    world: Arc<World>,
    place: u64,
    going: Option<Going<(Tensor, Numbers)>>,
}

// SAFETY: the request is asked by the thread that began it alone (`World::here`), and dropping it asks nothing.
unsafe impl Send for Shared {}

impl Gathering for Shared {
    fn end(mut self: Box<Self>) -> anyhow::Result<Tensor> {
        self.world.here()?;
        let (world, started, place) = (self.world.clone(), Instant::now(), self.place);
        let going = self.going.as_mut().context("these numbers have come before")?;
        world.wait(going, place, "the exchange of weights between all ranks")?;
        world.count(0, started.elapsed(), Duration::ZERO);
        let done = self.going.take().context("these numbers have come before")?;
        done.buffers.1.into_tensor()
    }
}

impl Drop for Shared {
    /// What MPI still writes to stays.
    fn drop(&mut self) {
        forget(self.going.take());
    }
}

/// Who is known to wait at a place.
struct Roll<'a> {
    room: &'a SimpleCommunicator,
    place: u64,
    came: Vec<bool>,
    told: Vec<bool>,
}

impl<'a> Roll<'a> {
    fn new(world: &'a World, place: u64) -> Self {
        let own: Vec<bool> = (0..world.world_size).map(|rank| rank == world.rank).collect();
        Self {
            room: &world.waiting_room,
            place,
            came: own.clone(),
            told: own,
        }
    }

    /// Takes in what others said: who names this place or a later one has come, and is told the same.
    fn listen(&mut self) -> anyhow::Result<()> {
        while let Some((rank, place)) = self.next_message()? {
            if place >= self.place {
                self.came[rank] = true;
                self.tell(rank)?;
            }
        }
        Ok(())
    }

    fn next_message(&self) -> anyhow::Result<Option<(usize, u64)>> {
        let (comm, any, mut found) = (self.room.as_raw(), unsafe { ffi::RSMPI_ANY_SOURCE }, 0);
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: out-parameters that live through the call.
        check(unsafe { ffi::MPI_Iprobe(any, HERE, comm, &mut found, status.as_mut_ptr()) })?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: MPI fills the status of a message that it found.
        let source = unsafe { status.assume_init() }.MPI_SOURCE;
        let mut place = 0u64;
        let to = (&raw mut place).cast::<c_void>();
        // SAFETY: `place` has room for the one number that such messages have; the message is there already.
        check(unsafe { ffi::MPI_Recv(to, 1, ffi::RSMPI_UINT64_T, source, HERE, comm, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(Some((usize::try_from(source)?, place)))
    }

    /// Tells a rank, once, that this one is here.
    fn tell(&mut self, rank: usize) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.told[rank], true) {
            return Ok(());
        }
        // Eight bytes a time-out, which MPI may want at any later time.
        let place: *const u64 = Box::leak(Box::new(self.place));
        let (comm, to) = (self.room.as_raw(), int(rank)?);
        // SAFETY: the number is never freed; the request is not asked again, and needs not be.
        check(unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            ffi::MPI_Isend(place.cast(), 1, ffi::RSMPI_UINT64_T, to, HERE, comm, &mut request)
        })
    }

    fn tell_all(&mut self) -> anyhow::Result<()> {
        (0..self.told.len()).try_for_each(|rank| self.tell(rank))
    }

    fn missing(&self) -> Vec<usize> {
        (0..self.came.len()).filter(|rank| !self.came[*rank]).collect()
    }
}

fn start<B>(mut buffers: B, begin: impl FnOnce(&mut B, *mut ffi::MPI_Request) -> c_int) -> anyhow::Result<Going<B>> {
    // SAFETY: a constant of MPI's.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    check(begin(&mut buffers, &mut request))?;
    Ok(Going { request, buffers })
}

impl<B> Going<B> {
    fn is_done(&mut self) -> anyhow::Result<bool> {
        let mut done = 0;
        // SAFETY: a request that MPI made, and an out-parameter that lives through the call.
        check(unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(done != 0)
    }
}

/// Lets others have the core, for longer where the wait is long.
fn pause(waited: Duration) {
    match waited < SPIN {
        true => std::thread::yield_now(),
        false => std::thread::sleep((waited / 10).min(Duration::from_millis(1))),
    }
}

fn check(code: c_int) -> anyhow::Result<()> {
    ensure!(code == 0, "MPI failed with code {code}");
    Ok(())
}

fn int(count: usize) -> anyhow::Result<c_int> {
    c_int::try_from(count).with_context(|| format!("{count} bytes are too many for one message of MPI's"))
}
