//! Encoder or decoder of a video autoencoder: layers that a clip passes one after the other, whole or in pieces.
//!
//! Causal convolutions find the frames before a piece in the [`FeatureCache`], so that pieces give the same result as
//! the whole clip, with the memory of one piece. Centred convolutions see frames after a piece, too, so that their output
//! lags behind; after the last piece what is left comes in pieces as well. A state `S` holds what layers know besides the
//! clip: the latents that a decoder's norms are conditioned on, or a timestep.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Conv3d, FeatureCache, Modulation, Resample, TemporalPadding};
use super::weights::Weights;

/// A layer of a coder.
pub trait Layer<S> {
    /// Forward pass of a piece of a clip (B, F, H, W, C) -> (B, F', H', W', C'). Takes ownership of x, to build the
    /// result in its memory.
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, state: &mut S) -> Result<Tensor>;

    /// Returns the number of frames that the output lags behind the input, if convolutions are centred; the default is
    /// that of a layer without convolutions over time.
    fn lag(&self) -> usize {
        0
    }

    /// Counts the memory of a forward pass, and returns the size of its result; the default is that of a layer that
    /// takes next to nothing.
    fn measure(&self, x: PieceSize, _tally: &mut Tally) -> PieceSize {
        x
    }
}

/// A norm before a convolution, which applies it to its input together with a SiLU.
pub trait Modulate<S> {
    /// Returns the modulation for norm(x), x (B, F, H, W, C).
    fn modulation(&self, x: &Tensor, state: &S) -> Result<Modulation>;

    /// Changes the convolution's result (B, F, H, W, C'); the default is no change.
    fn finish(&self, y: Tensor, _memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        Ok(y)
    }
}

/// No norm: the convolution's input passes the SiLU alone.
pub struct NoNorm;

impl<S> Modulate<S> for NoNorm {
    fn modulation(&self, x: &Tensor, _state: &S) -> Result<Modulation> {
        let scale = Tensor::ones((x.dim(0)?, 1, 1, 1, x.dim(4)?), DType::F32, x.device())?;
        Ok(Modulation {
            shift: scale.zeros_like()?,
            scale,
            rms_eps: None,
        })
    }
}

/// Drops a clip's first frames, of which the first piece has more than so many.
pub struct DropFirst(pub usize);

impl<S> Layer<S> for DropFirst {
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        match (memory.is_first(), x.dim(1)?.checked_sub(self.0)) {
            (false, _) => Ok(x),
            (true, Some(rest)) => x.narrow(1, self.0, rest),
            (true, None) => bail!("the first {} frames cannot be dropped from {:?}", self.0, x.dims()),
        }
    }
}

impl<S> Layer<S> for Conv3d {
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        memory.convolve(self, &x, None)
    }

    fn lag(&self) -> usize {
        self.reach() / 2
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = tally.convolve(self, x, Resample::None);
        tally.free(x);
        y
    }
}

/// conv(silu(norm(x)))
pub struct NormConv<N> {
    /// Norm with its modulation.
    pub norm: N,
    /// Convolution of the result.
    pub conv: Conv3d,
}

impl<N> NormConv<N> {
    /// Reads a causal convolution after a norm.
    pub fn load(norm: N, [channels, outputs]: [usize; 2], conv: Weights) -> Result<Self> {
        let conv = Conv3d::causal(channels, outputs, conv)?;
        Ok(Self { norm, conv })
    }
}

impl<S, N: Modulate<S>> Layer<S> for NormConv<N> {
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, state: &mut S) -> Result<Tensor> {
        let y = memory.convolve(&self.conv, &x, Some(&self.norm.modulation(&x, state)?))?;
        drop(x);
        self.norm.finish(y, memory, state)
    }

    fn lag(&self) -> usize {
        Layer::<S>::lag(&self.conv)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        Layer::<S>::measure(&self.conv, x, tally)
    }
}

/// Cut of a clip into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// One piece.
    Whole,
    /// The first frame alone, then this many at a time.
    FirstAlone(usize),
    /// This many at a time; the first piece takes the remainder, too.
    FirstLonger(usize),
    /// This many at a time; the last piece takes the remainder.
    Even(usize),
}

impl Pieces {
    /// Returns the pieces of a clip.
    pub fn of(self, frames: usize) -> impl Iterator<Item = Range<usize>> {
        let (first, size) = match self {
            Self::Whole => (frames, frames.max(1)),
            Self::FirstAlone(size) => (1, size),
            Self::FirstLonger(size) => (size + frames % size, size),
            Self::Even(size) => (size, size),
        };
        let first = first.min(frames);
        let others = (first..frames).step_by(size);
        std::iter::once(0..first).chain(others.map(move |start| start..frames.min(start + size)))
    }

    /// Returns the frames of the largest piece of clips of a multiple of a piece and one frame, as most are. All clips
    /// that come in pieces have the same, so that a picture is processed as the clip that it begins.
    pub fn usual(self, frames: usize) -> usize {
        match self {
            Self::Whole => frames,
            Self::FirstAlone(size) | Self::Even(size) => size,
            Self::FirstLonger(size) => size + 1,
        }
    }
}

/// Layers of an encoder or a decoder, with the form of their input and output.
pub struct Coder<S> {
    /// Frames before the first one of a clip.
    pub past: TemporalPadding<'static>,
    /// Pieces that a clip is processed in.
    pub pieces: Pieces,
    /// Rows, and columns, of pixels that are one position of the input, and of the output.
    pub patches: [usize; 2],
    /// Number format of the input, where the first layer needs more exact numbers than it computes with.
    pub input: Option<DType>,
    layers: Vec<Box<dyn Layer<S>>>,
}

