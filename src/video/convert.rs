//! A decoded picture as upright RGB.
//!
//! swscale converts at the picture's own size with its bilinear setting and no rounding flags: chroma as PyAV,
//! torchvision and decord read it, so that what is trained on equals what their readers see. The matrix is the stream's
//! tag (BT.601, 709, 2020, ...; untagged is BT.601, swscale's default), the range likewise (untagged is limited, except
//! for the `yuvj` formats). 8-bit 4:2:0 of even size thus equals PyAV's `to_ndarray(format="rgb24")` bit for bit; 10-bit and
//! odd sizes take swscale's general path, whose chroma interpolation differs a little between FFmpeg versions. Alpha is dropped. Pictures
//! are turned as [`Turn`] says.

use ffmpeg::color;
use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video;
use ffmpeg::software::scaling;
use ffmpeg_next as ffmpeg;

use super::turn::Turn;

/// Turns decoded pictures into RGB, keeping its tables and buffers.
pub struct Converter {
    turn: Turn,
    sws: Option<(Key, scaling::Context)>,
    rgb: Video,
    upright: Vec<u8>,
}

/// What a conversion is set up for.
type Key = (Pixel, u32, u32, color::Space, bool);

impl Converter {
    pub fn new(turn: Turn) -> Self {
        Self {
            turn,
            sws: None,
            rgb: Video::empty(),
            upright: Vec::new(),
        }
    }

    /// The picture as (H, W, 3), upright, and its (height, width).
    pub fn run(&mut self, picture: &Video) -> Result<(&[u8], (usize, usize)), ffmpeg::Error> {
        let full = picture.color_range() == color::Range::JPEG || is_yuvj(picture.format());
        let key = (
            picture.format(),
            picture.width(),
            picture.height(),
            picture.color_space(),
            full,
        );
        let sws = match &mut self.sws {
            Some((at, sws)) if *at == key => sws,
            _ => {
                self.rgb = Video::empty();
                &mut self.sws.insert((key, scaler(key)?)).1
            }
        };
        sws.run(picture, &mut self.rgb)?;
        let (height, width) = (picture.height() as usize, picture.width() as usize);
        let rows = self
            .rgb
            .data(0)
            .chunks(self.rgb.stride(0))
            .take(height)
            .map(|row| &row[..width * 3]);
        self.upright.clear();
        self.upright.reserve(height * width * 3);
        rows.for_each(|row| self.upright.extend_from_slice(row));
        if self.turn != Turn::NONE {
            self.upright = self.turn.run(&self.upright, (height, width));
        }
        Ok((&self.upright, self.turn.size((height, width))))
    }
}

fn is_yuvj(format: Pixel) -> bool {
    matches!(
        format,
        Pixel::YUVJ420P | Pixel::YUVJ422P | Pixel::YUVJ444P | Pixel::YUVJ440P | Pixel::YUVJ411P
    )
}

fn scaler((format, width, height, space, full): Key) -> Result<scaling::Context, ffmpeg::Error> {
    let flags = scaling::Flags::BILINEAR;
    let mut sws = scaling::Context::get(format, width, height, Pixel::RGB24, width, height, flags)?;
    set_colours(&mut sws, (space, full), (color::Space::Unspecified, true));
    Ok(sws)
}

/// Sets matrix and range (true: full) of source and target.
pub fn set_colours(sws: &mut scaling::Context, from: (color::Space, bool), to: (color::Space, bool)) {
    let coefficients = |space: color::Space| {
        let space = match space {
            color::Space::BT2020CL => color::Space::BT2020NCL,
            space => space,
        };
        // swscale numbers its matrices as the tags are numbered, and takes its default for what it does not know.
        // SAFETY: returns a static table for any number.
        unsafe { ffi::sws_getCoefficients(ffi::AVColorSpace::from(space) as i32) }
    };
    let (unit, zero) = (1 << 16, 0);
    // SAFETY: the context is live and the tables are static. It refuses (-1) where neither side is YUV: nothing to set.
    unsafe {
        ffi::sws_setColorspaceDetails(
            sws.as_mut_ptr(),
            coefficients(from.0),
            from.1.into(),
            coefficients(to.0),
            to.1.into(),
            zero,
            unit,
            unit,
        )
    };
}
