//! Decodes from the nearest possible start to the last requested frame, converting only requested ones.

use std::time::Duration;

use ffmpeg::codec::threading;
use ffmpeg::ffi;
use ffmpeg::format::context::Input;
use ffmpeg::frame::{Video, side_data};
use ffmpeg_next as ffmpeg;

use super::aspect::PixelAspect;
use super::clip::Clip;
use super::convert::Converter;
use super::fit::{Fit, Fitter};
use super::libav::{self, Deadline, LONGEST, MAX_PIXELS};
use super::picture::FirstFrame;
use super::scan::video_stream;
use super::{Frames, VideoError};

/// Number of frames up to which decoding is cheaper than seeking.
const WORTH_A_SEEK: usize = 8;

/// Bytes per frame from which on decoding uses a single thread.
const LARGE_FRAME: i64 = 64 << 20;

impl Clip {
    /// Decodes the frames of these indices at full size. Indices ascend, and may repeat.
    pub fn decode(&self, wanted: &[usize]) -> Result<Frames, VideoError> {
        self.decode_fitted(wanted, &Fit::whole(self.picture.shown))
    }

    /// Decodes the frames of these indices, each fitted as it comes: needs memory for the result and one more frame.
    pub fn decode_fitted(&self, wanted: &[usize], fit: &Fit) -> Result<Frames, VideoError> {
        self.decode_within(wanted, fit, LONGEST)
    }

    /// Same as [`decode_fitted`](Self::decode_fitted), within a time limit.
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

/// Decoding of a clip.
pub struct Decoding<'a> {
    clip: &'a Clip,
    deadline: Deadline,
    input: Input,
    decoder: ffmpeg::decoder::Video,
    packet: ffmpeg::Packet,
    /// True if all packets are sent.
    drained: bool,
    /// First error message of libav.
    complaint: Option<String>,
}

impl<'a> Decoding<'a> {
    /// Starts at the beginning of the clip.
    pub fn of(clip: &'a Clip, deadline: Deadline) -> Result<Self, VideoError> {
        let mut input = libav::open(clip.path(), deadline)?;
        let decoder = open_decoder(&mut input, clip.is_image()).map_err(|error| VideoError::Unreadable {
            path: clip.path().into(),
            reason: libav::say(error),
        })?;
        Ok(Self {
            clip,
            deadline,
            input,
            decoder,
            packet: ffmpeg::Packet::empty(),
            drained: false,
            complaint: None,
        })
    }

    /// Decodes the first frame for its properties.
    pub fn first(mut self) -> Result<FirstFrame, VideoError> {
        let mut picture = Video::empty();
        if !self.next(&mut picture) {
            return Err(self.failed(0));
        }
        let matrix = picture.side_data(side_data::Type::DisplayMatrix);
        Ok(FirstFrame {
            size: (picture.height() as usize, picture.width() as usize),
            matrix: matrix.map(|matrix| matrix.data().to_vec()),
            aspect: self.aspect(&mut picture),
            transfer: picture.color_transfer_characteristic(),
        })
    }

    /// Returns the pixel aspect ratio of the container, or else of the frame.
    fn aspect(&mut self, picture: &mut Video) -> PixelAspect {
        let stream = self.input.stream_mut(self.clip.scan.stream);
        let stream = stream.map_or(std::ptr::null_mut(), |mut stream| {
            // SAFETY: the pointer is used below, while the context that owns the stream is open.
            unsafe { stream.as_mut_ptr() }
        });
        // SAFETY: context, stream and frame are live; a stream may be null, and nothing is kept.
        let ratio = unsafe { ffi::av_guess_sample_aspect_ratio(self.input.as_mut_ptr(), stream, picture.as_mut_ptr()) };
        PixelAspect::new(ratio.num, ratio.den)
    }

