//! Conversion of decoded pictures to upright RGB, and of RGB to what encoders take.
//!
//! swscale converts at the picture's own size with its bilinear setting and no rounding flags, which gives the same
//! chroma as PyAV, torchvision and decord, so that training data equals what their readers return. The matrix follows
//! the stream's tag (BT.601, 709, 2020, ...; untagged is BT.601, swscale's default), and so does the range (untagged is
//! limited, except for the `yuvj` formats). 8-bit 4:2:0 of even size thus equals PyAV's `to_ndarray(format="rgb24")`
//! bit for bit; 10-bit and odd sizes take swscale's general path, whose chroma interpolation differs slightly between
//! FFmpeg versions. Alpha is dropped. Pictures are turned by their [`Orientation`].

use ffmpeg::color;
use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video;
use ffmpeg::software::scaling;
use ffmpeg_next as ffmpeg;

use super::orientation::Orientation;

/// Converts decoded pictures to RGB, reusing its tables and buffers.
pub struct Converter {
    turn: Orientation,
    sws: Option<(Key, scaling::Context)>,
    rgb: Video,
    upright: Vec<u8>,
}

/// Parameters of a conversion.
type Key = (Pixel, u32, u32, color::Space, bool);

impl Converter {
    pub fn new(turn: Orientation) -> Self {
        Self {
            turn,
            sws: None,
            rgb: Video::empty(),
            upright: Vec::new(),
        }
    }

    /// Converts the picture to (H, W, 3), upright, and returns it with its (height, width).
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
        if self.turn != Orientation::NONE {
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
        // swscale numbers its matrices like the tags, and takes its default for unknown numbers. SAFETY: returns a
        // static table for any number.
        unsafe { ffi::sws_getCoefficients(ffi::AVColorSpace::from(space) as i32) }
    };
    let (unit, zero) = (1 << 16, 0);
    // SAFETY: the context is live and the tables are static. It refuses (-1) if neither side is YUV: nothing to set.
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

/// Converter to YUV; `to` is the matrix, and true for full range.
pub fn to_yuv(rgb: &Video, format: Pixel, to: (color::Space, bool)) -> Result<scaling::Context, ffmpeg::Error> {
    let (width, height) = (rgb.width(), rgb.height());
    let flags = scaling::Flags::BICUBIC | scaling::Flags::ACCURATE_RND | scaling::Flags::BITEXACT;
    let mut scaler = scaling::Context::get(Pixel::RGB24, width, height, format, width, height, flags)?;
    set_colours(&mut scaler, (color::Space::Unspecified, true), to);
    Ok(scaler)
}

/// Copies a picture into a frame, repeating its last column and row if the frame is larger.
pub fn pad(picture: &[u8], (height, width): (usize, usize), frame: &mut Video) {
    let (rows, columns, stride) = (frame.height() as usize, frame.width() as usize, frame.stride(0));
    let data = frame.data_mut(0);
    for y in 0..rows {
        let from = y.min(height - 1) * width * 3;
        let (row, to) = (
            &picture[from..from + width * 3],
            &mut data[y * stride..y * stride + columns * 3],
        );
        to[..width * 3].copy_from_slice(row);
        for x in width..columns {
            to[x * 3..x * 3 + 3].copy_from_slice(&row[width * 3 - 3..]);
        }
    }
}
