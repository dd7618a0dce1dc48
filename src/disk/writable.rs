//! Permission to write to a folder, checked before hours of work. Creates nothing.

use std::io;
use std::path::Path;

use super::WriteError;

/// Checks that files can be created in `folder`, or the folder itself if it does not exist. Does not detect a full
/// disk.
///
/// # Errors
/// Fails without permission, on a read-only file system, and for a file instead of a folder.
pub fn ensure(folder: &Path) -> Result<(), WriteError> {
    let whole = std::path::absolute(folder).map_err(WriteError::at(folder))?;
    // If even that is unknown, the write itself will fail.
    let Some(there) = whole.ancestors().find(|path| path.symlink_metadata().is_ok()) else {
        return Ok(());
    };
    match there.metadata() {
        Ok(found) if found.is_dir() => may_write(there),
        Ok(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        Err(error) => Err(error),
    }
    .map_err(WriteError::at(there))
}

#[cfg(unix)]
fn may_write(folder: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: the path ends in a zero byte, and is only asked about.
    match unsafe { libc::access(name.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(unix))]
fn may_write(_folder: &Path) -> io::Result<()> {
    Ok(())
}
