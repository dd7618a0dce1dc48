//! Scan of all packets of a clip, without decoding: the number of frames and their display times.

use std::path::Path;

use ffmpeg::codec::packet::Ref;
use ffmpeg::ffi;
use ffmpeg::format::context::Input;
use ffmpeg::format::stream::Disposition;
use ffmpeg::media::Type;
use ffmpeg_next as ffmpeg;

use super::VideoError;
use super::avi;
use super::libav::{self, Deadline};

/// Limit for packets, more than any training clip has (a day at 25 fps).
const MAX_PACKETS: usize = 25 * 60 * 60 * 24;

/// Contents of the video stream, by its packets.
#[derive(Debug, Clone)]
pub struct Scan {
    pub stream: usize,
    /// Display times of frames, ascending, in units of `time_base`. Decode order if `timed` is false.
    pub pts: Vec<i64>,
    /// Display times of keyframes, ascending.
    pub keys: Vec<i64>,
    /// True if every packet has a display time. If not, frames can only be counted.
    pub timed: bool,
    /// Duration of a unit in seconds.
    pub time_base: f64,
    /// Average frames per second.
    pub fps: f64,
}

/// Returns the stream that a player would show, excluding cover pictures of audio files.
pub fn video_stream(input: &Input) -> Option<ffmpeg::Stream<'_>> {
    let best = input.streams().best(Type::Video)?;
    (!best.disposition().contains(Disposition::ATTACHED_PIC)).then_some(best)
}

impl Scan {
    /// Reads every packet of `input`.
    pub fn of(input: &mut Input, path: &Path, deadline: Deadline) -> Result<Self, VideoError> {
        let stream = video_stream(input).ok_or_else(|| VideoError::NoVideo { path: path.into() })?;
        let (index, time_base) = (stream.index(), f64::from(stream.time_base()));
        let rates = [f64::from(stream.avg_frame_rate()), f64::from(stream.rate())];
        let is_vp8 = stream.parameters().id() == ffmpeg::codec::Id::VP8;
        let (mut shown, mut keys, mut timed) = (Vec::new(), Vec::new(), true);
        let mut end = f64::NEG_INFINITY; // of the last packet of any stream, in seconds
        let mut packets = 0; // of this stream, shown or not
        let mut packet = ffmpeg::Packet::empty();
        loop {
            if deadline.passed() {
                return Err(deadline.error(path));
            }
            match libav::read(&mut packet, input) {
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => break,
                Err(_) if shown.is_empty() => break,
                Err(error) => return Err(truncated(path, format!("reading stops with \"{error}\""))),
            }
            if let (Some(pts), Some(stream)) = (packet.pts(), input.stream(packet.stream())) {
                let last = pts.saturating_add(packet.duration().max(0));
                end = end.max(last as f64 * f64::from(stream.time_base()));
            }
            if packet.stream() != index {
                continue;
            }
            packets += 1;
            if packet.is_corrupt() {
                return Err(truncated(path, format!("packet {packets} is cut short")));
            }
            if packets > MAX_PACKETS {
                let reason = format!("has more than {MAX_PACKETS} frames; cut it into clips");
                return Err(VideoError::TooLarge {
                    path: path.into(),
                    reason,
                });
            }
            // Frames outside of an edit list are decoded but not displayed. SAFETY: the packet is live, and the field
            // is a plain number.
            let dropped = unsafe { (*packet.as_ptr()).flags } & ffi::AV_PKT_FLAG_DISCARD != 0;
            // VP8 may send frames that are never displayed, marked by the fifth bit of the first byte.
            let hidden = is_vp8
                && packet
                    .data()
                    .and_then(|data| data.first())
                    .is_some_and(|first| first & 0x10 == 0);
            if dropped || hidden || packet.size() == 0 {
                continue;
            }
            timed &= packet.pts().is_some();
            let time = packet.pts().or(packet.dts()).unwrap_or(shown.len() as i64);
            shown.push(time);
            if packet.is_key() {
                keys.push(time);
            }
        }
        complete(input, index, packets, end, path)?;
        if shown.is_empty() {
            let reason = "its video stream holds no frames".to_string();
            return Err(VideoError::Unreadable {
                path: path.into(),
                reason,
            });
        }
        shown.sort_unstable();
        keys.sort_unstable();
        let fps = mean_rate(&shown, time_base, rates);
        Ok(Self {
            stream: index,
            pts: shown,
            keys,
            timed,
            time_base,
            fps,
        })
    }