impl<S> Coder<S> {
    /// Coder without layers, for the form of its input and output.
    pub fn new(past: TemporalPadding<'static>, pieces: Pieces, patches: [usize; 2]) -> Self {
        Self {
            past,
            pieces,
            patches,
            input: None,
            layers: Vec::new(),
        }
    }

    /// Adds a layer at the end.
    pub fn push(&mut self, layer: impl Layer<S> + 'static) {
        self.layers.push(Box::new(layer));
    }

    /// Adds `count` layers with numbered weights, of which the first changes the channels.
    pub fn extend<L: Layer<S> + 'static>(
        &mut self,
        count: usize,
        [channels, outputs]: [usize; 2],
        weights: &Weights,
        load: impl Fn([usize; 2], Weights) -> Result<L>,
    ) -> Result<()> {
        for i in 0..count {
            let inputs = if i == 0 { channels } else { outputs };
            self.push(load([inputs, outputs], weights.pp(i))?);
        }
        Ok(())
    }

    /// Returns the number of layers so far.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Returns true if there are no layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Begins a clip.
    pub fn begin(&self) -> Begun {
        let memory = match self.pieces {
            Pieces::Whole => FeatureCache::whole(self.past),
            _ => FeatureCache::new(self.past),
        };
        Begun {
            inputs: self.layers.iter().map(|_| LayerInput::Waiting(None)).collect(),
            memory,
        }
    }

    /// Returns the most numbers that are held while pieces of these frames, rows and columns pass, with kernels of the CPU
    /// or without; what comes is copied `emitted` times.
    pub fn most_numbers(
        &self,
        [frames, height, width]: [usize; 3],
        channels: usize,
        direct: bool,
        emitted: usize,
    ) -> u64 {
        let from = self.patches[0];
        let piece = PieceSize {
            size: [frames, height / from, width / from],
            channels: channels * from * from,
        };
        let lags = matches!((self.past, self.pieces), (TemporalPadding::Centred, kept) if kept != Pieces::Whole);
        let mut tally = Tally::new(piece, direct, lags);
        let last = self.layers.iter().fold(piece, |x, layer| {
            let y = layer.measure(x, &mut tally);
            match lags {
                true => y.with_frames(y.size[0].min(piece.size[0].max(1))),
                false => y,
            }
        });
        for _ in 0..emitted {
            tally.hold(last);
        }
        match self.pieces {
            Pieces::Whole => tally.peak(),
            _ => tally.peak().saturating_add(tally.kept()),
        }
    }

    /// Passes the next piece of a clip (B, F, H, W, C), and emits what comes of it, (B, F', H', W', C') each; nothing
    /// where the output lags behind and has not begun. With `last`, the rest comes.
    pub fn forward<E: From<candle_core::Error>>(
        &self,
        piece: Tensor,
        last: bool,
        begun: &mut Begun,
        state: &mut S,
        emit: &mut dyn FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        begun.memory.rewind();
        let frames = piece.dim(1)?;
        self.pass(0, (piece, last), begun, state, &mut (frames, emit))
    }

    /// Passes frames through the layers from one on. Where convolutions lag, a layer's output goes on in parts of no more
    /// frames than a piece has, one after the other: so the last piece takes no more memory than any other.
    fn pass<E: From<candle_core::Error>>(
        &self,
        from: usize,
        (mut x, last): (Tensor, bool),
        begun: &mut Begun,
        state: &mut S,
        to: &mut (usize, Emit<E>),
    ) -> std::result::Result<(), E> {
        for (place, layer) in self.layers.iter().enumerate().skip(from) {
            if begun.memory.lags() {
                match begun.gathered(place, x, layer.lag(), last)? {
                    Some(all) => x = all,
                    None => return Ok(()),
                }
            }
            begun.memory.set_last(last);
            x = layer.forward(x, &mut begun.memory, state)?;
            let (frames, most) = (x.dim(1)?, to.0);
            if begun.memory.lags() && frames > most {
                let next = begun.memory.place();
                for first in (0..frames).step_by(most) {
                    let part = x.narrow(1, first, most.min(frames - first))?.contiguous()?;
                    begun.memory.go_back(next);
                    self.pass(place + 1, (part, last && first + most >= frames), begun, state, to)?;
                }
                return Ok(());
            }
        }
        (to.1)(x)
    }
}

/// Callback for the frames that come, with errors `E`.
type Emit<'a, E> = &'a mut dyn FnMut(Tensor) -> std::result::Result<(), E>;

/// Memory of a coder between the pieces of a clip.
pub struct Begun {
    memory: FeatureCache,
    inputs: Vec<LayerInput>,
}

/// Input of a layer whose output lags behind.
enum LayerInput {
    /// Frames that are too few for the first output.
    Waiting(Option<Tensor>),
    /// Every frame passes at once.
    Flowing,
}

impl Begun {
    /// Returns the frames for a layer that lags by `lag`, when there are enough for an output or no more will come.
    fn gathered(&mut self, layer: usize, x: Tensor, lag: usize, last: bool) -> Result<Option<Tensor>> {
        let input = &mut self.inputs[layer];
        let LayerInput::Waiting(waiting) = input else {
            return Ok(Some(x));
        };
        let all = match waiting.take() {
            Some(waiting) => Tensor::cat(&[waiting, x], 1)?,
            None => x,
        };
        if !last && all.dim(1)? <= lag {
            *waiting = Some(all.force_contiguous()?);
            return Ok(None);
        }
        *input = LayerInput::Flowing;
        Ok(Some(all))
    }
}
