//! libav's doors: started once, opened for files only, with bounds against hostile ones.

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

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

/// The longest that one look at a file, or one decoding of it, may take.
pub const LONGEST: Duration = Duration::from_secs(30 * 60);

/// The containers that are opened: those of the endings that data sets have, and of sound, to say that there is no video.
/// Playlists (`concat`, `hls`, `dash`) are none of them, since they lead to other files, or round in circles.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg,gif,apng,\
                          yuv4mpegpipe,mxf,h264,hevc,ivf,obu,nut,dv,image2,png_pipe,jpeg_pipe,webp_pipe,webp,bmp_pipe,\
                          tiff_pipe,ppm_pipe,pgm_pipe,pam_pipe,pbm_pipe,jpegxl_pipe,wav,mp3,aac,flac,aiff,ac3,eac3";

/// When a look at a file has taken too long.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    whole: Duration,
}

impl Deadline {
    /// So long from now.
    pub fn after(whole: Duration) -> Self {
        Self {
            at: Instant::now() + whole,
            whole,
        }
    }

    pub fn passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// What is to be said once it has.
    pub fn error(self, path: &Path) -> VideoError {
        VideoError::TooLarge {
            path: path.into(),
            reason: format!("takes more than {:?} to read; cut it into shorter clips", self.whole),
        }
    }
}

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

/// Reads the next packet into `packet`. What it held is let go first: libav itself would leave it behind, in nobody's hands.
pub fn read(packet: &mut ffmpeg::Packet, input: &mut Input) -> Result<(), ffmpeg::Error> {
    *packet = ffmpeg::Packet::empty();
    packet.read(input)
}

/// libav's error in words.
pub fn say(error: ffmpeg::Error) -> String {
    match error {
        ffmpeg::Error::InvalidData => "libav finds no valid data".into(),
        ffmpeg::Error::DecoderNotFound => "this build of libav has no decoder for it".into(),
        error => error.to_string(),
    }
}
