//! Layers of autoencoders, without gradients.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use tempfile::TempDir;

use super::{Case, input};
use crate::nn::Weights;
use crate::nn::coder::Layer;
use crate::nn::conv3d::{Conv3d, FeatureCache, Geometry, TemporalPadding};
use crate::nn::frame_attention::FrameAttention;
use crate::nn::group_norm::{GroupNorm, NormedFrames};
use crate::nn::temporal_attention::TemporalAttention;
use crate::ops::modulate::{self, modulated_silu};
use crate::rng::Rng;

/// Channels, and groups of them.
const CHANNELS: usize = 96;
const GROUPS: usize = 8;

const EPS: f64 = 1e-6;

/// Convolutions, and what is applied to their input.
pub fn convolutions() -> Vec<Case> {
    let table = [2, 2, 3, 3, 72];
    let modulated = |name, rms_eps| {
        let inputs = [
            input("x", &[2, 3, 6, 7, 72]).frozen(),
            input("scale", &table).frozen().wide(),
            input("shift", &table).frozen().wide().times(5.0),
        ];
        Case::new(name, inputs, move |given| {
            let (scale, shift) = (&given[1], &given[2]);
            modulated_silu(&given[0], modulate::Modulation { scale, shift, rms_eps })
        })
    };
    let convolved = [
        input("x", &[2, 3, 9, 10, 72]).frozen(),
        input("weight", &[40, 72, 3, 3, 3]).frozen().times(0.02),
        input("bias", &[40]).frozen(),
    ];
    vec![
        modulated("modulated silu", None),
        modulated("modulated silu, rms norm", Some(1e-8)),
        Case::new("convolution", convolved, |given| {
            let conv = Conv3d::by_candle(&given[1], &given[2], Geometry::CAUSAL)?;
            Ok(conv.forward((&given[0]).into())?.0)
        }),
    ]
}

/// Weights of a layer in a file: the same numbers in both types.
struct Stored(TempDir);

impl Stored {
    /// Draws layers of these names: a matrix (channels, channels) and a bias, or of norms two vectors.
    fn new(matrices: &[&str], norms: &[&str]) -> Result<Self> {
        let mut rng = Rng::new(0);
        let mut tensors = HashMap::new();
        let mut draw = |name: String, shape: &[usize], factor: f64, centre: f64| {
            let numbers = rng.randn(shape.iter().product());
            let drawn = Tensor::from_vec(numbers, shape, &Device::Cpu)?.affine(factor, centre)?;
            tensors.insert(name, drawn.to_dtype(DType::BF16)?);
            Ok::<(), candle_core::Error>(())
        };
        for name in matrices {
            let small = (CHANNELS as f64).powf(-0.5);
            draw(format!("{name}.weight"), &[CHANNELS, CHANNELS], small, 0.0)?;
            draw(format!("{name}.bias"), &[CHANNELS], 0.1, 0.0)?;
        }
        for name in norms {
            draw(format!("{name}.weight"), &[CHANNELS], 0.1, 1.0)?;
            draw(format!("{name}.bias"), &[CHANNELS], 0.1, 0.0)?;
        }
        let folder = TempDir::new()?;
        candle_core::safetensors::save(&tensors, folder.path().join("diffusion_pytorch_model.safetensors"))?;
        Ok(Self(folder))
    }

    /// Reads them as an input of the layer is.
    fn read(&self, like: &Tensor) -> Result<Weights> {
        let read = Weights::open(self.0.path(), like.dtype(), like.device());
        read.map_err(|error| candle_core::Error::Msg(format!("{error:#}")))
    }
}

/// Norms of groups of channels, over all frames, over each, and where the ends count twice.
pub fn norms() -> Vec<Case> {
    let case = |name, frames| {
        let inputs = [input("x", &[2, 3, 10, 11, CHANNELS]).frozen()];
        Case::new(name, inputs, move |given| {
            let weights = Stored::new(&[], &["norm"])?.read(&given[0])?;
            let norm = GroupNorm::load(CHANNELS, GROUPS, EPS, weights.pp("norm"))?;
            norm.over(frames).forward(&given[0])
        })
    };
    vec![
        case("group norm of all frames", NormedFrames::All),
        case("group norm of each frame", NormedFrames::Each),
        case("group norm, ends twice", NormedFrames::EndsTwice),
    ]
}

/// Attention over time, over the frames so far, and within frames.
pub fn attentions() -> Vec<Case> {
    const PROJECTIONS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
    let inputs = || [input("x", &[2, 5, 6, 7, CHANNELS]).frozen()];
    // A layer may write over its input.
    let through = |layer: &dyn Layer<()>, x: &Tensor| {
        layer.forward(x.copy()?, &mut FeatureCache::whole(TemporalPadding::Zeros), &mut ())
    };
    let by_frames = move |name, alone: bool| {
        Case::new(name, inputs(), move |given| {
            let weights = Stored::new(&PROJECTIONS, &["group_norm"])?.read(&given[0])?;
            let layer = FrameAttention::load(CHANNELS, GROUPS, EPS, weights)?;
            let layer = if alone { layer.of_frames_alone() } else { layer };
            through(&layer, &given[0])
        })
    };
    vec![
        Case::new("attention over time", inputs(), move |given| {
            let weights = Stored::new(&PROJECTIONS, &["norm"])?.read(&given[0])?;
            let norm = GroupNorm::load(CHANNELS, GROUPS, EPS, weights.pp("norm"))?.over(NormedFrames::Each);
            through(
                &TemporalAttention::load(CHANNELS, CHANNELS / 24, norm, weights)?,
                &given[0],
            )
        }),
        by_frames("attention by frames", false),
        by_frames("attention within frames", true),
    ]
}
