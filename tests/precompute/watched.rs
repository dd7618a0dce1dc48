//! A checkpoint that counts what is loaded and encoded, and can ask for an end in the middle.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use vtrain::diffusion::posterior::Posterior;
use vtrain::diffusion::schedulers::Scheduler;
use vtrain::models::Family;
use vtrain::models::denoiser::{Denoiser, Text};
use vtrain::models::family::{Canvas, ClipEncoder, Conditioner, Emit, ImageCondition, Kept, TakesImage, TextShape};
use vtrain::nn::WeightFolder;
use vtrain::nn::weights::Planter;
use vtrain::rng::Rng;

#[derive(Default)]
pub struct Counts {
    pub conditioners: Cell<usize>,
    pub encoders: Cell<usize>,
    pub texts: Cell<usize>,
    pub clips: Cell<usize>,
    /// Whether the encoder of clips was to work in tiles, and one by one.
    pub asked: Cell<Option<(bool, bool)>>,
    /// Loaded parts that are not dropped yet.
    pub alive: Cell<usize>,
    /// `stop` is set after so many clips.
    pub stop_after: Option<usize>,
    pub stop: AtomicBool,
}

impl Counts {
    /// Captions and clips that were encoded.
    pub fn encoded(&self) -> (usize, usize) {
        (self.texts.get(), self.clips.get())
    }
}

pub struct Watched {
    pub inner: Box<dyn Family>,
    pub counts: Rc<Counts>,
}

struct Part<T> {
    inner: T,
    counts: Rc<Counts>,
}

impl<T> Part<T> {
    fn new(inner: T, counts: &Rc<Counts>, loads: &Cell<usize>) -> Self {
        assert_eq!(counts.alive.get(), 0, "two parts are loaded at once");
        counts.alive.set(1);
        loads.set(loads.get() + 1);
        Self {
            inner,
            counts: counts.clone(),
        }
    }
}

impl<T> Drop for Part<T> {
    fn drop(&mut self) {
        self.counts.alive.set(0);
    }
}

impl Conditioner for Part<Box<dyn Conditioner>> {
    fn embed(&self, prompt: &str) -> anyhow::Result<Text> {
        self.counts.texts.set(self.counts.texts.get() + 1);
        self.inner.embed(prompt)
    }

    fn lost_tokens(&self, prompt: &str) -> anyhow::Result<usize> {
        self.inner.lost_tokens(prompt)
    }
}

impl ClipEncoder for Part<Box<dyn ClipEncoder>> {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        let clips = self.counts.clips.get() + 1;
        self.counts.clips.set(clips);
        if self.counts.stop_after == Some(clips) {
            self.counts.stop.store(true, Ordering::Relaxed);
        }
        self.inner.encode(clip)
    }

    fn encode_image(&self, image: &Tensor, num_frames: usize) -> anyhow::Result<Vec<Tensor>> {
        self.counts.clips.set(self.counts.clips.get() + 1);
        self.inner.encode_image(image, num_frames)
    }
}

impl Family for Watched {
    fn conditioner(&self) -> anyhow::Result<Box<dyn Conditioner>> {
        let inner = self.inner.conditioner()?;
        Ok(Box::new(Part::new(inner, &self.counts, &self.counts.conditioners)))
    }

    fn clip_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn ClipEncoder>> {
        self.counts.asked.set(Some((tiling, slicing)));
        let inner = self.inner.clip_encoder(tiling, slicing)?;
        Ok(Box::new(Part::new(inner, &self.counts, &self.counts.encoders)))
    }

    fn directory(&self) -> &WeightFolder {
        self.inner.directory()
    }

    fn conditioner_parts(&self) -> &'static [&'static str] {
        self.inner.conditioner_parts()
    }

    fn encoder_parts(&self) -> &'static [&'static str] {
        self.inner.encoder_parts()
    }

    fn pipeline(&self, from_image: bool) -> &'static str {
        self.inner.pipeline(from_image)
    }

    fn frame_rate(&self) -> f64 {
        self.inner.frame_rate()
    }

    fn image_kept(&self, canvas: &Canvas) -> Kept {
        self.inner.image_kept(canvas)
    }

    fn text_shape(&self) -> TextShape {
        self.inner.text_shape()
    }

    fn scheduler(&self) -> anyhow::Result<Scheduler> {
        self.inner.scheduler()
    }

    fn denoiser(&self, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Box<dyn Denoiser>> {
        self.inner.denoiser(planter)
    }

    fn canvas(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<Canvas> {
        self.inner.canvas(num_frames, height, width)
    }

    fn takes_image(&self) -> TakesImage {
        self.inner.takes_image()
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        self.inner.latents(sample)
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        canvas: &Canvas,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        self.inner.condition_on(encoded, canvas, rng)
    }

    fn check_decoder(&self) -> anyhow::Result<()> {
        self.inner.check_decoder()
    }

    fn decode(&self, latents: &Tensor, canvas: &Canvas, rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        self.inner.decode(latents, canvas, rng, emit)
    }
}
