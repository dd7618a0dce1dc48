//! Unusual things about a clip's picture, and what is made of them: for people to know before they train on it.

use std::fmt;

use super::aspect::PixelAspect;

/// One such thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// Pixels that are not square. Sizes are (height, width), upright.
    Scaled {
        aspect: PixelAspect,
        stored: (usize, usize),
        shown: (usize, usize),
    },
    /// A still that says so of its pixels, mostly as dots per inch.
    TakenAsSquare(PixelAspect),
    /// High dynamic range, read as if it had none.
    Hdr(&'static str),
    /// A display matrix of so many degrees.
    Slanted(i32),
}

impl Remark {
    /// The same of several clips, whose names and [details](fmt::Display) are to follow.
    pub fn heading(&self) -> &'static str {
        match self {
            Remark::Scaled { .. } => "pixels that are not square, scaled to the size they are shown at",
            Remark::TakenAsSquare(_) => "stills whose resolution differs by axis, taken as if their pixels were square",
            Remark::Hdr(_) => {
                "HDR, read as if it were SDR, so that colours come out pale; convert these to SDR (BT.709) to train on \
                 what is seen"
            }
            Remark::Slanted(_) => "shown at an angle that is no multiple of 90 degrees, taken as they are stored",
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
