//! Video input and output: the only module that names ffmpeg. No `ffmpeg` program is called.
//!
//! [`Clip::open`] scans a file, [`select`] picks frames by their timestamps, [`Fit`] describes resizing and cropping,
//! [`Clip::decode_fitted`] decodes and fits, [`Writer`] encodes frames.

mod aspect;
mod avi;
mod clip;
mod convert;
mod decode;
mod encode;
mod error;
mod exif;
mod fit;
mod heif;
mod libav;
mod open;
mod orientation;
mod palette;
mod picture;
mod remark;
mod scan;
mod select;
mod still;

pub use aspect::PixelAspect;
pub use clip::Clip;
pub use encode::{Writer, write};
pub use error::VideoError;
pub use fit::{Crop, Fit};
pub use remark::Remark;
pub use select::{Select, available, rate, select};
pub use still::{jpeg, png};

/// RGB pictures of one size, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// (F, H, W, 3)
    pub data: Vec<u8>,
    /// Number of pictures.
    pub num_frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl Frames {
    /// Iterates over the frames, each (H, W, 3).
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.data.chunks_exact((self.height * self.width * 3).max(1))
    }
}
