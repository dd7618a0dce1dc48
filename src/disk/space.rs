//! Free space of a disk, checked before much is written.

use std::fmt;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;

/// Smallest allocation unit of file systems, in bytes.
const BLOCK: u64 = 4096;

/// Error for data that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotEnoughSpace {
    /// Destination folder.
    pub folder: PathBuf,
    /// Data that needs the space.
    pub what: String,
    /// Bytes needed, in the unit of `free`.
    pub needed: u64,
    /// Bytes free there.
    pub free: u64,
}

impl fmt::Display for NotEnoughSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: not enough space: {} takes {}, and {} are free; free some space there",
            self.folder.display(),
            self.what,
            BinaryBytes(self.needed),
            BinaryBytes(self.free)
        )
    }
}

impl std::error::Error for NotEnoughSpace {}

/// Checks that `needed` bytes fit at `folder`, which need not exist. If the system does not report the free space, the
/// check passes; a quota may still stop the write itself.
pub fn ensure(folder: &Path, needed: u64, what: impl FnOnce() -> String) -> Result<(), NotEnoughSpace> {
    match free(folder) {
        Some(free) if free < needed => Err(NotEnoughSpace {
            folder: folder.into(),
            what: what(),
            needed,
            free,
        }),
        _ => Ok(()),
    }
}

/// Returns the bytes that files of these sizes occupy.
pub fn taken(sizes: impl IntoIterator<Item = u64>) -> u64 {
    let blocks = sizes.into_iter().map(|size| size.div_ceil(BLOCK).saturating_mul(BLOCK));
    blocks.fold(0, u64::saturating_add)
}

/// Returns the bytes free at `path`, which need not exist; `None` if the system does not report them.
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
    // SAFETY: the path ends in a zero byte, and the result is large enough; all zeros are a valid `statvfs`.
    let stat = unsafe {
        if libc::statvfs(folder.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    // Some file systems report no blocks at all.
    (stat.f_blocks > 0).then(|| (stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(not(unix))]
fn available(_folder: &Path) -> Option<u64> {
    None
}
