//! A decoded picture as upright RGB.
//!
//! swscale converts at the picture's own size with its bilinear setting and no rounding flags: chroma as PyAV,
//! torchvision and decord read it, so that what is trained on equals what their readers see. The matrix is the stream's
//! tag (BT.601, 709, 2020, ...; untagged is BT.601, swscale's default), the range likewise (untagged is limited, except
//! for the `yuvj` formats). Alpha is dropped. Rotation metadata is applied in steps of 90 degrees, mirrored or not.

use ffmpeg::codec::packet::side_data::Type;
use ffmpeg::color;
use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video;
use ffmpeg::software::scaling;
use ffmpeg_next as ffmpeg;

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

/// How a stored picture is turned to stand upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Rows and columns change places.
    transpose: bool,
    /// Then left and right.
    mirror_x: bool,
    /// And top and bottom.
    mirror_y: bool,
}

impl Turn {
    pub const NONE: Turn = Turn {
        transpose: false,
        mirror_x: false,
        mirror_y: false,
    };

    /// From the stream's display matrix; none without one, or for an angle that is no multiple of 90 degrees.
    pub fn of(stream: &ffmpeg::Stream) -> Self {
        let matrix = stream.side_data().find(|data| data.kind() == Type::DisplayMatrix);
        let Some(matrix) = matrix.filter(|matrix| matrix.data().len() >= 36) else {
            return Self::NONE;
        };
        let entry = |i: usize| {
            let bytes = matrix.data()[4 * i..4 * i + 4]
                .try_into()
                .expect("four bytes of at least 36");
            i32::from_ne_bytes(bytes)
        };
        // (x, y) on screen = (a x + c y, b x + d y), rows [a b u; c d v; x y w].
        let (a, b, c, d) = (entry(0), entry(1), entry(3), entry(4));
        match (a == 0 && d == 0, b == 0 && c == 0) {
            (false, true) => Self {
                transpose: false,
                mirror_x: a < 0,
                mirror_y: d < 0,
            },
            (true, false) => Self {
                transpose: true,
                mirror_x: c < 0,
                mirror_y: b < 0,
            },
            _ => Self::NONE,
        }
    }

    /// (height, width) after turning.
    pub fn size(self, (height, width): (usize, usize)) -> (usize, usize) {
        if self.transpose {
            (width, height)
        } else {
            (height, width)
        }
    }

    fn run(self, picture: &[u8], (height, width): (usize, usize)) -> Vec<u8> {
        let (turned_height, turned_width) = self.size((height, width));
        let mut turned = Vec::with_capacity(picture.len());
        for y in 0..turned_height {
            let y = if self.mirror_y { turned_height - 1 - y } else { y };
            for x in 0..turned_width {
                let x = if self.mirror_x { turned_width - 1 - x } else { x };
                let (row, column) = if self.transpose { (x, y) } else { (y, x) };
                let at = (row * width + column) * 3;
                turned.extend_from_slice(&picture[at..at + 3]);
            }
        }
        turned
    }
}
