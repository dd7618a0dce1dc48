//! Announcements of ranks that wait: who has come to a call, and who is missing.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use mpi::ffi;
use mpi::topology::SimpleCommunicator;
use mpi::traits::AsRaw;

use super::request::{check, int};
use crate::distributed::RankInfo;

/// Tag of announcements.
const HERE: c_int = 1;

/// Ranks known to wait in a call.
pub struct RankList<'a> {
    room: &'a SimpleCommunicator,
    place: u64,
    came: Vec<bool>,
    told: Vec<bool>,
}

impl<'a> RankList<'a> {
    /// The ranks of a call, of which only this one is there.
    pub fn new(room: &'a SimpleCommunicator, here: RankInfo, place: u64) -> Self {
        let own: Vec<bool> = (0..here.world_size).map(|rank| rank == here.rank).collect();
        Self {
            room,
            place,
            came: own.clone(),
            told: own,
        }
    }

    /// Reads announcements: a rank that names this call or a later one has arrived, and gets a reply.
    pub fn listen(&mut self) -> anyhow::Result<()> {
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
        // SAFETY: `place` holds the single number of such a message, which has already arrived.
        check(unsafe { ffi::MPI_Recv(to, 1, ffi::RSMPI_UINT64_T, source, HERE, comm, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(Some((usize::try_from(source)?, place)))
    }

    /// Announces this rank to another one, once.
    fn tell(&mut self, rank: usize) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.told[rank], true) {
            return Ok(());
        }
        // Leaks eight bytes per time-out, because MPI may read them at any later time.
        let place: *const u64 = Box::leak(Box::new(self.place));
        let (comm, to) = (self.room.as_raw(), int(rank)?);
        // SAFETY: the number is never freed; the request need not be polled.
        check(unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            ffi::MPI_Isend(place.cast(), 1, ffi::RSMPI_UINT64_T, to, HERE, comm, &mut request)
        })
    }

    pub fn tell_all(&mut self) -> anyhow::Result<()> {
        (0..self.told.len()).try_for_each(|rank| self.tell(rank))
    }

    pub fn missing(&self) -> Vec<usize> {
        (0..self.came.len()).filter(|rank| !self.came[*rank]).collect()
    }
}
