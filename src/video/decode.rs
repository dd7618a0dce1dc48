//! Decoding: from where it can start to the last frame that is wanted, converting only those.

use ffmpeg::codec::threading;
use ffmpeg::color;
use ffmpeg::ffi;
use ffmpeg::format::context::Input;
use ffmpeg::frame::{Video, side_data};
use ffmpeg_next as ffmpeg;

use super::VideoError;
use super::aspect::PixelAspect;
use super::clip::Clip;
use super::convert::Converter;
use super::fit::{Fit, Fitter};
use super::libav::{self, Deadline, MAX_PIXELS};
use super::scan::video_stream;

/// Frames that it is cheaper to decode than to seek over.
const WORTH_A_SEEK: usize = 8;

/// Bytes of a frame, from which on a single thread decodes.
const LARGE_FRAME: i64 = 64 << 20;

/// Facts that the first frame of a clip gives of all its pictures.
pub struct First {
    /// (height, width) as stored.
    pub size: (usize, usize),
    /// A display matrix of its own.
    pub matrix: Option<Vec<u8>>,
    pub aspect: PixelAspect,
    pub transfer: color::TransferCharacteristic,
}

/// A clip being decoded.
pub struct Decoding<'a> {
    clip: &'a Clip,
    deadline: Deadline,
    input: Input,
    decoder: ffmpeg::decoder::Video,
    packet: ffmpeg::Packet,
    /// All packets are sent.
    drained: bool,
    /// The first thing that libav complained of.
    complaint: Option<String>,
}

impl<'a> Decoding<'a> {
    /// At the start of the clip.
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

    /// Decodes the first frame for what it says of them all.
    pub fn first(mut self) -> Result<First, VideoError> {
        let mut picture = Video::empty();
        if !self.next(&mut picture) {
            return Err(self.failed(0));
        }
        let matrix = picture.side_data(side_data::Type::DisplayMatrix);
        Ok(First {
            size: (picture.height() as usize, picture.width() as usize),
            matrix: matrix.map(|matrix| matrix.data().to_vec()),
            aspect: self.aspect(&mut picture),
            transfer: picture.color_transfer_characteristic(),
        })
    }

    /// The pixels' shape by the container, or else by the frame.
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
        // The index of the frame in `picture`; frames of no use to us count, too.
        let mut at = None;
        let mut last: Option<&mut [u8]> = None;
        for (place, index) in wanted.iter().copied().enumerate() {
            let Some(slot) = out.next() else { break };
            if place > 0 && wanted[place - 1] == index {
                // The same frame again.
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

    /// Decodes on until `picture` is the frame `index`; `at` is the frame it is now.
    fn go_to(&mut self, index: usize, at: Option<usize>, picture: &mut Video) -> Result<usize, VideoError> {
        let scan = &self.clip.scan;
        let Some(&target) = scan.pts.get(index) else {
            return Err(self.broken(index, format!("the clip has {} frames", scan.pts.len())));
        };
        if !scan.timed {
            // Frames that do not say when they are shown can only be counted.
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
            // Sought too far, as some containers' indices lead: decode from the start.
            let complaint = self.complaint.take();
            *self = Self::of(self.clip, self.deadline)?;
            self.complaint = complaint;
            sought = false;
        }
    }

    /// Goes to where decoding can start for a frame shown at `key`.
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

    /// The next frame in display order; false at the end, and when time is up.
    fn next(&mut self, picture: &mut Video) -> bool {
        while !self.deadline.passed() {
            match self.decoder.receive_frame(picture) {
                Ok(()) => return true,
                Err(ffmpeg::Error::Eof) => return false,
                // EAGAIN: it wants more packets.
                Err(_) if self.drained => return false,
                Err(_) => self.feed(),
            }
        }
        false
    }

    /// Sends one packet, or the end.
    fn feed(&mut self) {
        loop {
            // Once the time is up, reading is an error.
            if libav::read(&mut self.packet, &mut self.input).is_err() {
                // That there are all packets was seen when the clip was opened. Where nothing is held back, asking for it
                // is of no use, and FFmpeg 5.1 aborts on some damaged WebP when it is asked.
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

/// Whether a decoder may give frames after the last packet: by its nature, or since threads work on them.
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
    // Where several clips are decoded at once, the threads are all taken. Each holds frames of its own.
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
    // SAFETY: the context is ours and not yet open; the field is a bound that libav checks before it allocates.
    unsafe { (*context.as_mut_ptr()).max_pixels = MAX_PIXELS };
    // Other streams are of no use.
    for i in 0..input.nb_streams() as usize {
        if let Some(mut other) = input.stream_mut(i).filter(|_| i != index) {
            // SAFETY: the stream is one of this open context's.
            unsafe { (*other.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
        }
    }
    context.decoder().video()
}
