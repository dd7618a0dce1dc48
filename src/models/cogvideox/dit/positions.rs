//! Position embeddings of CogVideoX: absolute (2b, I2V) and rotary (all but 2b).
//!
//! Absolute (2b): sines and cosines of frame, column and row, of the clip's own size. The first I2V model adds learned
//! ones, made for one size only; a clip of another length gets sines and cosines instead, as in `CogVideoXPatchEmbed`.
//!
//! Rotary: `get_3d_rotary_pos_embed`. 1.0 stretches the clip over the grid that the model was made for, as far as its
//! aspect ratio allows, centred (`linspace`); 1.5 takes the grid's first positions (`slice`). A quarter of a head's
//! features is rotated by the frame, three eighths by the row, three eighths by the column.
//!
//! Shapes: L text tokens, N video tokens, D the model's width, K a head's.

use candle_core::{Device, Error, Result, Tensor};

use super::config::Config;
use crate::nn::Weights;
use crate::nn::embed::{Grid3d, positions_3d};
use crate::nn::rope::{Axis, PairLayout, Rotary, THETA};

/// Absolute positions, added to the tokens.
#[derive(Debug, Clone)]
pub enum Added {
    /// Sines and cosines.
    Computed,
    /// Learned positions (1, L + N, D), for one size.
    Learned(Tensor),
}

impl Added {
    /// Reads `pos_embedding` if it is learned; None without absolute positions.
    pub fn new(config: &Config, weights: &Weights) -> Result<Option<Self>> {
        if !config.use_learned_positional_embeddings {
            return Ok((!config.use_rotary_positional_embeddings).then_some(Self::Computed));
        }
        let frames = (config.sample_frames - 1) / config.temporal_compression_ratio + 1;
        let patches = frames * (config.sample_height / config.patch_size) * (config.sample_width / config.patch_size);
        let shape = (1, config.max_text_seq_length + patches, config.inner_dim());
        let learned = weights.get(shape, "pos_embedding")?;
        // An outline runs on clips of another size.
        Ok(Some(if weights.are_outlines() {
            Self::Computed
        } else {
            Self::Learned(learned)
        }))
    }

    /// Adds the positions to (B, L + N, D), where L is `tokens`, of a clip of `latent` frames, rows and columns.
    pub fn add(&self, config: &Config, latent: [usize; 3], tokens: usize, hidden: &Tensor) -> Result<Tensor> {
        let [frames, height, width] = latent;
        let video_frames = (frames - 1) * config.temporal_compression_ratio + 1;
        if let Self::Learned(learned) = self {
            if (height, width) != (config.sample_height, config.sample_width) {
                return Err(Error::Msg(format!(
                    "latents of {height}x{width}: this model has learned positions for {}x{} only",
                    config.sample_height, config.sample_width
                )));
            }
            if video_frames == config.sample_frames {
                if tokens != config.max_text_seq_length {
                    return Err(Error::Msg(format!(
                        "{tokens} text tokens: this model has learned positions for {} (max_text_seq_length)",
                        config.max_text_seq_length
                    )));
                }
                return hidden.broadcast_add(learned);
            }
        }
        // As in diffusers: the frames are derived from those of the video, whatever the depth of a patch.
        let grid = Grid3d {
            frames: (video_frames - 1) / config.temporal_compression_ratio + 1,
            height: height / config.patch_size,
            width: width / config.patch_size,
            spatial_scale: config.spatial_interpolation_scale,
            temporal_scale: config.temporal_interpolation_scale,
        };
        let positions = positions_3d(&grid, config.inner_dim(), hidden.device())?.to_dtype(hidden.dtype())?;
        hidden.broadcast_add(&positions.pad_with_zeros(0, tokens, 0)?)
    }
}

/// Checks that there are positions for these rows and columns of patches.
pub fn check(config: &Config, [height, width]: [usize; 2]) -> Result<()> {
    let (rows, columns) = (
        config.sample_height / config.patch_size,
        config.sample_width / config.patch_size,
    );
    let counts = config.use_rotary_positional_embeddings && config.patch_size_t.is_some();
    if counts && (height > rows || width > columns) {
        return Err(Error::Msg(format!(
            "latents of {}x{} are larger than the {}x{} that this model has positions for",
            height * config.patch_size,
            width * config.patch_size,
            config.sample_height,
            config.sample_width
        )));
    }
    Ok(())
}

/// Returns rotary tables for the video tokens of a `grid` of frames, rows and columns; None for a model without them.
pub fn rotary(config: &Config, grid: [usize; 3], device: &Device) -> Result<Option<Rotary>> {
    if !config.use_rotary_positional_embeddings {
        return Ok(None);
    }
    let [frames, height, width] = grid;
    check(config, [height, width])?;
    let base = [
        config.sample_height / config.patch_size,
        config.sample_width / config.patch_size,
    ];
    let (in_time, in_space) = (config.attention_head_dim / 4, config.attention_head_dim / 8 * 3);
    let mut axes =
        [(frames, in_time), (height, in_space), (width, in_space)].map(|(count, width)| Axis::counted(count, width));
    if config.patch_size_t.is_none() {
        let [(top, bottom), (left, right)] = crop_region([height, width], base);
        axes[1].positions = stretched(top, bottom, height);
        axes[2].positions = stretched(left, right, width);
    }
    Rotary::grid(&axes, THETA, PairLayout::Neighbours, device).map(Some)
}

/// Returns first and last+1 row and column that a grid takes when it fills `base` as far as its aspect ratio allows,
/// centred.
///
/// `get_resize_crop_region_for_grid`, with Python's rounding (half to even).
fn crop_region(grid: [usize; 2], base: [usize; 2]) -> [(f64, f64); 2] {
    let [height, width] = grid.map(|side| side as f64);
    let [base_height, base_width] = base.map(|side| side as f64);
    let (rows, columns) = if height / width > base_height / base_width {
        (base_height, (base_height / height * width).round_ties_even())
    } else {
        ((base_width / width * height).round_ties_even(), base_width)
    };
    let top = ((base_height - rows) / 2.0).round_ties_even();
    let left = ((base_width - columns) / 2.0).round_ties_even();
    [(top, top + rows), (left, left + columns)]
}

/// `torch.linspace(start, stop * (count - 1) / count, count)` in f32: computed from the nearer end.
fn stretched(start: f64, stop: f64, count: usize) -> Vec<f32> {
    let (first, last) = (start as f32, (stop * (count - 1) as f64 / count as f64) as f32);
    let step = (last - first) / (count.max(2) - 1) as f32;
    (0..count)
        .map(|i| {
            if i < count / 2 || count == 1 {
                first + step * i as f32
            } else {
                last - step * (count - 1 - i) as f32
            }
        })
        .collect()
}
