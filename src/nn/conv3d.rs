//! Causal 3D convolution for video autoencoders, channels last.
//!
//! `y[f] = sum_dt w[dt] * x[f + dt - (kt - 1)]`: a frame sees itself and the kt - 1 frames before it, rows and columns
//! as in `torch.nn.Conv3d`. A clip may come in pieces: each returns its last kt - 1 input frames as the next one's
//! past; the first piece is preceded by its repeated first frame, or by zeros. A whole clip may also be padded equally
//! on both sides, which is not causal.
//!
//! Only for inference, without gradients. On the CPU everything is f32 and `Direct` computes it, applying preceding
//! operations to its input; on other devices it is candle's `conv2d` of stacked frames.
//!
//! Chosen by `benches/vae.rs`: for 3x3x3 and 128 to 128 channels on two busy cores with AVX-512, 196 GFLOP/s against 25
//! for candle's `conv2d`, one for each kernel frame. Passes of 192 to 2048 values and blocks of 96 to 384 pixels
//! (`direct.rs`) differ by less than the noise. Not tried: Winograd, which would multiply 2.25 times less.
//!
//! Letters: B batch, F frames, H rows, W columns, C input channels, O output channels.

mod by_candle;
mod direct;
mod feature_cache;
mod frames;
mod input;
mod moments;
mod simd;

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail};

pub use crate::ops::simd::Isa;
pub use by_candle::STACK;
pub use direct::{Border, Geometry};
pub use feature_cache::FeatureCache;
pub use input::{Input, Modulation, Resample, TemporalPadding};
pub use moments::{group_moments, moments_by_candle};

use direct::Direct;
use frames::FrameSource;

use super::Weights;
use super::shuffle::by_pixel;

/// A convolution over frames, rows and columns.
#[derive(Debug, Clone)]
pub struct Conv3d {
    kernel: Kernel,
    geometry: Geometry,
    /// Stride over frames.
    frame_stride: usize,
    channels: usize,
    outputs: usize,
    /// Numbers in the input, or output, of the frames that are computed together without kernels of our own.
    most_together: usize,
}

#[derive(Debug, Clone)]
enum Kernel {
    Direct(Direct),
    /// Weight of `conv2d`: (O, kt C + 8, kh, kw).
    Candle(Tensor),
}

/// Form of a convolution in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// `torch.nn.Conv3d`.
    Volume,
    /// `torch.nn.Conv2d`.
    Flat,
    /// `torch.nn.Linear`.
    Linear,
    /// The same without a bias.
    LinearNoBias,
}

impl Conv3d {
    /// Reads `weight` (O, C, kt, kh, kw), or (O, C, kh, kw) if the checkpoint has a 2D convolution, and `bias` (O).
    pub fn load(channels: usize, outputs: usize, geometry: Geometry, flat: bool, weights: Weights) -> Result<Self> {
        let stored = if flat { Stored::Flat } else { Stored::Volume };
        Self::read([channels, outputs], geometry, stored, Ok, weights)
    }

    /// Reads a 3x3x3 convolution with a border of zeros, (O n, C, 3, 3, 3), for [`out_of_channels`] of the result: n
    /// pixels of O channels.
    ///
    /// [`out_of_channels`]: super::shuffle::out_of_channels
    pub fn into_pixels(channels: usize, outputs: usize, pixels: usize, weights: Weights) -> Result<Self> {
        let sizes = [channels, outputs * pixels];
        Self::read(
            sizes,
            Geometry::CAUSAL,
            Stored::Volume,
            |x| by_pixel(&x, pixels),
            weights,
        )
    }

    /// Reads a linear layer of the channels of every pixel, (O, C), as a 1x1x1 convolution.
    pub fn linear(channels: usize, outputs: usize, weights: Weights) -> Result<Self> {
        let sizes = [channels, outputs];
        Self::read(sizes, Geometry::POINTWISE, Stored::Linear, Ok, weights)
    }

