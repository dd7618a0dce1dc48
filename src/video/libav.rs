//! Initialisation of libav, and opening of files, with limits against hostile ones.

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use ffmpeg::ffi;
use ffmpeg::format::context::Input;
use ffmpeg_next as ffmpeg;

use super::VideoError;

/// Maximum pixels of a picture.
pub const MAX_PIXELS: i64 = 64 << 20;

/// Maximum length of a side.
pub const MAX_SIDE: u32 = 16_384;

/// Largest single block that libav may allocate: a frame of `MAX_PIXELS` in 16-bit RGBA.
const MAX_BLOCK: usize = (MAX_PIXELS as usize) * 8;

/// Time limit for scanning a file, or decoding it once.
pub const LONGEST: Duration = Duration::from_secs(30 * 60);

/// Containers that are opened: those of data sets' extensions, and of audio, to report that there is no video.
/// Playlists (`concat`, `hls`, `dash`) are excluded, because they lead to other files, possibly in circles.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg,gif,apng,\
                          yuv4mpegpipe,mxf,h264,hevc,ivf,obu,nut,dv,image2,png_pipe,jpeg_pipe,webp_pipe,webp,bmp_pipe,\
                          tiff_pipe,ppm_pipe,pgm_pipe,pam_pipe,pbm_pipe,jpegxl_pipe,wav,mp3,aac,flac,aiff,ac3,eac3";

/// Deadline of a scan.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    whole: Duration,
}

impl Deadline {
    /// Deadline this long from now.
    pub fn after(whole: Duration) -> Self {
        Self {
            at: Instant::now() + whole,
            whole,
        }
    }

    pub fn passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// Error after the deadline.
    pub fn error(self, path: &Path) -> VideoError {
        VideoError::TooLarge {
            path: path.into(),
            reason: format!("takes more than {:?} to read; cut it into shorter clips", self.whole),
        }
    }
}

static START: Once = Once::new();

/// Initialises libav: quiet, and with a limit on single allocations.
pub fn start() {
    START.call_once(|| {
        // It fails only if network code cannot start, which is not built.
        let _ = ffmpeg::init();
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
        // SAFETY: sets a number.
        unsafe { ffi::av_max_alloc(MAX_BLOCK) };
    });
}

/// Opens a file for reading. Only files are accessed, whatever a playlist in it names.
pub fn open(path: &Path, deadline: Deadline) -> Result<Input, VideoError> {
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
    options.set("format_whitelist", CONTAINERS);
    options.set("pattern_type", "none"); // a % in the name of an image is a %
    let late = move || deadline.passed();
    let opened = ffmpeg::format::input_with_interrupt_and_dictionary(&format!("file:{name}"), late, options);
    opened.map_err(|error| match deadline.passed() {
        true => deadline.error(path),
        false => VideoError::Unreadable {
            path: path.into(),
            reason: say(error),
        },
    })
}

/// Reads the next packet into `packet`. Its previous data is freed first, because libav would leak it.
pub fn read(packet: &mut ffmpeg::Packet, input: &mut Input) -> Result<(), ffmpeg::Error> {
    *packet = ffmpeg::Packet::empty();
    packet.read(input)
}

/// Returns libav's error message.
pub fn say(error: ffmpeg::Error) -> String {
    match error {
        ffmpeg::Error::InvalidData => "libav finds no valid data".into(),
        ffmpeg::Error::DecoderNotFound => "this build of libav has no decoder for it".into(),
        error => error.to_string(),
    }
}
