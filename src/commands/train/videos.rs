//! Validation videos: made by all ranks, each one at a time, and told of by rank 0. What goes wrong is a warning, and
//! training goes on.

use anyhow::bail;

use super::open::Parts;
use super::session::Session;
use crate::commands::interrupt::Interrupt;
use crate::commands::progress;
use crate::sample::Sampled;
use crate::train::together;
use crate::train::validate::Shown;
use crate::video::Frames;

impl Session<'_> {
    /// What the base model makes of the prompts: the adapters are out of the way meanwhile.
    pub(super) fn validate_base(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        if self.parts.validator.prompts.is_empty() {
            return Ok(());
        }
        let learnt = self.parts.pairs.iter().map(|pair| pair.b.as_tensor().copy());
        let learnt = learnt.collect::<candle_core::Result<Vec<_>>>()?;
        for pair in &self.parts.pairs {
            pair.b.set(&pair.b.zeros_like()?)?;
        }
        self.validate(0, interrupt)?;
        for (pair, b) in self.parts.pairs.iter().zip(learnt) {
            pair.b.set(&b)?;
        }
        Ok(())
    }

    /// Makes the validation videos of all prompts.
    ///
    /// # Errors
    /// Ranks that did not come.
    pub(super) fn validate(&mut self, step: u64, interrupt: &Interrupt) -> anyhow::Result<()> {
        let all: Vec<usize> = (0..self.parts.validator.prompts.len()).collect();
        self.show_all(&all, step, interrupt)
    }

    /// Makes the validation videos that a run which ended right behind its checkpoint still owes of that step.
    pub(super) fn make_up(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let step = self.counts.step;
        if step != self.total_steps && !self.due(self.parts.config.validation.every) {
            return Ok(());
        }
        let Parts { validator, ranks, .. } = &self.parts;
        let owed = (0..validator.prompts.len()).filter(|&index| !validator.path(index, step).exists());
        let owed: Vec<usize> = owed.collect();
        // Rank 0's word: another may look when the first are there already.
        let owed: Vec<usize> = serde_json::from_slice(&ranks.broadcast(serde_json::to_vec(&owed)?)?)?;
        self.show_all(&owed, step, interrupt)
    }

    fn show_all(&mut self, prompts: &[usize], step: u64, interrupt: &Interrupt) -> anyhow::Result<()> {
        let ranks = self.parts.ranks;
        if self.parts.shares_blocks() {
            return self.show_in_step(prompts, step, interrupt);
        }
        for round in prompts.chunks(ranks.world_size()) {
            let own = round.get(ranks.rank()).filter(|_| !interrupt.asked());
            let shown = own.map(|&index| self.show(index, step, interrupt));
            for (&index, shown) in round.iter().zip(together::gather_shown(ranks, shown)?) {
                match shown {
                    Some(shown) if ranks.is_first() => self.tell(index, step, shown, interrupt),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The same where ranks share blocks out: all denoise every prompt together, and rank 0 alone decodes.
    fn show_in_step(&mut self, prompts: &[usize], step: u64, interrupt: &Interrupt) -> anyhow::Result<()> {
        let ranks = self.parts.ranks;
        for &index in prompts {
            if ranks.any(interrupt.asked())? {
                return Ok(());
            }
            let goes_on = || match ranks.any(interrupt.asked())? {
                true => bail!("interrupted"),
                false => Ok(()),
            };
            let sampled = self.denoise(index, &goes_on);
            if ranks.is_first() {
                let shown = sampled.and_then(|sampled| self.parts.validator.write(index, step, &sampled));
                self.tell(index, step, shown, interrupt);
            }
        }
        Ok(())
    }

    /// Makes one validation video.
    fn show(&self, index: usize, step: u64, interrupt: &Interrupt) -> anyhow::Result<Shown> {
        let sampled = self.denoise(index, &|| interrupt.check())?;
        self.parts.validator.write(index, step, &sampled)
    }

    /// `goes_on` is asked behind every step.
    fn denoise(&self, index: usize, goes_on: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<Sampled> {
        let Parts { validator, trainer, .. } = &self.parts;
        let bar = progress::bar("validation", validator.prompts[index].steps);
        let on = progress::on(&bar);
        let sampled = validator.denoise(index, &*trainer.denoiser, &|done, of| {
            on(done, of);
            goes_on()
        });
        bar.finish_and_clear();
        sampled
    }

    /// Tells of a validation video.
    fn tell(&mut self, index: usize, step: u64, shown: anyhow::Result<Shown>, interrupt: &Interrupt) {
        let told = shown.and_then(|shown| {
            log::info!("validation video {}", shown.path.display());
            let frames = Frames {
                data: shown.frame,
                num_frames: 1,
                height: shown.height,
                width: shown.width,
            };
            match &mut self.parts.metrics {
                Some(metrics) => metrics.show(step, &format!("validation/{}", shown.name), &frames),
                None => Ok(()),
            }
        });
        let prompt = &self.parts.validator.prompts[index].prompt;
        match told {
            Err(_) if interrupt.asked() => {}
            Err(error) => log::warn!("validation of {prompt:?} failed, training goes on: {error:#}"),
            Ok(()) => {}
        }
    }
}
