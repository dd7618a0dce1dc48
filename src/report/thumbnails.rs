//! Thumbnail of each clip, from its middle frame, as `report/clips/<hash>.jpg`. The hash is that of the clip's cache
//! record, so an existing thumbnail is always up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::data::Bucket;
use crate::disk;
use crate::run_dir::{RunDir, THUMBNAILS};
use crate::video::{self, Clip, Crop, Fit};

/// Number of clips of a run that get a thumbnail; the rest are listed by name.
const MOST: usize = 200;

/// Rows of a thumbnail.
const HEIGHT: usize = 144;

/// Minimum and maximum columns of a thumbnail.
const NARROWEST: usize = 16;
const WIDEST: usize = 432;

/// A thumbnail to make.
#[derive(Debug, Clone)]
pub struct Thumbnail {
    /// Path of the clip.
    pub clip: PathBuf,
    /// Bucket, which gives the shape.
    pub bucket: Bucket,
    /// Path relative to the report's folder.
    pub name: String,
}

/// Returns the thumbnail's name for a clip whose record has this hash.
pub fn name(hash: &str) -> String {
    format!("{THUMBNAILS}/{}.jpg", &hash[..hash.len().min(16)])
}

/// Background thread that makes thumbnails during training.
pub struct Maker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Maker {
    /// Makes those that are not there yet, one after the other, for a run. A clip that gives no picture goes
    /// without.
    pub fn start(dir: &RunDir, thumbnails: Vec<Thumbnail>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (folder, asked) = (dir.report(), stop.clone());
        let make = move || {
            for thumbnail in thumbnails.into_iter().take(MOST) {
                if asked.load(Ordering::Relaxed) {
                    return;
                }
                let path = folder.join(&thumbnail.name);
                if path.exists() {
                    continue;
                }
                if let Err(error) = make(&thumbnail, &path) {
                    log::debug!("{}: no thumbnail: {error:#}", thumbnail.clip.display());
                }
            }
        };
        // Without a thread there are no thumbnails.
        let thread = std::thread::Builder::new().name("thumbnails".into()).spawn(make).ok();
        Self { stop, thread }
    }

    /// Waits for all thumbnails.
    pub fn finish(mut self) {
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Maker {
    /// Stops after the current thumbnail.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn make(thumbnail: &Thumbnail, path: &Path) -> anyhow::Result<()> {
    let clip = Clip::open(&thumbnail.clip)?;
    let bucket = thumbnail.bucket;
    let width = (HEIGHT * bucket.width)
        .div_ceil(bucket.height.max(1))
        .clamp(NARROWEST, WIDEST);
    let fit = Fit::cover((clip.height(), clip.width()), (HEIGHT, width), Crop::Center);
    let frames = clip.decode_fitted(&[clip.num_frames() / 2], &fit)?;
    disk::write_whole(path, &video::jpeg(&frames.data, (HEIGHT, width))?)?;
    Ok(())
}