    /// Same as [`linear`](Self::linear), without a bias.
    pub fn linear_no_bias(channels: usize, outputs: usize, weights: Weights) -> Result<Self> {
        let sizes = [channels, outputs];
        Self::read(sizes, Geometry::POINTWISE, Stored::LinearNoBias, Ok, weights)
    }

    /// Reads a linear layer (O n, C) for [`out_of_channels`] of the result: n pixels of O channels.
    ///
    /// [`out_of_channels`]: super::shuffle::out_of_channels
    pub fn linear_into_pixels(channels: usize, outputs: usize, pixels: usize, weights: Weights) -> Result<Self> {
        let (sizes, order) = ([channels, outputs * pixels], |x| by_pixel(&x, pixels));
        Self::read(sizes, Geometry::POINTWISE, Stored::Linear, order, weights)
    }

    fn read(
        [channels, outputs]: [usize; 2],
        geometry: Geometry,
        stored: Stored,
        order: impl Fn(Tensor) -> Result<Tensor>,
        weights: Weights,
    ) -> Result<Self> {
        // The CPU computes in f32 and stores nothing narrower.
        let weights = match weights.takes_cpu_kernels() {
            true => weights.to_dtype(DType::F32),
            false => weights,
        };
        let [kt, kh, kw] = geometry.kernel;
        let whole = (outputs, channels, kt, kh, kw);
        let weight = match stored {
            Stored::Volume => weights.get(whole, "weight")?,
            Stored::Flat => weights.get((outputs, channels, kh, kw), "weight")?.unsqueeze(2)?,
            Stored::Linear | Stored::LinearNoBias => weights.get((outputs, channels), "weight")?.reshape(whole)?,
        };
        let bias = match stored {
            Stored::LinearNoBias => Tensor::zeros(outputs, weight.dtype(), weight.device())?,
            Stored::Volume | Stored::Flat | Stored::Linear => weights.get(outputs, "bias")?,
        };
        match weights.has_numbers() {
            true => Self::new(&order(weight)?, &order(bias)?, geometry, &weights),
            false => Self::outline(&weight, &bias, geometry),
        }
    }

    /// Convolution with sizes only, which cannot run, for reading headers alone.
    pub fn outline(weight: &Tensor, bias: &Tensor, geometry: Geometry) -> Result<Self> {
        let (outputs, channels) = Self::check(weight, bias, geometry)?;
        Ok(Self {
            kernel: Kernel::Candle(bias.clone()),
            geometry,
            frame_stride: 1,
            channels,
            outputs,
            most_together: STACK,
        })
    }

    /// Convolution with a weight (O, C, kt, kh, kw) and a bias (O), in the form that suits the device of `from`.
    pub fn new(weight: &Tensor, bias: &Tensor, geometry: Geometry, from: &Weights) -> Result<Self> {
        match from.takes_cpu_kernels() {
            true => Self::direct(weight, bias, geometry, Isa::detect()),
            false => Self::by_candle(weight, bias, geometry),
        }
    }

    /// Reads a 3x3x3 convolution with a border of zeros, (O, C, 3, 3, 3).
    pub fn causal(channels: usize, outputs: usize, weights: Weights) -> Result<Self> {
        Self::load(channels, outputs, Geometry::CAUSAL, false, weights)
    }

    /// Reads a convolution of three frames of a pixel, (C, C, 3, 1, 1), to whose result its input is added: the weight of the
    /// frame in the middle is larger by the identity.
    pub fn onto_itself(channels: usize, weights: Weights) -> Result<Self> {
        let add_identity = |x: Tensor| match x.rank() {
            5 => {
                let identity = Tensor::eye(channels, x.dtype(), x.device())?;
                &x + identity
                    .reshape((channels, channels, 1, 1, 1))?
                    .pad_with_zeros(2, 1, 1)?
            }
            _ => Ok(x), // the bias
        };
        Self::read([channels; 2], Geometry::TIME, Stored::Volume, add_identity, weights)
    }

