//! Sizes, lengths and depths of clips and pictures: up to the limit, and one step beyond.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vtrain::video::{Clip, VideoError};

/// A clip of one frame of this size, black and green: nothing but its header is written.
fn vast(folder: &TempDir, width: usize, height: usize) -> PathBuf {
    let path = folder.path().join("a.y4m");
    let mut file = File::create(&path).unwrap();
    write!(file, "YUV4MPEG2 W{width} H{height} F8:1 Ip A1:1 C420jpeg\nFRAME\n").unwrap();
    let head = file.stream_position().unwrap();
    file.set_len(head + (width * height * 3 / 2) as u64).unwrap();
    path
}

#[test]
fn pictures_are_read_up_to_16384_a_side_and_64_mi_pixels() {
    let folder = TempDir::new().unwrap();
    for (width, height, read) in [
        (16_384, 16, true),
        (16_386, 16, false),
        (16, 16_384, true),
        (16, 16_386, false),
        (16_384, 4096, true),
        (16_384, 4098, false),
    ] {
        let opened = Clip::open(&vast(&folder, width, height));
        let refused = matches!(opened, Err(VideoError::TooLarge { .. }));
        assert_eq!((opened.is_ok(), refused), (read, !read), "{width}x{height}");
    }
}

#[test]
fn a_clip_has_as_many_frames_as_a_day() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.y4m");
    let mut bytes = b"YUV4MPEG2 W2 H2 F25:1 Ip A1:1 C420jpeg\n".to_vec();
    bytes.extend(b"FRAME\n\x01\x02\x03\x04\x80\x80".repeat(25 * 60 * 60 * 24));
    fs::write(&path, bytes).unwrap();
    assert_eq!(Clip::open(&path).unwrap().num_frames(), 2_160_000);
}

fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// The fixture's PNG with more chunks before its picture: empty ones, and EXIF of so many bytes that turns it.
fn turned_png(empty: usize, bytes: usize) -> Vec<u8> {
    let plain = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/video/still.png")).unwrap();
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        [
            &(data.len() as u32).to_be_bytes()[..],
            &body,
            &checksum(&body).to_be_bytes(),
        ]
        .concat()
    };
    let mut exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    exif.resize(bytes, 0);
    [
        &plain[..33],
        &chunk(b"teXt", b"").repeat(empty),
        &chunk(b"eXIf", &exif),
        &plain[33..],
    ]
    .concat()
}

/// A block of EXIF may have a MiB, and stand behind 2^16 - 1 parts, the header among them.
#[test]
fn a_picture_is_turned_by_exif_that_is_neither_too_long_nor_too_far_behind() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.png");
    let is_turned = |empty: usize, bytes: usize| {
        fs::write(&path, turned_png(empty, bytes)).unwrap();
        Clip::open(&path).unwrap().own_orientation() == Some(6)
    };
    assert_eq!([1 << 20, (1 << 20) + 1].map(|bytes| is_turned(0, bytes)), [true, false]);
    assert_eq!(
        [(1 << 16) - 2, (1 << 16) - 1].map(|empty| is_turned(empty, 64)),
        [true, false]
    );
}

/// `<length> ftyp mif1 <version> <brands>`: the brand that says what it is may be the 32nd.
#[test]
fn a_heif_picture_is_told_by_its_first_32_brands() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.jpg");
    for (before, kind) in [(31, " HEIC picture"), (32, " HEIF picture")] {
        let length = (16 + 4 * (before as u32 + 1)).to_be_bytes();
        let bytes = [&length[..], b"ftypmif1\0\0\0\0", &b"jpeg".repeat(before), b"heic"].concat();
        fs::write(&path, bytes).unwrap();
        let told = Clip::open(&path).unwrap_err().to_string();
        assert!(told.contains(kind), "{before}: {told}");
    }
}

/// A GIF has 256 colours: a picture with as many has one for each, and one with more shares them.
#[test]
fn a_gif_has_as_many_colours_as_its_picture_up_to_256() {
    let folder = TempDir::new().unwrap();
    for (colours, kept) in [(255, 255), (256, 256), (257, 256), (1024, 256)] {
        // Levels 0, 8, .. 248 of red and green: a cell of the histogram each.
        let pixel = |i: usize| [(i % 32 * 8) as u8, (i / 32 * 8) as u8, 0];
        let data: Vec<u8> = (0..1024).flat_map(|i| pixel(i % colours)).collect();
        let frames = vtrain::video::Frames {
            data,
            num_frames: 1,
            height: 32,
            width: 32,
        };
        let path = folder.path().join("a.gif");
        vtrain::video::write(&path, &frames, 8.0).unwrap();
        let again = Clip::open(&path).unwrap().decode(&[0]).unwrap().data;
        let found: std::collections::BTreeSet<&[u8]> = again.chunks(3).collect();
        assert_eq!(found.len(), kept, "{colours}");
    }
}
