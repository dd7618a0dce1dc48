//! Encoding into the cache: tiny checkpoints, and clips that are copied so that they can be moved and damaged.

mod told; // what is said of captions and pictures; names of records
mod watched;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::commands::precompute::{open_model, precompute};
use vtrain::commands::{Exit, Failure};
use vtrain::config::RunConfig;
use vtrain::data::cache::{self, Cache, Encoded, EncodedTiles, EncoderId, Key};
use vtrain::data::loader::{ClipSelection, load};
use vtrain::data::{pixels, survey};
use vtrain::distributed::Single;
use vtrain::models::cogvideox::vae::Vae;
use vtrain::models::family::ImageCondition;
use vtrain::nn::Load;
use vtrain::nn::vae_memory::VaeTiling;
use vtrain::rng::Rng;

use watched::{Counts, Watched};

const SHAPES: &str = "datasets/shapes/videos";

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A folder with a checkpoint, clips and a run file.
struct Run {
    folder: TempDir,
}

impl Run {
    fn of(checkpoint: &str, clips: &[&str]) -> Run {
        let run = Run {
            folder: TempDir::new().unwrap(),
        };
        let checkpoint = shipped("tests/fixtures/cogvideox").join(checkpoint);
        copy_all(&checkpoint, &run.path("model"));
        fs::create_dir(run.path("data")).unwrap();
        clips.iter().for_each(|clip| run.add(clip, clip));
        let text = "output_dir: out\ndevice: cpu\nmodel: {path: ./model, dtype: f32}\n\
                    datasets: [{path: data, buckets: [[9, 32, 48]]}]\n";
        fs::write(run.path("run.yaml"), text).unwrap();
        run
    }

