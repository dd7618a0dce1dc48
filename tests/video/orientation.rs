//! Orientation: EXIF and XMP of stills, display matrices and SEI of videos.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vtrain::video::{Clip, Frames, VideoError, jpeg, write};

use super::fixtures;

/// The colours of six squares of 16 pixels, two rows of three.
const COLOURS: [[u8; 3]; 6] = [
    [240, 20, 20],
    [20, 240, 20],
    [20, 20, 240],
    [240, 240, 20],
    [20, 240, 240],
    [240, 20, 240],
];

/// The orientations of `abc/def`. Python: `Image.fromarray` of the letters' codes, EXIF set to n,
/// `ImageOps.exif_transpose`.
const TURNED: [&str; 8] = [
    "abc/def", "cba/fed", "fed/cba", "def/abc", "ad/be/cf", "da/eb/fc", "fc/eb/da", "cf/be/ad",
];

fn squares() -> Frames {
    let (height, width) = (32, 48);
    let at = |i: usize| COLOURS[i / width / 16 * 3 + i % width / 16];
    Frames {
        data: (0..height * width).flat_map(at).collect(),
        num_frames: 1,
        height,
        width,
    }
}

/// A clip's first picture as letters, row by row.
fn letters(path: &Path) -> String {
    let clip = Clip::open(path).unwrap();
    let picture = clip.decode(&[0]).unwrap();
    assert_eq!((picture.height, picture.width), (clip.height(), clip.width()));
    let letter = |y: usize, x: usize| {
        let at = ((y * 16 + 8) * picture.width + x * 16 + 8) * 3;
        let pixel = &picture.data[at..at + 3];
        let near = |colour: &[u8; 3]| colour.iter().zip(pixel).all(|(a, b)| a.abs_diff(*b) < 60);
        let place = COLOURS.iter().position(near);
        char::from(b'a' + place.unwrap_or_else(|| panic!("{pixel:?} in {}", path.display())) as u8)
    };
    let row = |y| (0..picture.width / 16).map(|x| letter(y, x)).collect::<String>();
    (0..picture.height / 16).map(row).collect::<Vec<_>>().join("/")
}

/// EXIF with one entry: orientation as a short, in either byte order.
fn exif(orientation: u16, big: bool) -> Vec<u8> {
    let short = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let long = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let order = if big { b"MM" } else { b"II" };
    let mut bytes = [&order[..], &short(42), &long(8), &short(1)].concat();
    bytes.extend(
        [
            &short(0x0112)[..],
            &short(3),
            &long(1),
            &short(orientation),
            &[0, 0],
            &long(0),
        ]
        .concat(),
    );
    bytes
}

fn xmp(orientation: u16) -> String {
    format!("<x:xmpmeta><rdf:Description tiff:Orientation=\"{orientation}\"/></x:xmpmeta>")
}

/// A JPEG with one more APP1 segment.
fn jpeg_with(segment: &[u8]) -> Vec<u8> {
    let plain = jpeg(&squares().data, (32, 48)).unwrap();
    let length = (segment.len() as u16 + 2).to_be_bytes();
    [&plain[..2], &[0xff, 0xe1], &length, segment, &plain[2..]].concat()
}

fn plain_png() -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    write(Path::new(&format!("{}/", folder.path().display())), &squares(), 1.0).unwrap();
    std::fs::read(folder.path().join("00000.png")).unwrap()
}

/// A PNG with one more chunk, before the picture or after it.
fn png_with(kind: &[u8; 4], data: &[u8], behind: bool) -> Vec<u8> {
    let plain = plain_png();
    let at = if behind { plain.len() - 12 } else { 33 };
    let mut body = kind.to_vec();
    body.extend(data);
    let mut crc = !0u32;
    for byte in &body {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        });
    }
    let length = (data.len() as u32).to_be_bytes();
    [&plain[..at], &length, &body, &(!crc).to_be_bytes(), &plain[at..]].concat()
}

