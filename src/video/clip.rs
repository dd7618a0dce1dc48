//! A clip on disk: its properties, and decoding of its frames.

use std::path::{Path, PathBuf};

use super::picture::Picture;
use super::remark::Remark;
use super::scan::Scan;

/// A file that holds at least one frame of video, or an image.
#[derive(Debug, Clone)]
pub struct Clip {
    pub(super) path: PathBuf,
    pub(super) scan: Scan,
    pub(super) timestamps: Vec<f64>,
    pub(super) codec: String,
    pub(super) is_image: bool,
    pub(super) picture: Picture,
}

impl Clip {
    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the displayed width: after rotation, with square pixels.
    pub fn width(&self) -> usize {
        self.picture.shown.1
    }

    /// Returns the displayed height: after rotation, with square pixels.
    pub fn height(&self) -> usize {
        self.picture.shown.0
    }

    /// Returns the (height, width) before resizing: after rotation, with the stored pixels.
    pub fn stored_size(&self) -> (usize, usize) {
        self.picture.stored
    }

    /// Returns the EXIF orientation (1 to 8) given by the picture itself rather than the container.
    pub fn own_orientation(&self) -> Option<u32> {
        self.picture.own_orientation()
    }

    /// Returns remarks on unusual pictures and their treatment.
    pub fn remarks(&self) -> &[Remark] {
        &self.picture.remarks
    }

    /// Number of frames.
    pub fn num_frames(&self) -> usize {
        self.timestamps.len()
    }

    /// Average frames per second.
    pub fn fps(&self) -> f64 {
        self.scan.fps
    }

    /// Duration in seconds, from the start of the first frame to the end of the last one.
    pub fn duration(&self) -> f64 {
        self.timestamps.last().copied().unwrap_or(0.0) + 1.0 / self.scan.fps
    }

    /// True for a still picture.
    pub fn is_image(&self) -> bool {
        self.is_image
    }

    /// Returns libav's name of the codec: `h264`, `vp9`, `png`.
    pub fn codec(&self) -> &str {
        &self.codec
    }

    /// Returns the time of each frame in seconds after the first, ascending.
    pub fn timestamps(&self) -> &[f64] {
        &self.timestamps
    }
}