    fn new(clips: &[&str]) -> Run {
        Run::of("cogvideox-5b", clips)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a shipped clip there under a name, captioned with its own.
    fn add(&self, clip: &str, name: &str) {
        fs::copy(
            shipped(SHAPES).join(format!("{clip}.mp4")),
            self.path(&format!("data/{name}.mp4")),
        )
        .unwrap();
        fs::write(self.path(&format!("data/{name}.txt")), clip).unwrap();
    }

    fn config(&self, sets: &[&str]) -> RunConfig {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        RunConfig::load(&self.path("run.yaml"), &sets).unwrap()
    }

    fn encode(&self, sets: &[&str]) -> (Encoded, Rc<Counts>) {
        let (encoded, counts) = self.try_encode(sets, Counts::default());
        (encoded.unwrap(), counts)
    }

    fn try_encode(&self, sets: &[&str], counts: Counts) -> (Result<Encoded, Failure>, Rc<Counts>) {
        let (config, counts) = (self.config(sets), Rc::new(counts));
        let report = survey(&config.datasets, false, &|_, _| {});
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        let family = Watched {
            inner: open_model(&config).unwrap(),
            counts: counts.clone(),
        };
        let encoded = precompute(&config, &family, &report, &[], &counts.stop, &Single);
        assert_eq!(counts.alive.get(), 0, "what was loaded is freed");
        (encoded, counts)
    }

    /// Returns the captions and clips that a run like this still has to encode.
    fn misses(&self, sets: &[&str]) -> (usize, usize) {
        self.encode(sets).1.encoded()
    }

    /// The records of a kind.
    fn records(&self, kind: &str) -> Vec<PathBuf> {
        let folder = self.path("out/precomputed").join(kind);
        let mut records: Vec<PathBuf> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        records.sort();
        records
    }

    fn vtrain(&self, more: &[&str]) -> Output {
        let run = self.path("run.yaml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command.args(["precompute", "--config", run.to_str().unwrap()]);
        command.args(more).output().unwrap()
    }
}

fn f32_load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn change_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The first byte of the first tensor of a safetensors file.
fn first_number(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap();
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

const THREE: [&str; 3] = ["ball_rolls", "sun_rises", "snow_falls"];

#[test]
fn records_hold_what_the_vae_and_the_text_encoder_say() {
    let run = Run::new(&THREE);
    let (encoded, counts) = run.encode(&[]);
    // The empty caption is always among them; each encoder is loaded once.
    assert_eq!(counts.encoded(), (4, 3));
    assert_eq!((counts.conditioners.get(), counts.encoders.get()), (1, 1));
    let config = run.config(&[]);
    let report = survey(&config.datasets, false, &|_, _| {});
    let vae = Vae::load(&run.path("model/vae"), DType::F32, &Device::Cpu).unwrap();
    let family = open_model(&config).unwrap();
    for (i, sample) in report.samples.iter().enumerate() {
        let pixels = pixels::tensor(load(sample, &mut Rng::new(0)).unwrap()).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 9, 32, 48]);
        let (ours, theirs) = (encoded.clip(i).unwrap(), vae.encode(&pixels).unwrap());
        assert_eq!(ours.posterior.mean.dims(), [1, 4, 3, 4, 6]);
        assert_eq!(values(&ours.posterior.mean), values(&theirs.mean));
        assert_eq!(values(&ours.posterior.logvar), values(&theirs.logvar));
        assert!(ours.image.is_empty());
        let caption = &sample.found.entry.caption;
        let embeds = encoded.caption(i).unwrap();
        assert_eq!((embeds.len(), embeds[0].dims()), (1, &[226, 24][..]));
        assert_eq!(
            values(&embeds[0]),
            values(&family.embed(&f32_load(), &[(caption, None)]).unwrap().hidden)
        );
    }
    let empty = family.embed(&f32_load(), &[("", None)]).unwrap();
    assert_eq!(values(&encoded.empty_caption().unwrap()[0]), values(&empty.hidden));
    assert!(encoded.text(&"never said".into()).is_err());
}

#[test]
fn a_warm_cache_needs_no_encoders_not_even_on_disk() {
    let run = Run::new(&THREE);
    let (cold, _) = run.encode(&[]);
    let sample = cold.clip(0).unwrap().posterior.mode();
    let before = open_model(&run.config(&[])).unwrap().latents(&sample).unwrap();
    for part in ["vae", "text_encoder", "tokenizer"] {
        fs::remove_dir_all(run.path("model").join(part)).unwrap();
    }
    fs::create_dir(run.path("model/text_encoder")).unwrap(); // an empty folder is as good as none
    let (warm, counts) = run.encode(&[]);
    assert_eq!(counts.encoded(), (0, 0));
    assert_eq!((counts.conditioners.get(), counts.encoders.get()), (0, 0));
    assert_eq!(values(&warm.clip(0).unwrap().posterior.mean), values(&sample));
    // The VAE's facts that training needs are remembered.
    let after = open_model(&run.config(&[])).unwrap().latents(&sample).unwrap();
    assert_eq!(after.dims(), [1, 4, 3, 4, 6]);
    assert_eq!(values(&before), values(&after));
    // Something new cannot be encoded any more, and that is said.
    run.add("star_shrinks", "new");
    let (failed, _) = run.try_encode(&[], Counts::default());
    let failure = failed.unwrap_err();
    assert_eq!(failure.exit, Exit::Model);
    assert!(failure.to_string().contains("has no tokenizer/"), "{failure}");
}

#[test]
fn moved_folders_and_renamed_clips_are_known_again() {
    let run = Run::new(&THREE);
    run.encode(&[]);
    fs::rename(run.path("data"), run.path("elsewhere")).unwrap();
    fs::rename(run.path("elsewhere/sun_rises.mp4"), run.path("elsewhere/a.mp4")).unwrap();
    fs::rename(run.path("elsewhere/sun_rises.txt"), run.path("elsewhere/a.txt")).unwrap();
    assert_eq!(run.misses(&["datasets.0.path=elsewhere"]), (0, 0));
    fs::rename(run.path("model"), run.path("checkpoint")).unwrap();
    let moved = ["datasets.0.path=elsewhere", "model.path=./checkpoint"];
    assert_eq!(run.misses(&moved), (0, 0));
    // The cache itself may move, too, and other runs may share it.
    fs::rename(run.path("out/precomputed"), run.path("cache")).unwrap();
    let [a, b] = moved;
    assert_eq!(run.misses(&[a, b, "output_dir=other", "precompute.dir=cache"]), (0, 0));
}

#[test]
fn a_change_misses_what_it_concerns_and_nothing_else() {
    let run = Run::new(&THREE);
    run.encode(&[]);
    // One byte after the last box of an MP4: the same pictures in another file.
    let mut clip = fs::read(run.path("data/sun_rises.mp4")).unwrap();
    clip.extend([0, 0, 0, 9, b'f', b'r', b'e', b'e', 0]);
    fs::write(run.path("data/sun_rises.mp4"), &clip).unwrap();
    assert_eq!(run.misses(&[]), (0, 1));
    *clip.last_mut().unwrap() = 1;
    fs::write(run.path("data/sun_rises.mp4"), &clip).unwrap();
    assert_eq!(run.misses(&[]), (0, 1));
    fs::write(run.path("data/sun_rises.txt"), "Another caption").unwrap();
    assert_eq!(run.misses(&[]), (1, 0));
    assert_eq!(run.misses(&["model.dtype=bf16"]), (4, 3));
    assert_eq!(run.misses(&["datasets.0.buckets=[[5, 32, 48]]"]), (0, 3));
    assert_eq!(run.misses(&["datasets.0.buckets=[[9, 48, 48]]"]), (0, 3));
    assert_eq!(
        run.misses(&["datasets.0.buckets=[[9, 48, 48]]", "datasets.0.crop=fit"]),
        (0, 3)
    );
    assert_eq!(run.misses(&["datasets.0.frames=head"]), (0, 3));
    // No frame is larger than a tile.
    assert_eq!(run.misses(&["precompute.vae_tiling=true"]), (0, 0));
    assert_eq!(
        run.misses(&["precompute.latents=mode", "precompute.vae_slicing=false"]),
        (0, 0)
    );
    assert_eq!(run.misses(&["seed=7"]), (0, 0));
    let weights = run.path("model/vae/diffusion_pytorch_model.safetensors");
    change_byte(&weights, first_number(&weights));
    assert_eq!(run.misses(&[]), (0, 3));
    let weights = run.path("model/text_encoder/model-00001-of-00002.safetensors");
    change_byte(&weights, first_number(&weights));
    assert_eq!(run.misses(&[]), (4, 0));
    assert_eq!(run.misses(&[]), (0, 0));
}

/// Tiles are of half the size that the checkpoint was made for, here 48 x 80, where that lines up with the latents.
#[test]
fn the_encoder_tiles_and_slices_as_the_run_file_says() {
    let run = Run::new(&THREE[..1]);
    let config = run.path("model/vae/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let larger = [
        ("\"sample_height\": 32", "\"sample_height\": 96"),
        ("\"sample_width\": 48", "\"sample_width\": 160"),
    ];
    let text = larger.iter().fold(text, |text, (from, to)| text.replace(from, to));
    assert!(text.contains("160"), "{text}");
    fs::write(&config, text).unwrap();
    let bucket = "datasets.0.buckets=[[9, 64, 96]]";
    let means = [(true, true), (true, false), (false, true)].map(|(tiling, slicing)| {
        let sets = [
            format!("precompute.vae_tiling={tiling}"),
            format!("precompute.vae_slicing={slicing}"),
            format!("precompute.dir=cache-{tiling}-{slicing}"),
        ];
        let (encoded, counts) = run.encode(&[bucket, &sets[0], &sets[1], &sets[2]]);
        assert_eq!(counts.asked.get(), Some((VaeTiling::Always(tiling), slicing)));
        values(&encoded.clip(0).unwrap().posterior.mean)
    });
    let report = survey(&run.config(&[bucket]).datasets, false, &|_, _| {});
    let pixels = pixels::tensor(load(&report.samples[0], &mut Rng::new(0)).unwrap()).unwrap();
    let mut vae = Vae::load(&run.path("model/vae"), DType::F32, &Device::Cpu).unwrap();
    let whole = values(&vae.encode(&pixels).unwrap().mean);
    vae.memory.tiling = VaeTiling::Always(true);
    let in_tiles = values(&vae.encode(&pixels).unwrap().mean);
    assert!(whole != in_tiles, "tiles leave their mark");
    assert!(means == [in_tiles.clone(), in_tiles, whole]);
}

/// Tiles of the checkpoint are 48 x 40 then, those of the fixtures do not line up.
fn with_tiles(run: &Run) {
    let config = run.path("model/vae/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("\"sample_height\": 32", "\"sample_height\": 96");
    fs::write(&config, text.replace("\"sample_width\": 48", "\"sample_width\": 80")).unwrap();
}

#[test]
fn records_say_what_was_done_and_serve_all_choices_that_do_the_same() {
    let run = Run::new(&THREE[..1]);
    with_tiles(&run);
    let misses = |tiling: &str| {
        run.misses(&[
            "datasets.0.buckets=[[1, 32, 48]]",
            &format!("precompute.vae_tiling={tiling}"),
        ])
        .1
    };
    assert_eq!(misses("true"), 1);
    assert_eq!([misses("true"), misses("auto"), misses("false")], [0, 1, 0]);
    // Without a VAE, whatever there is serves.
    fs::remove_dir_all(run.path("out/precomputed/clips")).unwrap();
    assert_eq!(misses("true"), 1);
    fs::rename(run.path("model/vae"), run.path("vae")).unwrap();
    assert_eq!(misses("auto"), 0);
    fs::rename(run.path("vae"), run.path("model/vae")).unwrap();
    assert_eq!(misses("auto"), 1);
}

/// Before, `true` was written for frames that are no larger than a tile, too, and by families without tiles.
#[test]
fn records_of_whole_clips_that_say_true_serve_where_nothing_was_cut() {
    let run = Run::new(&THREE[..1]);
    let sets = ["datasets.0.buckets=[[1, 32, 48]]"];
    run.encode(&sets);
    let config = run.config(&sets);
    let report = survey(&config.datasets, false, &|_, _| {});
    let cache = Cache::open(&run.path("out/precomputed"));
    let family = open_model(&config).unwrap();
    let content = cache.hash(&report.samples[0].found.entry.video).unwrap();
    let cut = ClipSelection::draw(&report.samples[0], &mut cache::rng(config.seed, content)).unwrap();
    let key = |tiling| {
        let coder = EncoderId {
            fingerprint: cache.fingerprint(&family.spec().directory, &["vae"]).unwrap(),
            dtype: DType::F32,
            tiling: EncodedTiles::Some(tiling),
            image: false,
        };
        cache.path(&Key::clip(content, &cut, &coder))
    };
    fs::rename(key(false), key(true)).unwrap();
    for tiling in ["auto", "false", "true"] {
        assert_eq!(
            run.misses(&[sets[0], &format!("precompute.vae_tiling={tiling}")]).1,
            0,
            "{tiling}"
        );
    }
    // The same name means tiles where they would have been cut.
    let cutting = Run::new(&THREE[..1]);
    with_tiles(&cutting);
    assert_eq!(cutting.misses(&[sets[0], "precompute.vae_tiling=true"]).1, 1);
    assert_eq!(cutting.misses(&[sets[0], "precompute.vae_tiling=false"]).1, 1);
}

#[test]
fn posteriors_are_kept_in_f32_and_captions_as_the_model_takes_them() {
    let run = Run::new(&THREE[..1]);
    let (encoded, _) = run.encode(&["model.dtype=bf16"]);
    assert_eq!(encoded.clip(0).unwrap().posterior.mean.dtype(), DType::F32);
    assert_eq!(encoded.caption(0).unwrap()[0].dtype(), DType::BF16);
}

#[test]
fn damaged_records_are_found_and_made_anew() {
    let run = Run::new(&THREE);
    let (cold, _) = run.encode(&[]);
    let before: Vec<_> = (0..3)
        .map(|i| values(&cold.clip(i).unwrap().posterior.logvar))
        .collect();
    let (clips, captions) = (run.records("clips"), run.records("captions"));
    let bytes = fs::read(&clips[0]).unwrap();
    fs::write(&clips[0], &bytes[..bytes.len() - 3]).unwrap();
    change_byte(&clips[1], bytes.len() - 1);
    fs::write(&captions[0], "").unwrap();
    change_byte(&captions[1], 3); // the header says that it is very long
    change_byte(&captions[2], first_number(&captions[2]));
    assert_eq!(run.misses(&[]), (3, 2));
    let (warm, counts) = run.encode(&[]);
    assert_eq!(counts.encoded(), (0, 0));
    for (i, before) in before.iter().enumerate() {
        assert_eq!(values(&warm.clip(i).unwrap().posterior.logvar), *before);
    }
    // Damage while a run goes on: said when it is read, and mended by the next.
    change_byte(&warm.clip_path(&warm.samples[2]), bytes.len() - 1);
    let error = warm.clip(2).unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains("start again"), "{error}");
    assert_eq!(run.misses(&[]), (0, 1));
    // The file hashes only save work.
    fs::write(run.path("out/precomputed/known.json"), "{").unwrap();
    assert_eq!(run.misses(&[]), (0, 0));
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let run = Run::new(&["ball_rolls", "sun_rises", "snow_falls", "boat_sails", "clock_runs"]);
    let stop = Counts {
        stop_after: Some(2),
        ..Counts::default()
    };
    let (stopped, counts) = run.try_encode(&[], stop);
    assert_eq!(stopped.unwrap_err().exit, Exit::Interrupted);
    assert_eq!(counts.encoded(), (6, 2));
    assert_eq!(run.misses(&[]), (0, 3));
    assert_eq!(run.misses(&[]), (0, 0));
}

