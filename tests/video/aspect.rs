//! Pixels that are not square are scaled to their displayed size; HDR is reported.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vtrain::video::{Clip, Crop, Fit, VideoError};

use super::{difference, fixtures};

fn shown(name: &str) -> PathBuf {
    fixtures().join("shown").join(name)
}

/// A clip of two frames with a slope from left to right.
fn y4m(folder: &Path, width: usize, height: usize, aspect: &str) -> PathBuf {
    let mut bytes = format!("YUV4MPEG2 W{width} H{height} F8:1 Ip A{aspect} C444\n").into_bytes();
    for _ in 0..2 {
        bytes.extend(b"FRAME\n");
        (0..height).for_each(|_| bytes.extend((0..width).map(|x| (16 + x * 219 / width) as u8)));
        bytes.extend(std::iter::repeat_n(128, 2 * width * height));
    }
    let path = folder.join("a.y4m");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// (width, height) of the clip, and its remarks.
fn facts(path: &Path) -> ((usize, usize), Vec<String>) {
    let clip = Clip::open(path).unwrap();
    let remarks = clip.remarks().iter().map(ToString::to_string).collect();
    ((clip.width(), clip.height()), remarks)
}

#[test]
fn pixels_that_are_not_square_are_scaled_and_told() {
    let folder = TempDir::new().unwrap();
    let of = |width, height, aspect| facts(&y4m(folder.path(), width, height, aspect));
    assert_eq!(
        of(72, 64, "4:3"),
        ((96, 64), vec!["pixels 4:3, 72x64 shown as 96x64".into()])
    );
    // NTSC: 720 x 480 at 8:9 is 640 x 480; odd sizes are rounded to the nearest.
    assert_eq!(of(72, 48, "8:9").0, (64, 48));
    assert_eq!(
        of(71, 35, "8:9"),
        ((63, 35), vec!["pixels 8:9, 71x35 shown as 63x35".into()])
    );
    assert_eq!(of(33, 35, "64:45").0, (47, 35));
    assert_eq!(of(1, 64, "1:16").0, (1, 64), "a column is left");
    // Nothing is said, it is square, or it is off by what sizes are rounded by.
    for aspect in ["0:0", "1:1", "100:100", "853:854", "-1:2"] {
        assert_eq!(of(72, 64, aspect), ((72, 64), vec![]), "{aspect}");
    }
    assert_eq!(of(100, 64, "102:100").0, (102, 64));
}

#[test]
fn an_absurd_shape_of_pixels_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    for aspect in ["1000:1", "2147483647:1"] {
        let error = Clip::open(&y4m(folder.path(), 72, 64, aspect)).unwrap_err();
        assert!(matches!(error, VideoError::TooLarge { .. }), "{error}");
        let told = error.to_string();
        assert!(
            told.contains("a.y4m") && told.contains(&format!("of the shape {aspect}")),
            "{told}"
        );
    }
}

/// The slope from left to right fills the picture before and after.
#[test]
fn a_picture_is_resized_once_from_what_is_stored_to_what_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let clip = Clip::open(&y4m(folder.path(), 72, 64, "4:3")).unwrap();
    let fit = Fit::cover((clip.height(), clip.width()), (64, 96), Crop::Center);
    assert_eq!(
        (fit.resize_height, fit.resize_width, fit.top, fit.left),
        (64, 96, 0, 0),
        "nothing is cut"
    );
    let fitted = clip.decode_fitted(&[1], &fit).unwrap();
    assert_eq!(fitted, clip.decode(&[1]).unwrap());
    let slope: Vec<u8> = (0..96).map(|x| (x * 255 / 96) as u8).collect();
    let row: Vec<u8> = fitted.data[..96 * 3].chunks(3).map(|pixel| pixel[0]).collect();
    let (worst, mean) = difference(&row, &slope);
    assert!(worst <= 5 && mean < 3.0, "{worst}, {mean}: {row:?}");
}

#[test]
fn the_container_counts_before_the_codec_and_the_codec_where_the_container_says_nothing() {
    // Both say 4:3.
    assert_eq!(facts(&shown("anamorphic.mp4")).0, (96, 64));
    // MPEG-2 of a DVD: the container knows no such thing. 72 x 64 at 32:27.
    let ((width, height), remarks) = facts(&shown("dvd.mpg"));
    assert_eq!((width, height), (85, 64));
    assert_eq!(remarks, ["pixels 32:27, 72x64 shown as 85x64"]);
    // `pasp` of the container changed to 2:1, while the codec still says 4:3.
    let folder = TempDir::new().unwrap();
    let mut bytes = std::fs::read(shown("anamorphic.mp4")).unwrap();
    let at = bytes.windows(4).position(|name| name == b"pasp").unwrap() + 4;
    bytes[at..at + 8].copy_from_slice(&[0, 0, 0, 2, 0, 0, 0, 1]);
    let path = folder.path().join("a.mp4");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(facts(&path).0, (144, 64));
}

#[test]
fn a_film_that_is_turned_is_scaled_along_its_own_rows() {
    let mut bytes = std::fs::read(shown("anamorphic.mp4")).unwrap();
    let at = bytes.windows(4).position(|name| name == b"tkhd").unwrap() + 44;
    let one = 1 << 16;
    bytes[at..at + 36].copy_from_slice(&[0, one, 0, -one, 0, 0, 0, 0, 1 << 30].map(i32::to_be_bytes).concat());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.mp4");
    std::fs::write(&path, &bytes).unwrap();
    let clip = Clip::open(&path).unwrap();
    assert_eq!((clip.width(), clip.height()), (64, 96));
    assert_eq!(clip.stored_size(), (72, 64));
    let frame = clip.decode(&[0]).unwrap();
    assert_eq!((frame.height, frame.width), (96, 64));
}

/// JFIF's density of 1 by 2 dots: viewers show such a picture as it is stored.
#[test]
fn a_stills_resolution_is_told_and_changes_nothing() {
    let mut bytes = std::fs::read(fixtures().join("still.jpg")).unwrap();
    let at = bytes.windows(5).position(|name| name == b"JFIF\0").unwrap() + 7;
    bytes[at..at + 5].copy_from_slice(&[0, 0, 1, 0, 2]);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.jpg");
    std::fs::write(&path, &bytes).unwrap();
    let (size, remarks) = facts(&path);
    assert_eq!(size, (64, 48));
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert!(Clip::open(&path).unwrap().remarks()[0].heading().starts_with("stills"));
}

#[test]
fn hdr_is_told() {
    for (name, kind) in [("pq.mp4", "PQ"), ("hlg.mkv", "HLG")] {
        let clip = Clip::open(&shown(name)).unwrap();
        let remark = &clip.remarks()[0];
        assert_eq!(remark.to_string(), kind);
        assert!(remark.heading().contains("convert"), "{}", remark.heading());
    }
    for name in ["bt709.mp4", "ten_bit.mkv"] {
        assert!(
            Clip::open(&fixtures().join(name)).unwrap().remarks().is_empty(),
            "{name}"
        );
    }
}