/// An uncompressed TIFF whose first directory follows the picture.
fn tiff_with(orientation: u16) -> Vec<u8> {
    let Frames {
        data, height, width, ..
    } = squares();
    let mut bytes = [&b"II*\0"[..], &(8 + data.len() as u32).to_le_bytes(), &data].concat();
    let bits = bytes.len() as u32 + 2 + 10 * 12 + 4;
    let entries: [(u16, u16, u32, u32); 10] = [
        (256, 3, 1, width as u32),
        (257, 3, 1, height as u32),
        (258, 3, 3, bits),
        (259, 3, 1, 1), // not compressed
        (262, 3, 1, 2), // RGB
        (273, 4, 1, 8),
        (274, 3, 1, orientation.into()),
        (277, 3, 1, 3),
        (278, 3, 1, height as u32),
        (279, 4, 1, data.len() as u32),
    ];
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend(
            [
                &tag.to_le_bytes()[..],
                &kind.to_le_bytes(),
                &count.to_le_bytes(),
                &value.to_le_bytes(),
            ]
            .concat(),
        );
    }
    bytes.extend([0; 4]);
    [8u16; 3].iter().for_each(|bits| bytes.extend(bits.to_le_bytes()));
    bytes
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn all_eight_orientations_of_every_kind_of_still_are_shown_upright() {
    let folder = TempDir::new().unwrap();
    for (n, turned) in (1u16..).zip(TURNED) {
        let named = |block: Vec<u8>| [b"Exif\0\0", &block[..]].concat();
        let stills = [
            ("big.jpg", jpeg_with(&named(exif(n, true)))),
            ("little.jpg", jpeg_with(&named(exif(n, false)))),
            ("before.png", png_with(b"eXIf", &exif(n, true), false)),
            ("behind.png", png_with(b"eXIf", &exif(n, false), true)),
            ("a.tif", tiff_with(n)),
            (
                "xmp.jpg",
                jpeg_with(format!("http://ns.adobe.com/xap/1.0/\0{}", xmp(n)).as_bytes()),
            ),
            (
                "xmp.png",
                png_with(
                    b"iTXt",
                    format!("XML:com.adobe.xmp\0\0\0\0\0{}", xmp(n)).as_bytes(),
                    false,
                ),
            ),
        ];
        for (name, bytes) in stills {
            let path = file(&folder, &format!("{n}-{name}"), &bytes);
            assert_eq!(letters(&path), turned, "{n} of {name}");
        }
    }
}

