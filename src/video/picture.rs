//! Display of a clip's pictures: orientation, pixel aspect ratio, and unusual properties.

use std::path::Path;

use ffmpeg::codec::packet::side_data::Type;
use ffmpeg::color::TransferCharacteristic;
use ffmpeg_next as ffmpeg;

use super::VideoError;
use super::aspect::PixelAspect;
use super::exif::{self, Still};
use super::libav::{MAX_PIXELS, MAX_SIDE};
use super::orientation::Orientation;
use super::remark::Remark;

/// Properties of all pictures, taken from the first frame.
pub struct FirstFrame {
    /// (height, width) as stored.
    pub size: (usize, usize),
    /// Display matrix of the frame itself.
    pub matrix: Option<Vec<u8>>,
    pub aspect: PixelAspect,
    pub transfer: TransferCharacteristic,
}

/// Display properties of a clip's pictures.
#[derive(Debug, Clone)]
pub struct Picture {
    pub turn: Orientation,
    /// True if the orientation comes from the picture itself (EXIF, H.264's display orientation), not the container.
    turned_by_itself: bool,
    /// (height, width) after turning, with the stored pixels.
    pub stored: (usize, usize),
    /// (height, width) as displayed.
    pub shown: (usize, usize),
    pub remarks: Vec<Remark>,
}

/// Properties of the stream's pictures given by the container.
pub struct Container {
    matrix: Option<Vec<u8>>,
    dolby_vision: Option<u8>,
}

impl Container {
    pub fn of(stream: &ffmpeg::Stream) -> Self {
        let data = |kind| stream.side_data().find(|data| data.kind() == kind);
        Self {
            matrix: data(Type::DisplayMatrix).map(|matrix| matrix.data().to_vec()),
            // <major version> <minor version> <profile>
            dolby_vision: data(Type::DOVI_CONF).and_then(|record| record.data().get(2).copied()),
        }
    }
}

impl Picture {
    /// State before the first frame.
    pub const UNSEEN: Picture = Picture {
        turn: Orientation::NONE,
        turned_by_itself: false,
        stored: (0, 0),
        shown: (0, 0),
        remarks: Vec::new(),
    };

    /// Decides how pictures are displayed. A still is turned by EXIF; a video by its frame, or else by its container.
    pub fn of(path: &Path, is_image: bool, container: Container, first: &FirstFrame) -> Result<Self, VideoError> {
        let mut remarks = Vec::new();
        let mut of_matrix = |matrix: Option<&Vec<u8>>| {
            let turn = matrix.map_or(Ok(Orientation::NONE), |matrix| Orientation::of_matrix(matrix));
            turn.unwrap_or_else(|degrees| {
                remarks.push(Remark::Slanted(degrees));
                Orientation::NONE
            })
        };
        let (turn, turned_by_itself) = match (exif::of(path), &first.matrix) {
            (Some(Still::Oriented(number)), _) => (Orientation::of_exif(number).unwrap_or(Orientation::NONE), true),
            (Some(Still::Plain), _) => (Orientation::NONE, false),
            (None, Some(matrix)) => (of_matrix(Some(matrix)), container.matrix.as_ref() != Some(matrix)),
            (None, None) => (of_matrix(container.matrix.as_ref()), false),
        };
        let upright = |size| turn.size(size);
        let (stored, mut shown) = (upright(first.size), upright(first.size));
        let aspect = first.aspect;
        match (aspect.is_square(), is_image) {
            (true, _) => {}
            (false, true) => remarks.push(Remark::TakenAsSquare(aspect)),
            (false, false) => {
                shown = upright(aspect.shown(first.size));
                check_shown(path, aspect, stored, shown)?;
                remarks.push(Remark::Scaled { aspect, stored, shown });
            }
        }
        remarks.extend(hdr(first.transfer, container.dolby_vision).map(Remark::Hdr));
        Ok(Self {
            turn,
            turned_by_itself,
            stored,
            shown,
            remarks,
        })
    }

    /// Returns EXIF's orientation, if the picture itself gives it.
    pub fn own_orientation(&self) -> Option<u32> {
        self.turned_by_itself.then(|| self.turn.exif())
    }
}

/// Returns the kind of high dynamic range, if any.
fn hdr(transfer: TransferCharacteristic, dolby_vision: Option<u8>) -> Option<&'static str> {
    match (transfer, dolby_vision) {
        // Its colours are proprietary, without a fallback for other players.
        (_, Some(5)) => Some("Dolby Vision, profile 5"),
        (TransferCharacteristic::SMPTE2084, _) => Some("PQ"),
        (TransferCharacteristic::ARIB_STD_B67, _) => Some("HLG"),
        _ => None,
    }
}

/// Rejects pixel aspect ratios that give an absurd display size.
fn check_shown(
    path: &Path,
    aspect: PixelAspect,
    (height, width): (usize, usize),
    shown: (usize, usize),
) -> Result<(), VideoError> {
    let side = MAX_SIDE as usize;
    if shown.0 <= side && shown.1 <= side && (shown.0 * shown.1) as i64 <= MAX_PIXELS {
        return Ok(());
    }
    let reason = format!(
        "has {width}x{height} pixels of the shape {aspect}, and is shown as {}x{}; at most {MAX_SIDE} a side and \
         {MAX_PIXELS} pixels are read",
        shown.1, shown.0
    );
    Err(VideoError::TooLarge {
        path: path.into(),
        reason,
    })
}
