//! Paths: lexical operations, without accessing the disk, and the user's folders.

use std::path::{Component, Path, PathBuf};

/// Returns the user's folder of caches: `XDG_CACHE_HOME`, else `~/.cache`; None without a home.
pub fn user_caches() -> Option<PathBuf> {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    xdg.filter(|folder| folder.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(".cache")))
}

/// Removes `.` and `..` from an absolute path.
pub fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if normal.file_name().is_some() => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}
