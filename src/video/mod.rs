//! TEMPORARY: y4m and BMP only, so that `data` compiles and its tests run before `video` is merged.
#![allow(dead_code)]
use std::path::{Path, PathBuf};

pub struct Frames {
    pub data: Vec<u8>,
    pub num_frames: usize,
    pub height: usize,
    pub width: usize,
}

#[derive(Debug, Clone)]
pub struct Clip {
    path: PathBuf,
    w: usize,
    h: usize,
    fps: f64,
    timestamps: Vec<f64>,
    image: bool,
}

#[derive(Debug)]
pub enum VideoError {
    Missing(PathBuf),
    Empty(PathBuf),
    Unreadable(String),
    NoVideo(String),
    Truncated(String),
    TooLarge(String),
    Decode(String),
    Encode(String),
}
impl std::fmt::Display for VideoError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
impl std::error::Error for VideoError {}

impl Clip {
    pub fn open(path: &Path) -> Result<Clip, VideoError> {
        let bytes = std::fs::read(path).map_err(|e| VideoError::Unreadable(e.to_string()))?;
        let bad = || VideoError::Unreadable("not y4m".into());
        if bytes.starts_with(b"RIFF") {
            return Err(VideoError::NoVideo(path.display().to_string()));
        }
        if bytes.starts_with(b"BM") {
            let n = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            return Ok(Clip {
                path: path.into(),
                w: n(18),
                h: n(22),
                fps: 25.0,
                timestamps: vec![0.0],
                image: true,
            });
        }
        let end = bytes.iter().position(|&b| b == b'\n').ok_or_else(bad)?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
        if !head.starts_with("YUV4MPEG2") {
            return Err(bad());
        }
        let field = |c: char| head.split(' ').skip(1).find_map(|f| f.strip_prefix(c)).unwrap_or("0");
        let (w, h): (usize, usize) = (field('W').parse().unwrap(), field('H').parse().unwrap());
        let (a, b) = field('F').split_once(':').unwrap();
        let fps = a.parse::<f64>().unwrap() / b.parse::<f64>().unwrap();
        let frame = 6 + w * h * 3 / 2;
        let n = (bytes.len() - end - 1) / frame;
        if (bytes.len() - end - 1) % frame != 0 {
            return Err(VideoError::Truncated(path.display().to_string()));
        }
        if n == 0 {
            return Err(VideoError::NoVideo(path.display().to_string()));
        }
        let timestamps = (0..n).map(|i| i as f64 / fps).collect();
        Ok(Clip {
            path: path.into(),
            w,
            h,
            fps,
            timestamps,
            image: false,
        })
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn width(&self) -> usize {
        self.w
    }
    pub fn height(&self) -> usize {
        self.h
    }
    pub fn num_frames(&self) -> usize {
        self.timestamps.len()
    }
    pub fn fps(&self) -> f64 {
        self.fps
    }
    pub fn duration(&self) -> f64 {
        self.timestamps.len() as f64 / self.fps
    }
    pub fn is_image(&self) -> bool {
        self.image
    }
    pub fn codec(&self) -> &str {
        "rawvideo"
    }
    pub fn timestamps(&self) -> &[f64] {
        &self.timestamps
    }
    pub fn decode(&self, i: &[usize]) -> Result<Frames, VideoError> {
        self.decode_fitted(
            i,
            &Fit {
                resize_height: self.h,
                resize_width: self.w,
                top: 0,
                left: 0,
                height: self.h,
                width: self.w,
            },
        )
    }
    pub fn decode_fitted(&self, i: &[usize], fit: &Fit) -> Result<Frames, VideoError> {
        std::fs::metadata(&self.path).map_err(|e| VideoError::Unreadable(format!("{}: {e}", self.path.display())))?;
        Ok(Frames {
            data: vec![0; i.len() * fit.height * fit.width * 3],
            num_frames: i.len(),
            height: fit.height,
            width: fit.width,
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Select {
    Uniform,
    Head,
    Random { at: f64 },
}

pub fn available(timestamps: &[f64], fps_of_clip: f64, fps: Option<f64>) -> usize {
    match fps {
        None => timestamps.len(),
        Some(fps) => ((timestamps.len() as f64 * fps / fps_of_clip).floor() as usize).max(1),
    }
}
pub fn select(
    timestamps: &[f64],
    fps_of_clip: f64,
    _how: Select,
    fps: Option<f64>,
    count: usize,
) -> Option<Vec<usize>> {
    (available(timestamps, fps_of_clip, fps) >= count).then(|| (0..count).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub resize_height: usize,
    pub resize_width: usize,
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}
#[derive(Debug, Clone, Copy)]
pub enum Crop {
    Center,
    Random { x: f64, y: f64 },
}
impl Fit {
    pub fn cover(src: (usize, usize), dst: (usize, usize), crop: Crop) -> Fit {
        let scale = (dst.0 as f64 / src.0 as f64).max(dst.1 as f64 / src.1 as f64);
        let rh = ((src.0 as f64 * scale).round() as usize).max(dst.0);
        let rw = ((src.1 as f64 * scale).round() as usize).max(dst.1);
        let (x, y) = match crop {
            Crop::Center => (0.5, 0.5),
            Crop::Random { x, y } => (x, y),
        };
        Fit {
            resize_height: rh,
            resize_width: rw,
            top: ((rh - dst.0) as f64 * y) as usize,
            left: ((rw - dst.1) as f64 * x) as usize,
            height: dst.0,
            width: dst.1,
        }
    }
    pub fn squash(dst: (usize, usize)) -> Fit {
        Fit {
            resize_height: dst.0,
            resize_width: dst.1,
            top: 0,
            left: 0,
            height: dst.0,
            width: dst.1,
        }
    }
}
