//! Rounds of validation videos: rendered by all ranks, each one at a time, and logged by rank 0. What goes wrong is a
//! warning, and training goes on.

use anyhow::bail;

use super::collectives;
use super::metrics::Metrics;
use super::observer::Observer;
use super::validate::{ValidationVideo, Validator};
use crate::distributed::Communicator;
use crate::models::denoiser::Denoiser;
use crate::sample::Sampled;
use crate::video::Frames;

/// Renders the validation videos of a run.
pub struct Validation<'a> {
    /// Renders one video.
    pub validator: Validator<'a>,
    /// Steps between rounds.
    pub every: usize,
    /// Ranks that share out the prompts.
    pub ranks: &'a dyn Communicator,
    /// True if ranks share the transformer's blocks out: they then denoise every prompt together.
    pub shards_blocks: bool,
}

/// Everything that renders a round of videos.
pub struct Round<'r> {
    /// Steps trained so far.
    pub step: u64,
    /// The transformer as it is now.
    pub denoiser: &'r dyn Denoiser,
    /// Shows how denoising goes, and may ask to stop it.
    pub observer: &'r dyn Observer,
    /// Log of rank 0.
    pub metrics: Option<&'r mut Metrics>,
}

impl Validation<'_> {
    /// All prompts, by index.
    pub fn all(&self) -> Vec<usize> {
        (0..self.validator.prompts.len()).collect()
    }

    /// Prompts without a video of this step, by index: a run that ended right after its checkpoint still owes them.
    pub fn missing(&self, step: u64) -> anyhow::Result<Vec<usize>> {
        let missing = |index: &usize| !self.validator.path(*index, step).exists();
        // Rank 0's word: another may look when the first are there already.
        self.ranks
            .broadcast_json(&self.all().into_iter().filter(missing).collect())
    }

    /// Renders the videos of these prompts.
    ///
    /// # Errors
    /// Ranks that did not come.
    pub fn render(&self, prompts: &[usize], mut round: Round) -> anyhow::Result<()> {
        if self.shards_blocks {
            return self.render_together(prompts, &mut round);
        }
        for share in prompts.chunks(self.ranks.world_size()) {
            let own = share.get(self.ranks.rank()).filter(|_| !round.observer.asks_to_stop());
            let rendered = own.map(|&index| self.render_alone(index, &round));
            for (&index, rendered) in share.iter().zip(collectives::gather_videos(self.ranks, rendered)?) {
                match rendered {
                    Some(rendered) if self.ranks.is_first() => self.log(index, rendered, &mut round),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// All ranks denoise every prompt together, and rank 0 alone decodes.
    fn render_together(&self, prompts: &[usize], round: &mut Round) -> anyhow::Result<()> {
        for &index in prompts {
            if self.ranks.any(round.observer.asks_to_stop())? {
                return Ok(());
            }
            let stopped = || self.ranks.any(round.observer.asks_to_stop());
            let sampled = self.denoise(index, round, &stopped);
            if self.ranks.is_first() {
                let rendered = sampled.and_then(|sampled| self.validator.write(index, round.step, &sampled));
                self.log(index, rendered, round);
            }
        }
        Ok(())
    }

    fn render_alone(&self, index: usize, round: &Round) -> anyhow::Result<ValidationVideo> {
        if self.validator.prompts[index].image.is_some() {
            round.denoiser.release()?; // makes room for the encoder
        }
        let sampled = self.denoise(index, round, &|| Ok(round.observer.asks_to_stop()))?;
        round.denoiser.release()?; // makes room for the decoder
        self.validator.write(index, round.step, &sampled)
    }

    /// `stopped` is asked after every step.
    fn denoise(
        &self,
        index: usize,
        round: &Round,
        stopped: &dyn Fn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Sampled> {
        let show = round.observer.denoising(self.validator.prompts[index].steps);
        self.validator.denoise(index, round.denoiser, &|done, of| {
            show(done, of);
            match stopped()? {
                true => bail!("interrupted"),
                false => Ok(()),
            }
        })
    }

    /// Logs a video, or why there is none.
    fn log(&self, index: usize, rendered: anyhow::Result<ValidationVideo>, round: &mut Round) {
        let logged = rendered.and_then(|video| {
            log::info!("validation video {}", video.path.display());
            let frame = Frames {
                data: video.frame,
                num_frames: 1,
                height: video.height,
                width: video.width,
            };
            match &mut round.metrics {
                Some(metrics) => metrics.show(round.step, &format!("validation/{}", video.name), &frame),
                None => Ok(()),
            }
        });
        let prompt = &self.validator.prompts[index].prompt;
        match logged {
            Err(_) if round.observer.asks_to_stop() => {}
            Err(error) => log::warn!("validation of {prompt:?} failed, training goes on: {error:#}"),
            Ok(()) => {}
        }
    }
}
