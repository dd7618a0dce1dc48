//! Encodes frames to a file: `.mp4` (H.264 if libav has an encoder, else MPEG-4 part 2), `.webm` (VP9 or VP8), `.gif`,
//! or a folder of PNG if the path ends in `/`.
//!
//! Videos are yuv420p, BT.709, limited range, and tagged so; odd sides are padded by repeating the last row or column,
//! with a warning. Encoders and containers run with their bit-exact flags and a fixed number of threads: the same
//! frames give the same file. Files are written to a temporary file, synced, renamed.

use std::path::{Path, PathBuf};

use ffmpeg::codec::{Flags, Id, threading};
use ffmpeg::color;
use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::format::context::Output;
use ffmpeg::frame::Video;
use ffmpeg::software::scaling;
use ffmpeg_next as ffmpeg;

use super::convert::{pad, to_yuv};
use super::{Frames, VideoError, libav, palette, still};
use crate::disk::{self, TempFile};

/// Threads of an encoder: fixed, because some encoders' results depend on it.
const THREADS: usize = 4;

/// Writes frames to a file as they come. Without [`finish`](Self::finish) no file is created.
pub struct Writer {
    path: PathBuf,
    height: usize,
    width: usize,
    kind: Kind,
    num_frames: i64,
}

enum Kind {
    Video(Box<OpenVideo>),
    Pictures(PathBuf),
}

/// Format, by the path's extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Mp4,
    Webm,
    Gif,
}

/// A video being encoded.
struct OpenVideo {
    output: Output,
    encoder: ffmpeg::encoder::video::Encoder,
    frame: Video,
    scaler: Option<scaling::Context>,
    rgb: Video,
    time_base: ffmpeg::Rational,
    beside: TempFile,
}

/// Writes all frames to a file.
pub fn write(path: &Path, frames: &Frames, fps: f64) -> Result<(), VideoError> {
    let mut writer = Writer::create(path, (frames.height, frames.width), fps)?;
    frames.iter().try_for_each(|frame| writer.push(frame))?;
    writer.finish()
}

impl Writer {
    /// Opens a file for frames of (height, width).
    ///
    /// # Errors
    /// Fails for an unknown extension, a frame rate or size that makes no sense, and a folder that cannot be written.
    pub fn create(path: &Path, (height, width): (usize, usize), fps: f64) -> Result<Self, VideoError> {
        libav::start();
        let fail = |reason: String| VideoError::Encode {
            path: path.into(),
            reason,
        };
        let most = libav::MAX_SIDE as usize;
        if height == 0 || width == 0 || height > most || width > most {
            return Err(fail(format!("{width}x{height} is not a valid size for a video")));
        }
        if !fps.is_finite() || !(0.01..=1000.0).contains(&fps) {
            return Err(fail(format!("{fps} frames a second is not between 0.01 and 1000")));
        }
        let kind = if path.as_os_str().to_string_lossy().ends_with('/') {
            std::fs::create_dir_all(path).map_err(|error| fail(error.to_string()))?;
            Kind::Pictures(path.into())
        } else {
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            let container = match ending.as_deref() {
                Some("mp4") => Container::Mp4,
                Some("webm") => Container::Webm,
                Some("gif") => Container::Gif,
                _ => {
                    return Err(fail(
                        "its name must end in .mp4, .webm, .gif, or / for a folder of PNG".into(),
                    ));
                }
            };
            Kind::Video(Box::new(OpenVideo::create(path, container, (height, width), fps)?))
        };
        Ok(Self {
            path: path.into(),
            height,
            width,
            kind,
            num_frames: 0,
        })
    }

