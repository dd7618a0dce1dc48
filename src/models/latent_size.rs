//! Sizes of a clip's latents, and checks of the sizes that a model supports.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns.

use candle_core::{Result, Tensor};

/// Order of the network's axes, which is that of the noise drawn by the family's pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// (B, F, C, h, w)
    FramesFirst,
    /// (B, C, F, h, w), the order of the VAE
    ChannelsFirst,
}

impl Layout {
    /// Returns the axis of frames.
    pub fn frames(self) -> usize {
        match self {
            Self::FramesFirst => 1,
            Self::ChannelsFirst => 2,
        }
    }

    /// Returns the axis of channels.
    pub fn channels(self) -> usize {
        3 - self.frames()
    }

    /// Converts between the VAE's order and this one, in either direction.
    pub fn swap(self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::FramesFirst => latents.transpose(1, 2)?.contiguous(),
            Self::ChannelsFirst => Ok(latents.clone()),
        }
    }
}

/// Size of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentSize {
    /// Frames of the clip, as many as requested or a few fewer.
    pub num_frames: usize,
    /// Latents (1, ..., h, w) in the network's layout.
    pub shape: [usize; 5],
    /// Order of the axes.
    pub layout: Layout,
    /// Leading latent frames that only pad a patch, and are dropped before decoding.
    pub padding: usize,
    /// Tokens of the clip, for families whose pipeline passes it to the scheduler, which may shift sigmas by it.
    pub seq_len: Option<usize>,
}

impl LatentSize {
    /// Returns the latent frames, including padding.
    pub fn frames(&self) -> usize {
        self.shape[self.layout.frames()]
    }

    /// Returns the VAE's latents of the clip: (C, F, h, w), without padding.
    pub fn encoded(&self) -> [usize; 4] {
        let [_, _, _, height, width] = self.shape;
        let channels = self.shape[self.layout.channels()];
        [channels, self.frames() - self.padding, height, width]
    }
}

/// Checks that frames divide into patches of these rows and columns; the error names the nearest size that does.
pub fn check_patchable(height: usize, width: usize, [rows, columns]: [usize; 2]) -> anyhow::Result<()> {
    let fits = |side: usize, step: usize| side > 0 && side.is_multiple_of(step);
    let nearest = |side: usize, step: usize| ((side + step / 2) / step * step).max(step);
    anyhow::ensure!(
        fits(height, rows) && fits(width, columns),
        "{height}x{width} (height x width) must be multiples of {}; the nearest is {}x{}",
        if rows == columns {
            rows.to_string()
        } else {
            format!("{rows} and {columns}")
        },
        nearest(height, rows),
        nearest(width, columns)
    );
    Ok(())
}

/// Checks that all frames but the first divide into latent frames, `time` each; the error names the nearest number that
/// does.
pub fn check_num_frames(num_frames: usize, time: usize) -> anyhow::Result<()> {
    anyhow::ensure!(num_frames > 0, "a clip has at least one frame");
    anyhow::ensure!(
        num_frames % time == 1 % time,
        "{num_frames} frames must be a multiple of {time} and one more; the nearest is {}",
        (num_frames - 1 + time / 2) / time * time + 1
    );
    Ok(())
}

/// Checks that all frames divide into latent frames, `time` each; the error names the nearest number that does.
pub fn check_whole_frames(num_frames: usize, time: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        num_frames > 0 && num_frames.is_multiple_of(time),
        "{num_frames} frames must be a multiple of {time}; the nearest is {}",
        ((num_frames + time / 2) / time * time).max(time)
    );
    Ok(())
}

/// Combines the errors of all failed checks.
pub fn check_all<const N: usize>(checks: [anyhow::Result<()>; N]) -> anyhow::Result<()> {
    let wrong = checks.into_iter().filter_map(std::result::Result::err);
    let wrong: Vec<String> = wrong.map(|error| format!("{error:#}")).collect();
    anyhow::ensure!(wrong.is_empty(), wrong.join("; "));
    Ok(())
}