#[test]
fn equal_clips_and_captions_are_encoded_once() {
    let run = Run::new(&THREE);
    run.add("ball_rolls", "the_same_again");
    let twice = "datasets=[{path: data, buckets: [[9, 32, 48]], repeats: 5}, {path: data, buckets: [[5, 32, 48]]}]";
    let (encoded, counts) = run.encode(&[twice]);
    assert_eq!(counts.encoded(), (4, 6));
    assert_eq!(encoded.samples.len(), 8);
    let frames = |i| encoded.clip(i).unwrap().posterior.mean.dims()[2];
    assert_eq!((frames(0), frames(7)), (3, 2));
    assert_eq!((encoded.samples[0].repeats, encoded.samples[7].repeats), (5, 1));
    // In the survey's order.
    let names: Vec<_> = encoded
        .samples
        .iter()
        .map(|s| s.video.file_stem().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names[..4], ["ball_rolls", "snow_falls", "sun_rises", "the_same_again"]);
    assert_eq!(encoded.samples[0].key, encoded.samples[3].key);
}

#[test]
fn prompts_of_validation_are_encoded_as_well() {
    let run = Run::new(&THREE[..1]);
    let prompts = "validation.prompts=[{prompt: A blue ball, negative_prompt: blurry}, {prompt: ball_rolls}]";
    let (encoded, counts) = run.encode(&[prompts]);
    assert_eq!(counts.texts.get(), 4); // the caption, the empty one, and two more
    assert_eq!(encoded.text(&"blurry".into()).unwrap()[0].dims(), [226, 24]);
}

