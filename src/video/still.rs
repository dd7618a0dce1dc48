//! Single pictures as files: JPEG and PNG, by libav's encoders.

use ffmpeg::codec::{Flags, Id};
use ffmpeg::color;
use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video;
use ffmpeg_next as ffmpeg;

use super::convert::{pad, to_yuv};
use super::{VideoError, libav};

/// Encodes a picture (H, W, 3) of (height, width) as a JPEG file of moderate quality.
///
/// # Errors
/// Fails for a picture of another size, and in a build of libav without the encoder.
pub fn jpeg(picture: &[u8], size: (usize, usize)) -> Result<Vec<u8>, VideoError> {
    encode(picture, size, |rgb| {
        let mut frame = Video::new(Pixel::YUVJ420P, rgb.width(), rgb.height());
        // JFIF: BT.601, full range.
        let mut scaler = to_yuv(&rgb, Pixel::YUVJ420P, (color::Space::SMPTE170M, true))?;
        scaler.run(&rgb, &mut frame)?;
        still(Id::MJPEG, frame)
    })
}

/// Encodes a picture (H, W, 3) of (height, width) as a PNG file.
///
/// # Errors
/// As [`jpeg`].
pub fn png(picture: &[u8], size: (usize, usize)) -> Result<Vec<u8>, VideoError> {
    encode(picture, size, |rgb| still(Id::PNG, rgb))
}

fn encode(
    picture: &[u8],
    (height, width): (usize, usize),
    to_file: impl FnOnce(Video) -> Result<Vec<u8>, ffmpeg::Error>,
) -> Result<Vec<u8>, VideoError> {
    libav::start();
    let fail = |reason: String| VideoError::Encode {
        path: "a picture".into(),
        reason,
    };
    let most = libav::MAX_SIDE as usize;
    if height == 0 || width == 0 || height > most || width > most || picture.len() != height * width * 3 {
        let reason = format!("{} bytes are not a picture of {width}x{height}", picture.len());
        return Err(fail(reason));
    }
    let mut rgb = Video::new(Pixel::RGB24, width as u32, height as u32);
    pad(picture, (height, width), &mut rgb);
    to_file(rgb).map_err(|error| fail(libav::say(error)))
}

/// Encodes one frame with a picture encoder.
fn still(codec: Id, mut frame: Video) -> Result<Vec<u8>, ffmpeg::Error> {
    let codec = ffmpeg::encoder::find(codec).ok_or(ffmpeg::Error::EncoderNotFound)?;
    let mut encoder = ffmpeg::codec::Context::new_with_codec(codec).encoder().video()?;
    encoder.set_width(frame.width());
    encoder.set_height(frame.height());
    encoder.set_format(frame.format());
    encoder.set_time_base(ffmpeg::Rational::new(1, 25));
    if codec.id() == Id::MJPEG {
        encoder.set_flags(Flags::QSCALE | Flags::BITEXACT);
        encoder.set_global_quality(4 * ffi::FF_QP2LAMBDA);
        // SAFETY: the frame is ours, and this is a number.
        unsafe { (*frame.as_mut_ptr()).quality = 4 * ffi::FF_QP2LAMBDA };
    }
    let mut encoder = encoder.open_as(codec)?;
    frame.set_pts(Some(0));
    encoder.send_frame(&frame)?;
    encoder.send_eof()?;
    let mut packet = ffmpeg::Packet::empty();
    encoder.receive_packet(&mut packet)?;
    Ok(packet.data().unwrap_or_default().to_vec())
}
