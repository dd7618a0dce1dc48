//! The shared parts under a synthetic family unlike CogVideoX: flow matching, channels before frames, masked prompts,
//! positions in seconds, and an image that is the first frame or is concatenated to the noisy latents, with its own
//! tokens.

use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor, Var};
use tempfile::TempDir;
use vtrain::data::cache::{
    Cache, Encoded, EncodedTiles, EncoderId, Encoding, Key, Latents, RecordSchema, TextEncoderId, TextId,
};
use vtrain::data::loader::ClipSelection;
use vtrain::data::{Bucket, Order};
use vtrain::diffusion::guidance::{Guidance, GuidanceMode};
use vtrain::diffusion::objective::Objective;
use vtrain::diffusion::posterior::Posterior;
use vtrain::diffusion::schedulers::StepSpacing;
use vtrain::diffusion::timesteps::{Config, Shift};
use vtrain::models::denoiser::{Denoiser, Input, Scalar, Scalars, State, TextEmbeds};
use vtrain::models::family::{
    ConcatCondition, ImageCondition, ImageMode, ImageRecord, LatentSize, Layout, ModelSpec, Parts, TextEncoder,
    TextShape, VaeCost, VideoDecoder, VideoEncoder,
};
use vtrain::models::{Family, Footprint, ltx_video, registry};
use vtrain::nn::Load;
use vtrain::rng::Rng;
use vtrain::sample::{Request, Start, sample};
use vtrain::train::micro_batch::{MicroBatch, MicroBatches};
use vtrain::video::Fit;

const CHANNELS: usize = 2;
const TOKENS: usize = 3;
const WIDTH: usize = 2;
const SEED: u64 = 42;

struct Made {
    spec: ModelSpec,
    /// Holds the scheduler's config.
    _folder: TempDir,
    /// Inputs of the network.
    seen: Arc<Mutex<Vec<Input>>>,
}

impl Made {
    fn up(image_mode: ImageMode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let scheduler = folder.path().join("scheduler");
        std::fs::create_dir(&scheduler).unwrap();
        let config = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}"#;
        std::fs::write(scheduler.join("scheduler_config.json"), config).unwrap();
        let spec = ModelSpec {
            family: &ltx_video::SPEC,
            directory: folder.path().into(),
            footprint: Footprint {
                text: TextShape {
                    masked: true,
                    ..TextShape::new(TOKENS, WIDTH)
                },
                ..ltx_video::SPEC.footprint
            },
            text_encoder_parts: &[],
            video_encoder_parts: &[],
            tiling: None,
            image_mode,
            image_record: match image_mode {
                ImageMode::Always => ImageRecord::LatentsAndTokens([4, WIDTH]),
                _ => ImageRecord::None,
            },
            f32_latents: true,
            sees_pictures: false,
            guidance: GuidanceMode::ClassifierFree,
            step_spacing: StepSpacing::OfScheduler,
            empty_prompts_have_no_tokens: false,
        };
        Self {
            spec,
            _folder: folder,
            seen: Arc::default(),
        }
    }
}

/// Embeds a prompt as its length; of its tokens all but one are padding, or the last one, if it is longer than "red".
struct Prompts;

/// Tokens of a prompt that are no padding.
fn own_tokens(length: f32) -> usize {
    if length > 3.0 { 2 } else { 1 }
}

impl TextEncoder for Prompts {
    fn embed(&self, prompt: &str, _picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        Ok(TextEmbeds {
            hidden: Tensor::full(prompt.len() as f32, (1, TOKENS, WIDTH), &Device::Cpu)?,
            mask: Some(match own_tokens(prompt.len() as f32) {
                1 => Tensor::new(&[[1f32, 0.0, 0.0]], &Device::Cpu)?,
                _ => Tensor::new(&[[1f32, 1.0, 0.0]], &Device::Cpu)?,
            }),
            pooled: None,
        })
    }
}

/// An image's latents are the mean over each 8x8, and so is its only token.
struct Images;

impl VideoEncoder for Images {
    fn encode(&self, _clip: &Tensor) -> anyhow::Result<Posterior> {
        unimplemented!("records are made up as well")
    }

