//! Video: real files in, real files out. The clips and the results of PyAV, Pillow and torchvision come from
//! `scripts/fixtures/make_video.py`.

mod aspect; // pixels that are not square, HDR: what is made of them, and that it is said
mod bounds; // sizes, frames, time
mod empty; // frames that are promised and show the one before again
mod orientation; // the eight ways that a picture may be turned, by EXIF, XMP, display matrix and SEI

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use vtrain::video::{Clip, Crop, Fit, Frames, Select, VideoError, Writer, available, jpeg, select, write};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/video")
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("expected.safetensors"), &Device::Cpu).unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor
        .to_dtype(DType::U8)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The largest and the mean difference of two pictures, of 255.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let each = || a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    (
        each().max().unwrap_or(0),
        each().map(f64::from).sum::<f64>() / a.len() as f64,
    )
}

/// Compares every clip of a folder with what PyAV read from it: (name, largest and mean difference).
fn against_pyav(folder: &Path, expected: &HashMap<String, Tensor>) -> Vec<(String, (u8, f64))> {
    let mut seen = Vec::new();
    for (key, frames) in expected {
        let Some(name) = key.strip_suffix("/frames") else {
            continue;
        };
        let clip = Clip::open(&folder.join(name)).unwrap();
        let (_, height, width, _) = frames.dims4().unwrap();
        assert_eq!((clip.height(), clip.width()), (height, width), "{name}");
        let seconds: Vec<f64> = expected[&format!("{name}/seconds")].to_vec1().unwrap();
        assert_eq!(clip.num_frames(), seconds.len(), "{name}");
        for (ours, theirs) in clip.timestamps().iter().zip(&seconds) {
            assert!((ours - theirs).abs() < 1e-6, "{name}: {ours} is not {theirs}");
        }
        let indices: Vec<i64> = expected[&format!("{name}/indices")].to_vec1().unwrap();
        let indices: Vec<usize> = indices.into_iter().map(|i| i as usize).collect();
        let ours = clip.decode(&indices).unwrap();
        seen.push((name.to_string(), difference(&ours.data, &bytes(frames))));
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    seen
}

#[test]
fn frames_and_timestamps_are_those_that_pyav_reads() {
    let seen = against_pyav(&fixtures(), &expected());
    assert_eq!(seen.len(), 16, "{seen:?}");
    for (name, (worst, mean)) in &seen {
        if ["ten_bit.mkv", "odd_size.webm"].contains(&name.as_str()) {
            // These take swscale's general path. Where chroma jumps, it interpolates differently from one FFmpeg version
            // to the next, and the wheel carries another than the system.
            assert!(*mean <= 3.0, "{name} differs by {mean}/255 on average");
        } else {
            assert!(*worst <= 1, "{name} differs by {worst}/255");
        }
    }
}

/// The same on any folder: `make_video_fixtures.py --clips FOLDER OUT`, then
/// `VTRAIN_CLIPS=FOLDER VTRAIN_CLIPS_EXPECTED=OUT cargo test clips_of_your_own -- --ignored --nocapture`.
#[test]
#[ignore = "needs clips: VTRAIN_CLIPS and VTRAIN_CLIPS_EXPECTED name some"]
fn clips_of_your_own_are_read_as_pyav_reads_them() {
    let [folder, expected] = ["VTRAIN_CLIPS", "VTRAIN_CLIPS_EXPECTED"].map(|name| std::env::var_os(name).expect(name));
    let expected = PathBuf::from(expected).join("expected.safetensors");
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    for (name, (worst, mean)) in against_pyav(Path::new(&folder), &expected) {
        println!("{name}: largest difference {worst}/255, on average {mean}");
        assert!(worst <= 1);
    }
}

#[test]
fn a_lossless_clip_is_read_exactly() {
    let clip = Clip::open(&fixtures().join("lossless.mkv")).unwrap();
    let read = bytes(&expected()["lossless.mkv/frames"]);
    assert_eq!(clip.decode(&[0, 6, 11]).unwrap().data, read);
    // And again from a lossless file of ours.
    let folder = tempfile::tempdir().unwrap();
    let frames = clip.decode(&(0..12).collect::<Vec<_>>()).unwrap();
    let pictures = format!("{}/pictures/", folder.path().display());
    write(Path::new(&pictures), &frames, 8.0).unwrap();
    for (n, frame) in frames.iter().enumerate() {
        let picture = Clip::open(&Path::new(&pictures).join(format!("{n:05}.png"))).unwrap();
        assert!(picture.is_image());
        assert_eq!(picture.decode(&[0]).unwrap().data, frame, "picture {n}");
    }
}

#[test]
fn seeking_gives_the_frames_that_decoding_from_the_start_gives() {
    for name in [
        "long_gop.mp4",
        "vp8.webm",
        "mpeg4.avi",
        "variable_rate.mkv",
        "moving.gif",
    ] {
        let clip = Clip::open(&fixtures().join(name)).unwrap();
        let all: Vec<usize> = (0..clip.num_frames()).collect();
        let whole = clip.decode(&all).unwrap();
        let frame = |i: usize| whole.iter().nth(i).unwrap().to_vec();
        for index in all {
            assert_eq!(
                clip.decode(&[index]).unwrap().data,
                frame(index),
                "{name}: frame {index}"
            );
        }
        let last = clip.num_frames() - 1;
        let some = clip.decode(&[0, 0, 1, last, last]).unwrap();
        let expected = [frame(0), frame(0), frame(1), frame(last), frame(last)].concat();
        assert_eq!(some.data, expected, "{name}: repeated frames");
    }
}

#[test]
fn frames_are_picked_by_the_time_they_are_on_screen() {
    let even: Vec<f64> = (0..10).map(|n| n as f64 / 10.0).collect();
    let pick = |how, fps, count| select(&even, 10.0, how, fps, count);
    assert_eq!(pick(Select::Uniform, None, 10).unwrap(), (0..10).collect::<Vec<_>>());
    // numpy: np.linspace(0, 9, 4).astype(int)
    assert_eq!(pick(Select::Uniform, None, 4).unwrap(), [0, 3, 6, 9]);
    // numpy: np.linspace(0, 9, 5).astype(int)
    assert_eq!(pick(Select::Uniform, None, 5).unwrap(), [0, 2, 4, 6, 9]);
    assert_eq!(pick(Select::Uniform, None, 1).unwrap(), [0]);
    assert_eq!(pick(Select::Head, None, 3).unwrap(), [0, 1, 2]);
    assert_eq!(pick(Select::Random { at: 0.0 }, None, 3).unwrap(), [0, 1, 2]);
    assert_eq!(pick(Select::Random { at: 0.999 }, None, 3).unwrap(), [7, 8, 9]);
    assert_eq!(pick(Select::Head, Some(5.0), 3).unwrap(), [0, 2, 4]);
    assert_eq!(pick(Select::Head, Some(20.0), 5).unwrap(), [0, 0, 1, 1, 2]);
    assert_eq!(
        (available(&even, 10.0, None), available(&even, 10.0, Some(5.0))),
        (10, 5)
    );
    assert_eq!(available(&even, 10.0, Some(10.0)), 10);
    let rate = |how, fps, count| vtrain::video::rate(&even, 10.0, how, fps, count);
    assert_eq!(
        (rate(Select::Head, None, 3), rate(Select::Head, Some(5.0), 3)),
        (10.0, 5.0)
    );
    // 4 of 10 frames over the same 0.9 s; 3 of the 5 frames at 5 a second.
    assert!((rate(Select::Uniform, None, 4) - 3.0 / 0.9).abs() < 1e-9);
    assert_eq!(rate(Select::Uniform, Some(5.0), 3), 2.5);
    assert_eq!(rate(Select::Uniform, None, 1), 10.0);
    assert_eq!(pick(Select::Uniform, None, 11), None);
    assert_eq!(pick(Select::Head, Some(5.0), 6), None);
}

#[test]
fn a_variable_rate_is_sampled_by_its_timestamps() {
    let clip = Clip::open(&fixtures().join("variable_rate.mkv")).unwrap();
    // Shown at 0 40 100 400 420 460 900 1000 1010 1500 1600 2000 ms; on screen at 0, 500, 1000, 1500, 2000 ms:
    let picked = select(clip.timestamps(), clip.fps(), Select::Head, Some(2.0), 4).unwrap();
    assert_eq!(picked, [0, 5, 7, 9]);
    let picked = select(clip.timestamps(), clip.fps(), Select::Uniform, None, 5).unwrap();
    assert_eq!(picked, [0, 5, 7, 9, 11]);
}

#[test]
fn resizing_equals_pillow_and_torchvision_to_within_one() {
    let expected = expected();
    let source = &expected["resized/source"];
    let (height, width, _) = source.dims3().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/", folder.path().display());
    let frames = Frames {
        data: bytes(source),
        num_frames: 1,
        height,
        width,
    };
    write(Path::new(&path), &frames, 1.0).unwrap();
    let clip = Clip::open(&folder.path().join("00000.png")).unwrap();
    let mut compared = 0;
    for (key, picture) in &expected {
        if !key.starts_with("resized/pillow") && !key.starts_with("resized/torchvision") {
            continue;
        }
        let (height, width, _) = picture.dims3().unwrap();
        let ours = clip.decode_fitted(&[0], &Fit::squash((height, width))).unwrap();
        let (worst, mean) = difference(&ours.data, &bytes(picture));
        assert!(worst <= 1, "{key}: {worst}, on average {mean}");
        compared += 1;
    }
    assert_eq!(compared, 8);
}

#[test]
fn covering_keeps_the_aspect_ratio_and_cuts() {
    let fit = Fit::cover((720, 1280), (480, 720), Crop::Center);
    assert_eq!(
        fit,
        Fit {
            resize_height: 480,
            resize_width: 853,
            top: 0,
            left: 66,
            height: 480,
            width: 720
        }
    );
    let corner = Fit::cover((720, 1280), (480, 720), Crop::Random { x: 0.9999, y: 0.9999 });
    assert_eq!((corner.top, corner.left), (0, 133));
    // x is from the left, y from the top; a side without anything over stays whole.
    let random = |from, to, x, y| {
        let fit = Fit::cover(from, to, Crop::Random { x, y });
        (fit.top, fit.left)
    };
    assert_eq!(random((60, 120), (60, 60), 0.25, 0.75), (0, 15));
    assert_eq!(random((120, 60), (60, 60), 0.25, 0.75), (45, 0));
    // A cut is the part of the whole that it says.
    let clip = Clip::open(&fixtures().join("lossless.mkv")).unwrap();
    let fit = Fit::cover((48, 64), (30, 30), Crop::Center);
    let whole = clip
        .decode_fitted(&[3], &Fit::squash((fit.resize_height, fit.resize_width)))
        .unwrap();
    let cut = clip.decode_fitted(&[3], &fit).unwrap();
    for y in 0..30 {
        let from = ((y + fit.top) * fit.resize_width + fit.left) * 3;
        assert_eq!(&cut.data[y * 90..(y + 1) * 90], &whole.data[from..from + 90], "row {y}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    let frames = Clip::open(&fixtures().join("lossless.mkv"))
        .unwrap()
        .decode(&[0, 2, 4, 6, 8])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, mean) in [("a.mp4", 5.0), ("a.webm", 6.0), ("a.gif", 6.0)] {
        let path = folder.path().join(name);
        write(&path, &frames, 12.5).unwrap();
        let clip = Clip::open(&path).unwrap();
        assert_eq!((clip.num_frames(), clip.height(), clip.width()), (5, 48, 64), "{name}");
        assert!((clip.fps() - 12.5).abs() < 0.01, "{name}: {}", clip.fps());
        let again = clip.decode(&[0, 1, 2, 3, 4]).unwrap();
        let (_, error) = difference(&again.data, &frames.data);
        assert!(error < mean, "{name} differs by {error} on average");
        // The same frames, the same file.
        let twin = folder.path().join(format!("twin-{name}"));
        write(&twin, &frames, 12.5).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&twin).unwrap(), "{name}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        6,
        "no half-written file is left"
    );
}

#[test]
fn a_clip_runs_as_fast_as_was_asked_for() {
    let frames = Clip::open(&fixtures().join("lossless.mkv")).unwrap();
    let frames = frames.decode(&[0, 1, 2, 3, 4]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (asked, told) in [
        (1.0, 1.0),
        (4.0, 4.0),
        (24.0, 24.0),
        (12.5, 12.5),
        (29.97, 30_000.0 / 1001.0),
    ] {
        let path = folder.path().join("a.mp4");
        write(&path, &frames, asked).unwrap();
        let fps = Clip::open(&path).unwrap().fps();
        assert!((fps - told).abs() < 1e-6, "{asked}: {fps}");
    }
}

#[test]
fn odd_sides_are_padded_by_their_last_row_and_column() {
    let clip = Clip::open(&fixtures().join("odd_size.webm")).unwrap();
    let frames = clip.decode(&[0, 1, 2]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("even.mp4");
    write(&path, &frames, 8.0).unwrap();
    let even = Clip::open(&path).unwrap();
    assert_eq!((even.height(), even.width()), (36, 52));
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.mp4");
    let mut writer = Writer::create(&path, (16, 16), 8.0).unwrap();
    writer.push(&[0; 16 * 16 * 3]).unwrap();
    assert!(matches!(writer.push(&[0; 5]), Err(VideoError::Encode { .. })));
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    for (name, size, fps) in [
        ("a.mp3", (16, 16), 8.0),
        ("a.mp4", (0, 16), 8.0),
        ("a.mp4", (16, 16), f64::NAN),
    ] {
        assert!(matches!(
            Writer::create(&folder.path().join(name), size, fps),
            Err(VideoError::Encode { .. })
        ));
    }
}

#[test]
fn every_kind_of_broken_file_has_its_own_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Clip::open(&path).unwrap_err()
    };
    let whole = std::fs::read(fixtures().join("untagged.mp4")).unwrap();
    let webm = std::fs::read(fixtures().join("vp8.webm")).unwrap();
    assert!(matches!(file("empty.mp4", b""), VideoError::Empty { .. }));
    assert!(matches!(
        file("text.mp4", b"this is no video at all"),
        VideoError::Unreadable { .. }
    ));
    // This index stands at the end, so half a file has none.
    assert!(matches!(
        file("half.mp4", &whole[..whole.len() / 2]),
        VideoError::Truncated { .. }
    ));
    assert!(matches!(
        file("half.webm", &webm[..webm.len() / 2]),
        VideoError::Truncated { .. }
    ));
    assert!(matches!(
        Clip::open(&folder.path().join("gone.mp4")).unwrap_err(),
        VideoError::Missing { .. }
    ));
    assert!(matches!(
        Clip::open(folder.path()).unwrap_err(),
        VideoError::Unreadable { .. }
    ));
    assert!(matches!(
        Clip::open(&fixtures().join("sound_only.mp4")).unwrap_err(),
        VideoError::NoVideo { .. }
    ));
}

#[test]
fn a_matroska_file_may_promise_half_a_second_more_than_it_holds() {
    // 30 frames of an eighth of a second. The promise is the segment's Duration: 0x4489, eight bytes, a float of milliseconds.
    let whole = std::fs::read(fixtures().join("vp8.webm")).unwrap();
    let at = whole.windows(3).position(|id| id == [0x44, 0x89, 0x88]).unwrap() + 3;
    let folder = tempfile::tempdir().unwrap();
    let promising = |milliseconds: f64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&milliseconds.to_be_bytes());
        let path = folder.path().join("clip.webm");
        std::fs::write(&path, bytes).unwrap();
        Clip::open(&path).map(|clip| clip.num_frames())
    };
    for kept in [1000.0, 3750.0, 4250.0] {
        assert_eq!(promising(kept).unwrap(), 30, "{kept}");
    }
    for cut in [4251.0, 60_000.0] {
        assert!(matches!(promising(cut), Err(VideoError::Truncated { .. })), "{cut}");
    }
}

#[test]
fn thumbnails_are_all_of_one_quality() {
    let (height, width) = (64, 96);
    let plain = vec![90; height * width * 3];
    let noise: Vec<u8> = (0..plain.len() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    // The quantisers of a JPEG file stand behind 0xffdb.
    let quantisers = |picture: &[u8]| {
        let file = jpeg(picture, (height, width)).unwrap();
        let at = file.windows(2).position(|marker| marker == [0xff, 0xdb]).unwrap();
        file[at..at + 69].to_vec()
    };
    assert_eq!(quantisers(&plain), quantisers(&noise));
}
