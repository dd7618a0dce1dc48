//! Makes a video from a model folder and, if wanted, an adapter: the steps of `vtrain sample`, written out.
//!
//! ```text
//! cargo run --release --example sample -- datasets/tiny-world "a red ball turns" ball.mp4 \
//!     --size 17,64,64 --steps 20 [--lora runs/quickstart/pytorch_lora_weights.safetensors]
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::ensure;
use candle_core::{DType, Device};
use clap::Parser;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::{self, FamilyName, registry};
use vtrain::nn::{Load, WeightFolder};
use vtrain::sample::{self, Request, Start};
use vtrain::video::Writer;

/// Make a video from a model folder and an adapter
#[derive(Debug, Parser)]
pub struct Args {
    /// A model in the folder layout of diffusers
    model: PathBuf,
    /// The description of the video
    prompt: String,
    /// The file to write: .mp4, .webm or .gif
    output: PathBuf,
    /// An adapter file
    #[arg(long)]
    lora: Option<PathBuf>,
    /// Frames, rows and columns
    #[arg(long, value_delimiter = ',', default_value = "49,480,720")]
    size: Vec<usize>,
    /// Denoising steps
    #[arg(long, default_value_t = 50)]
    steps: usize,
}

fn main() -> anyhow::Result<()> {
    run(Args::parse())
}

/// Makes the video and says where it is.
///
/// # Errors
/// Files that cannot be read or written, or a size that the model cannot make.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.size.len() == 3, "--size takes frames, rows and columns");
    let (num_frames, height, width) = (args.size[0], args.size[1], args.size[2]);
    let device = Device::Cpu;

    // The folder's model_index.json says which family it is.
    let checkpoint = WeightFolder::new(&args.model, None);
    let family = models::open(checkpoint, FamilyName::Auto)?;

    // Adapters of any format are read by the names of their layers, and applied while the transformer loads.
    let files = args
        .lora
        .iter()
        .map(|path| file::read(path, &registry::names())?.apply(path, 1.0))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let load = Load::new(DType::F32, &device).with_adapters(Arc::new(Adapters::new(files, &device)));

    let request = Request {
        prompt: args.prompt,
        negative_prompt: String::new(),
        num_frames,
        height,
        width,
        steps: args.steps,
        guidance: vtrain::diffusion::guidance::Guidance::classifier_free(6.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 42,
        fps: family.spec().family.frame_rate,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    };
    let writer = Writer::create(&args.output, (height, width), request.fps)?;
    let sampled = sample::sample(&*family, &load, request, &|done, of| {
        eprintln!("step {done} of {of}");
        Ok(())
    })?;
    let frames = sample::write(&*family, &load, &sampled, writer, |_| {})?;
    println!("{frames} frames in {}", args.output.display());
    Ok(())
}