    fn encode_image(&self, image: &Tensor, num_frames: usize) -> anyhow::Result<Vec<Tensor>> {
        assert_eq!(num_frames, 5);
        let mean = image.narrow(1, 0, CHANNELS)?.avg_pool2d(8)?.unsqueeze(2)?; // (B, C, 1, h, w)
        let logvar = mean.zeros_like()?;
        Ok(vec![mean, logvar])
    }
}

/// Answers half of what it sees, plus what the text says.
struct Network(Arc<Mutex<Vec<Input>>>);

impl Denoiser for Network {
    fn embed(&self, _input: &Input) -> Result<State> {
        unimplemented!("it has no segments")
    }

    fn num_blocks(&self) -> usize {
        0
    }

    fn block(&self, _index: usize, _state: &State) -> Result<State> {
        unimplemented!("it has no segments")
    }

    fn head(&self, _state: &State) -> Result<Tensor> {
        unimplemented!("it has no segments")
    }

    fn forward(&self, input: &Input) -> Result<Tensor> {
        self.0.lock().unwrap().push(input.clone());
        let said = input.text.hidden.mean((1, 2))?.reshape(((), 1, 1, 1, 1))?;
        let half = Var::new(0.5f32, &Device::Cpu)?; // learns, as adapters do while a run validates
        let half = input.latents.narrow(1, 0, CHANNELS)?.broadcast_mul(&half)?;
        half.broadcast_add(&(said * 0.01)?)
    }
}

