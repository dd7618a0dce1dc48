//! Display of a clip's pictures: which way up, how wide, and what is unusual about them.

use std::path::Path;

use ffmpeg::codec::packet::side_data::Type;
use ffmpeg::color::TransferCharacteristic;
use ffmpeg_next as ffmpeg;

use super::VideoError;
use super::aspect::PixelAspect;
use super::decode::First;
use super::exif::{self, Still};
use super::libav::{MAX_PIXELS, MAX_SIDE};
use super::remark::Remark;
use super::turn::Turn;

/// The way in which a clip's stored pictures are shown.
#[derive(Debug, Clone)]
pub struct Picture {
    pub turn: Turn,
    /// Set if the picture itself says so (EXIF, H.264's display orientation), and not the container around it.
    turned_by_itself: bool,
    /// (height, width), turned and with the pixels' shape as it is.
    pub stored: (usize, usize),
    /// (height, width) as displayed.
    pub shown: (usize, usize),
    pub remarks: Vec<Remark>,
}

/// Facts that a container gives of its stream's pictures.
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
    /// Before the first frame.
    pub const UNSEEN: Picture = Picture {
        turn: Turn::NONE,
        turned_by_itself: false,
        stored: (0, 0),
        shown: (0, 0),
        remarks: Vec::new(),
    };

    /// Decides how pictures are shown. A still is turned by EXIF; a film by its frame, or else by its container.
    pub fn of(path: &Path, is_image: bool, container: Container, first: &First) -> Result<Self, VideoError> {
        let mut remarks = Vec::new();
        let mut of_matrix = |matrix: Option<&Vec<u8>>| {
            let turn = matrix.map_or(Ok(Turn::NONE), |matrix| Turn::of_matrix(matrix));
            turn.unwrap_or_else(|degrees| {
                remarks.push(Remark::Slanted(degrees));
                Turn::NONE
            })
        };
        let (turn, turned_by_itself) = match (exif::of(path), &first.matrix) {
            (Some(Still::Oriented(number)), _) => (Turn::of_exif(number).unwrap_or(Turn::NONE), true),
            (Some(Still::Plain), _) => (Turn::NONE, false),
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

    /// EXIF's number of the turn, where the picture itself gives it.
    pub fn own_orientation(&self) -> Option<u32> {
        self.turned_by_itself.then(|| self.turn.exif())
    }
}

/// The kind of high dynamic range, where there is one.
fn hdr(transfer: TransferCharacteristic, dolby_vision: Option<u8>) -> Option<&'static str> {
    match (transfer, dolby_vision) {
        // It has colours of its own, and no picture for others to show.
        (_, Some(5)) => Some("Dolby Vision, profile 5"),
        (TransferCharacteristic::SMPTE2084, _) => Some("PQ"),
        (TransferCharacteristic::ARIB_STD_B67, _) => Some("HLG"),
        _ => None,
    }
}

/// Refuses pixels of such a shape that the picture is shown in an absurd size.
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
