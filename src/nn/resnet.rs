//! The resnet of streaming video autoencoders: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1x1 convolution
//! where the number of channels changes (`CogVideoXResnetBlock3D`, `WanResidualBlock`).

use candle_core::{Result, Tensor};

use super::conv3d::{Conv3d, Memory, Modulation};
use super::weights::Weights;

/// `N`: the norm, which the convolution behind it applies with the SiLU.
pub struct Resnet<N> {
    norm1: N,
    conv1: Conv3d,
    norm2: N,
    conv2: Conv3d,
    conv_shortcut: Option<Conv3d>,
}

impl<N> Resnet<N> {
    /// `convs`: what the two causal convolutions are called; `norm` reads a norm of so many channels.
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

    /// (B, F, H, W, C) -> (B, F, H, W, O), with what `modulation` makes of a norm and what it is to normalise. Takes x,
    /// because the result may be built in its place.
    pub fn forward(
        &self,
        x: Tensor,
        memory: &mut Memory,
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
