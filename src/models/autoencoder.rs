//! A video autoencoder with its config: loading, checks, whole clips and pieces, samples, tiles. The family supplies
//! the layers.
//!
//! Shapes: B samples, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use candle_core::{DType, Device, Error, Result, Tensor};
use indicatif::BinaryBytes;

use super::tiling::{Cuts, Grid, Tiling};
pub use super::vae::Emitted;
use super::vae::{FirstFrame, Parts, Placement, check_clip, check_latents, loaded, per_sample};
use crate::diffusers_config as config;
use crate::diffusion::posterior::Posterior;
use crate::nn::coder::{Coder, Pieces};
use crate::nn::coder_memory::PieceSize;
use crate::nn::load::Content;
use crate::nn::vae_memory::{VaeMemory, VaeTiling};
use crate::nn::{Load, WeightFolder, Weights};

/// A family's own part of its autoencoder, by its settings in `vae/config.json`.
pub trait Codec: config::Config {
    /// Knowledge of the layers besides the clip; the default is that before a clip's first piece.
    type State: Default;
    /// Statistics of latents, where they are stored among the weights.
    type Statistics;

    /// True if samples of a batch are always processed one by one.
    const ALONE: bool = false;

    /// First frame of a clip.
    const FIRST_FRAME: FirstFrame = FirstFrame::Alone;

    /// Copies that [`finish`](Self::finish) makes of frames.
    const FINISHED: usize = 0;

    /// Loads the encoder of clips to mean and log-variance; `weights` are those of the whole autoencoder.
    fn encoder(&self, weights: &Weights) -> Result<Coder<Self::State>>;

    /// Loads the decoder of latents.
    fn decoder(&self, weights: &Weights) -> Result<Coder<Self::State>>;

    /// Reads the statistics of latents.
    fn statistics(&self, weights: &Weights) -> anyhow::Result<Self::Statistics>;

    /// Returns the sizes of clips and latents.
    fn sizes(&self) -> Sizes;

    /// Returns the tiles of diffusers' `enable_tiling()`.
    fn tiling(&self) -> Tiling;

    /// Returns those tiles, if they line up.
    fn usable_tiling(&self) -> Option<Tiling> {
        Some(self.tiling()).filter(|tiling| tiling.lines_up(self.sizes().compression))
    }

    /// Returns true if it is computed in f32 whatever the weights are in.
    fn forces_f32(&self) -> bool {
        false
    }

    /// Returns the posterior by the encoder's output (B, C', f, h, w).
    fn posterior(&self, moments: &Tensor) -> Result<Posterior> {
        Posterior::new(moments)
    }

    /// Returns decoded frames as they are emitted, after tiles are put together; the default changes nothing.
    fn finish(&self, frames: Tensor) -> Result<Tensor> {
        Ok(frames)
    }
}

/// Memory of a half of an autoencoder, in bytes. Clips that are given are not counted, nor frames once they are emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaeCost {
    /// Weights.
    pub weights: u64,
    /// Most that is held besides them for a whole clip.
    pub whole: u64,
    /// Same for tiles, with the clip that they are put together to; None if the clip is no larger than a tile.
    pub tiled: Option<u64>,
    /// True if the clip is cut into tiles.
    pub cuts: bool,
}

impl VaeCost {
    /// Returns the most bytes that are held at a time.
    pub fn peak(&self) -> u64 {
        let coding = self.tiled.filter(|_| self.cuts).unwrap_or(self.whole);
        self.weights.saturating_add(coding)
    }
}

/// Sizes of clips and latents.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Channels of clips.
    pub channels: usize,
    /// Channels of latents.
    pub latent_channels: usize,
    /// A clip has a multiple of this number of frames, and one more where the first is alone.
    pub frames: usize,
    /// A clip's sides are multiples of this.
    pub side: usize,
    /// Frames per latent frame, and pixel rows, and columns, per latent one.
    pub compression: [usize; 2],
}

/// A codec whose decoder needs nothing but latents.
pub trait Unconditional: Codec {}

