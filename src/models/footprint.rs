//! Size of a family's encodings, for planning disk space before anything is encoded.

use super::text_embeds::TextShape;
use super::vae::FirstFrame;

/// Dimensions that decide how large the encodings of clips and captions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Frames per latent frame, but for a first one that is alone.
    pub temporal_compression: usize,
    /// First frame of a clip.
    pub first_frame: FirstFrame,
    /// Pixel rows, and columns, per latent row and column.
    pub spatial_compression: usize,
    /// Size of an encoded caption.
    pub text: TextShape,
}

impl Footprint {
    /// Returns the frames, and the pixel rows and columns, per latent one.
    pub fn compression(&self) -> [usize; 2] {
        [self.temporal_compression, self.spatial_compression]
    }

    /// Returns the bytes of one clip's posterior: mean and log-variance, f32.
    pub fn latent_bytes(&self, num_frames: usize, height: usize, width: usize) -> u64 {
        let frames = self.first_frame.latents(num_frames, self.temporal_compression);
        let scale = self.spatial_compression.max(1);
        let (rows, columns) = (height.div_ceil(scale), width.div_ceil(scale));
        product([2, self.latent_channels, frames, rows, columns, size_of::<f32>()])
    }

    /// Returns the bytes of one caption's embedding at `bytes_per_value`.
    pub fn caption_bytes(&self, bytes_per_value: usize) -> u64 {
        let pooled = self.text.pooled.unwrap_or(0);
        product([self.text.tokens, self.text.width, bytes_per_value]).saturating_add(product([pooled, bytes_per_value]))
    }
}

/// Multiplies without overflow, because the sizes come from a checkpoint's configs and may be anything.
fn product(sizes: impl IntoIterator<Item = usize>) -> u64 {
    sizes.into_iter().fold(1, |all, size| all.saturating_mul(size as u64))
}
