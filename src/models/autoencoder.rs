//! A video autoencoder with its config: loading, checks, whole clips and pieces, samples, tiles. The family supplies
//! the layers.
//!
//! Shapes: B samples, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size.

use anyhow::Context;
use candle_core::{DType, Device, Error, Result, Tensor};

use super::tiling::{Grid, Tiling};
use super::vae::{Parts, Placement, check_clip, check_latents, loaded, per_sample};
use crate::diffusers_config as config;
use crate::diffusion::posterior::Posterior;
use crate::nn::coder::Coder;
use crate::nn::{Load, WeightFolder, Weights};

/// A family's own part of its autoencoder, by its settings in `vae/config.json`.
pub trait Codec: config::Config {
    /// Knowledge of the layers besides the clip; the default is that before a clip's first piece.
    type State: Default;
    /// Statistics of latents, where they are stored among the weights.
    type Statistics;

    /// True if samples of a batch are always processed one by one.
    const ALONE: bool = false;

    /// Loads the encoder of clips to mean and log-variance; `weights` are those of the whole autoencoder.
    fn encoder(&self, weights: &Weights) -> Result<Coder<Self::State>>;

    /// Loads the decoder of latents.
    fn decoder(&self, weights: &Weights) -> Result<Coder<Self::State>>;

    /// Reads the statistics of latents.
    fn statistics(&self, weights: &Weights) -> anyhow::Result<Self::Statistics>;

    /// Returns the sizes of clips and latents.
    fn sizes(&self) -> Sizes;

    /// Returns the posterior by the encoder's output (B, C', f, h, w).
    fn posterior(&self, moments: &Tensor) -> Result<Posterior> {
        Posterior::new(moments)
    }
}

/// Result of something that emits frames to a callback with errors `E`.
pub type Emitted<E> = std::result::Result<(), E>;

/// Sizes of clips and latents.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Channels of clips.
    pub channels: usize,
    /// Channels of latents.
    pub latent_channels: usize,
    /// A clip has a multiple of this number of frames, and one more.
    pub frames: usize,
    /// A clip's sides are multiples of this.
    pub side: usize,
    /// Pixel rows, and columns, per latent one.
    pub compression: usize,
}

/// A codec whose decoder needs nothing but latents.
pub trait Unconditional: Codec {}

/// Autoencoder, or half of it.
pub struct Autoencoder<C: Codec> {
    /// Settings of the checkpoint.
    pub config: C,
    /// Statistics of latents.
    pub statistics: C::Statistics,
    /// Tiles for frames larger than a tile; if None every frame is processed whole.
    pub tiling: Option<Tiling>,
    /// True to process one sample of a batch at a time.
    pub slicing: bool,
    encoder: Option<Coder<C::State>>,
    decoder: Option<Coder<C::State>>,
    place: Placement,
}

impl<C: Codec> Autoencoder<C> {
    /// Reads `config.json` and the weights in `folder`.
    ///
    /// # Errors
    /// Fails for unknown or impossible settings, and for weights that do not fit them.
    pub fn load(folder: impl Into<WeightFolder>, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::load_half(folder, Parts::Both, &Load::new(dtype, device))
    }