/// A WebP with metadata, of the kind EXIF or XMP. `still.webp` holds a single chunk; with metadata there must be a VP8X in front.
fn webp_with(kind: &[u8; 4], data: &[u8], upright: &Frames) -> Vec<u8> {
    let plain = std::fs::read(fixtures().join("still.webp")).unwrap();
    let mut body = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0".to_vec();
    body.extend(&(upright.width as u32 - 1).to_le_bytes()[..3]);
    body.extend(&(upright.height as u32 - 1).to_le_bytes()[..3]);
    body.extend(&plain[12..]);
    body.extend([kind, &(data.len() as u32).to_le_bytes()[..], data].concat());
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

#[test]
fn webp_is_turned_too() {
    let still = Clip::open(&fixtures().join("still.webp")).unwrap();
    let upright = still.decode(&[0]).unwrap();
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.webp", &webp_with(b"EXIF", &exif(6, true), &upright));
    let turned = Clip::open(&path).unwrap().decode(&[0]).unwrap();
    assert_eq!(turned.data, clockwise(&upright).data);
}

#[test]
fn metadata_of_more_than_a_mebibyte_is_passed_over() {
    let folder = TempDir::new().unwrap();
    let still = Clip::open(&fixtures().join("still.webp")).unwrap();
    let upright = still.decode(&[0]).unwrap();
    let most = 1 << 20;
    for (kind, mut data) in [(b"EXIF", exif(6, true)), (b"XMP ", xmp(6).into_bytes())] {
        for (length, is_read) in [(most, true), (most + 2, false)] {
            data.resize(length, b' ');
            let path = file(&folder, "a.webp", &webp_with(kind, &data, &upright));
            let shown = Clip::open(&path).unwrap().decode(&[0]).unwrap();
            let expected = if is_read { clockwise(&upright) } else { upright.clone() };
            assert!(shown.data == expected.data, "{}, {length}", kind.escape_ascii());
        }
    }
    let mut long = exif(6, true);
    long.resize(most + 2, 0);
    let path = file(&folder, "a.png", &png_with(b"eXIf", &long, false));
    assert_eq!(letters(&path), TURNED[0]);
}

#[test]
fn numbers_that_are_no_orientation_turn_nothing_and_exif_counts_before_xmp() {
    let folder = TempDir::new().unwrap();
    for n in [0, 9, 65535] {
        let path = file(&folder, "a.png", &png_with(b"eXIf", &exif(n, true), false));
        assert_eq!(letters(&path), TURNED[0], "{n}");
    }
    let mut both = jpeg_with(format!("http://ns.adobe.com/xap/1.0/\0{}", xmp(3)).as_bytes());
    let segment = [b"Exif\0\0", &exif(6, true)[..]].concat();
    let length = (segment.len() as u16 + 2).to_be_bytes();
    let end = 4 + usize::from(u16::from_be_bytes([both[4], both[5]]));
    let at = end.min(both.len());
    both.splice(at..at, [&[0xff, 0xe1], &length[..], &segment].concat());
    assert_eq!(letters(&file(&folder, "both.jpg", &both)), TURNED[5]);
    // A block that breaks off says nothing, and the picture is read.
    for end in 0..20 {
        let path = file(&folder, "cut.png", &png_with(b"eXIf", &exif(6, true)[..end], false));
        assert_eq!(letters(&path), TURNED[0], "{end} bytes");
    }
}

/// `ImageOps.exif_transpose` of the same bytes.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn pillow_turns_them_alike() {
    let folder = TempDir::new().unwrap();
    let ask = "import sys\nfrom PIL import Image, ImageOps\n\
               p = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert('RGB')\n\
               open(sys.argv[2], 'wb').write(p.tobytes())";
    for n in 1..=8 {
        let stills = [
            ("a.png", png_with(b"eXIf", &exif(n, true), false)),
            ("behind.png", png_with(b"eXIf", &exif(n, false), true)),
            (
                "xmp.png",
                png_with(
                    b"iTXt",
                    format!("XML:com.adobe.xmp\0\0\0\0\0{}", xmp(n)).as_bytes(),
                    false,
                ),
            ),
            ("a.tif", tiff_with(n)),
        ];
        for (name, bytes) in stills {
            let (path, raw) = (file(&folder, name, &bytes), folder.path().join("raw"));
            let asked = std::process::Command::new(crate::needs::python())
                .args(["-c", ask])
                .args([&path, &raw])
                .output()
                .unwrap();
            assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
            let ours = Clip::open(&path).unwrap().decode(&[0]).unwrap();
            assert_eq!(ours.data, std::fs::read(&raw).unwrap(), "{n} of {name}");
        }
    }
}

/// Turned by 90 degrees. numpy: `np.rot90(picture, -1)`.
fn clockwise(picture: &Frames) -> Frames {
    let (height, width) = (picture.height, picture.width);
    let at = |y: usize, x: usize| ((height - 1 - x) * width + y) * 3;
    let pixels = (0..width).flat_map(|y| (0..height).map(move |x| (y, x)));
    Frames {
        data: pixels
            .flat_map(|(y, x)| picture.data[at(y, x)..at(y, x) + 3].to_vec())
            .collect(),
        num_frames: 1,
        height: width,
        width: height,
    }
}

/// numpy: `picture[:, ::-1]`.
fn mirrored(picture: &Frames) -> Frames {
    let rows = picture.data.chunks(picture.width * 3);
    let row = |row: &[u8]| row.chunks(3).rev().flatten().copied().collect::<Vec<u8>>();
    Frames {
        data: rows.flat_map(row).collect(),
        ..picture.clone()
    }
}

/// The eight, as EXIF counts them: mirrored or not, then turned clockwise so many times.
fn turned(picture: &Frames, exif: usize) -> Frames {
    let (mirror, turns) = [
        (false, 0),
        (true, 0),
        (false, 2),
        (true, 2),
        (true, 3),
        (false, 1),
        (true, 1),
        (false, 3),
    ][exif - 1];
    let start = if mirror { mirrored(picture) } else { picture.clone() };
    (0..turns).fold(start, |picture, _| clockwise(&picture))
}

