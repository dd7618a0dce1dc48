//! A clip on disk: what it is, before and while its frames are taken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ffmpeg_next as ffmpeg;

use super::decode::Decoding;
use super::fit::Fit;
use super::heif;
use super::libav::{self, Deadline, LONGEST, MAX_PIXELS, MAX_SIDE};
use super::picture::{Container, Picture};
use super::remark::Remark;
use super::scan::{Scan, video_stream};
use super::{Frames, VideoError};
use crate::disk;

/// A file that holds at least one frame of video, or an image.
#[derive(Debug, Clone)]
pub struct Clip {
    path: PathBuf,
    pub(super) scan: Scan,
    timestamps: Vec<f64>,
    codec: String,
    is_image: bool,
    pub(super) picture: Picture,
}

impl Clip {
    /// Reads all packets and decodes the first frame.
    ///
    /// # Errors
    /// Whatever keeps the clip from being used, in one sentence: see [`VideoError`].
    pub fn open(path: &Path) -> Result<Self, VideoError> {
        Self::open_within(path, LONGEST)
    }

    /// As [`open`](Self::open), which must not take longer than this.
    pub fn open_within(path: &Path, longest: Duration) -> Result<Self, VideoError> {
        let deadline = Deadline::after(longest);
        let path = &*disk::spelled(path);
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => VideoError::Missing { path: path.into() },
            _ => VideoError::Unreadable {
                path: path.into(),
                reason: error.to_string(),
            },
        })?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() {
                "a folder"
            } else {
                "no ordinary file"
            };
            return Err(VideoError::Unreadable {
                path: path.into(),
                reason: format!("it is {what}"),
            });
        }
        if metadata.len() == 0 {
            return Err(VideoError::Empty { path: path.into() });
        }
        if let Some(kind) = heif::kind(path) {
            return Err(VideoError::Heif {
                path: path.into(),
                kind,
            });
        }
        let mut input = libav::open(path, deadline).map_err(|error| match error {
            VideoError::Unreadable { .. } => without_index(path).unwrap_or(error),
            other => other,
        })?;
        let stream = video_stream(&input).ok_or_else(|| VideoError::NoVideo { path: path.into() })?;
        let container = Container::of(&stream);
        let codec = stream.parameters().id().name().to_string();
        check_size(&stream, path)?;
        let is_image = input.format().name().ends_with("_pipe") || input.format().name() == "image2";
        let scan = Scan::of(&mut input, path, deadline)?;
        let timestamps = scan.seconds();
        let mut clip = Self {
            path: path.into(),
            scan,
            timestamps,
            codec,
            is_image,
            picture: Picture::UNSEEN,
        };
        let first = Decoding::of(&clip, deadline)?.first()?;
        clip.picture = Picture::of(path, is_image, container, &first)?;
        Ok(clip)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Displayed size: after rotation, with square pixels.
    pub fn width(&self) -> usize {
        self.picture.shown.1
    }

    /// Displayed size: after rotation, with square pixels.
    pub fn height(&self) -> usize {
        self.picture.shown.0
    }

    /// (height, width) of what is resized: after rotation, the pixels as they are.
    pub fn stored_size(&self) -> (usize, usize) {
        self.picture.stored
    }

    /// EXIF's number (1 to 8) of the orientation that the picture itself gives, and not the container around it.
    pub fn own_orientation(&self) -> Option<u32> {
        self.picture.own_orientation()
    }

    /// Unusual things about its picture, and what is made of them.
    pub fn remarks(&self) -> &[Remark] {
        &self.picture.remarks
    }

    pub fn num_frames(&self) -> usize {
        self.timestamps.len()
    }

    /// Frames a second, on average.
    pub fn fps(&self) -> f64 {
        self.scan.fps
    }

    /// Seconds, from the first frame's appearance to the last one's end.
    pub fn duration(&self) -> f64 {
        self.timestamps.last().copied().unwrap_or(0.0) + 1.0 / self.scan.fps
    }

    pub fn is_image(&self) -> bool {
        self.is_image
    }

    /// libav's name of the codec: `h264`, `vp9`, `png`.
    pub fn codec(&self) -> &str {
        &self.codec
    }

    /// Seconds from the first frame, ascending, one a frame.
    pub fn timestamps(&self) -> &[f64] {
        &self.timestamps
    }

    /// The frames of these indices at full size. Indices ascend; one may stand more than once.
    pub fn decode(&self, wanted: &[usize]) -> Result<Frames, VideoError> {
        self.decode_fitted(wanted, &Fit::whole(self.picture.shown))
    }

    /// The frames of these indices, each fitted as it comes: memory is the result and one frame more.
    pub fn decode_fitted(&self, wanted: &[usize], fit: &Fit) -> Result<Frames, VideoError> {
        self.decode_within(wanted, fit, LONGEST)
    }

    /// As [`decode_fitted`](Self::decode_fitted), which must not take longer than this.
    pub fn decode_within(&self, wanted: &[usize], fit: &Fit, longest: Duration) -> Result<Frames, VideoError> {
        let size = fit
            .frame_bytes()
            .checked_mul(wanted.len())
            .filter(|size| *size < isize::MAX as usize / 2);
        let Some(size) = size else {
            let reason = format!(
                "{} frames of {}x{} do not fit into memory",
                wanted.len(),
                fit.width,
                fit.height
            );
            return Err(VideoError::TooLarge {
                path: self.path.clone(),
                reason,
            });
        };
        let mut data = vec![0; size];
        if size > 0 {
            Decoding::of(self, Deadline::after(longest))?.fitted(
                wanted,
                fit,
                data.chunks_exact_mut(fit.frame_bytes()),
            )?;
        }
        Ok(Frames {
            data,
            num_frames: wanted.len(),
            height: fit.height,
            width: fit.width,
        })
    }
}

/// Refuses absurd sizes before anything is allocated for them.
fn check_size(stream: &ffmpeg::Stream, path: &Path) -> Result<(), VideoError> {
    // SAFETY: the parameters live as long as the stream, and the fields are plain numbers.
    let (width, height) = unsafe {
        let parameters = stream.parameters();
        ((*parameters.as_ptr()).width, (*parameters.as_ptr()).height)
    };
    let side = MAX_SIDE as i32;
    if width > side || height > side || i64::from(width) * i64::from(height) > MAX_PIXELS {
        let reason = format!("is {width}x{height}; at most {MAX_SIDE} a side and {MAX_PIXELS} pixels are read");
        return Err(VideoError::TooLarge {
            path: path.into(),
            reason,
        });
    }
    Ok(())
}

/// An MP4 whose index was to come at the end never got there: the usual half download.
fn without_index(path: &Path) -> Option<VideoError> {
    use std::io::Read;
    let mut start = [0; 12];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .ok()?;
    (&start[4..8] == b"ftyp").then(|| {
        let reason = "it starts as an MP4 but has no index (moov)".to_string();
        VideoError::Truncated {
            path: path.into(),
            reason,
        }
    })
}