    /// Reads a 2D convolution, 3x3 with a border of zeros, (O, C, 3, 3).
    pub fn flat([channels, outputs]: [usize; 2], weights: Weights) -> Result<Self> {
        Self::load(channels, outputs, Geometry::FLAT, true, weights)
    }

    /// Reads a 2D convolution of single pixels, (O, C, 1, 1).
    pub fn flat_pointwise([channels, outputs]: [usize; 2], weights: Weights) -> Result<Self> {
        Self::load(channels, outputs, Geometry::POINTWISE, true, weights)
    }

    /// Reads a 1x1x1 convolution, (O, C, 1, 1, 1).
    pub fn pointwise(channels: usize, outputs: usize, weights: Weights) -> Result<Self> {
        Self::load(channels, outputs, Geometry::POINTWISE, false, weights)
    }

    /// Convolution on the CPU with a weight (O, C, kt, kh, kw) and a bias (O).
    pub fn direct(weight: &Tensor, bias: &Tensor, geometry: Geometry, isa: Isa) -> Result<Self> {
        let (outputs, channels) = Self::check(weight, bias, geometry)?;
        if !Isa::available().contains(&isa) {
            bail!("this machine has no {isa:?}");
        }
        let values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let bias = bias.to_dtype(DType::F32)?.to_vec1()?;
        Ok(Self {
            kernel: Kernel::Direct(Direct::new(&values, bias, channels, geometry, isa)),
            geometry,
            frame_stride: 1,
            channels,
            outputs,
            most_together: STACK,
        })
    }

    /// Reference with candle's operations only, on any device.
    pub fn by_candle(weight: &Tensor, bias: &Tensor, geometry: Geometry) -> Result<Self> {
        let (outputs, channels) = Self::check(weight, bias, geometry)?;
        Ok(Self {
            kernel: Kernel::Candle(by_candle::stacked(weight, bias)?),
            geometry,
            frame_stride: 1,
            channels,
            outputs,
            most_together: STACK,
        })
    }

    /// Sets the values of the padding around a frame.
    pub fn with_border(mut self, border: Border) -> Self {
        self.geometry.border = border;
        if let Kernel::Direct(direct) = &mut self.kernel {
            direct.set_border(border);
        }
        self
    }

    /// Limits the numbers of the frames that are computed together without kernels of our own, in the input or in the
    /// output; the result is the same.
    pub fn with_most_together(mut self, numbers: usize) -> Self {
        self.most_together = numbers;
        self
    }

    /// Restricts the output to frames 0, `stride`, 2 `stride`, ... of each input.
    pub fn with_frame_stride(mut self, stride: usize) -> Self {
        self.frame_stride = stride.max(1);
        if let Kernel::Direct(direct) = &mut self.kernel {
            direct.set_frame_stride(self.frame_stride);
        }
        self
    }

    /// Returns the number of frames that the kernel sees beside the current one.
    pub fn reach(&self) -> usize {
        self.geometry.kernel[0] - 1
    }

    /// Returns the channels of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the frames, rows and columns of the output.
    pub fn output_size(&self, [frames, height, width]: [usize; 3], resample: Resample) -> [usize; 3] {
        let [seen, height, width] = resample.seen([frames, height, width]);
        let frames = match resample {
            Resample::DoubleSizeAndFrames => doubled(frames),
            _ => seen,
        };
        let (height, width) = self.geometry.output(height, width);
        [frames.div_ceil(self.frame_stride), height, width]
    }

    /// Returns the number of input frames that are held at a time while an output of this size is computed on the CPU.
    pub fn buffered_frames(&self, [frames, height, width]: [usize; 3]) -> usize {
        let together = direct::together(frames, height * width);
        together.saturating_sub(1) * self.frame_stride + self.geometry.kernel[0]
    }

    /// Returns the stride over frames.
    pub fn frame_stride(&self) -> usize {
        self.frame_stride
    }

