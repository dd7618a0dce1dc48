//! Headers of checkpoints that were read once, for models that are built of them again and again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::checkpoint::Checkpoint;
use super::weight_files::WeightFolder;

/// Checkpoints whose files were opened, by folder. Files that change meanwhile are not looked at again.
#[derive(Default)]
pub struct HeaderCache(Mutex<Vec<Checkpoint>>);

impl HeaderCache {
    /// Opens the files of a folder, unless they were, and returns the checkpoint, of which nothing has been read.
    pub(super) fn open(&self, folder: &WeightFolder) -> anyhow::Result<Checkpoint> {
        let place = |folder: &WeightFolder| {
            let (path, source): (&Path, &Path) = (folder, folder.source());
            (
                path.to_path_buf(),
                source.to_path_buf(),
                folder.variant().map(String::from),
            )
        };
        let mut opened = self.opened();
        let wanted = place(folder);
        if let Some(there) = opened.iter().find(|there| place(&there.folder) == wanted) {
            return Ok(there.again());
        }
        let checkpoint = Checkpoint::open(folder)?;
        let fresh = checkpoint.again();
        opened.push(checkpoint);
        Ok(fresh)
    }

    /// Returns the folders whose headers were read, one entry for each time.
    pub fn read(&self) -> Vec<PathBuf> {
        let folders = self.opened();
        folders
            .iter()
            .map(|there| there.folder.source().to_path_buf())
            .collect()
    }

    fn opened(&self) -> MutexGuard<'_, Vec<Checkpoint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
