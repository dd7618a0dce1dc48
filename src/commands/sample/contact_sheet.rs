//! Contact sheets of a folder of clips, `contact-sheet-1.jpg` and so on: a row a clip, in the order of the prompts, with pictures
//! from its beginning to its end.

use std::path::{Path, PathBuf};

use crate::disk;
use crate::video::{self, Clip, Crop, Fit};

/// Clips of a sheet.
const ROWS: usize = 20;
/// Pictures of a clip.
const COLUMNS: usize = 4;
/// Rows and columns of a picture.
const HEIGHT: usize = 144;
const WIDTH: usize = 256;

/// Writes the sheets of these clips, and removes those that an earlier call with more clips left.
///
/// # Errors
/// Fails for a clip that cannot be decoded, and where a sheet cannot be written.
pub fn write(folder: &Path, clips: &[PathBuf]) -> anyhow::Result<()> {
    let path = |number: usize| folder.join(format!("contact-sheet-{number}.jpg"));
    let mut number = 0;
    for clips in clips.chunks(ROWS) {
        number += 1;
        let sheet = sheet(clips)?;
        let size = (clips.len() * HEIGHT, COLUMNS * WIDTH);
        disk::write_whole(&path(number), &video::jpeg(&sheet, size)?)?;
        log::info!("contact sheet {}", path(number).display());
    }
    let left = (number + 1..).map(path).take_while(|path| path.exists());
    for path in left {
        if let Err(error) = std::fs::remove_file(&path) {
            log::warn!("{}: of an earlier call, cannot be removed: {error}", path.display());
            break;
        }
    }
    Ok(())
}

/// Returns a sheet: a row of pictures for each clip.
fn sheet(clips: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let line = COLUMNS * WIDTH * 3;
    let mut sheet = vec![0; clips.len() * HEIGHT * line];
    for (clip, row) in clips.iter().zip(sheet.chunks_exact_mut(HEIGHT * line)) {
        let clip = Clip::open(clip)?;
        let last = clip.num_frames().saturating_sub(1);
        let mut wanted: Vec<usize> = (0..COLUMNS).map(|n| last * n / (COLUMNS - 1)).collect();
        wanted.dedup();
        let fit = Fit::cover((clip.height(), clip.width()), (HEIGHT, WIDTH), Crop::Center);
        let pictures = clip.decode_fitted(&wanted, &fit)?;
        for (column, picture) in pictures.iter().enumerate() {
            for (from, to) in picture.chunks_exact(WIDTH * 3).zip(row.chunks_exact_mut(line)) {
                to[column * WIDTH * 3..][..WIDTH * 3].copy_from_slice(from);
            }
        }
    }
    Ok(sheet)
}
