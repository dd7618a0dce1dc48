//! Tests of data: folders are made for each test, their clips by hand, so that no encoder is needed.

mod captions; // prefixes and the identifying token
mod config; // values that cannot work, and the schema
mod faults; // what is wrong with a data set, said by file and line
mod layouts; // every layout, found by looking
mod links; // and dots, and what they lead to
mod lookalikes; // names in another Unicode normal form
mod order; // batches by seed and epoch
mod surveys; // buckets, crops, totals, loading

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use vtrain::data::manifest::{self, Listing};
use vtrain::data::{Bucket, Config, Found, Report};

/// A survey without progress reports.
fn survey(configs: &[Config], decode: bool) -> Report {
    vtrain::data::survey(configs, decode, &|_, _| {})
}

/// A survey of a folder without progress reports.
fn survey_folder(path: &Path, decode: bool) -> Report<Found> {
    vtrain::data::survey_folder(path, decode, &|_, _| {})
}

/// A folder with a data set in it.
struct Set {
    folder: TempDir,
}

impl Set {
    fn new() -> Set {
        Set {
            folder: TempDir::new().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Set {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    /// A clip of 48x32 with 9 frames at 8 fps.
    fn clip(self, name: &str) -> Set {
        self.file(name, y4m(48, 32, 9, 8))
    }

    fn clips(self, names: &[&str]) -> Set {
        names.iter().fold(self, |set, name| set.clip(name))
    }

    fn config(&self) -> Config {
        Config {
            path: self.path().to_owned(),
            buckets: vec![bucket(9, 32, 48)],
            ..Config::default()
        }
    }

    fn read(&self) -> Listing {
        manifest::read(&self.config())
    }

    /// The refusals and notes, without the folder.
    fn without_folder(&self, text: impl ToString) -> String {
        text.to_string().replace(&format!("{}/", self.path().display()), "")
    }

    fn refusals(&self, listing: &Listing) -> Vec<String> {
        let refused = listing.items.iter().filter_map(|item| item.as_ref().err());
        refused.map(|refusal| self.without_folder(refusal)).collect()
    }
}

/// The clips that a listing accepts, with their captions.
fn accepted(listing: &Listing) -> Vec<(&str, &str)> {
    let entries = listing.items.iter().flatten();
    entries
        .map(|entry| (entry.name.as_str(), entry.caption.as_str()))
        .collect()
}

fn bucket(frames: usize, height: usize, width: usize) -> Bucket {
    Bucket { frames, height, width }
}

/// An uncompressed clip: a video format that is written by hand in a few lines.
pub fn y4m(width: usize, height: usize, frames: usize, fps: usize) -> Vec<u8> {
    let mut bytes = format!("YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n").into_bytes();
    for n in 0..frames {
        bytes.extend(b"FRAME\n");
        bytes.extend(std::iter::repeat_n((n * 8 % 256) as u8, width * height));
        bytes.extend(std::iter::repeat_n(128, 2 * width.div_ceil(2) * height.div_ceil(2)));
    }
    bytes
}

/// An uncompressed picture, gray.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let pixels = (width * 3).next_multiple_of(4) * height;
    let mut bytes = b"BM".to_vec();
    for n in [
        54 + pixels,
        0,
        54,
        40,
        width,
        height,
        1 | 24 << 16,
        0,
        pixels,
        0,
        0,
        0,
        0,
    ] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.resize((54 + pixels) as usize, 128);
    bytes
}
