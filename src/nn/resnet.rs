//! Resnet of video autoencoders: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1x1 convolution if the
//! number of channels changes (`CogVideoXResnetBlock3D`, `WanResidualBlock`, `LTXVideoResnetBlock3d`,
//! `HunyuanVideoResnetBlockCausal3D`), or of pictures (`ResnetBlock2D`).
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels, O output channels.

use candle_core::{Result, Tensor};

use super::coder::{Layer, Modulate, NormConv};
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Border, Conv3d, FeatureCache, Resample};
use super::norm::Norm;
use super::weights::Weights;

/// Resnet with norms `N`, which the next convolution applies together with the SiLU.
pub struct Resnet<N> {
    first: NormConv<N>,
    second: NormConv<N>,
    conv_shortcut: Option<Conv3d>,
    /// Norm before the shortcut's convolution.
    pub shortcut_norm: Option<Norm>,
}

impl<N> Resnet<N> {
    /// Loads a resnet. `convs` are the names of the two causal convolutions and the shortcut's; `norm` loads norm 1 or 2
    /// of the given channels.
    pub fn load(
        [channels, outputs]: [usize; 2],
        convs: [&str; 3],
        norm: impl Fn(usize, usize) -> Result<N>,
        weights: &Weights,
    ) -> Result<Self> {
        let conv = |number: usize, [channels, outputs]: [usize; 2]| {
            let weights = weights.pp(convs[number]);
            match number {
                2 => Conv3d::pointwise(channels, outputs, weights),
                _ => Conv3d::causal(channels, outputs, weights),
            }
        };
        Self::of([channels, outputs], conv, norm)
    }

    /// Loads a resnet of pictures.
    pub fn flat(channels: [usize; 2], norm: impl Fn(usize, usize) -> Result<N>, weights: &Weights) -> Result<Self> {
        let conv = |number: usize, channels| match number {
            2 => Conv3d::flat_pointwise(channels, weights.pp("conv_shortcut")),
            _ => Conv3d::flat(channels, weights.pp(format!("conv{}", number + 1))),
        };
        Self::of(channels, conv, norm)
    }

    /// Resnet of convolutions 0 and 1, and the shortcut's, 2.
    fn of(
        [channels, outputs]: [usize; 2],
        conv: impl Fn(usize, [usize; 2]) -> Result<Conv3d>,
        norm: impl Fn(usize, usize) -> Result<N>,
    ) -> Result<Self> {
        let half = |number: usize, channels| {
            Ok::<_, candle_core::Error>(NormConv {
                norm: norm(number, channels)?,
                conv: conv(number - 1, [channels, outputs])?,
            })
        };
        Ok(Self {
            first: half(1, channels)?,
            second: half(2, outputs)?,
            conv_shortcut: (channels != outputs)
                .then(|| conv(2, [channels, outputs]))
                .transpose()?,
            shortcut_norm: None,
        })
    }

    /// Sets the values of the padding around a frame.
    pub fn with_border(self, border: Border) -> Self {
        let with_border = |NormConv { norm, conv }| NormConv {
            norm,
            conv: conv.with_border(border),
        };
        Self {
            first: with_border(self.first),
            second: with_border(self.second),
            ..self
        }
    }
}

impl<S, N: Modulate<S>> Layer<S> for Resnet<N> {
    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, O)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, state: &mut S) -> Result<Tensor> {
        let NormConv { norm, conv } = &self.first;
        let h = memory.convolve(conv, &x, Some(&norm.modulation(&x, state)?))?; // (B, F, H, W, O)
        let onto = match (&self.conv_shortcut, &self.shortcut_norm) {
            (None, _) => x.clone(),
            (Some(conv), None) => conv.forward((&x).into())?.0,
            (Some(conv), Some(norm)) => conv.forward((&norm.forward(&x)?).into())?.0,
        };
        drop(x);
        let h = norm.finish(h, memory, state)?;
        let NormConv { norm, conv } = &self.second;
        let y = memory.convolve_onto(onto, conv, &h, Some(&norm.modulation(&h, state)?))?; // (B, F, H, W, O)
        drop(h);
        norm.finish(y, memory, state)
    }

    fn lag(&self) -> usize {
        Layer::<S>::lag(&self.first) + Layer::<S>::lag(&self.second)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let h = tally.convolve(&self.first.conv, x, Resample::None);
        if let Some(conv) = &self.conv_shortcut {
            let normed = self.shortcut_norm.as_ref().map(|_| tally.hold(x));
            tally.convolve(conv, x, Resample::None);
            normed.into_iter().for_each(|normed| tally.free(normed));
            tally.free(x);
        }
        tally.convolve_onto(&self.second.conv, h);
        tally.free(h);
        h
    }
}
