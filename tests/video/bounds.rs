//! Claims of a file and their cost: sizes, frames, time, and no access to other files.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vtrain::process::memory::resident;
use vtrain::video::{Clip, Fit, VideoError};

use super::fixtures;
use crate::disk::{again, folder_of_child};
use crate::fuzz::peak_memory;

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    write(folder.path(), name, bytes)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Headers of pictures and clips of so many pixels, of which next to nothing is there.
fn claims(width: u32, height: u32) -> Vec<(&'static str, Vec<u8>)> {
    let mut bmp = b"BM".to_vec();
    for n in [u32::MAX, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0] {
        bmp.extend(n.to_le_bytes());
    }
    bmp.resize(4096, 7);
    let mut png = std::fs::read(fixtures().join("still.png")).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let mut gif = std::fs::read(fixtures().join("moving.gif")).unwrap();
    gif[6..8].copy_from_slice(&(width.min(65535) as u16).to_le_bytes());
    gif[8..10].copy_from_slice(&(height.min(65535) as u16).to_le_bytes());
    let y4m = format!("YUV4MPEG2 W{width} H{height} F8:1 Ip A1:1 C420jpeg\nFRAME\n");
    let mut y4m = y4m.into_bytes();
    y4m.resize(y4m.len() + 4096, 9);
    let mut ppm = format!("P6\n{width} {height}\n255\n").into_bytes();
    ppm.resize(ppm.len() + 4096, 9);
    vec![
        ("a.bmp", bmp),
        ("a.png", png),
        ("a.gif", gif),
        ("a.y4m", y4m),
        ("a.ppm", ppm),
    ]
}

#[test]
fn a_file_that_claims_to_be_enormous_is_refused_by_name_without_the_memory() {
    if let Some(folder) = folder_of_child() {
        for (width, height) in [(100_000, 100_000), (16_385, 16), (16, 1 << 30), (16_000, 16_000)] {
            for (name, bytes) in claims(width, height) {
                let path = write(&folder, name, &bytes);
                let started = Instant::now();
                let error = Clip::open(&path).unwrap_err();
                assert!(error.to_string().contains(name), "{width}x{height}: {error}");
                assert!(
                    started.elapsed() < Duration::from_secs(60),
                    "{name}: {:?}",
                    started.elapsed()
                );
            }
        }
        assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
    } else {
        // In a process of its own: others have used memory in one that runs all tests.
        let folder = TempDir::new().unwrap();
        let test = "video::bounds::a_file_that_claims_to_be_enormous_is_refused_by_name_without_the_memory";
        let child = again(test, folder.path(), &[]).output().unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    }
}

/// So many frames of one pixel.
fn endless_gif(frames: usize) -> Vec<u8> {
    let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    gif.extend(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"); // for ever
    for _ in 0..frames {
        gif.extend(b"!\xf9\x04\0\x02\0\0\0"); // shown for 20 ms
        gif.extend(b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    gif.push(b';');
    gif
}

#[test]
fn an_image_that_never_stops_moving_is_read_once() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.gif", &endless_gif(30_000));
    let clip = Clip::open(&path).unwrap();
    assert_eq!(clip.num_frames(), 30_000);
    let frames = clip.decode_fitted(&[0, 29_999], &Fit::squash((2, 2))).unwrap();
    assert_eq!(frames.num_frames, 2);
}

#[test]
fn a_clip_of_more_frames_than_anyone_films_is_refused() {
    let folder = TempDir::new().unwrap();
    let mut bytes = b"YUV4MPEG2 W2 H2 F25:1 Ip A1:1 C420jpeg\n".to_vec();
    bytes.extend(b"FRAME\n\x01\x02\x03\x04\x80\x80".repeat(25 * 60 * 60 * 24 + 1));
    let path = file(&folder, "a.y4m", &bytes);
    let error = Clip::open(&path).unwrap_err();
    assert!(matches!(error, VideoError::TooLarge { .. }), "{error}");
    assert!(
        error.to_string().contains("a.y4m: has more than 2160000 frames"),
        "{error}"
    );
}

#[test]
fn opening_and_decoding_end_when_their_time_is_up() {
    for name in ["long_gop.mp4", "vp8.webm", "moving.gif", "still.png"] {
        let path = fixtures().join(name);
        let late = |error: VideoError| {
            assert!(matches!(error, VideoError::TooLarge { .. }), "{error}");
            assert!(
                error.to_string().contains(name) && error.to_string().contains("takes more than"),
                "{error}"
            );
        };
        late(Clip::open_within(&path, Duration::ZERO).unwrap_err());
        let clip = Clip::open(&path).unwrap();
        let last = clip.num_frames() - 1;
        late(
            clip.decode_within(&[last], &Fit::squash((8, 8)), Duration::ZERO)
                .unwrap_err(),
        );
        clip.decode_within(&[last], &Fit::squash((8, 8)), Duration::from_secs(60))
            .unwrap();
    }
}

#[test]
fn playlists_do_not_lead_to_other_files() {
    let folder = TempDir::new().unwrap();
    std::fs::copy(fixtures().join("lossless.mkv"), folder.path().join("other.mkv")).unwrap();
    for (name, text) in [
        ("a.mp4", "ffconcat version 1.0\nfile other.mkv\n"),
        ("round.mp4", "ffconcat version 1.0\nfile round.mp4\n"),
        (
            "b.mkv",
            "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.5,\nother.mkv\n#EXT-X-ENDLIST\n",
        ),
        (
            "b.m3u8",
            "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.5,\nother.mkv\n#EXT-X-ENDLIST\n",
        ),
        (
            "c.mp4",
            "<?xml version=\"1.0\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" \
             mediaPresentationDuration=\"PT1S\"><Period><AdaptationSet mimeType=\"video/mp4\"><Representation id=\"0\" \
             bandwidth=\"1\"><BaseURL>other.mkv</BaseURL></Representation></AdaptationSet></Period></MPD>",
        ),
    ] {
        let error = Clip::open(&file(&folder, name, text.as_bytes())).unwrap_err();
        assert!(
            matches!(error, VideoError::Unreadable { .. }) && error.to_string().contains(name),
            "{error}"
        );
    }
}

#[test]
fn what_was_read_of_a_clip_is_let_go() {
    let folder = TempDir::new().unwrap();
    let mut bytes = b"YUV4MPEG2 W1024 H1024 F25:1 Ip A1:1 C420jpeg\n".to_vec();
    let frame = [b"FRAME\n".to_vec(), vec![99; 1024 * 1024 * 3 / 2]].concat();
    bytes.extend(frame.repeat(20)); // 30 MB
    let path = file(&folder, "a.y4m", &bytes);
    let before = resident().unwrap().now;
    for _ in 0..20 {
        let clip = Clip::open(&path).unwrap();
        clip.decode_fitted(&[0, 19], &Fit::squash((8, 8))).unwrap();
    }
    let grown = resident().unwrap().now.saturating_sub(before);
    assert!(grown < 300 << 20, "{grown} bytes more for having read 1.2 GB");
}

/// Reading a pipe would wait for a writer.
#[test]
fn what_is_no_ordinary_file_is_not_opened() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pipe.mp4");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name is a C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for path in [path.as_path(), Path::new("/dev/zero")] {
        let error = Clip::open(path).unwrap_err();
        assert!(error.to_string().contains("it is not an ordinary file"), "{error}");
    }
}