    /// Returns the time of each frame in seconds after the first, ascending.
    pub fn seconds(&self) -> Vec<f64> {
        let counted = !self.timed || self.time_base <= 0.0;
        let first = self.pts.first().copied().unwrap_or(0);
        let second = |(i, pts): (usize, &i64)| match counted {
            true => i as f64 / self.fps,
            false => pts.saturating_sub(first) as f64 * self.time_base,
        };
        self.pts.iter().enumerate().map(second).collect()
    }
}

/// Checks that the packets are as many as the container promises.
fn complete(input: &mut Input, index: usize, packets: usize, end: f64, path: &Path) -> Result<(), VideoError> {
    let promised = input.stream(index).map_or(0, |stream| stream.frames());
    if (packets as i64) < promised {
        let held = packets.max(with_empty(input, index, packets, path));
        if (held as i64) < promised {
            return Err(truncated(
                path,
                format!("it promises {promised} frames and holds {held}"),
            ));
        }
        log::debug!(
            "{}: {} of its frames are empty, and show the one before again",
            path.display(),
            held - packets
        );
    }
    // SAFETY: the context is open, and the field is a plain number.
    let from_header = unsafe { (*input.as_ptr()).duration_estimation_method }
        == ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_STREAM;
    let length = input.duration() as f64 / f64::from(ffi::AV_TIME_BASE);
    let is_matroska = input.format().name().contains("matroska");
    if is_matroska && from_header && end.is_finite() && length > end + (0.02 * length).max(0.5) {
        return Err(truncated(
            path,
            format!("it promises {length:.1} seconds and holds {:.1}", end.max(0.0)),
        ));
    }
    Ok(())
}

/// Counts the packets, including the empty ones that libav skips: they repeat the previous picture.
fn with_empty(input: &mut Input, index: usize, packets: usize, path: &Path) -> usize {
    if input.format().name() == "avi" {
        return avi::pictures(path, index).unwrap_or(0);
    }
    let Some(mut stream) = input.stream_mut(index) else {
        return packets;
    };
    // SAFETY: the stream is one of this open context's; entries are read at indices below their count.
    let empty = unsafe {
        let stream = stream.as_mut_ptr();
        let entries = 0..ffi::avformat_index_get_entries_count(stream);
        let entry = |i| ffi::avformat_index_get_entry(stream, i);
        entries
            .map(entry)
            .filter(|entry| !entry.is_null() && (**entry).size() == 0)
            .count()
    };
    packets + empty
}

fn truncated(path: &Path, reason: String) -> VideoError {
    VideoError::Truncated {
        path: path.into(),
        reason,
    }
}

/// Returns the frame rate by the timestamps, else the container's, else 25.
fn mean_rate(pts: &[i64], time_base: f64, claimed: [f64; 2]) -> f64 {
    let plausible = |rate: &f64| rate.is_finite() && (1e-3..=1e4).contains(rate);
    let measured = match pts {
        [first, .., last] => (pts.len() - 1) as f64 / (last.saturating_sub(*first) as f64 * time_base),
        _ => f64::NAN,
    };
    let close = |claim: &f64| (claim - measured).abs() < 0.02 * measured;
    // A container's rate is exact while timestamps are rounded; if they disagree, the timestamps are right.
    let claim = claimed
        .into_iter()
        .filter(plausible)
        .find(|claim| !measured.is_finite() || close(claim));
    claim.or(Some(measured)).filter(plausible).unwrap_or(25.0)
}
