//! Empty frames: the previous one is shown again for as long. Such a file is complete.

use std::path::PathBuf;

use tempfile::TempDir;
use vtrain::video::{Clip, VideoError};

use super::fixtures;

const SIDE: usize = 16;

fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = [name, &(data.len() as u32).to_le_bytes()[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes
}

fn list(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    chunk(b"LIST", &[kind, data].concat())
}

fn longs(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// An AVI of raw pictures, 16 a second, that promises so many. Picture n is gray, of level 10 n.
struct Avi {
    frames: usize,
    promised: usize,
    empty: Vec<usize>,
    /// Lists within each other that each picture stands in: one, as some cameras write them.
    lists: usize,
    /// True with an index.
    indexed: bool,
}

impl Avi {
    fn of(frames: usize, empty: &[usize]) -> Self {
        Self {
            frames,
            promised: frames,
            empty: empty.to_vec(),
            lists: 0,
            indexed: true,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (side, size, promised) = (SIDE as u32, (SIDE * SIDE * 3) as u32, self.promised as u32);
        let avih = longs(&[62_500, 0, 0, 0x10, promised, 0, 1, size, side, side, 0, 0, 0, 0]);
        let mut strh = [
            &b"vidsDIB "[..],
            &longs(&[0, 0, 0, 1, 16, 0, promised, size, u32::MAX, 0]),
        ]
        .concat();
        strh.extend([0, 0, 0, 0, SIDE as u8, 0, SIDE as u8, 0]);
        let strf = longs(&[40, side, side, 1 | 24 << 16, 0, size, 0, 0, 0, 0]);
        let stream = list(b"strl", &[chunk(b"strh", &strh), chunk(b"strf", &strf)].concat());
        let (mut movi, mut index) = (Vec::new(), Vec::new());
        for n in 0..self.frames {
            let data = match self.empty.contains(&n) {
                true => Vec::new(),
                false => vec![n as u8 * 10; size as usize],
            };
            let picture = chunk(b"00db", &data);
            let head = 12 * self.lists;
            index.extend(b"00db");
            index.extend(longs(&[0x10, (4 + movi.len() + head) as u32, data.len() as u32]));
            movi.extend((0..self.lists).fold(picture, |inner, _| list(b"rec ", &inner)));
        }
        let mut body = [
            b"AVI ".to_vec(),
            list(b"hdrl", &[chunk(b"avih", &avih), stream].concat()),
            list(b"movi", &movi),
        ]
        .concat();
        if self.indexed {
            body.extend(chunk(b"idx1", &index));
        }
        chunk(b"RIFF", &body)
    }
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn an_avi_with_empty_chunks_is_whole_and_keeps_its_times() {
    let folder = TempDir::new().unwrap();
    let in_lists = |lists, avi: Avi| Avi { lists, ..avi };
    let cases = [
        ("in between", Avi::of(18, &[5, 11])),
        ("one after the other", Avi::of(18, &[5, 6, 7])),
        ("at the end", Avi::of(18, &[16, 17])),
        ("in lists", in_lists(1, Avi::of(18, &[5, 11]))),
    ];
    for (name, avi) in cases {
        let clip = Clip::open(&file(&folder, "a.avi", &avi.bytes())).unwrap_or_else(|error| panic!("{name}: {error}"));
        let there: Vec<usize> = (0..18).filter(|n| !avi.empty.contains(n)).collect();
        assert_eq!(clip.num_frames(), there.len(), "{name}");
        for (time, n) in clip.timestamps().iter().zip(&there) {
            assert!((time - *n as f64 / 16.0).abs() < 1e-6, "{name}: {time} of {n}");
        }
        let frames = clip.decode(&(0..there.len()).collect::<Vec<_>>()).unwrap();
        let levels: Vec<usize> = frames.iter().map(|frame| frame[0] as usize).collect();
        assert_eq!(levels, there.iter().map(|n| n * 10).collect::<Vec<_>>(), "{name}");
    }
    // Deeper than any program writes them, empty ones are not looked for.
    let deep = in_lists(2, Avi::of(18, &[5, 11]));
    let error = Clip::open(&file(&folder, "a.avi", &deep.bytes())).unwrap_err();
    assert!(matches!(error, VideoError::Truncated { .. }), "{error}");
}

#[test]
fn an_avi_that_is_cut_off_is_still_told_with_and_without_empty_chunks() {
    let folder = TempDir::new().unwrap();
    for empty in [&[][..], &[5, 11], &[16, 17]] {
        for indexed in [true, false] {
            let mut avi = Avi::of(18, empty);
            avi.indexed = indexed;
            let whole = avi.bytes();
            for part in [3, 6, 8] {
                let cut = &whole[..whole.len() * part / 10];
                let error = Clip::open(&file(&folder, "a.avi", cut)).unwrap_err();
                assert!(
                    matches!(error, VideoError::Truncated { .. }),
                    "{empty:?}, {part}/10: {error}"
                );
            }
        }
    }
    // Chunks that are not there at all.
    let mut short = Avi::of(18, &[5]);
    short.promised = 20;
    let told = Clip::open(&file(&folder, "a.avi", &short.bytes()))
        .unwrap_err()
        .to_string();
    assert!(told.contains("promises 20 frames and holds 18"), "{told}");
}

/// The last sample's size is set to nothing; its bytes lie unused in the file.
#[test]
fn an_mp4_with_empty_samples_is_whole_too() {
    let mut bytes = std::fs::read(fixtures().join("shown/upright.mp4")).unwrap();
    let frames = Clip::open(&fixtures().join("shown/upright.mp4")).unwrap().num_frames();
    let at = bytes.windows(4).position(|name| name == b"stsz").unwrap() + 16 + 4 * (frames - 1);
    bytes[at..at + 4].copy_from_slice(&[0; 4]);
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.mp4", &bytes);
    let clip = Clip::open(&path).unwrap();
    assert_eq!(clip.num_frames(), frames - 1);
    assert_eq!(clip.decode(&[frames - 2]).unwrap().num_frames, 1);
}