    /// Adds a frame (H, W, 3).
    pub fn push(&mut self, frame: &[u8]) -> Result<(), VideoError> {
        let fail = |reason: String| VideoError::Encode {
            path: self.path.clone(),
            reason,
        };
        let expected = self.height * self.width * 3;
        if frame.len() != expected {
            return Err(fail(format!("a frame has {} bytes, not {expected}", frame.len())));
        }
        match &mut self.kind {
            Kind::Video(video) => video
                .push(frame, (self.height, self.width), self.num_frames)
                .map_err(|error| fail(libav::say(error)))?,
            Kind::Pictures(folder) => {
                let png = still::png(frame, (self.height, self.width))?;
                let path = folder.join(format!("{:05}.png", self.num_frames));
                disk::write_whole(&path, &png)?;
            }
        }
        self.num_frames += 1;
        Ok(())
    }

    /// Completes the file and renames it to its destination.
    pub fn finish(self) -> Result<(), VideoError> {
        let path = self.path;
        let fail = |reason: String| VideoError::Encode {
            path: path.clone(),
            reason,
        };
        match self.kind {
            Kind::Video(_) if self.num_frames == 0 => Err(fail("there are no frames".into())),
            Kind::Video(video) => {
                let beside = video.finish().map_err(|error| fail(libav::say(error)))?;
                Ok(beside.keep()?)
            }
            Kind::Pictures(_) => Ok(()),
        }
    }
}

impl OpenVideo {
    fn create(
        path: &Path,
        container: Container,
        (height, width): (usize, usize),
        fps: f64,
    ) -> Result<Self, VideoError> {
        let fail = |reason: String| VideoError::Encode {
            path: path.into(),
            reason,
        };
        let beside = TempFile::of(path)?;
        let (even_height, even_width) = match container {
            Container::Gif => (height, width),
            _ => (height.next_multiple_of(2), width.next_multiple_of(2)),
        };
        if (even_height, even_width) != (height, width) {
            log::warn!(
                "{}: {width}x{height} is padded to {even_width}x{even_height}, because yuv420p needs even sides",
                path.display()
            );
        }
        let rgb = Video::new(Pixel::RGB24, even_width as u32, even_height as u32);
        Self::open(beside, container, rgb, fps).map_err(|error| fail(libav::say(error)))
    }

    fn open(beside: TempFile, container: Container, rgb: Video, fps: f64) -> Result<Self, ffmpeg::Error> {
        let name = format!("file:{}", beside.path().to_string_lossy());
        let format = match container {
            Container::Mp4 => "mp4",
            Container::Webm => "webm",
            Container::Gif => "gif",
        };
        let mut output = ffmpeg::format::output_as(&name, format)?;
        // SAFETY: the context is ours; the flag keeps versions and dates out of the file.
        unsafe { (*output.as_mut_ptr()).flags |= ffi::AVFMT_FLAG_BITEXACT };
        let global_header = output.format().flags().contains(ffmpeg::format::Flags::GLOBAL_HEADER);
        let codec = container.encoder()?;
        let rate = rational(fps);
        let mut encoder = ffmpeg::codec::Context::new_with_codec(codec).encoder().video()?;
        encoder.set_width(rgb.width());
        encoder.set_height(rgb.height());
        encoder.set_time_base(rate.invert());
        encoder.set_frame_rate(Some(rate));
        let pixel = if container == Container::Gif {
            Pixel::PAL8
        } else {
            Pixel::YUV420P
        };
        encoder.set_format(pixel);
        if pixel == Pixel::YUV420P {
            encoder.set_colorspace(color::Space::BT709);
            encoder.set_color_range(color::Range::MPEG);
            encoder.set_color_primaries(color::Primaries::BT709);
            encoder.set_color_transfer_characteristic(color::TransferCharacteristic::BT709);
        }
        let mut flags = Flags::BITEXACT;
        if global_header {
            flags |= Flags::GLOBAL_HEADER;
        }
        if codec.id() == Id::MPEG4 {
            flags |= Flags::QSCALE;
            encoder.set_global_quality(3 * ffi::FF_QP2LAMBDA);
        }
        encoder.set_flags(flags);
        encoder.set_threading(threading::Config {
            count: THREADS,
            ..threading::Config::kind(threading::Type::Frame)
        });
        let encoder = encoder.open_with(quality(codec.name()))?;
        let mut stream = output.add_stream(codec)?;
        stream.set_parameters(&encoder);
        stream.set_time_base(rate.invert());
        stream.set_avg_frame_rate(rate);
        output.write_header()?;
        let scaler = match pixel {
            Pixel::YUV420P => Some(to_yuv(&rgb, pixel, (color::Space::BT709, false))?),
            _ => None,
        };
        let frame = Video::new(pixel, rgb.width(), rgb.height());
        Ok(Self {
            output,
            encoder,
            frame,
            scaler,
            rgb,
            time_base: rate.invert(),
            beside,
        })
    }

