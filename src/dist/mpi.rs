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
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Tensor};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::AsRaw;

use super::{Communicator, Place, Traffic};

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
    /// For collectives. Communicators go when MPI ends: to free one is a collective of its own.
    world: ManuallyDrop<SimpleCommunicator>,
    /// For those who wait.
    waiting_room: ManuallyDrop<SimpleCommunicator>,
    rank: usize,
    world_size: usize,
    local_rank: usize,
    timeout: Duration,
    /// Calls so far: where the ranks meet next.
    place: Cell<u64>,
    traffic: Cell<Traffic>,
}

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
        Ok(Self {
            universe: Cell::new(Some(universe)),
            world,
            waiting_room,
            rank,
            world_size,
            local_rank: place.local_rank,
            timeout,
            place: Cell::new(0),
            traffic: Cell::new(Traffic::default()),
        })
    }

    /// Waits until all ranks have made this call; `what` names it.
    fn meet(&self, what: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        let place = self.place.get() + 1;
        self.place.set(place);
        let comm = self.world.as_raw();
        // SAFETY: a barrier has no buffers.
        let mut barrier = start((), |_, request| unsafe { ffi::MPI_Ibarrier(comm, request) })?;
        let mut roll = Roll::new(self, place);
        let (mut listened, mut deadline, mut asked) = (started, started + self.timeout, false);
        while !barrier.is_done()? {
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
        self.count(0, Duration::ZERO, started.elapsed());
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

    /// Does what `begin` starts, now that all are here.
    fn carry<B>(
        &self,
        what: &str,
        bytes: usize,
        buffers: B,
        begin: impl FnOnce(&mut B, *mut ffi::MPI_Request) -> c_int,
    ) -> anyhow::Result<B> {
        let started = Instant::now();
        let mut going = start(buffers, begin)?;
        while !going.is_done()? {
            if started.elapsed() > self.timeout {
                let Going { buffers, .. } = going;
                forget(buffers); // MPI still has them
                bail!(
                    "{what} was not done within {} s (dist.timeout) after all ranks had come: a rank hangs, or the \
                     network is down",
                    self.timeout.as_secs_f64()
                );
            }
            std::thread::yield_now();
        }
        self.count(bytes, started.elapsed(), Duration::ZERO);
        Ok(going.buffers)
    }

    fn count(&self, bytes: usize, moving: Duration, waiting: Duration) {
        let mut traffic = self.traffic.get();
        traffic.bytes += bytes as u64;
        traffic.moving += moving;
        traffic.waiting += waiting;
        self.traffic.set(traffic);
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
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
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
        self.meet("the sum over all ranks")?;
        let length = numbers.dims1()?;
        let mut sums = Vec::new();
        for from in (0..length).step_by(MOST) {
            let part = numbers.narrow(0, from, MOST.min(length - from))?;
            sums.push(self.sum(part.to_vec1()?)?);
        }
        let sum = match sums.len() {
            1 => sums.remove(0),
            _ => sums.concat(),
        };
        Ok(Tensor::from_vec(sum, length, numbers.device())?)
    }

    fn all_gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        self.meet("the exchange between all ranks")?;
        let lengths = self.lengths(bytes.len())?;
        let all = self.gather(bytes.to_vec(), &lengths)?;
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
        self.meet("the message of rank 0")?;
        let length = self.lengths(bytes.len())?[0];
        let mut bytes = bytes;
        bytes.resize(length, 0);
        let (count, comm) = (int(length)?, self.world.as_raw());
        // SAFETY: every rank's buffer has the length that rank 0 told, and lives until MPI is done.
        let begin = |bytes: &mut Vec<u8>, request: *mut ffi::MPI_Request| unsafe {
            ffi::MPI_Ibcast(bytes.as_mut_ptr().cast(), count, ffi::RSMPI_UINT8_T, 0, comm, request)
        };
        self.carry("the message of rank 0", length, bytes, begin)
    }

    fn barrier(&self) -> anyhow::Result<()> {
        self.meet("a common point")
    }

    fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    fn finish(&self) {
        drop(self.universe.take().map(ManuallyDrop::into_inner));
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
    fn new(mpi: &'a Mpi, place: u64) -> Self {
        let own: Vec<bool> = (0..mpi.world_size).map(|rank| rank == mpi.rank).collect();
        Self {
            room: &mpi.waiting_room,
            place,
            came: own.clone(),
            told: own,
        }
    }

    /// Takes in what others said: who names this place is here, and is told the same.
    fn listen(&mut self) -> anyhow::Result<()> {
        while let Some((rank, place)) = self.next_message()? {
            if place == self.place {
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