#[test]
fn random_cuts_depend_on_the_seed_and_the_content_alone() {
    let run = Run::new(&THREE);
    let random = [
        "datasets.0.frames=random",
        "datasets.0.crop=random",
        "datasets.0.buckets=[[9, 32, 32]]",
    ];
    assert_eq!(run.misses(&random), (4, 3));
    fs::rename(run.path("data/sun_rises.mp4"), run.path("data/a.mp4")).unwrap();
    fs::rename(run.path("data/sun_rises.txt"), run.path("data/a.txt")).unwrap();
    assert_eq!(run.misses(&random), (0, 0));
    let [a, b, c] = random;
    assert_eq!(run.misses(&[a, b, c, "seed=43"]), (0, 3));
}

#[test]
fn image_to_video_keeps_the_first_frame_as_well() {
    let run = Run::of("cogvideox-5b-i2v", &THREE[..1]);
    let (encoded, counts) = run.encode(&[]);
    assert_eq!(counts.clips.get(), 2);
    let config = run.config(&[]);
    let report = survey(&config.datasets, false, &|_, _| {});
    let pixels = pixels::tensor(load(&report.samples[0], &mut Rng::new(0)).unwrap()).unwrap();
    let vae = Vae::load(&run.path("model/vae"), DType::F32, &Device::Cpu).unwrap();
    let theirs = vae.encode(&pixels.narrow(2, 0, 1).unwrap()).unwrap();
    let image = encoded.clip(0).unwrap().image;
    assert_eq!((image.len(), image[0].dims()), (2, &[1, 4, 1, 4, 6][..]));
    assert_eq!(values(&image[0]), values(&theirs.mean));
    assert_eq!(values(&image[1]), values(&theirs.logvar));
    let family = open_model(&config).unwrap();
    let canvas = family.latent_size(9, 32, 48).unwrap();
    let ImageCondition::Concat(condition) = family.condition_on(&image, &canvas, None).unwrap() else {
        panic!("CogVideoX is told of the image beside the noisy latents");
    };
    assert_eq!(condition.latents.dims(), [1, 3, 4, 4, 6]);
    assert_eq!(run.misses(&[]), (0, 0));
}