    /// Same as [`load`](Self::load), without the unneeded half.
    pub fn load_half(folder: impl Into<WeightFolder>, half: Parts, load: &Load) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        Self::read(folder, half, Weights::read(folder, load)?)
    }

    /// Same as [`load_half`](Self::load_half), from weights of the same folder.
    pub fn read(folder: impl Into<WeightFolder>, half: Parts, weights: Weights) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        let config = C::load(folder)?;
        let place = Placement::new(&weights);
        let weights = weights.to_dtype(place.computed_in);
        weights.ensure_memory(half.unused())?;
        let autoencoder = Self {
            statistics: config
                .statistics(&weights)
                .with_context(|| format!("{}: the normalisation of latents", folder.display()))?,
            tiling: None,
            slicing: false,
            encoder: half.encoder(|| config.encoder(&weights))?,
            decoder: half.decoder(|| config.decoder(&weights))?,
            place,
            config,
        };
        weights.finish(half.unused())?;
        Ok(autoencoder)
    }

    /// Returns the number format of results, that of the weights.
    pub fn dtype(&self) -> DType {
        self.place.dtype
    }

    /// Returns the device that everything is computed on.
    pub fn device(&self) -> &Device {
        &self.place.device
    }

    /// Encodes clips (B, C, F, H, W) of values in -1..1 -> (B, L, f, h, w).
    ///
    /// # Errors
    /// Fails for frames and sides that do not divide into latents, of which diffusers would drop the last ones.
    pub fn encode(&self, video: &Tensor) -> Result<Posterior> {
        let encoder = loaded(&self.encoder, "encoder")?;
        let Sizes {
            channels, frames, side, ..
        } = self.config.sizes();
        check_clip(video, channels, [frames, side])?;
        let moments = self.by_sample(video, |video| {
            collected(|emit| self.code(encoder, Tiling::encoding, video, &mut C::State::default(), emit))
        })?;
        self.config.posterior(&moments)
    }

    /// Decodes latents from a state, emitting frames as they come: all at the end if there are tiles, since to cache
    /// every tile's past would cost more memory than the tiles save.
    ///
    /// # Errors
    /// Fails for latents of another shape, without the decoder, and where `emit` does.
    pub fn decode_from<E: From<Error>>(
        &self,
        state: &mut C::State,
        latents: &Tensor,
        emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let decoder = self.decoder_of(latents)?;
        self.code(decoder, Tiling::decoding, latents, state, emit)
    }

    /// Returns the decoder, after checks of the latents.
    ///
    /// # Errors
    /// Same as [`decode_from`](Self::decode_from).
    pub fn decoder_of(&self, latents: &Tensor) -> Result<&Coder<C::State>> {
        let decoder = loaded(&self.decoder, "decoder")?;
        check_latents(latents, self.config.sizes().latent_channels)?;
        Ok(decoder)
    }

    /// Runs a coder over x, tile by tile where it is larger than one.
    fn code<E: From<Error>>(
        &self,
        coder: &Coder<C::State>,
        tiles: fn(&Tiling, usize) -> Grid,
        x: &Tensor,
        state: &mut C::State,
        mut emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let (_, _, _, height, width) = x.dims5()?;
        let compression = self.config.sizes().compression;
        let grid = self.tiling.map(|tiling| tiles(&tiling, compression));
        match grid.filter(|grid| grid.splits(height, width)) {
            Some(grid) => emit(grid.code(x, |tile| collected(|emit| self.run(coder, tile, state, emit)))?),
            None => self.run(coder, x, state, emit),
        }
    }

    /// Runs a coder over the pieces of x.
    fn run<E: From<Error>>(
        &self,
        coder: &Coder<C::State>,
        x: &Tensor,
        state: &mut C::State,
        mut emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let mut memory = coder.memory();
        let [from, to] = coder.patches;
        for frames in coder.pieces.of(x.dim(2)?) {
            let piece = self.place.channels_last(x, frames, from)?; // (B, F, H, W, C)
            let y = coder.forward(piece, &mut memory, state)?;
            emit(self.place.channels_first(&y, to)?)?;
        }
        Ok(())
    }

    /// Processes a batch sample by sample, if configured.
    fn by_sample(&self, x: &Tensor, code: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        match C::ALONE || self.slicing {
            true => per_sample(x, |_, x| code(x)),
            false => code(x),
        }
    }
}

impl<C: Unconditional> Autoencoder<C> {
    /// Decodes latents (B, L, f, h, w), as from the encoder, to (B, C, F, H, W) of about -1..1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder_of(latents)?;
        self.by_sample(latents, |latents| collected(|emit| self.decode_batches(latents, emit)))
    }

    /// Same as [`decode`](Self::decode) for all samples at once, emitting frames as they come.
    pub fn decode_batches<E: From<Error>>(
        &self,
        latents: &Tensor,
        emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        self.decode_from(&mut C::State::default(), latents, emit)
    }
}

/// Concatenates the pieces (B, C, F, H, W) that are emitted, along the frames.
pub fn collected(code: impl FnOnce(&mut dyn FnMut(Tensor) -> Result<()>) -> Result<()>) -> Result<Tensor> {
    let mut pieces = Vec::new();
    code(&mut |piece| {
        pieces.push(piece);
        Ok(())
    })?;
    Tensor::cat(&pieces, 2)
}
