//! A checkpoint that counts what is loaded and encoded, and can ask for an end in the middle.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use vtrain::diffusion::posterior::Posterior;
use vtrain::models::Family;
use vtrain::models::denoiser::{Denoiser, TextEmbeds};
use vtrain::models::family::{
    ImageCondition, LatentSize, ModelSpec, Parts, TextEncoder, VaeCost, VideoDecoder, VideoEncoder,
};
use vtrain::nn::Load;
use vtrain::nn::vae_memory::VaeTiling;
use vtrain::rng::Rng;

#[derive(Default)]
pub struct Counts {
    pub conditioners: Cell<usize>,
    pub encoders: Cell<usize>,
    pub texts: Cell<usize>,
    pub clips: Cell<usize>,
    /// Requested tiling and slicing of the video encoder.
    pub asked: Cell<Option<(VaeTiling, bool)>>,
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

impl TextEncoder for Part<Box<dyn TextEncoder>> {
    fn embed(&self, prompt: &str, picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        self.counts.texts.set(self.counts.texts.get() + 1);
        self.inner.embed(prompt, picture)
    }

    fn truncated_tokens(&self, prompt: &str) -> anyhow::Result<usize> {
        self.inner.truncated_tokens(prompt)
    }
}

impl VideoEncoder for Part<Box<dyn VideoEncoder>> {
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
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        let inner = self.inner.text_encoder(load)?;
        Ok(Box::new(Part::new(inner, &self.counts, &self.counts.conditioners)))
    }

    fn vae_cost(&self, half: Parts, load: &Load, clip: [usize; 3]) -> anyhow::Result<VaeCost> {
        self.inner.vae_cost(half, load, clip)
    }

    fn video_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoEncoder>> {
        self.counts.asked.set(Some((load.vae.tiling, load.vae.slicing)));
        let inner = self.inner.video_encoder(load)?;
        Ok(Box::new(Part::new(inner, &self.counts, &self.counts.encoders)))
    }

    fn video_decoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoDecoder>> {
        self.inner.video_decoder(load)
    }

    fn denoiser(&self, load: &Load) -> anyhow::Result<Box<dyn Denoiser>> {
        self.inner.denoiser(load)
    }

    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize> {
        self.inner.latent_size(num_frames, height, width)
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        self.inner.latents(sample)
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        size: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        self.inner.condition_on(encoded, size, rng)
    }
}