/// `latent[:, :, :1].repeat(1, 1, latent.shape[2] % patch_size_t, 1, 1)` in front, as train_cogvideox_lora.py.
#[test]
fn patches_of_two_frames_are_filled_up_with_the_first() {
    let run = Run::of("cogvideox-1.5-5b", &[]);
    let family = open_model(&run.config(&[])).unwrap();
    let sample = Tensor::randn(0f32, 1.0, (2, 4, 3, 4, 6), &Device::Cpu).unwrap();
    let latents = family.latents(&sample).unwrap(); // (B, C, F, h, w)
    assert_eq!(latents.dims(), [2, 4, 4, 4, 6]);
    let scaled = (&sample * 0.7).unwrap();
    assert_eq!(values(&latents.narrow(2, 1, 3).unwrap()), values(&scaled));
    assert_eq!(
        values(&latents.narrow(2, 0, 1).unwrap()),
        values(&scaled.narrow(2, 0, 1).unwrap())
    );
    let layout = family.latent_size(9, 32, 48).unwrap().layout;
    let arranged = layout.swap(&latents).unwrap(); // (B, F, C, h, w)
    assert_eq!(values(&arranged), values(&latents.transpose(1, 2).unwrap()));
    let even = family.latents(&sample.narrow(2, 0, 2).unwrap()).unwrap();
    assert_eq!(even.dims(), [2, 4, 2, 4, 6]);
}

