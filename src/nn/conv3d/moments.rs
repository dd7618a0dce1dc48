//! Mean and variance over groups of channels and all positions, channels last: the statistics of `torch.nn.GroupNorm`.
//!
//! On the CPU in one pass: sums of `x - p` and `(x - p)^2` for every channel, where p is the channel's first value, so
//! that a mean far from zero costs no precision; rows are summed in f32, everything above in f64 and in a fixed order.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::by_candle::STACK;
use super::simd::moments;
use super::values;
use crate::ops::simd::Isa;

/// Pixels summed in f32.
const STRETCH: usize = 256;

/// Returns the mean and the (biased) variance, f32, of (B, F, H, W, C): both (B, G).
pub fn group_moments(x: &Tensor, groups: usize) -> Result<(Tensor, Tensor)> {
    let (batch, _, _, _, channels) = x.dims5()?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("{channels} channels do not fall into {groups} groups");
    }
    if !x.device().is_cpu() || x.dtype() != DType::F32 {
        let of_frame = x.elem_count() / x.dim(1)?.max(1);
        return moments_by_candle(x, groups, STACK / of_frame.max(1));
    }
    let values = values(x)?;
    let (mut means, mut variances) = (Vec::new(), Vec::new());
    for sample in 0..batch {
        for [mean, variance] in of_sample(values.sample(sample)?, channels, groups) {
            means.push(mean as f32);
            variances.push(variance as f32);
        }
    }
    let of = |values| Tensor::from_vec(values, (batch, groups), x.device());
    Ok((of(means)?, of(variances)?))
}

fn of_sample(x: &[f32], channels: usize, groups: usize) -> Vec<[f64; 2]> {
    let pivot = &x[..channels];
    let isa = Isa::detect();
    let stretches: Vec<Vec<f64>> = x
        .par_chunks(16 * STRETCH * channels)
        .map(|part| {
            let mut total = vec![0f64; 2 * channels];
            let mut sums = vec![0f32; 2 * channels];
            for stretch in part.chunks(STRETCH * channels) {
                sums.fill(0.0);
                let (sum, squares) = sums.split_at_mut(channels);
                moments(isa, stretch, pivot, sum, squares);
                total
                    .iter_mut()
                    .zip(&sums)
                    .for_each(|(total, sum)| *total += f64::from(*sum));
            }
            total
        })
        .collect();
    let mut total = vec![0f64; 2 * channels];
    for stretch in stretches {
        total.iter_mut().zip(stretch).for_each(|(total, sum)| *total += sum);
    }
    let count = (x.len() / channels) as f64;
    let in_group = channels / groups;
    (0..groups)
        .map(|group| {
            let of_group = group * in_group..(group + 1) * in_group;
            let mean_of = |c: usize| f64::from(pivot[c]) + total[c] / count;
            let mean = of_group.clone().map(mean_of).sum::<f64>() / in_group as f64;
            let variance = of_group
                .map(|c| {
                    let shift = total[c] / count;
                    let within = (total[channels + c] / count - shift * shift).max(0.0);
                    within + (mean_of(c) - mean).powi(2)
                })
                .sum::<f64>()
                / in_group as f64;
            [mean, variance]
        })
        .collect()
}

/// Reference with candle's operations only, on any device, for some frames at a time: the moments of the whole are means
/// of theirs, and of the squared distances of their means.
pub fn moments_by_candle(x: &Tensor, groups: usize, together: usize) -> Result<(Tensor, Tensor)> {
    let frames = x.dim(1)?;
    let parts = (0..frames).step_by(together.max(1)).map(|first| {
        let count = together.max(1).min(frames - first);
        let (mean, variance) = of_frames(&x.narrow(1, first, count)?, groups)?;
        Ok((count as f64 / frames as f64, mean, variance))
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    if let [(_, mean, variance)] = &parts[..] {
        return Ok((mean.clone(), variance.clone()));
    }
    let zeros = Tensor::zeros((x.dim(0)?, groups), DType::F32, x.device())?;
    let mean = parts
        .iter()
        .try_fold(zeros.clone(), |sum, (share, mean, _)| sum + (mean * *share)?)?;
    let variance = parts.iter().try_fold(zeros, |sum, (share, part, variance)| {
        sum + ((variance + (part - &mean)?.sqr()?)? * *share)?
    })?;
    Ok((mean, variance))
}

/// Returns the moments of some frames (B, F, H, W, C): both (B, G).
fn of_frames(x: &Tensor, groups: usize) -> Result<(Tensor, Tensor)> {
    let (batch, frames, height, width, channels) = x.dims5()?;
    let positions = frames * height * width;
    let x = x
        .to_dtype(DType::F32)?
        .reshape((batch, positions, groups, channels / groups))?
        .transpose(1, 2)?
        .reshape((batch, groups, positions * (channels / groups)))?;
    let mean = x.mean_keepdim(2)?;
    let variance = x.broadcast_sub(&mean)?.sqr()?.mean(2)?;
    Ok((mean.squeeze(2)?, variance))
}