    fn check(weight: &Tensor, bias: &Tensor, geometry: Geometry) -> Result<(usize, usize)> {
        let (outputs, channels, kt, kh, kw) = weight.dims5()?;
        if [kt, kh, kw] != geometry.kernel || bias.dims() != [outputs] || geometry.stride == 0 {
            bail!(
                "a weight {:?}, a bias {:?} and {geometry:?}",
                weight.dims(),
                bias.dims()
            );
        }
        Ok((outputs, channels))
    }

    /// Forward pass (B, F, H, W, C) -> (B, F', H', W', O), and the input's last kt - 1 frames if kt > 1.
    pub fn forward(&self, input: Input) -> Result<(Tensor, Option<Tensor>)> {
        self.check_input(&input)?;
        let (out, past) = match &self.kernel {
            Kernel::Direct(direct) => {
                let dims = self.output_dims(&input)?;
                let mut out = vec![0f32; dims.iter().product()];
                let past = run(direct, &input, &mut out, false)?;
                (Tensor::from_vec(out, dims.as_slice(), &Device::Cpu)?, past)
            }
            Kernel::Candle(weight) => self.forward_by_candle(&input, weight, None)?,
        };
        Ok((out, past))
    }

    /// Computes `onto + forward(input)`, in the memory of `onto` if possible. `onto` must not be shared.
    pub fn forward_onto(&self, onto: Tensor, input: Input) -> Result<(Tensor, Option<Tensor>)> {
        self.check_input(&input)?;
        let dims = self.output_dims(&input)?;
        if onto.dims() != dims || input.resample == Resample::DoubleSizeAndFrames {
            bail!("a result of {dims:?} cannot be added to {:?}", onto.dims());
        }
        match &self.kernel {
            Kernel::Direct(direct) => {
                let add = AddInPlace {
                    direct,
                    input: &input,
                    past: std::sync::Mutex::new(None),
                };
                onto.inplace_op1(&add)?;
                let past = add.past.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
                Ok((onto, past))
            }
            Kernel::Candle(weight) => self.forward_by_candle(&input, weight, Some(onto.contiguous()?)),
        }
    }

    fn check_input(&self, input: &Input) -> Result<()> {
        let (batch, frames, height, width, channels) = input.x.dims5()?;
        let [seen_frames, height, width] = input.resample.seen([frames, height, width]);
        let (out_height, out_width) = self.geometry.output(height, width);
        let reach = self.geometry.kernel[0] - 1;
        let right_past = match input.past {
            TemporalPadding::Frames(past) => {
                past.dims() == [batch, reach, height, width, channels]
                    && input.resample != Resample::DoubleSizeAndLaterFrames
            }
            TemporalPadding::Centred | TemporalPadding::ZerosAround => {
                reach.is_multiple_of(2) && input.resample == Resample::None
            }
            TemporalPadding::First | TemporalPadding::Zeros => true,
        };
        let right_tables = |modulation: &Modulation| {
            let dims = modulation.scale.dims();
            let right = dims.len() == 5 && modulation.shift.dims() == dims && dims[0] == batch && dims[4] == channels;
            right && input.resample == Resample::None
        };
        if channels != self.channels
            || batch * seen_frames * out_height * out_width == 0
            || !right_past
            || !input.modulation.is_none_or(right_tables)
            || (input.resample == Resample::DoubleSizeAndFrames && (reach > 0 || self.frame_stride > 1))
        {
            bail!(
                "a convolution of {} channels, {:?}, cannot read {:?} with the past {:?} and the tables {:?}",
                self.channels,
                self.geometry,
                input.x.dims(),
                input.past,
                input.modulation.map(|modulation| modulation.scale.dims())
            );
        }
        Ok(())
    }

    fn output_dims(&self, input: &Input) -> Result<[usize; 5]> {
        let (batch, frames, height, width, _) = input.x.dims5()?;
        let [frames, height, width] = self.output_size([frames, height, width], input.resample);
        Ok([batch, frames, height, width, self.outputs])
    }
}

/// Returns the number of frames after doubling each of `frames` except an odd first one.
fn doubled(frames: usize) -> usize {
    if frames.is_multiple_of(2) {
        2 * frames
    } else {
        2 * frames - 1
    }
}