#[test]
fn a_bucket_that_the_model_cannot_take_is_said_before_anything_is_loaded() {
    let run = Run::new(&THREE[..1]);
    let sets = ["datasets.0.buckets=[[9, 30, 48], [5, 32, 50]]"];
    let (failed, counts) = run.try_encode(&sets, Counts::default());
    let failure = failed.unwrap_err();
    assert_eq!((failure.exit, counts.encoded()), (Exit::Usage, (0, 0)));
    assert!(failure.to_string().contains("[9, 30, 48]: 30x48"), "{failure}");
    assert!(failure.to_string().contains("the nearest is 32x48"), "{failure}");
}

#[test]
fn a_clip_that_breaks_after_the_survey_stops_the_run_or_is_left_out() {
    let run = Run::new(&THREE);
    for (skip, sets) in [(false, &[][..]), (true, &["datasets.0.on_invalid_clip=skip"])] {
        let config = run.config(sets);
        run.add("sun_rises", "sun_rises");
        let report = survey(&config.datasets, false, &|_, _| {});
        fs::write(run.path("data/sun_rises.mp4"), "no clip any more").unwrap();
        let family = open_model(&config).unwrap();
        let encoded = precompute(&config, &*family, &report, &[], &Counts::default().stop, &Single);
        match (skip, encoded) {
            (true, Ok(encoded)) => {
                let names: Vec<_> = encoded.samples.iter().map(|sample| sample.caption.as_str()).collect();
                assert_eq!(names, ["ball_rolls", "snow_falls"]);
            }
            (false, Err(failure)) => assert_eq!(failure.exit, Exit::Data, "{failure}"),
            (_, Ok(_)) => panic!("the clip is damaged"),
            (_, Err(failure)) => panic!("{failure}"),
        }
    }
}

