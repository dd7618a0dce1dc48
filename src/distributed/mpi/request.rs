//! Operations of MPI in progress, and its codes and counts.

use std::ffi::c_int;

use anyhow::{Context, ensure};
use mpi::ffi;

/// An operation in progress, with its buffers.
pub struct InFlightGather<B> {
    request: ffi::MPI_Request,
    pub buffers: B,
}

/// Starts an operation on buffers that stay in place.
pub fn start<B>(
    mut buffers: B,
    begin: impl FnOnce(&mut B, *mut ffi::MPI_Request) -> c_int,
) -> anyhow::Result<InFlightGather<B>> {
    // SAFETY: a constant of MPI's.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    check(begin(&mut buffers, &mut request))?;
    Ok(InFlightGather { request, buffers })
}

impl<B> InFlightGather<B> {
    pub fn is_done(&mut self) -> anyhow::Result<bool> {
        let mut done = 0;
        // SAFETY: a request that MPI made, and an out-parameter that lives through the call.
        check(unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(done != 0)
    }
}

/// Checks a code that a function of MPI returned.
pub fn check(code: c_int) -> anyhow::Result<()> {
    ensure!(code == 0, "MPI failed with code {code}");
    Ok(())
}

/// Returns a count as MPI takes it.
pub fn int(count: usize) -> anyhow::Result<c_int> {
    c_int::try_from(count).with_context(|| format!("{count} bytes are too many for one message of MPI's"))
}
