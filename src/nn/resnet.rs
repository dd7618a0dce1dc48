//! Resnet of streaming video autoencoders: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1x1 convolution
//! if the number of channels changes (`CogVideoXResnetBlock3D`, `WanResidualBlock`).

use candle_core::{Result, Tensor};

use super::conv3d::{Conv3d, FeatureCache, Modulation};
use super::weights::Weights;

/// Resnet with norms `N`, which the next convolution applies together with the SiLU.
pub struct Resnet<N> {
    norm1: N,
    conv1: Conv3d,
    norm2: N,
    conv2: Conv3d,
    conv_shortcut: Option<Conv3d>,
}

impl<N> Resnet<N> {
    /// Loads a resnet. `convs` are the names of the two causal convolutions; `norm` loads a norm of the given channels.
    pub fn load(
        [channels, outputs]: [usize; 2],
        convs: [&str; 2],
        norm: impl Fn(usize, Weights) -> Result<N>,
        weights: Weights,
    ) -> Result<Self> {
        let shortcut = || Conv3d::pointwise(channels, outputs, weights.pp("conv_shortcut"));
        Ok(Self {
            norm1: norm(channels, weights.pp("norm1"))?,
            conv1: Conv3d::causal(channels, outputs, weights.pp(convs[0]))?,
            norm2: norm(outputs, weights.pp("norm2"))?,
            conv2: Conv3d::causal(outputs, outputs, weights.pp(convs[1]))?,
            conv_shortcut: (channels != outputs).then(shortcut).transpose()?,
        })
    }

    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, O); `modulation` converts a norm and its input to a modulation.
    /// Takes ownership of x, to build the result in its memory.
    pub fn forward(
        &self,
        x: Tensor,
        memory: &mut FeatureCache,
        modulation: impl Fn(&N, &Tensor) -> Result<Modulation>,
    ) -> Result<Tensor> {
        let h = memory.convolve(&self.conv1, &x, Some(&modulation(&self.norm1, &x)?))?;
        let onto = match &self.conv_shortcut {
            Some(conv) => conv.forward((&x).into())?.0,
            None => x.clone(),
        };
        drop(x);
        memory.convolve_onto(onto, &self.conv2, &h, Some(&modulation(&self.norm2, &h)?))
    }
}
