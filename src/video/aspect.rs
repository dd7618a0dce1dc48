//! The shape of a clip's pixels: DVD, HDV and AVCHD store fewer columns than they show.
//!
//! A picture of `height` rows and `width` columns is shown with `height` rows and `width * numerator / denominator` columns,
//! before it is turned. What the container says counts before what the codec says (`av_guess_sample_aspect_ratio`), as in
//! ffplay and mpv.

use std::fmt;

/// Ratios this near to 1 come from sizes that were rounded: scaling by them would only blur. libav draws the line here, too,
/// where it reads a display matrix.
const ROUNDING: f64 = 0.01;

/// Width of a pixel by its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PixelAspect {
    numerator: u32,
    denominator: u32,
}

impl PixelAspect {
    pub const SQUARE: PixelAspect = PixelAspect {
        numerator: 1,
        denominator: 1,
    };

    /// Reads libav's ratio: square where nothing is said, or next to nothing.
    pub fn new(numerator: i32, denominator: i32) -> Self {
        let positive = |number: i32| u32::try_from(number).ok().filter(|number| *number > 0);
        let (Some(numerator), Some(denominator)) = (positive(numerator), positive(denominator)) else {
            return Self::SQUARE;
        };
        let ratio = f64::from(numerator) / f64::from(denominator);
        match (ratio - 1.0).abs() < ROUNDING {
            true => Self::SQUARE,
            false => Self { numerator, denominator },
        }
    }

    pub fn is_square(self) -> bool {
        self == Self::SQUARE
    }

    /// The (height, width) at which a picture stored with these is shown, before it is turned.
    pub fn shown(self, (height, width): (usize, usize)) -> (usize, usize) {
        let wide = width as f64 * f64::from(self.numerator) / f64::from(self.denominator);
        (height, (wide.round() as usize).max(1))
    }
}

impl fmt::Display for PixelAspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.numerator, self.denominator)
    }
}