    /// Decodes the frames of these indices, ascending, into `out`, one slot each.
    pub fn fitted<'o>(
        &mut self,
        wanted: &[usize],
        fit: &Fit,
        mut out: impl Iterator<Item = &'o mut [u8]>,
    ) -> Result<(), VideoError> {
        let (mut converter, mut fitter) = (Converter::new(self.clip.picture.turn), Fitter::new(*fit));
        let mut picture = Video::empty();
        // Index of the frame in `picture`, counting skipped ones.
        let mut at = None;
        let mut last: Option<&mut [u8]> = None;
        for (place, index) in wanted.iter().copied().enumerate() {
            let Some(slot) = out.next() else { break };
            if place > 0 && wanted[place - 1] == index {
                // Repeats the same frame.
                if let Some(last) = last.as_deref() {
                    slot.copy_from_slice(last);
                }
                continue;
            }
            at = Some(self.go_to(index, at, &mut picture)?);
            let (pixels, size) = converter
                .run(&picture)
                .map_err(|error| self.broken(index, libav::say(error)))?;
            fitter
                .run(pixels, size, slot)
                .map_err(|reason| self.broken(index, reason))?;
            last = Some(slot);
        }
        Ok(())
    }

    /// Decodes until `picture` is the frame `index`; `at` is its current index.
    fn go_to(&mut self, index: usize, at: Option<usize>, picture: &mut Video) -> Result<usize, VideoError> {
        let scan = &self.clip.scan;
        let Some(&target) = scan.pts.get(index) else {
            return Err(self.broken(index, format!("the clip has {} frames", scan.pts.len())));
        };
        if !scan.timed {
            // Frames without timestamps can only be counted.
            let mut at = at.map_or(0, |at| at + 1);
            while self.next(picture) {
                if at == index {
                    return Ok(at);
                }
                at += 1;
            }
            return Err(self.failed(index));
        }
        let ahead = index - at.map_or(0, |at| at.min(index));
        let key = scan.keys[..scan.keys.partition_point(|key| *key <= target)]
            .last()
            .copied();
        let here = at.map(|at| scan.pts[at]);
        let mut sought = false;
        if let Some(key) = key.filter(|key| ahead > WORTH_A_SEEK && here.is_none_or(|here| *key > here)) {
            sought = self.seek(key);
        }
        loop {
            while self.next(picture) {
                let Some(time) = picture.timestamp() else { continue };
                if time == target {
                    return Ok(index);
                }
                if time > target {
                    break;
                }
            }
            if !sought || self.deadline.passed() {
                return Err(self.failed(index));
            }
            // The seek went too far, as with some containers' indices: decode from the start.
            let complaint = self.complaint.take();
            *self = Self::of(self.clip, self.deadline)?;
            self.complaint = complaint;
            sought = false;
        }
    }

    /// Seeks to where decoding can start for a frame displayed at `key`.
    fn seek(&mut self, key: i64) -> bool {
        let stream = self.clip.scan.stream as i32;
        // SAFETY: the context is open and the stream is one of its own.
        let done = unsafe { ffi::av_seek_frame(self.input.as_mut_ptr(), stream, key, ffi::AVSEEK_FLAG_BACKWARD) } >= 0;
        if done {
            self.decoder.flush();
            self.drained = false;
        }
        done
    }

    /// Decodes the next frame in display order; returns false at the end, and at the deadline.
    fn next(&mut self, picture: &mut Video) -> bool {
        while !self.deadline.passed() {
            match self.decoder.receive_frame(picture) {
                Ok(()) => return true,
                Err(ffmpeg::Error::Eof) => return false,
                // EAGAIN: it needs more packets.
                Err(_) if self.drained => return false,
                Err(_) => self.feed(),
            }
        }
        false
    }

    /// Sends one packet, or the end.
    fn feed(&mut self) {
        loop {
            // After the deadline, reading is an error.
            if libav::read(&mut self.packet, &mut self.input).is_err() {
                // The packets were checked when the clip was opened. A decoder that delays no frames need not be
                // flushed, and FFmpeg 5.1 aborts on some damaged WebP when it is.
                if holds_back(&self.decoder) {
                    let _ = self.decoder.send_eof();
                }
                self.drained = true;
                return;
            }
            if self.packet.stream() == self.clip.scan.stream {
                if let Err(error) = self.decoder.send_packet(&self.packet) {
                    self.complaint.get_or_insert_with(|| libav::say(error));
                }
                return;
            }
        }
    }

    fn broken(&self, frame: usize, reason: String) -> VideoError {
        VideoError::Decode {
            path: self.clip.path().into(),
            frame,
            reason,
        }
    }

    fn failed(&self, frame: usize) -> VideoError {
        if self.deadline.passed() {
            return self.deadline.error(self.clip.path());
        }
        self.broken(
            frame,
            self.complaint
                .clone()
                .unwrap_or_else(|| "the decoder does not give it".into()),
        )
    }
}

/// Checks whether a decoder may return frames after the last packet: by its nature, or because of its threads.
fn holds_back(decoder: &ffmpeg::decoder::Video) -> bool {
    // SAFETY: the decoder is open, so it has a codec, and the fields are plain numbers.
    unsafe {
        let context = decoder.as_ptr();
        let delays = (*(*context).codec).capabilities as u32 & ffi::AV_CODEC_CAP_DELAY != 0;
        delays || (*context).active_thread_type & ffi::FF_THREAD_FRAME != 0
    }
}

fn open_decoder(input: &mut Input, is_image: bool) -> Result<ffmpeg::decoder::Video, ffmpeg::Error> {
    let stream = video_stream(input).ok_or(ffmpeg::Error::StreamNotFound)?;
    let index = stream.index();
    let mut context = ffmpeg::codec::Context::from_parameters(stream.parameters())?;
    context.set_time_base(stream.time_base());
    // When several clips are decoded at once, all threads are busy anyway, and each thread holds its own frames.
    // SAFETY: the context is ours, and the fields are plain numbers.
    let (width, height) = unsafe { ((*context.as_ptr()).width, (*context.as_ptr()).height) };
    let frame = i64::from(width.max(1)) * i64::from(height.max(1)) * 3;
    let count = match rayon::current_thread_index() {
        Some(_) => 1,
        None if is_image || frame > LARGE_FRAME => 1,
        None => 0,
    };
    context.set_threading(threading::Config {
        count,
        ..threading::Config::kind(threading::Type::Frame)
    });
    // SAFETY: the context is ours and not yet open; the field is a limit that libav checks before it allocates.
    unsafe { (*context.as_mut_ptr()).max_pixels = MAX_PIXELS };
    // Discards the other streams.
    for i in 0..input.nb_streams() as usize {
        if let Some(mut other) = input.stream_mut(i).filter(|_| i != index) {
            // SAFETY: the stream is one of this open context's.
            unsafe { (*other.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
        }
    }
    context.decoder().video()
}