#[test]
fn files_that_have_not_changed_are_not_read_again() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    let write = |text: &str, age: u64| {
        fs::write(&path, text).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000 - age);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    let hash = |cache: &Cache| cache.hash(&path).unwrap();
    let day = 500_000_000;
    write("one", day);
    let cache = Cache::open(folder.path());
    let one = hash(&cache);
    assert_eq!(one, blake3::hash(b"one"));
    cache.save();
    // Of the same size and time: only the memory can say "one".
    write("two", day);
    let again = Cache::open(folder.path());
    assert_eq!(hash(&again), one);
    write("two", day - 1);
    assert_eq!(hash(&again), blake3::hash(b"two"));
    // A file that was changed just before it was hashed might change again unseen: it is always read.
    fs::write(&path, "six").unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(hash(&again), blake3::hash(b"six"));
    fs::write(&path, "ten").unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_eq!(hash(&again), blake3::hash(b"ten"));
}

#[test]
fn the_command_says_what_it_does_and_lists_files_as_json() {
    let run = Run::new(&THREE);
    let said = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();
    let cold = run.vtrain(&["--json"]);
    assert_eq!(cold.status.code(), Some(0), "{}", said(&cold));
    for line in [
        "0 of 3 clips and 0 of 4 captions",
        "will take",
        "for 3 clips",
        "clips: 3 encoded in",
    ] {
        assert!(said(&cold).contains(line), "{line}\n{}", said(&cold));
    }
    for part in ["vae", "text_encoder", "tokenizer"] {
        fs::remove_dir_all(run.path("model").join(part)).unwrap();
    }
    let warm = run.vtrain(&["--json"]);
    let line = "all 3 clips and 4 captions are in the cache";
    assert!(
        said(&warm).contains(line) && said(&warm).contains("not loaded"),
        "{}",
        said(&warm)
    );
    assert!(!said(&warm).contains("loading"), "{}", said(&warm));
    assert_eq!(cold.stdout, warm.stdout);
    let json: serde_json::Value = serde_json::from_slice(&warm.stdout).unwrap();
    let samples = json["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    let tensors =
        |path: &serde_json::Value| candle_core::safetensors::load(path.as_str().unwrap(), &Device::Cpu).unwrap();
    for sample in samples {
        assert_eq!(tensors(&sample["latents"])["mean"].dims(), [4, 3, 4, 6]);
        assert_eq!(tensors(&sample["embeds"])["embeds"].dims(), [226, 24]);
        assert!(Path::new(sample["video"].as_str().unwrap()).exists());
        assert_eq!(sample["bucket"], serde_json::json!([9, 32, 48]));
    }
    assert_eq!(tensors(&json["empty_caption"])["embeds"].dims(), [226, 24]);
}

/// Each clip is named at `-v` and above, not without.
#[test]
fn each_clip_that_is_encoded_is_named_where_more_is_to_be_said() {
    for (level, named) in [(None, 0), (Some("-v"), 2), (Some("-vv"), 2), (Some("-q"), 0)] {
        let run = Run::new(&THREE[..2]);
        let output = run.vtrain(level.as_slice());
        assert_eq!(output.status.code(), Some(0));
        let said = String::from_utf8(output.stderr).unwrap();
        let found = THREE[..2]
            .iter()
            .filter(|clip| said.contains(&format!("encoded {clip}.mp4")));
        assert_eq!(found.count(), named, "{level:?}: {said}");
    }
}

#[test]
fn processes_that_fill_one_cache_at_once_do_not_hinder_each_other() {
    let run = Run::new(&["ball_rolls", "sun_rises", "snow_falls", "boat_sails"]);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..3).map(|_| scope.spawn(|| run.vtrain(&["--json"]))).collect();
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for output in &outputs {
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    assert_eq!((run.records("clips").len(), run.records("captions").len()), (4, 5));
    assert_eq!(run.misses(&[]), (0, 0));
}
