//! Lexical operations on paths, without accessing the disk.

use std::path::{Component, Path, PathBuf};

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
