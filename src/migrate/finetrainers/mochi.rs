//! Script for Mochi 1, `training/mochi-1/text_to_video_lora.py` of cogvideox-factory and finetrainers v0.0.1: its defaults are those
//! of genmo's fine-tuner. It trains on clips that `prepare_dataset.sh` has cut and encoded.
//!
//! Facts: the script and its `args.py`.

use serde_json::Value;

use super::super::document::Block;
use super::Migration;

/// Frames, rows and columns that `prepare_dataset.sh` cuts clips to.
const PREPARED: [u64; 3] = [37, 480, 848];

/// Size, steps and guidance of its videos.
const VIDEO_FRAMES: u64 = 19;
const VIDEO_STEPS: u64 = 64;
const GUIDANCE: f64 = 6.0;

impl Migration<'_> {
    /// Converts `--cast_dit`: weights in bf16 instead of f32.
    pub(super) fn cast_dit(&mut self) {
        let (dtype, from) = match self.flags.switch("cast_dit") {
            true => ("bf16", "--cast_dit"),
            false => ("f32", self.default),
        };
        self.set("model", "dtype", dtype, from);
    }

    /// Sets the size of the prepared clips.
    pub(super) fn prepared(&mut self, set: &mut Block) {
        let values: Vec<Value> = vec![PREPARED.to_vec().into()];
        set.set(
            "buckets",
            values,
            "as prepare_dataset.sh cuts clips, unless it was changed",
        );
        self.document.remark(
            "--data_root",
            "vtrain encodes the clips and captions there itself; .latent.pt, .embed.pt and .recon.mp4 are of the script: give the \
             folder of the clips before they were prepared, or remove the .recon.mp4",
        );
    }

    /// Sets AdamW, which the script takes whatever `--optimizer` says, and half a cosine.
    pub(super) fn mochi_optimizer(&mut self) {
        let from = self.default;
        let optimizer = self.flags.take("optimizer");
        let typed = optimizer.as_ref().map(|flag| flag.typed());
        self.set("optimizer", "name", "adamw", typed.as_deref().unwrap_or(from));
        if let Some(flag) = optimizer.filter(|flag| flag.values != ["adamw"]) {
            self.remark(&flag, "the script trains with AdamW whatever this says");
        }
        self.number::<f64>("lr", "optimizer", "lr", Some(2e-4));
        self.set("optimizer", "beta1", 0.9, from);
        self.set("optimizer", "beta2", 0.999, from);
        self.set("optimizer", "epsilon", 1e-8, from);
        self.number::<f64>("weight_decay", "optimizer", "weight_decay", Some(0.01));
        self.set("lr_scheduler", "name", "cosine", "the script's schedule");
        self.number::<u64>("lr_warmup_steps", "lr_scheduler", "warmup_steps", Some(200));
    }

    /// Sets what the script gives the pipeline for its videos.
    pub(super) fn mochi_videos(&mut self, prompts: &mut [Block]) {
        if let Some(flag) = self.flags.take("fps") {
            self.remark(
                &flag,
                "is of the videos on the Hub's page; those of validation have 30 frames a second, here too",
            );
        }
        let sides = ["height", "width"].map(|side| (side, self.flags.number::<u64>(side)));
        for prompt in prompts {
            prompt.set("num_frames", VIDEO_FRAMES, "the pipeline's default");
            for ((side, given), default) in sides.iter().zip([PREPARED[1], PREPARED[2]]) {
                let from = given.map(|_| format!("--{side}"));
                prompt.set(side, given.unwrap_or(default), from.as_deref().unwrap_or(self.default));
            }
            prompt.set("steps", VIDEO_STEPS, "in the script");
            prompt.set("guidance_scale", GUIDANCE, "in the script");
        }
    }
}
