//! Fitting of a picture to another size: resized, then cropped.
//!
//! Resizing is bicubic (a = -0.5) with the kernel widened when shrinking (antialiased): Pillow's
//! `Image.resize(BICUBIC)`, which torchvision's `resize(BICUBIC, antialias=True)` equals too, to within 1/255.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// Resize to (`resize_height`, `resize_width`), then take (`height`, `width`) from (`top`, `left`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Rows after resizing.
    pub resize_height: usize,
    /// Columns after resizing.
    pub resize_width: usize,
    /// First row that is kept.
    pub top: usize,
    /// First column that is kept.
    pub left: usize,
    /// Rows that are kept.
    pub height: usize,
    /// Columns that are kept.
    pub width: usize,
}

/// Position of the crop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Crop {
    /// The middle.
    Center,
    /// `x` and `y` in 0..1: from the left and top edge to the right and bottom one.
    Random {
        /// Position from left to right.
        x: f64,
        /// Position from top to bottom.
        y: f64,
    },
}

impl Fit {
    /// Keeps everything. Sizes are (height, width).
    pub fn whole((height, width): (usize, usize)) -> Self {
        Self::squash((height, width))
    }

    /// Keeps the aspect ratio: the smallest size that covers `to`, cropped to it. Sizes are (height, width).
    pub fn cover(from: (usize, usize), to: (usize, usize), crop: Crop) -> Self {
        let scale = (to.0 as f64 / from.0.max(1) as f64).max(to.1 as f64 / from.1.max(1) as f64);
        let side = |from: usize, to: usize| ((from as f64 * scale).round() as usize).max(to);
        let (resize_height, resize_width) = (side(from.0, to.0), side(from.1, to.1));
        let (over_y, over_x) = (resize_height - to.0, resize_width - to.1);
        let at = |share: f64, over: usize| ((share * (over + 1) as f64) as usize).min(over);
        let (top, left) = match crop {
            Crop::Center => (over_y / 2, over_x / 2),
            Crop::Random { x, y } => (at(y, over_y), at(x, over_x)),
        };
        Self {
            resize_height,
            resize_width,
            top,
            left,
            height: to.0,
            width: to.1,
        }
    }

    /// Keeps the whole picture, changing its aspect ratio. Sizes are (height, width).
    pub fn squash((height, width): (usize, usize)) -> Self {
        Self {
            resize_height: height,
            resize_width: width,
            top: 0,
            left: 0,
            height,
            width,
        }
    }

    /// Fits a single picture (height, width, 3).
    ///
    /// # Errors
    /// Fails for a picture with a wrong number of bytes, and for a crop beyond the resized picture.
    pub fn picture(&self, picture: &[u8], from: (usize, usize)) -> Result<Vec<u8>, String> {
        let inside = self.top + self.height <= self.resize_height && self.left + self.width <= self.resize_width;
        if picture.len() != from.0 * from.1 * 3 || !inside {
            return Err(format!(
                "a picture of {from:?} with {} bytes does not fit {self:?}",
                picture.len()
            ));
        }
        let mut out = vec![0; self.frame_bytes()];
        Fitter::new(*self).run(picture, from, &mut out)?;
        Ok(out)
    }

    /// Returns the bytes of one fitted frame.
    pub fn frame_bytes(&self) -> usize {
        self.height * self.width * 3
    }
}

/// Fits pictures one after another, reusing its buffers.
pub(super) struct Fitter {
    fit: Fit,
    resizer: Resizer,
    resized: Vec<u8>,
}

impl Fitter {
    pub fn new(fit: Fit) -> Self {
        Self {
            fit,
            resizer: Resizer::new(),
            resized: Vec::new(),
        }
    }

    /// Fits `picture` (height, width, 3) into `out`, which has [`Fit::frame_bytes`].
    pub fn run(&mut self, picture: &[u8], (height, width): (usize, usize), out: &mut [u8]) -> Result<(), String> {
        let fit = self.fit;
        if (height, width) == (fit.resize_height, fit.resize_width) {
            cut(picture, width, &fit, out);
            return Ok(());
        }
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        let source = ImageRef::new(width as u32, height as u32, picture, PixelType::U8x3).map_err(|e| e.to_string())?;
        if (fit.resize_height, fit.resize_width) == (fit.height, fit.width) {
            let mut target = Image::from_slice_u8(fit.width as u32, fit.height as u32, out, PixelType::U8x3)
                .map_err(|e| e.to_string())?;
            return self
                .resizer
                .resize(&source, &mut target, &options)
                .map_err(|e| e.to_string());
        }
        self.resized.resize(fit.resize_height * fit.resize_width * 3, 0);
        let (w, h) = (fit.resize_width as u32, fit.resize_height as u32);
        let mut target = Image::from_slice_u8(w, h, &mut self.resized, PixelType::U8x3).map_err(|e| e.to_string())?;
        self.resizer
            .resize(&source, &mut target, &options)
            .map_err(|e| e.to_string())?;
        cut(&self.resized, fit.resize_width, &fit, out);
        Ok(())
    }
}

/// Copies the crop from a picture of the resized size.
fn cut(picture: &[u8], width: usize, fit: &Fit, out: &mut [u8]) {
    let rows = picture.chunks_exact(width * 3).skip(fit.top);
    for (row, out) in rows.zip(out.chunks_exact_mut(fit.width * 3)) {
        out.copy_from_slice(&row[fit.left * 3..(fit.left + fit.width) * 3]);
    }
}
