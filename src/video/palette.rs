//! Reduction to 256 colours, for GIF: median cut (Heckbert 1982) over a histogram of 5 bits a channel.
//!
//! `color_quant` (NeuQuant) has smaller errors, but takes 0.16 to 0.54 s for a frame of 480x720 where this takes 0.002 to 0.29:
//! up to 20 s more for a clip.

use ffmpeg_next::frame::Video;

/// Size of a PAL8 palette.
const COLOURS: usize = 256;

const BITS: u32 = 5;
const CELLS: usize = 1 << (3 * BITS);

/// A box of histogram cells, with its number of pixels.
struct Bin {
    cells: Vec<(usize, u32)>,
    pixels: u64,
}

/// Reduces an RGB24 picture to a PAL8 one of the same size.
pub fn reduce(rgb: &Video, indexed: &mut Video) {
    let (height, width) = (rgb.height() as usize, rgb.width() as usize);
    let (from, stride) = (rgb.data(0), rgb.stride(0));
    let mut histogram = vec![0u32; CELLS];
    for row in from.chunks(stride).take(height) {
        row[..width * 3]
            .chunks_exact(3)
            .for_each(|pixel| histogram[cell(pixel)] += 1);
    }
    let bins = median_cut(&histogram);
    let mut index_of = vec![0u8; CELLS];
    let mut palette = [0u8; 4 * COLOURS]; // BGRA
    for (i, bin) in bins.iter().enumerate() {
        bin.cells.iter().for_each(|(cell, _)| index_of[*cell] = i as u8);
        let mean = |channel| {
            let sum: u64 = bin
                .cells
                .iter()
                .map(|(cell, n)| level(*cell, channel) * u64::from(*n))
                .sum();
            (sum / bin.pixels.max(1)) as u8
        };
        palette[4 * i..4 * i + 4].copy_from_slice(&[mean(2), mean(1), mean(0), 255]);
    }
    let to_stride = indexed.stride(0);
    let to = indexed.data_mut(0);
    for (row, to) in from.chunks(stride).zip(to.chunks_mut(to_stride)).take(height) {
        for (pixel, to) in row[..width * 3].chunks_exact(3).zip(to) {
            *to = index_of[cell(pixel)];
        }
    }
    write_palette(indexed, &palette);
}

fn write_palette(indexed: &mut Video, palette: &[u8; 4 * COLOURS]) {
    // SAFETY: the second plane of a PAL8 frame is its palette, 256 native-endian ARGB words; the frame is ours alone.
    unsafe {
        let plane = (*indexed.as_mut_ptr()).data[1];
        for (i, bgra) in palette.as_chunks::<4>().0.iter().enumerate() {
            let word = u32::from_le_bytes(*bgra).to_ne_bytes();
            std::ptr::copy_nonoverlapping(word.as_ptr(), plane.add(4 * i), 4);
        }
    }
}

fn median_cut(histogram: &[u32]) -> Vec<Bin> {
    let cells: Vec<(usize, u32)> = histogram.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
    let pixels = cells.iter().map(|(_, n)| u64::from(*n)).sum();
    let mut bins = vec![Bin { cells, pixels }];
    while bins.len() < COLOURS {
        // Splits the bin whose colours spread most, counted by pixels, at its median.
        let widest = bins
            .iter()
            .enumerate()
            .filter(|(_, bin)| bin.cells.len() > 1)
            .max_by_key(|(_, bin)| {
                let (_, spread) = widest_channel(bin);
                spread * spread * bin.pixels
            });
        let Some((at, _)) = widest else { break };
        let (left, right) = cut(bins.swap_remove(at));
        bins.extend([left, right]);
    }
    bins
}

fn cut(mut bin: Bin) -> (Bin, Bin) {
    let (channel, _) = widest_channel(&bin);
    bin.cells.sort_by_key(|(cell, _)| level(*cell, channel));
    let mut before = 0;
    let middle = bin.cells.iter().position(|(_, n)| {
        before += u64::from(*n);
        2 * before >= bin.pixels
    });
    let middle = (middle.unwrap_or(0) + 1).clamp(1, bin.cells.len() - 1);
    let right = bin.cells.split_off(middle);
    let count = |cells: &[(usize, u32)]| cells.iter().map(|(_, n)| u64::from(*n)).sum();
    (
        Bin {
            pixels: count(&bin.cells),
            cells: bin.cells,
        },
        Bin {
            pixels: count(&right),
            cells: right,
        },
    )
}

fn widest_channel(bin: &Bin) -> (u32, u64) {
    let spread = |channel| {
        let levels = || bin.cells.iter().map(|(cell, _)| level(*cell, channel));
        levels().max().unwrap_or(0) - levels().min().unwrap_or(0)
    };
    (0..3)
        .map(|channel| (channel, spread(channel)))
        .max_by_key(|(_, spread)| *spread)
        .unwrap_or((0, 0))
}

fn cell(pixel: &[u8]) -> usize {
    pixel
        .iter()
        .take(3)
        .fold(0, |cell, value| (cell << BITS) | (usize::from(*value) >> (8 - BITS)))
}

/// Returns a cell's red (0), green (1) or blue (2), 0..255.
fn level(cell: usize, channel: u32) -> u64 {
    let value = (cell >> (BITS * (2 - channel))) & ((1 << BITS) - 1);
    (value * 255 / ((1 << BITS) - 1)) as u64
}
