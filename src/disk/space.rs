//! How much a disk still holds, asked before much is written.

use std::fmt;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;

/// File systems give room in pieces of this size at least.
const BLOCK: u64 = 4096;

/// What is to be written does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    pub folder: PathBuf,
    /// What wants the room.
    pub what: String,
    /// In bytes, as `free`.
    pub needed: u64,
    pub free: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: too little room: {} takes {}, and {} are free; make room there",
            self.folder.display(),
            self.what,
            BinaryBytes(self.needed),
            BinaryBytes(self.free)
        )
    }
}

impl std::error::Error for NoRoom {}

/// Whether `needed` bytes fit where `folder` is or will be. Where the system does not say how much is free, they do; a
/// quota may still be in the way, which writing tells.
pub fn ensure(folder: &Path, needed: u64, what: impl FnOnce() -> String) -> Result<(), NoRoom> {
    match free(folder) {
        Some(free) if free < needed => Err(NoRoom {
            folder: folder.into(),
            what: what(),
            needed,
            free,
        }),
        _ => Ok(()),
    }
}

/// What files of these sizes take, in bytes.
pub fn taken(sizes: impl IntoIterator<Item = u64>) -> u64 {
    let blocks = sizes.into_iter().map(|size| size.div_ceil(BLOCK).saturating_mul(BLOCK));
    blocks.fold(0, u64::saturating_add)
}

/// Bytes that may still be written where `path` is or will be; `None` where the system does not say.
pub fn free(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    available(path.ancestors().find(|folder| folder.exists())?)
}

#[cfg(unix)]
#[allow(clippy::unnecessary_cast)] // the fields' types differ from system to system
fn available(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let folder = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in a zero byte, and the result has room; all zeros are a valid `statvfs`.
    let stat = unsafe {
        if libc::statvfs(folder.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    // Some file systems count no blocks at all.
    (stat.f_blocks > 0).then(|| (stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(not(unix))]
fn available(_folder: &Path) -> Option<u64> {
    None
}
