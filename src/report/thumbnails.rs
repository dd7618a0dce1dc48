//! A small picture of each clip, from its middle, as `report/clips/<hash>.jpg`. The hash is that of the clip's record in the
//! cache, so that a picture which is there is the right one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::FOLDER;
use crate::data::Bucket;
use crate::disk;
use crate::video::{self, Clip, Crop, Fit};

/// So many clips of a run get a picture; the rest are named.
pub const MOST: usize = 200;

/// Rows of a picture.
const HEIGHT: usize = 144;

/// Columns of the widest picture.
const WIDEST: usize = 432;

/// A picture to make.
#[derive(Debug, Clone)]
pub struct Thumbnail {
    pub clip: PathBuf,
    /// Its shape is the picture's.
    pub bucket: Bucket,
    /// Relative to the report's folder.
    pub name: String,
}

/// The name of the picture of a clip whose record has this hash.
pub fn name(hash: &str) -> String {
    format!("clips/{}.jpg", &hash[..hash.len().min(16)])
}

/// Pictures being made beside the training.
pub struct Maker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Maker {
    /// Makes those that are not there yet, one after the other, for the run in `folder`. A clip that gives no picture goes
    /// without.
    pub fn start(folder: &Path, thumbnails: Vec<Thumbnail>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (folder, asked) = (folder.join(FOLDER), stop.clone());
        let make = move || {
            for thumbnail in thumbnails {
                if asked.load(Ordering::Relaxed) {
                    return;
                }
                let path = folder.join(&thumbnail.name);
                if path.exists() {
                    continue;
                }
                if let Err(error) = make(&thumbnail, &path) {
                    log::debug!("{}: no picture of it: {error:#}", thumbnail.clip.display());
                }
            }
        };
        // Where no thread can be had there are no pictures.
        let thread = std::thread::Builder::new().name("thumbnails".into()).spawn(make).ok();
        Self { stop, thread }
    }

    /// Waits for all pictures.
    pub fn finish(mut self) {
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Maker {
    /// Ends behind the picture that is being made.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn make(thumbnail: &Thumbnail, path: &Path) -> anyhow::Result<()> {
    let clip = Clip::open(&thumbnail.clip)?;
    let bucket = thumbnail.bucket;
    let width = (HEIGHT * bucket.width).div_ceil(bucket.height.max(1)).clamp(16, WIDEST);
    let fit = Fit::cover((clip.height(), clip.width()), (HEIGHT, width), Crop::Center);
    let frames = clip.decode_fitted(&[clip.num_frames() / 2], &fit)?;
    disk::write_whole(path, &video::jpeg(&frames.data, (HEIGHT, width))?)?;
    Ok(())
}
