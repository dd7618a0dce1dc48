//! Opens a clip: reads every packet and decodes the first frame, to find what is wrong with the file.

use std::path::Path;
use std::time::Duration;

use ffmpeg_next as ffmpeg;

use super::VideoError;
use super::clip::Clip;
use super::decode::Decoding;
use super::heif;
use super::libav::{self, Deadline, LONGEST, MAX_PIXELS, MAX_SIDE};
use super::picture::{Container, Picture};
use super::scan::{Scan, video_stream};
use crate::disk;

impl Clip {
    /// Reads all packets and decodes the first frame.
    ///
    /// # Errors
    /// Fails for any clip that cannot be used, with a one-sentence message: see [`VideoError`].
    pub fn open(path: &Path) -> Result<Self, VideoError> {
        Self::open_within(path, LONGEST)
    }

    /// Same as [`open`](Self::open), within a time limit.
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
                "not an ordinary file"
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
}

/// Checks for absurd sizes before anything is allocated for them.
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

/// Detects an MP4 whose index belongs at the end but is missing: the usual incomplete download.
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