/// Autoencoder, or half of it.
pub struct Autoencoder<C: Codec> {
    /// Settings of the checkpoint.
    pub config: C,
    /// Statistics of latents.
    pub statistics: C::Statistics,
    /// Tiles for clips larger than a tile; if None every clip is processed whole.
    pub tiling: Option<Tiling>,
    /// Cases in which frames are cut into tiles, and whether samples of a batch are processed one at a time.
    pub memory: VaeMemory,
    weights: u64,
    told: AtomicBool,
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
        let mut autoencoder = Self::read(folder, half, Weights::read(folder, load)?)?;
        autoencoder.memory = load.vae;
        if load.content == Content::Numbers {
            autoencoder.warn(folder);
        }
        Ok(autoencoder)
    }

    /// Warns where tiles are not as wanted.
    fn warn(&self, folder: &WeightFolder) {
        let (folder, tiles) = (folder.display(), self.config.tiling().name());
        match (self.tiling, self.memory.tiling) {
            (None, VaeTiling::Always(true)) => {
                log::warn!("{folder}: tiles of {tiles} pixels do not line up with latents; frames are processed whole");
            }
            (Some(tiling), VaeTiling::Always(false)) if tiling.cuts == Cuts::Always => {
                log::warn!(
                    "{folder}: this autoencoder knows only tiles, of {tiles}: larger clips are cut all the same"
                );
            }
            _ => {}
        }
    }

    /// Returns the memory that a loaded half takes for clips of these frames, rows and columns.
    pub fn cost(&self, half: Parts, [frames, height, width]: [usize; 3]) -> Result<VaeCost> {
        let clip = [frames, height, width];
        Ok(match half {
            Parts::Decoder => {
                let latents = self.output(Direction::Encode, clip).size;
                self.cost_of(loaded(&self.decoder, "decoder")?, Direction::Decode, latents)
            }
            Parts::Encoder | Parts::Both => self.cost_of(loaded(&self.encoder, "encoder")?, Direction::Encode, clip),
        })
    }

    /// Returns the memory that a coder takes for an input of these frames, rows and columns.
    fn cost_of(&self, coder: &Coder<C::State>, direction: Direction, input: [usize; 3]) -> VaeCost {
        let (direct, bytes) = (self.place.direct, self.place.computed_in.size_in_bytes() as u64);
        let Sizes {
            channels,
            latent_channels,
            ..
        } = self.config.sizes();
        let (inputs, outputs, finished) = match direction {
            Direction::Encode => (channels, 2 * latent_channels, 0),
            Direction::Decode => (latent_channels, channels, C::FINISHED),
        };
        // Channels come first, then frames are finished; those of tiles once they are put together.
        let of = |[frames, height, width]: [usize; 3], finished| {
            let piece = [coder.pieces.usual(frames), height, width];
            let numbers = coder.most_numbers(piece, inputs, direct, 1 + finished);
            numbers.saturating_mul(bytes)
        };
        let whole = of(input, finished);
        let tiled = self.grid(direction, input).map(|grid| {
            let output_bytes = outputs as u64 * self.place.dtype.size_in_bytes() as u64;
            let held = grid.held_outputs(input, finished as u64, coder.pieces != Pieces::Whole);
            let [working, joining] = [held.working, held.joining].map(|held| held.saturating_mul(output_bytes));
            of(grid.largest(input), 0).saturating_add(working).max(joining)
        });
        let needed = self.weights.saturating_add(whole);
        VaeCost {
            weights: self.weights,
            whole,
            tiled,
            cuts: tiled.is_some() && (self.always_cuts() || self.memory.cuts(needed)),
        }
    }

    /// Returns true if clips larger than a tile are cut, however much memory there is.
    fn always_cuts(&self) -> bool {
        self.tiling.is_some_and(|tiling| tiling.cuts == Cuts::Always)
    }

    /// Returns the size of the result for an input of these frames, rows and columns.
    fn output(&self, direction: Direction, [frames, height, width]: [usize; 3]) -> PieceSize {
        let sizes = self.config.sizes();
        let [time, space] = sizes.compression.map(|by| by.max(1));
        match direction {
            Direction::Encode => PieceSize {
                size: [frames.div_ceil(time), height / space, width / space],
                channels: 2 * sizes.latent_channels,
            },
            Direction::Decode => PieceSize {
                size: [C::FIRST_FRAME.clip(frames, time), height * space, width * space],
                channels: sizes.channels,
            },
        }
    }

    /// Returns the tiles of an input of these frames, rows and columns, if it is larger than one.
    fn grid(&self, direction: Direction, size: [usize; 3]) -> Option<Grid> {
        let compression = self.config.sizes().compression;
        let grid = match direction {
            Direction::Encode => self.tiling?.encoding(compression),
            Direction::Decode => self.tiling?.decoding(compression),
        };
        Some(grid).filter(|grid| grid.splits(size).contains(&true))
    }

    /// Same as [`load_half`](Self::load_half), from weights of the same folder.
    pub fn read(folder: impl Into<WeightFolder>, half: Parts, weights: Weights) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        let config = C::load(folder)?;
        let weights = match config.forces_f32() {
            true => weights.to_dtype(DType::F32),
            false => weights,
        };
        let place = Placement::new(&weights);
        let weights = weights.to_dtype(place.computed_in);
        weights.ensure_memory(half.unused())?;
        let mut autoencoder = Self {
            statistics: config
                .statistics(&weights)
                .with_context(|| format!("{}: the normalisation of latents", folder.display()))?,
            tiling: config.usable_tiling(),
            memory: VaeMemory::WHOLE,
            weights: 0,
            told: AtomicBool::new(false),
            encoder: half.encoder(|| config.encoder(&weights))?,
            decoder: half.decoder(|| config.decoder(&weights))?,
            place,
            config,
        };
        weights.finish(half.unused())?;
        autoencoder.weights = weights.bytes() as u64;
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
        check_clip(video, channels, C::FIRST_FRAME, [frames, side])?;
        let moments = self.by_sample(video, |video| {
            collected(|emit| self.code(encoder, Direction::Encode, video, &mut C::State::default(), emit))
        })?;
        self.config.posterior(&moments)
    }

    /// Decodes latents from a state, emitting frames as they come: with tiles all at the end, or those of one tile along
    /// the frames, since to cache every tile's past would cost more memory than the tiles save.
    ///
    /// # Errors
    /// Fails for latents of another shape, without the decoder, and where `emit` does.
    pub fn decode_from<E: From<Error>>(
        &self,
        state: &mut C::State,
        latents: &Tensor,
        mut emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let decoder = self.decoder_of(latents)?;
        self.code(decoder, Direction::Decode, latents, state, |frames| {
            emit(self.config.finish(frames)?)
        })
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

    /// Runs a coder over x, tile by tile where it is to be cut.
    fn code<E: From<Error>>(
        &self,
        coder: &Coder<C::State>,
        direction: Direction,
        x: &Tensor,
        state: &mut C::State,
        emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let (_, _, frames, height, width) = x.dims5()?;
        let size = [frames, height, width];
        let Some(grid) = self.grid(direction, size) else {
            return self.run(coder, x, state, emit);
        };
        let cost = self.cost_of(coder, direction, size);
        if !cost.cuts {
            return self.run(coder, x, state, emit);
        }
        self.tell(direction, size, &cost);
        grid.code(x, |tile| collected(|emit| self.run(coder, tile, state, emit)), emit)
    }

    /// Logs once why frames are cut.
    fn tell(&self, direction: Direction, size: [usize; 3], cost: &VaeCost) {
        let chosen = self.memory.tiling == VaeTiling::AUTO && !self.always_cuts();
        if !chosen || self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let [frames, height, width] = match direction {
            Direction::Encode => size,
            Direction::Decode => self.output(direction, size).size,
        };
        log::info!(
            "clips of {frames}x{height}x{width} are {} in tiles of {}: whole they take {}, and {} are free",
            direction.done(),
            self.tiling.map_or_else(String::new, |tiling| tiling.name()),
            BinaryBytes(cost.weights.saturating_add(cost.whole)),
            BinaryBytes(self.memory.free.unwrap_or(0)),
        );
    }

    /// Runs a coder over the pieces of x.
    fn run<E: From<Error>>(
        &self,
        coder: &Coder<C::State>,
        x: &Tensor,
        state: &mut C::State,
        mut emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let mut begun = coder.begin();
        let [from, to] = coder.patches;
        let frames = x.dim(2)?;
        for piece in coder.pieces.of(frames) {
            let last = piece.end == frames;
            let piece = self.place.channels_last(x, piece, from, coder.input)?; // (B, F, H, W, C)
            coder.forward(piece, last, &mut begun, state, &mut |y| {
                emit(self.place.channels_first(&y, to)?)
            })?;
        }
        Ok(())
    }

    /// Processes a batch sample by sample, if configured.
    fn by_sample(&self, x: &Tensor, code: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        match C::ALONE || self.memory.slicing {
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

/// From clips to latents, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encode,
    Decode,
}

impl Direction {
    fn done(self) -> &'static str {
        match self {
            Self::Encode => "encoded",
            Self::Decode => "decoded",
        }
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
