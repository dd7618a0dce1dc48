//! Video in and out: the only place that names ffmpeg. No `ffmpeg` program is called.
//!
//! [`Clip::open`] looks at a file, [`select`] picks frames by their timestamps, [`Fit`] says how a picture is brought to
//! another size, [`Clip::decode_fitted`] does it, [`Writer`] makes a file of frames again.

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
mod palette;
mod picture;
mod remark;
mod scan;
mod select;
mod turn;

pub use aspect::PixelAspect;
pub use clip::Clip;
pub use encode::{Writer, jpeg, write};
pub use error::VideoError;
pub use fit::{Crop, Fit};
pub use remark::Remark;
pub use select::{Select, available, rate, select};

/// RGB pictures of one size, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// (F, H, W, 3)
    pub data: Vec<u8>,
    pub num_frames: usize,
    pub height: usize,
    pub width: usize,
}

impl Frames {
    /// The frames one by one, each (H, W, 3).
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.data.chunks_exact((self.height * self.width * 3).max(1))
    }
}
