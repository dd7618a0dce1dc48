//! libav's doors: started once, opened for files only, with bounds against hostile ones.

use std::path::Path;
use std::sync::Once;

use ffmpeg::ffi;
use ffmpeg::format::context::Input;
use ffmpeg_next as ffmpeg;

use super::VideoError;

/// The largest picture that is looked at.
pub const MAX_PIXELS: i64 = 64 << 20;

/// The longest side.
pub const MAX_SIDE: u32 = 16_384;

/// The largest single block that libav may allocate: a frame of `MAX_PIXELS` in 16-bit RGBA.
const MAX_BLOCK: usize = (MAX_PIXELS as usize) * 8;

static START: Once = Once::new();

/// Starts libav: quiet, and with a bound on what it allocates at once.
pub fn start() {
    START.call_once(|| {
        // It fails only where network code cannot start, which is not built.
        let _ = ffmpeg::init();
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
        // SAFETY: sets a number.
        unsafe { ffi::av_max_alloc(MAX_BLOCK) };
    });
}

/// Opens a file to read. Nothing but files is reached, whatever a playlist in it says.
pub fn open(path: &Path) -> Result<Input, VideoError> {
    start();
    let Some(name) = path.to_str() else {
        let reason = "its name is not UTF-8; rename it".to_string();
        return Err(VideoError::Unreadable {
            path: path.into(),
            reason,
        });
    };
    let mut options = ffmpeg::Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("pattern_type", "none"); // a % in the name of an image is a %
    ffmpeg::format::input_with_dictionary(&format!("file:{name}"), options).map_err(|error| VideoError::Unreadable {
        path: path.into(),
        reason: say(error),
    })
}

/// libav's error in words.
pub fn say(error: ffmpeg::Error) -> String {
    match error {
        ffmpeg::Error::InvalidData => "libav finds no valid data".into(),
        ffmpeg::Error::DecoderNotFound => "this build of libav has no decoder for it".into(),
        error => error.to_string(),
    }
}
