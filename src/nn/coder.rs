//! Encoder or decoder of a video autoencoder: layers that a clip passes one after the other, whole or in pieces.
//!
//! Causal convolutions find the frames before a piece in the [`FeatureCache`], so that pieces give the same result as
//! the whole clip, with the memory of one piece. A state `S` holds what layers know besides the clip: the latents that a
//! decoder's norms are conditioned on, or a timestep.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::conv3d::{Conv3d, FeatureCache, Modulation, TemporalPadding};
use super::weights::Weights;

/// A layer of a coder.
pub trait Layer<S> {
    /// Forward pass of a piece of a clip (B, F, H, W, C) -> (B, F', H', W', C'). Takes ownership of x, to build the
    /// result in its memory.
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, state: &mut S) -> Result<Tensor>;
}

/// A norm before a convolution, which applies it to its input together with a SiLU.
pub trait Modulate<S> {
    /// Returns the modulation for norm(x), x (B, F, H, W, C).
    fn modulation(&self, x: &Tensor, state: &S) -> Result<Modulation>;

    /// Changes the convolution's result (B, F, H, W, C'); the default is no change.
    fn finish(&self, y: Tensor, _state: &mut S) -> Result<Tensor> {
        Ok(y)
    }
}

impl<S> Layer<S> for Conv3d {
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        memory.convolve(self, &x, None)
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
        self.norm.finish(y, state)
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
}

impl Pieces {
    /// Returns the pieces of a clip.
    pub fn of(self, frames: usize) -> impl Iterator<Item = Range<usize>> {
        let (first, size) = match self {
            Self::Whole => (frames, frames.max(1)),
            Self::FirstAlone(size) => (1, size),
            Self::FirstLonger(size) => (size + frames % size, size),
        };
        let first = first.min(frames);
        let others = (first..frames).step_by(size);
        std::iter::once(0..first).chain(others.map(move |start| start..frames.min(start + size)))
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
    layers: Vec<Box<dyn Layer<S>>>,
}

impl<S> Coder<S> {
    /// Coder without layers, for the form of its input and output.
    pub fn new(past: TemporalPadding<'static>, pieces: Pieces, patches: [usize; 2]) -> Self {
        Self {
            past,
            pieces,
            patches,
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

    /// Returns an empty cache for the pieces of a clip.
    pub fn memory(&self) -> FeatureCache {
        match self.pieces {
            Pieces::Whole => FeatureCache::whole(self.past),
            _ => FeatureCache::new(self.past),
        }
    }

    /// Forward pass of the next piece of a clip (B, F, H, W, C) -> (B, F', H', W', C').
    pub fn forward(&self, piece: Tensor, memory: &mut FeatureCache, state: &mut S) -> Result<Tensor> {
        memory.rewind();
        let mut layers = self.layers.iter();
        layers.try_fold(piece, |x, layer| layer.forward(x, memory, state))
    }
}
