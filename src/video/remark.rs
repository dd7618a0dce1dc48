//! Remarks on unusual pictures of a clip and their treatment, for users to know before training.

use std::fmt;

use super::aspect::PixelAspect;

/// Unusual properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// Pixels that are not square. Sizes are (height, width), upright.
    Scaled {
        /// Width of a pixel over its height.
        aspect: PixelAspect,
        /// Size in the file.
        stored: (usize, usize),
        /// Size after scaling.
        shown: (usize, usize),
    },
    /// A still with such a pixel aspect ratio, usually given as dots per inch.
    TakenAsSquare(PixelAspect),
    /// High dynamic range, read as standard range.
    Hdr(&'static str),
    /// A display matrix with an angle in degrees.
    Slanted(i32),
}

impl Remark {
    /// Heading for several clips, whose names and [details](fmt::Display) follow.
    pub fn heading(&self) -> &'static str {
        match self {
            Remark::Scaled { .. } => "pixels that are not square, scaled to the size they are shown at",
            Remark::TakenAsSquare(_) => "stills whose resolution differs by axis, taken as if their pixels were square",
            Remark::Hdr(_) => {
                "HDR, read as if it were SDR, so that colours come out pale; convert these to SDR (BT.709) to train on \
                 what is seen"
            }
            Remark::Slanted(_) => "shown at an angle that is not a multiple of 90 degrees, taken as they are stored",
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |(height, width): (usize, usize)| format!("{width}x{height}");
        match self {
            Remark::Scaled { aspect, stored, shown } => {
                write!(f, "pixels {aspect}, {} shown as {}", size(*stored), size(*shown))
            }
            Remark::TakenAsSquare(aspect) => write!(f, "pixels {aspect}"),
            Remark::Hdr(transfer) => write!(f, "{transfer}"),
            Remark::Slanted(degrees) => write!(f, "{degrees} degrees"),
        }
    }
}
