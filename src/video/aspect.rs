//! Pixel aspect ratios: DVD, HDV and AVCHD store fewer columns than they display.
//!
//! A picture of `height` rows and `width` columns is displayed with `height` rows and `width * numerator / denominator`
//! columns, before rotation. The container's ratio takes precedence over the codec's (`av_guess_sample_aspect_ratio`),
//! as in ffplay and mpv.

use std::fmt;

/// Tolerance around 1: such ratios come from rounded sizes, and scaling by them would only blur. libav has the same
/// tolerance for display matrices.
const ROUNDING: f64 = 0.01;

/// Width of a pixel by its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PixelAspect {
    numerator: u32,
    denominator: u32,
}

impl PixelAspect {
    /// Pixels as wide as they are high.
    pub const SQUARE: PixelAspect = PixelAspect {
        numerator: 1,
        denominator: 1,
    };

    /// Reads libav's ratio: square if it is missing or negligible.
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

    /// True if pixels are as wide as they are high.
    pub fn is_square(self) -> bool {
        self == Self::SQUARE
    }

    /// Returns the (height, width) at which a picture is displayed, before rotation.
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
