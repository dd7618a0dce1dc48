//! Permission to write to a folder, asked before hours of work are to go there. Nothing is made.

use std::io;
use std::path::Path;

use super::WriteError;

/// Checks that files may be made in `folder`, or the folder itself where it is not there yet. A full disk is not told here.
///
/// # Errors
/// No permission, a file system that is read only, a file where a folder should be.
pub fn ensure(folder: &Path) -> Result<(), WriteError> {
    let whole = std::path::absolute(folder).map_err(WriteError::at(folder))?;
    // Where even that cannot be asked, writing will tell.
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