impl Family for Made {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, _load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        Ok(Box::new(Prompts))
    }

    fn vae_cost(&self, _half: Parts, _load: &Load, _clip: [usize; 3]) -> anyhow::Result<VaeCost> {
        unimplemented!("it has no files")
    }

    fn video_encoder(&self, _load: &Load) -> anyhow::Result<Box<dyn VideoEncoder>> {
        Ok(Box::new(Images))
    }

    fn video_decoder(&self, _load: &Load) -> anyhow::Result<Box<dyn VideoDecoder>> {
        unimplemented!("nothing is shown")
    }

    fn denoiser(&self, _load: &Load) -> anyhow::Result<Box<dyn Denoiser>> {
        Ok(Box::new(Network(self.seen.clone())))
    }

    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize> {
        let (frames, height, width) = ((num_frames - 1) / 2 + 1, height / 8, width / 8);
        Ok(LatentSize {
            num_frames,
            shape: [1, CHANNELS, frames, height, width],
            layout: Layout::ChannelsFirst,
            padding: 0,
            seq_len: Some((frames * height * width).min(4096)), // a larger one shifts all steps together
        })
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        Ok((sample * 2.0)?)
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        _canvas: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        Ok(match (self.spec.image_mode, encoded) {
            (ImageMode::Always, [condition, tokens]) => ImageCondition::Concat(ConcatCondition {
                latents: condition.clone(),
                tokens: Some(tokens.clone()),
                scalars: Scalars::default(),
            }),
            (_, [mean, logvar]) => {
                let (mean, logvar) = (mean.clone(), logvar.clone());
                ImageCondition::First(self.latents(&Posterior { mean, logvar }.draw(rng)?)?)
            }
            _ => anyhow::bail!("{} tensors of an image", encoded.len()),
        })
    }
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn randn(rng: &mut Rng, shape: &[usize]) -> Tensor {
    Tensor::from_vec(rng.randn(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    let off = (a - b).unwrap().abs().unwrap().max_all().unwrap();
    assert!(off.to_scalar::<f32>().unwrap() < 1e-5, "{off}");
}

/// Two clips of 5 frames and their captions, encoded.
fn encode(family: &Made, folder: &Path) -> Encoded {
    let cache = Cache::open(folder);
    let (dtype, fingerprint) = (DType::BF16, blake3::hash(b"coder"));
    let tokens = family.spec().text().tokens;
    let coder = TextEncoderId {
        fingerprint,
        dtype,
        quantization: None,
        tokens,
    };
    let text_form = RecordSchema::caption(family.spec().text().tensors(), dtype);
    let texts = ["", "red", "a blue ball"].map(|text| (TextId::from(text), Key::caption(text, None, &coder)));
    for (text, key) in &texts {
        let embedded = (family as &dyn Family).embed(&load(), &[(&text.text, None)]).unwrap();
        let tensors = embedded.tensors().into_iter().map(|tensor| tensor.squeeze(0).unwrap());
        cache.write(key, &text_form, &tensors.collect::<Vec<_>>(), &[]).unwrap();
    }
    let bucket = Bucket::from([5, 16, 8]);
    let canvas = family.latent_size(bucket.frames, bucket.height, bucket.width).unwrap();
    let form = RecordSchema::clip(canvas.encoded(), family.spec().image_record.tensors(&canvas));
    let coder = EncoderId {
        fingerprint,
        dtype,
        tiling: EncodedTiles::Some(false),
        image: family.spec().image_mode == ImageMode::Always,
    };
    let sample = |(n, caption): (u8, &str)| {
        let (fit, fps) = (Fit::squash((16, 8)), 12.0 * f64::from(n + 1));
        let cut = ClipSelection {
            frames: vec![0, 1, 2, 3, 4],
            fit,
            fps,
            orientation: None,
        };
        let key = Key::clip(blake3::hash(&[n]), &cut, &coder);
        let mut rng = Rng::new(n.into());
        let tensors: Vec<Tensor> = form.tensors.iter().map(|(_, shape)| randn(&mut rng, shape)).collect();
        form.check(&tensors).unwrap();
        cache.write(&key, &form, &tensors, &[]).unwrap();
        Encoding {
            video: format!("{n}.mp4").into(),
            caption: caption.into(),
            bucket,
            repeats: 1,
            fps,
            key,
            form: form.clone(),
        }
    };
    let samples = [(0, "red"), (1, "a blue ball")].map(sample).to_vec();
    Encoded {
        cache,
        samples,
        texts: texts.into_iter().collect(),
        sees_pictures: false,
        text_form,
    }
}

/// The micro-batch of both clips.
fn micro_batch(family: &Made, encoded: &Encoded, first_frame: f64, latents: Latents) -> MicroBatch {
    source(family, encoded, first_frame, latents).micro_batch(0).unwrap()
}

/// Micro-batches of both clips, with every caption.
fn source<'a>(family: &'a Made, encoded: &'a Encoded, first_frame: f64, latents: Latents) -> MicroBatches<'a> {
    let config = Config {
        shift: Shift::Fixed(1.0),
        ..Config::default()
    };
    let items = encoded.samples.iter().map(|sample| (sample.bucket, sample.repeats));
    MicroBatches {
        family,
        encoded,
        objective: Objective::new(&(family as &dyn Family).scheduler().unwrap(), &config).unwrap(),
        order: Order::new(items, 2, SEED),
        latents,
        caption_dropout: 0.0,
        first_frame_conditioning_p: first_frame,
        guidance_embedding: 1.0,
        seed: SEED,
        device: Device::Cpu,
    }
}

#[test]
fn micro_batches_draw_posterior_timesteps_noise_and_then_first_frames() {
    let (family, folder) = (Made::up(ImageMode::Either), TempDir::new().unwrap());
    let encoded = encode(&family, folder.path());
    let got = micro_batch(&family, &encoded, 0.5, Latents::Sample);
    let order = &got.batch.samples;

    let mut rng = Rng::new(SEED);
    let shape = [2, CHANNELS, 3, 2, 1];
    let (eps, u, noise) = (randn(&mut rng, &shape), rng.rand(2), randn(&mut rng, &shape));
    let given: Vec<bool> = rng.rand(2).into_iter().map(|u| u < 0.5).collect();
    assert!(given.contains(&true), "choose another seed");
    let clips = order.iter().map(|sample| encoded.clip(*sample).unwrap().posterior);
    let clips: Vec<Posterior> = clips.collect();
    for (place, clip) in clips.iter().enumerate() {
        let of = |tensor: &Tensor| tensor.narrow(0, place, 1).unwrap();
        let clean = (clip.sample(&of(&eps)).unwrap() * 2.0).unwrap();
        let sigma = f64::from(u[place]);
        let mixed = ((&clean * (1.0 - sigma)).unwrap() + (of(&noise) * sigma).unwrap()).unwrap();
        let rest = mixed.narrow(2, 1, 2).unwrap();
        let first = if given[place] { &clean } else { &mixed }.narrow(2, 0, 1).unwrap();
        close(&of(&got.input.latents), &Tensor::cat(&[first, rest], 2).unwrap());
        close(&of(&got.target), &(of(&noise) - clean).unwrap());
        let timestep = u[place] * 1000.0;
        let expected = [if given[place] { 0.0 } else { timestep }, timestep, timestep];
        assert_eq!(values(&of(&got.input.timestep)), expected);
        assert_eq!(got.timesteps.values[place], f64::from(timestep));
    }
    let weight = got.weight.unwrap();
    assert_eq!(weight.dims(), [2, 1, 3, 1, 1]);
    for (place, given) in given.into_iter().enumerate() {
        assert_eq!(values(&weight.narrow(0, place, 1).unwrap())[0] == 0.0, given);
    }
}

/// The draw is the last one here, behind timesteps and noise.
#[test]
fn a_share_of_captions_gives_way_to_the_empty_one() {
    let (family, folder) = (Made::up(ImageMode::Either), TempDir::new().unwrap());
    let encoded = encode(&family, folder.path());
    let lengths = ["red", "a blue ball"].map(|caption| caption.len() as f32);
    let mut dropped = Vec::new();
    for (share, seed) in [(0.0, 42), (0.5, 42), (0.5, 43), (0.5, 44), (1.0, 42)] {
        let mut source = source(&family, &encoded, 0.0, Latents::Mode);
        (source.caption_dropout, source.seed) = (share, seed);
        let got = source.micro_batch(0).unwrap();
        let mut rng = Rng::new(seed);
        rng.rand(2);
        randn(&mut rng, &[2, CHANNELS, 3, 2, 1]);
        let hidden = got.input.text.hidden.to_dtype(DType::F32).unwrap();
        let drops: Vec<bool> = rng.rand(2).into_iter().map(|u| f64::from(u) < share).collect();
        let said = |place: usize| match drops[place] {
            true => 0.0,
            false => lengths[got.batch.samples[place]],
        };
        let longest = own_tokens(said(0)).max(own_tokens(said(1)));
        assert_eq!(hidden.dims(), [2, longest, WIDTH], "padding that both have is cut off");
        for (place, drops) in drops.iter().copied().enumerate() {
            let length = said(place);
            let own = values(&hidden.narrow(0, place, 1).unwrap());
            assert_eq!(
                own,
                vec![length; longest * WIDTH],
                "share {share}, seed {seed}, place {place}"
            );
            if share == 0.5 {
                dropped.push(drops);
            }
        }
    }
    assert!(
        dropped.contains(&true) && dropped.contains(&false),
        "choose other seeds"
    );
}

#[test]
fn masks_and_frame_rates_of_the_clips_reach_the_network() {
    let (family, folder) = (Made::up(ImageMode::Either), TempDir::new().unwrap());
    let encoded = encode(&family, folder.path());
    let got = micro_batch(&family, &encoded, 0.0, Latents::Mode);
    let (text, order) = (&got.input.text, &got.batch.samples);
    assert_eq!(
        (text.hidden.dims(), text.hidden.dtype()),
        (&[2, 2, WIDTH][..], DType::BF16),
        "the third token is padding in both captions"
    );
    let mask = text.mask.as_ref().unwrap();
    assert_eq!((mask.dims(), mask.dtype()), (&[2, 2][..], DType::F32));
    let of_clip = [[1.0, 0.0], [1.0, 1.0]]; // "red", "a blue ball"
    let expected: Vec<f32> = order.iter().flat_map(|sample| of_clip[*sample]).collect();
    assert_eq!(values(mask), expected);
    let rates: Vec<f64> = order.iter().map(|sample| 12.0 * (*sample + 1) as f64).collect();
    assert_eq!(got.input.scalars.get(Scalar::FrameRate), Some(&rates[..]));
    // No first frame is given: one timestep per clip, and equal weights.
    assert_eq!(got.input.timestep.dims(), [2]);
    assert!(got.weight.is_none());
    assert!(got.input.image.is_none());
}

#[test]
fn what_a_family_keeps_of_images_stands_beside_the_noise() {
    let (family, folder) = (Made::up(ImageMode::Always), TempDir::new().unwrap());
    let encoded = encode(&family, folder.path());
    let got = micro_batch(&family, &encoded, 0.0, Latents::Mode);
    assert_eq!(got.input.latents.dims(), [2, 2 * CHANNELS, 3, 2, 1]);
    assert_eq!(got.input.image.as_ref().unwrap().dims(), [2, 4, WIDTH]);
    for (place, sample) in got.batch.samples.iter().enumerate() {
        let kept = encoded.clip(*sample).unwrap().image;
        let beside = got.input.latents.narrow(1, CHANNELS, CHANNELS).unwrap();
        close(&beside.narrow(0, place, 1).unwrap(), &kept[0]);
        close(
            &got.input.image.as_ref().unwrap().narrow(0, place, 1).unwrap(),
            &kept[1],
        );
    }
    assert_eq!(got.input.timestep.dims(), [2]);
}

/// Same as LTXImageToVideoPipeline: the posterior of the image, then the noise; the scheduler steps the other frames.
#[test]
fn sampling_holds_the_first_frame_and_steps_the_others() {
    let family = Made::up(ImageMode::Either);
    let image = (Tensor::arange(0f32, 3.0 * 16.0 * 8.0, &Device::Cpu).unwrap() / 384.0).unwrap();
    let image = image.reshape((1, 3, 16, 8)).unwrap();
    let request = Request {
        prompt: "a blue ball".into(),
        negative_prompt: "red".into(),
        num_frames: 5,
        height: 16,
        width: 8,
        steps: 3,
        guidance: Guidance::classifier_free(3.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: SEED,
        fps: 25.0,
        start: Start::Image(image.clone()),
        latents: None,
        cache: Default::default(),
    };
    let sampled = sample(&family, &load(), request, &|_, _| Ok(())).unwrap();
    let seen = family.seen.lock().unwrap().clone();
    let graphs = seen.iter().filter(|input| input.latents.track_op());
    assert_eq!(graphs.count(), 0, "no step leaves a graph for the next");
    assert!(!sampled.latents.track_op());

    let mut rng = Rng::new(SEED);
    let mean = image
        .narrow(1, 0, CHANNELS)
        .unwrap()
        .avg_pool2d(8)
        .unwrap()
        .unsqueeze(2)
        .unwrap();
    let clean = ((mean + randn(&mut rng, &[1, CHANNELS, 1, 2, 1])).unwrap() * 2.0).unwrap();
    let noise = randn(&mut rng, &[1, CHANNELS, 3, 2, 1]);
    let mut rest = noise.narrow(2, 1, 2).unwrap();
    let scheduler = (&family as &dyn Family).scheduler().unwrap();
    let run = scheduler.start(3, Some(6)).unwrap();
    let said = 0.01 * (3.0 + 3.0 * (11.0 - 3.0)); // lengths of the prompts
    for pair in run.sigmas().unwrap().windows(2) {
        let answer = ((&rest * 0.5).unwrap() + said).unwrap();
        rest = (rest + (answer * f64::from(pair[1] - pair[0])).unwrap()).unwrap();
    }
    close(&sampled.latents, &Tensor::cat(&[&clean, &rest], 2).unwrap());
    assert_eq!(sampled.rng.clone().randn(4), rng.randn(4), "decoders draw behind this");

    let seen = family.seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    for (input, timestep) in seen.iter().zip(run.timesteps()) {
        let frames = [0.0, *timestep as f32, *timestep as f32];
        assert_eq!(values(&input.timestep), frames.repeat(2));
        assert_eq!(input.timestep.dims(), [2, 3]);
        let mask = input.text.mask.as_ref().unwrap();
        assert_eq!(mask.dims(), [2, 2], "the third token is padding in both prompts");
        assert_eq!(values(mask), [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(input.scalars.get(Scalar::FrameRate), Some(&[25.0, 25.0][..]));
        close(&input.latents.narrow(2, 0, 1).unwrap().narrow(0, 1, 1).unwrap(), &clean);
    }
}

/// 2^20 numbers of latents are the most that both prompts are run in one batch for.
#[test]
fn guidance_is_the_same_in_one_batch_and_one_prompt_after_the_other() {
    for (width, passes) in [(4096, 1), (4104, 2)] {
        let family = Made::up(ImageMode::Either);
        let request = Request {
            prompt: "a blue ball".into(),
            negative_prompt: "red".into(),
            num_frames: 1,
            height: 8192,
            width,
            steps: 1,
            guidance: Guidance::classifier_free(3.0),
            step_list: None,
            scheduler: None,
            dynamic_guidance: false,
            seed: SEED,
            fps: 25.0,
            start: Start::Text,
            latents: None,
            cache: Default::default(),
        };
        let sampled = sample(&family, &load(), request, &|_, _| Ok(())).unwrap();
        let seen = family.seen.lock().unwrap();
        assert_eq!(seen.len(), passes, "{width}");
        let shapes = seen
            .iter()
            .map(|input| (input.text.hidden.dims().to_vec(), input.text.mask.is_some()));
        let expected = match passes {
            1 => vec![(vec![2, 2, WIDTH], true)],
            _ => vec![(vec![1, 2, WIDTH], false), (vec![1, 1, WIDTH], false)], // alone, neither has padding
        };
        assert_eq!(shapes.collect::<Vec<_>>(), expected, "{width}");
        let noise = randn(&mut Rng::new(SEED), &[1, CHANNELS, 1, 1024, width / 8]);
        let said = 0.01 * (3.0 + 3.0 * (11.0 - 3.0)); // lengths of the prompts
        let scheduler = (&family as &dyn Family).scheduler().unwrap();
        let sigmas = scheduler.start(1, Some(4096)).unwrap().sigmas().unwrap().to_vec();
        let answer = ((&noise * 0.5).unwrap() + said).unwrap();
        close(
            &sampled.latents,
            &(noise + (answer * f64::from(sigmas[1] - sigmas[0])).unwrap()).unwrap(),
        );
    }
}

#[test]
fn latents_of_another_order_are_refused_in_the_order_of_the_family() {
    let family = Made::up(ImageMode::Either);
    let request = Request {
        prompt: "red".into(),
        negative_prompt: String::new(),
        num_frames: 5,
        height: 16,
        width: 8,
        steps: 1,
        guidance: Guidance::classifier_free(1.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: SEED,
        fps: 25.0,
        start: Start::Text,
        latents: Some(Tensor::zeros((1, 3, CHANNELS, 2, 1), DType::F32, &Device::Cpu).unwrap()),
        cache: Default::default(),
    };
    let said = sample(&family, &load(), request, &|_, _| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(said.contains("batch, channels, frames, rows, columns"), "{said}");
}

#[test]
fn a_checkpoint_of_no_family_here_is_refused_by_its_class_with_those_that_are_known() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, class: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!(r#"{{"_class_name": "{class}"}}"#)).unwrap();
    };
    write("model_index.json", "FluxPipeline");
    write("transformer/config.json", "FluxTransformer2DModel");
    let known: Vec<&str> = registry::FAMILIES.iter().map(|room| room.title).collect();
    let refused = [
        registry::of_checkpoint(folder.path()).unwrap_err(),
        registry::of_transformer(&folder.path().join("transformer")).unwrap_err(),
    ];
    for (refused, class) in refused.iter().zip(["FluxPipeline", "FluxTransformer2DModel"]) {
        let said = format!("{refused:#}");
        assert!(said.contains(class) && said.contains(&known.join(", ")), "{said}");
    }
    for room in registry::FAMILIES {
        write("model_index.json", &format!("{}Pipeline", room.pipeline));
        write("transformer/config.json", room.transformer);
        assert_eq!(registry::of_checkpoint(folder.path()).unwrap().name, room.name);
        let transformer = registry::of_transformer(&folder.path().join("transformer")).unwrap();
        assert_eq!(transformer.name, room.name);
    }
}