#[test]
fn films_are_turned_and_mirrored_by_their_tracks_matrix() {
    let plain = fixtures().join("untagged.mp4");
    let upright = Clip::open(&plain).unwrap().decode(&[3]).unwrap();
    let bytes = std::fs::read(plain).unwrap();
    let at = bytes.windows(4).position(|name| name == b"tkhd").unwrap() + 44;
    let one = 1 << 16;
    // (x, y) on screen = (a x + c y, b x + d y): a b c d of EXIF's 1 to 8.
    let matrices = [
        [one, 0, 0, one],
        [-one, 0, 0, one],
        [-one, 0, 0, -one],
        [one, 0, 0, -one],
        [0, one, one, 0],
        [0, one, -one, 0],
        [0, -one, -one, 0],
        [0, -one, one, 0],
    ];
    let folder = TempDir::new().unwrap();
    for (n, [a, b, c, d]) in (1..).zip(matrices) {
        let mut bytes = bytes.clone();
        let matrix: [i32; 9] = [a, b, 0, c, d, 0, 0, 0, 1 << 30];
        bytes[at..at + 36].copy_from_slice(&matrix.map(i32::to_be_bytes).concat());
        let clip = Clip::open(&file(&folder, "a.mp4", &bytes)).unwrap();
        assert_eq!(clip.decode(&[3]).unwrap(), turned(&upright, n), "{n}");
        assert!(clip.remarks().is_empty());
        assert_eq!(clip.own_orientation(), None, "the container says it");
    }
    // An angle in between is not rounded.
    let mut slanted = bytes.clone();
    let (cos, sin) = (56756, 32768); // of 30 degrees
    slanted[at..at + 36].copy_from_slice(
        &[cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30]
            .map(i32::to_be_bytes)
            .concat(),
    );
    let clip = Clip::open(&file(&folder, "slanted.mp4", &slanted)).unwrap();
    assert_eq!(clip.decode(&[3]).unwrap(), upright);
    assert_eq!(clip.remarks()[0].to_string(), "30 degrees");
}

#[test]
fn films_are_turned_by_what_their_pictures_say() {
    let shown = fixtures().join("shown");
    let upright = Clip::open(&shown.join("upright.mp4")).unwrap().decode(&[1]).unwrap();
    for (name, exif) in [("turned_by_sei.mp4", 6), ("mirrored_by_sei.mp4", 2)] {
        let clip = Clip::open(&shown.join(name)).unwrap();
        assert_eq!(clip.decode(&[1]).unwrap(), turned(&upright, exif), "{name}");
        assert_eq!(clip.own_orientation(), Some(exif as u32), "{name}");
    }
}

/// `<length> ftyp <brand>`, as phones begin a picture.
fn heif(major: &[u8; 4], others: &[&[u8; 4]]) -> Vec<u8> {
    let length = (16 + 4 * others.len() as u32).to_be_bytes();
    let mut bytes = [&length[..], b"ftyp", major, &[0; 4]].concat();
    others.iter().for_each(|brand| bytes.extend(*brand));
    bytes.extend(b"\0\0\0\x08meta");
    bytes
}

#[test]
fn heif_pictures_are_called_what_they_are_whatever_their_name() {
    let folder = TempDir::new().unwrap();
    let cases = [
        ("IMG_1.HEIC", heif(b"heic", &[b"mif1", b"heic"]), "HEIC"),
        ("renamed.jpg", heif(b"mif1", &[b"mif1", b"heix"]), "HEIC"),
        ("burst.heif", heif(b"msf1", &[b"hevc"]), "HEIC"),
        ("a.avif", heif(b"avif", &[b"mif1"]), "AVIF"),
        ("b.heif", heif(b"mif1", &[b"jpeg"]), "HEIF"),
    ];
    for (name, bytes, kind) in cases {
        let error = Clip::open(&file(&folder, name, &bytes)).unwrap_err();
        assert!(matches!(error, VideoError::Heif { .. }), "{name}: {error}");
        let told = error.to_string();
        assert!(
            told.contains(name) && told.contains(&format!(" {kind} picture")) && told.contains("JPEG or PNG"),
            "{told}"
        );
    }
    // A video is none of them.
    assert!(matches!(
        Clip::open(&file(&folder, "a.mp4", &heif(b"isom", &[b"mif1"]))).unwrap_err(),
        VideoError::Truncated { .. } | VideoError::Unreadable { .. }
    ));
}
