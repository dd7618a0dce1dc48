//! Orientation of stored pictures: an optional transposition, then optional mirroring of either axis.
//!
//! There are two notations. A display matrix (ISO/IEC 14496-12, 8.3.2) maps a stored point to a displayed one; EXIF's
//! orientation (CIPA DC-008, tag 0x0112) numbers the same eight cases from 1 to 8.

/// One of the eight orientations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation {
    /// Swaps rows and columns.
    transpose: bool,
    /// Then swaps left and right.
    mirror_x: bool,
    /// Then swaps top and bottom.
    mirror_y: bool,
}

impl Orientation {
    pub const NONE: Orientation = Orientation {
        transpose: false,
        mirror_x: false,
        mirror_y: false,
    };

    /// Converts EXIF's orientation, 1 to 8; None for other numbers.
    pub fn of_exif(orientation: u32) -> Option<Self> {
        let (transpose, mirror_x, mirror_y) = match orientation {
            1 => (false, false, false),
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => return None,
        };
        Some(Self {
            transpose,
            mirror_x,
            mirror_y,
        })
    }

    /// Converts a display matrix, nine 32-bit numbers.
    ///
    /// # Errors
    /// The clockwise angle in degrees, if it is not a multiple of 90.
    pub fn of_matrix(bytes: &[u8]) -> Result<Self, i32> {
        if bytes.len() < 36 {
            return Ok(Self::NONE);
        }
        let entry = |i: usize| {
            let bytes = bytes[4 * i..4 * i + 4].try_into().expect("four bytes of at least 36");
            i32::from_ne_bytes(bytes)
        };
        // (x, y) on screen = (a x + c y, b x + d y), rows [a b u; c d v; x y w].
        let (a, b, c, d) = (entry(0), entry(1), entry(3), entry(4));
        match (a == 0 && d == 0, b == 0 && c == 0) {
            (false, true) => Ok(Self {
                transpose: false,
                mirror_x: a < 0,
                mirror_y: d < 0,
            }),
            (true, false) => Ok(Self {
                transpose: true,
                mirror_x: c < 0,
                mirror_y: b < 0,
            }),
            (true, true) => Ok(Self::NONE), // all zeros, which is meaningless
            (false, false) => Err(f64::from(b).atan2(f64::from(a)).to_degrees().round() as i32),
        }
    }

    /// Returns EXIF's number, 1 to 8.
    pub fn exif(self) -> u32 {
        let same = |number: &u32| Self::of_exif(*number) == Some(self);
        (1..=8).find(same).expect("the eight numbers cover all orientations")
    }

    /// Returns the (height, width) after turning.
    pub fn size(self, (height, width): (usize, usize)) -> (usize, usize) {
        if self.transpose {
            (width, height)
        } else {
            (height, width)
        }
    }

    /// Turns a picture (height, width, 3).
    pub fn run(self, picture: &[u8], (height, width): (usize, usize)) -> Vec<u8> {
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