/// Runs every sample of a batch; `out` is (B, F', H', W', O).
fn run(direct: &Direct, input: &Input, out: &mut [f32], add: bool) -> Result<Option<Tensor>> {
    let (batch, frames, height, width, channels) = input.x.dims5()?;
    let reach = direct.geometry().kernel[0] - 1;
    let x = values(input.x)?;
    let past = match input.past {
        TemporalPadding::Frames(past) => Some(values(past)?),
        _ => None,
    };
    let tables = input
        .modulation
        .map(|modulation| Ok::<_, candle_core::Error>((values(&modulation.scale)?, values(&modulation.shift)?)))
        .transpose()?;
    let mut new_past = Vec::new();
    let out_len = out.len() / batch;
    for (sample, out) in out.chunks_exact_mut(out_len).enumerate() {
        let source = FrameSource {
            x: x.sample(sample)?,
            size: [frames, height, width],
            channels,
            past: past.as_ref().map(|past| past.sample(sample)).transpose()?,
            reach,
            ahead: if input.past.is_centred() { reach / 2 } else { 0 },
            blank: match input.past {
                TemporalPadding::Zeros => [reach, 0],
                TemporalPadding::ZerosAround => [reach / 2; 2],
                _ => [0; 2],
            },
            tables: tables
                .as_ref()
                .map(|(scale, shift)| Ok::<_, candle_core::Error>((scale.sample(sample)?, shift.sample(sample)?)))
                .transpose()?,
            table_size: input.modulation.map_or(Ok([1; 3]), |modulation| {
                modulation
                    .scale
                    .dims5()
                    .map(|(_, frames, height, width, _)| [frames, height, width])
            })?,
            rms_eps: input.modulation.and_then(|modulation| modulation.rms_eps),
            resample: input.resample,
            isa: Isa::detect(),
        };
        let computed = match input.resample {
            // The results are placed at the end, so that repeating them never overwrites what is still to be read.
            Resample::DoubleSizeAndFrames => out_len - out_len / doubled(frames) * frames,
            _ => 0,
        };
        new_past.extend(direct.run(&source, &mut out[computed..], add));
        if computed > 0 {
            frames::repeat_in_place(out, frames);
        }
    }
    let [_, height, width] = input.resample.seen([frames, height, width]);
    (reach > 0 && !input.past.is_centred())
        .then(|| Tensor::from_vec(new_past, (batch, reach, height, width, channels), &Device::Cpu))
        .transpose()
}

/// Adds the result to an existing tensor.
struct AddInPlace<'a> {
    direct: &'a Direct,
    input: &'a Input<'a>,
    past: std::sync::Mutex<Option<Tensor>>,
}

impl InplaceOp1 for AddInPlace<'_> {
    fn name(&self) -> &'static str {
        "add-conv3d"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((begin, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("a convolution adds to contiguous f32 only");
        };
        let past = run(self.direct, self.input, &mut values[begin..end], true)?;
        *self.past.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = past;
        Ok(())
    }
}

/// Read access to the values of a tensor on the CPU.
pub struct Values<G> {
    storage: G,
    begin: usize,
    end: usize,
    batch: usize,
}

/// Borrows the values of a contiguous tensor.
pub fn values(tensor: &Tensor) -> Result<Values<impl Deref<Target = Storage>>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((begin, end)) = layout.contiguous_offsets() else {
        bail!("a tensor {:?} is not contiguous", tensor.dims());
    };
    Ok(Values {
        storage,
        begin,
        end,
        batch: tensor.dim(0)?,
    })
}

impl<G: Deref<Target = Storage>> Values<G> {
    /// Returns one sample of the batch.
    pub fn sample(&self, sample: usize) -> Result<&[f32]> {
        let Storage::Cpu(CpuStorage::F32(values)) = &*self.storage else {
            bail!("a tensor is not f32 on the CPU");
        };
        let len = (self.end - self.begin) / self.batch;
        Ok(&values[self.begin + sample * len..][..len])
    }
}