    fn push(&mut self, frame: &[u8], size: (usize, usize), number: i64) -> Result<(), ffmpeg::Error> {
        pad(frame, size, &mut self.rgb);
        // The encoder may still hold the last frame's buffer.
        let (format, width, height) = (self.frame.format(), self.frame.width(), self.frame.height());
        self.frame = Video::new(format, width, height);
        match &mut self.scaler {
            Some(scaler) => {
                scaler.run(&self.rgb, &mut self.frame)?;
                self.frame.set_color_space(color::Space::BT709);
                self.frame.set_color_range(color::Range::MPEG);
            }
            None => palette::reduce(&self.rgb, &mut self.frame),
        }
        self.frame.set_pts(Some(number));
        self.encoder.send_frame(&self.frame)?;
        self.drain()
    }

    fn drain(&mut self) -> Result<(), ffmpeg::Error> {
        let mut packet = ffmpeg::Packet::empty();
        while self.encoder.receive_packet(&mut packet).is_ok() {
            packet.set_stream(0);
            if packet.duration() == 0 {
                packet.set_duration(1);
            }
            let target = self
                .output
                .stream(0)
                .map_or(self.time_base, |stream| stream.time_base());
            packet.rescale_ts(self.time_base, target);
            packet.write_interleaved(&mut self.output)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<TempFile, ffmpeg::Error> {
        self.encoder.send_eof()?;
        self.drain()?;
        self.output.write_trailer()?;
        Ok(self.beside)
    }
}

impl Container {
    /// Returns the best encoder in this build of libav.
    fn encoder(self) -> Result<ffmpeg::Codec, ffmpeg::Error> {
        let names: &[&str] = match self {
            Container::Mp4 => &["libx264", "libopenh264", "mpeg4"],
            Container::Webm => &["libvpx-vp9", "libvpx"],
            Container::Gif => &["gif"],
        };
        names
            .iter()
            .find_map(|name| ffmpeg::encoder::find_by_name(name))
            .ok_or(ffmpeg::Error::EncoderNotFound)
    }
}

/// Returns settings for a quality that hides no defect of the model.
fn quality(encoder: &str) -> ffmpeg::Dictionary<'static> {
    let settings: &[(&str, &str)] = match encoder {
        // Without the last one, the same pictures gave different bytes from run to run on processors with AVX-512.
        "libx264" => &[
            ("crf", "17"),
            ("preset", "medium"),
            ("x264-params", "cpu-independent=1"),
        ],
        "libopenh264" => &[("b", "8000000")],
        "libvpx-vp9" | "libvpx" => &[("crf", "24"), ("b", "4000000"), ("cpu-used", "4"), ("deadline", "good")],
        _ => &[],
    };
    let mut options = ffmpeg::Dictionary::new();
    settings.iter().for_each(|(key, value)| options.set(key, value));
    options
}

/// Returns 29.97 as 30000/1001; other rates to a thousandth.
fn rational(fps: f64) -> ffmpeg::Rational {
    let ntsc = (fps * 1.001).round();
    if (ntsc / 1.001 - fps).abs() < 0.005 && (fps - fps.round()).abs() > 1e-3 && ntsc >= 1.0 {
        return ffmpeg::Rational::new(ntsc as i32 * 1000, 1001);
    }
    ffmpeg::Rational::new((fps * 1000.0).round() as i32, 1000).reduce()
}
