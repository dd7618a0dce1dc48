//! Settings that decide what a run learns: a checkpoint is resumed under the same ones only.

use serde_json::{Value, json};

use super::RunConfig;
use crate::optim::lr;
use crate::train;

impl RunConfig {
    /// The settings that change what is learned. Where files lie, what is kept and what is shown do not; nor does it matter
    /// how many ranks share the micro-batches of a step, which are counted over all of them.
    pub fn hyperparameters(&self, world_size: usize) -> Value {
        let train = &self.train;
        // With a schedule that is flat behind its warm-up, a run may be made longer.
        let length = match self.lr_scheduler.name {
            lr::Name::Constant => Value::Null,
            lr::Name::ConstantWithWarmup if self.lr_scheduler.warmup_ratio.is_none() => Value::Null,
            _ => json!({"steps": train.steps, "epochs": train.epochs}),
        };
        let mut model = json!({"dtype": self.model.dtype});
        if let Some(form) = self.model.quantization.form() {
            model["quantization"] = json!(form); // absent in checkpoints of dense runs
        }
        let mut all = json!({
            "seed": self.seed,
            "model": model,
            "precompute": {"latents": self.precompute.latents},
            "lora": {
                "rank": self.lora.rank,
                "alpha": self.lora.alpha,
                "use_rslora": self.lora.use_rslora,
                "dropout": self.lora.dropout,
                "target_modules": self.lora.target_modules,
            },
            "train": {
                "length": length,
                "batch_size": train.batch_size,
                "gradient_accumulation_steps": train.gradient_accumulation_steps * world_size,
                "max_grad_norm": train.max_grad_norm,
                "caption_dropout": train.caption_dropout,
                "first_frame_conditioning_p": train.first_frame_conditioning_p,
            },
            "diffusion": self.diffusion,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
        });
        if !self.lora.frozen.is_empty() {
            all["lora"]["frozen"] = json!(self.lora.frozen); // likewise
        }
        if train.guidance_embedding != train::config::Config::default().guidance_embedding {
            all["train"]["guidance_embedding"] = json!(train.guidance_embedding); // absent in checkpoints of older runs
        }
        all
    }
}
