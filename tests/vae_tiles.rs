//! Autoencoders of LTX-Video and Wan that cut frames into tiles, or clips into pieces, against diffusers.
//!
//! The Python that made the numbers: `scripts/fixtures/make_vae_tiles.py`. CogVideoX's tiles are in `cogvideox_vae`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};
use vtrain::config::RunConfig;
use vtrain::models::autoencoder::collected;
use vtrain::models::ltx_video::vae::Vae as LtxVae;
use vtrain::models::tiling::{End, Tiling};
use vtrain::models::vae::Parts;
use vtrain::models::wan::vae::Vae as WanVae;
use vtrain::models::{self, Family, FamilyName};
use vtrain::nn::Load;
use vtrain::nn::vae_memory::{VaeMemory, VaeTiling};
use vtrain::plan::Subject;
use vtrain::plan::timeline::Place;
use vtrain::rng::Rng;

use super::cogvideox_vae::{assert_near, relative_error};
use super::counting::{on_one_thread, peak};
use super::training::{Run, model, shapes};

const BAR: f64 = 1e-4;
/// Strides of what is recorded of decoded frames.
const KEPT: [usize; 3] = [3, 11, 11];
const LTX: [&str; 3] = ["ltx-0.9.0", "ltx-0.9.1", "ltx-0.9.5"];
const LONG: [usize; 3] = [89, 32, 64];
/// Share by which a cost may differ from what is held.
const OFF: f64 = 0.1;
const TILES: VaeTiling = VaeTiling::Always(true);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn record(name: &str) -> HashMap<String, Tensor> {
    let path = fixtures().join("vae_tiles").join(name);
    candle_core::safetensors::load(path.with_extension("safetensors"), &Device::Cpu).unwrap()
}

fn wan() -> WanVae {
    WanVae::load(
        fixtures().join("wan/wan-2.1-t2v/vae").as_path(),
        DType::F32,
        &Device::Cpu,
    )
    .unwrap()
}

fn ltx(version: &str) -> LtxVae {
    let folder = fixtures().join("ltx_video").join(version).join("vae");
    LtxVae::load(folder.as_path(), DType::F32, &Device::Cpu).unwrap()
}

fn drawn(seed: u64, shape: [usize; 5]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(numbers, &shape[..], &Device::Cpu).unwrap()
}

fn clip([frames, height, width]: [usize; 3]) -> Tensor {
    drawn(1, [1, 3, frames, height, width]).clamp(-1f32, 1f32).unwrap()
}

fn latents([frames, height, width]: [usize; 3], [time, space]: [usize; 2], channels: usize) -> Tensor {
    drawn(2, [1, channels, (frames - 1) / time + 1, height / space, width / space])
}

fn ltx_latents(vae: &LtxVae, size: [usize; 3]) -> Tensor {
    latents(size, [8, 32], vae.config.latent_channels)
}

/// Returns the recorded part of decoded frames.
fn kept(frames: &Tensor) -> Tensor {
    (0..3).fold(frames.contiguous().unwrap(), |x, axis| {
        let places: Vec<u32> = (0..x.dim(axis + 2).unwrap() as u32).step_by(KEPT[axis]).collect();
        let places = Tensor::new(places, &Device::Cpu).unwrap();
        x.index_select(&places, axis + 2).unwrap()
    })
}

fn name(size: &[usize]) -> String {
    size.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

fn ltx_decoded(vae: &LtxVae, latents: &Tensor) -> Tensor {
    let timestep = Tensor::new(&[0.05f32], &Device::Cpu).unwrap();
    let timestep = vae.config.timestep_conditioning.then_some(&timestep);
    vae.decode(latents, timestep, &mut Rng::new(42)).unwrap()
}

#[track_caller]
fn assert_ltx(vae: &LtxVae, record: &HashMap<String, Tensor>, key: &str, size: [usize; 3]) {
    let posterior = vae.encode(&clip(size)).unwrap();
    assert_near(&posterior.mean, &record[&format!("{key}.mean")], BAR);
    assert_near(&posterior.logvar, &record[&format!("{key}.logvar")], BAR);
    let decoded = ltx_decoded(vae, &ltx_latents(vae, size));
    assert_eq!(decoded.dims(), [&[1, 3][..], &size].concat());
    assert_near(&kept(&decoded), &record[&format!("{key}.decode")], BAR);
}

/// One version, which draws noise and knows timesteps, tries all sizes, the others one.
fn tries(version: &str) -> usize {
    if version == "ltx-0.9.1" { 3 } else { 1 }
}

#[test]
fn wan_lays_and_blends_tiles_as_diffusers_does() {
    let (mut vae, record) = (wan(), record("wan"));
    assert_eq!(vae.tiling, Some(Tiling::square(256, 192)), "as by enable_tiling()");
    vae.tiling = Some(Tiling::square(32, 24));
    for size in [[5, 56, 56], [9, 40, 72], [5, 8, 80]] {
        let (key, latents) = (name(&size), latents(size, [4, 8], vae.config.z_dim));
        vae.memory.tiling = VaeTiling::Always(false);
        let whole = vae.decode(&latents).unwrap();
        vae.memory.tiling = TILES;
        let posterior = vae.encode(&clip(size)).unwrap();
        assert_near(&posterior.mean, &record[&format!("{key}.mean")], BAR);
        assert_near(&posterior.logvar, &record[&format!("{key}.logvar")], BAR);
        let decoded = vae.decode(&latents).unwrap();
        assert_near(&kept(&decoded), &record[&format!("{key}.decode")], BAR);
        assert!(relative_error(&decoded, &whole) > 100.0 * BAR, "tiles leave their mark");
    }
}

#[test]
fn ltx_video_lays_and_blends_tiles_as_diffusers_does() {
    let record = record("ltx_video");
    for version in LTX {
        let mut vae = ltx(version);
        assert_eq!(vae.tiling, Some(Tiling::square(512, 448)), "as by enable_tiling()");
        vae.tiling = Some(Tiling::square(96, 64));
        vae.memory.tiling = TILES;
        for size in [[9, 128, 192], [9, 160, 96], [9, 32, 224]]
            .into_iter()
            .take(tries(version))
        {
            assert_ltx(&vae, &record, &format!("{version}.{}", name(&size)), size);
        }
    }
}

#[test]
fn tiles_along_the_frames_are_those_of_diffusers() {
    let record = record("ltx_video");
    for version in LTX {
        let mut vae = ltx(version);
        vae.memory.tiling = TILES;
        for ([long, stride], size) in [
            ([16, 8], [33, 32, 64]),
            ([24, 16], [49, 32, 64]),
            ([16, 8], [25, 128, 32]),
        ]
        .into_iter()
        .take(tries(version))
        {
            vae.tiling = Some(Tiling::square(96, 64).with_frames(long, stride, End::Last));
            let key = format!("{version}.{}.{}", name(&[long, stride]), name(&size));
            assert_ltx(&vae, &record, &key, size);
        }
    }
}

/// Eleven latent frames and one: more than three pieces, and fewer than all convolutions together see ahead.
#[test]
fn ltx_video_codes_long_clips_piece_by_piece_as_diffusers_does_whole() {
    let record = record("ltx_video");
    for version in LTX {
        let vae = ltx(version);
        let timestep = vae
            .config
            .timestep_conditioning
            .then(|| Tensor::new(&[0.05f32], &Device::Cpu).unwrap());
        let mut pieces = Vec::new();
        let mut rng = Rng::new(42);
        vae.decode_frames(&ltx_latents(&vae, LONG), timestep, &mut rng, |frames| {
            pieces.push(frames);
            candle_core::Result::Ok(())
        })
        .unwrap();
        let most = pieces.iter().map(|piece| piece.dim(2).unwrap()).max().unwrap();
        assert!(
            most <= 4 && pieces.len() > 20,
            "{} pieces of up to {most} frames",
            pieces.len()
        );
        assert_near(
            &kept(&Tensor::cat(&pieces, 2).unwrap()),
            &record[&format!("{version}.long.decode")],
            1e-5,
        );
    }
}

#[test]
fn a_causal_decoder_codes_piece_by_piece_too() {
    let record = record("ltx_video");
    for version in LTX {
        let source = fixtures().join("ltx_video").join(version).join("vae");
        let folder = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(source.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["decoder_causal"] = true.into();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let weights = "diffusion_pytorch_model.safetensors";
        std::fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
        let vae = LtxVae::load(folder.path(), DType::F32, &Device::Cpu).unwrap();
        let decoded = ltx_decoded(&vae, &ltx_latents(&vae, LONG));
        assert_near(&kept(&decoded), &record[&format!("{version}.causal.decode")], 1e-5);
    }
}

/// Returns the most bytes held while latents of so many frames are decoded and each piece is dropped.
fn decoding_peak(frames: usize) -> [u64; 2] {
    let wan = wan();
    let latents = |channels| drawn(3, [1, channels, frames, 1, 2]);
    let wan_latents = latents(wan.config.z_dim);
    let (done, of_wan) = peak(|| wan.decode_batches(&wan_latents, |_| candle_core::Result::Ok(())));
    done.unwrap();
    let ltx = ltx("ltx-0.9.1");
    let ltx_latents = latents(ltx.config.latent_channels);
    let timestep = Tensor::new(&[0.05f32], &Device::Cpu).unwrap();
    let mut rng = Rng::new(42);
    let decode = || ltx.decode_frames(&ltx_latents, Some(timestep), &mut rng, |_| candle_core::Result::Ok(()));
    let (done, of_ltx) = peak(decode);
    done.unwrap();
    [of_wan, of_ltx]
}

#[test]
fn memory_for_decoding_does_not_grow_with_the_frames() {
    let (short, long) = on_one_thread(|| (decoding_peak(16), decoding_peak(28)));
    for (short, long) in short.into_iter().zip(long) {
        assert!(long <= short + short / 100, "{short} bytes became {long}");
    }
}

#[test]
fn memory_for_encoding_does_not_grow_with_the_frames_but_by_latents() {
    let of = |frames| {
        let (vae, clip) = (ltx("ltx-0.9.5"), clip([frames, 32, 32]));
        let (done, bytes) = peak(|| vae.encode(&clip));
        done.unwrap();
        bytes
    };
    let (short, long) = on_one_thread(|| (of(17), of(41)));
    assert!(long <= short + short / 20, "{short} bytes became {long}");
}

#[test]
fn auto_is_whole_where_that_fits_and_tiles_where_it_does_not() {
    let mut vae = wan();
    vae.tiling = Some(Tiling::square(32, 24));
    let (clip, latents) = (clip([1, 40, 72]), latents([1, 40, 72], [4, 8], vae.config.z_dim));
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut coded = |tiling, free| {
        vae.memory = VaeMemory {
            tiling,
            slicing: false,
            free,
        };
        let latents = vae.decode(&latents).unwrap();
        [values(&vae.encode(&clip).unwrap().mean), values(&latents)]
    };
    let (whole, tiled) = (coded(VaeTiling::Always(false), None), coded(TILES, None));
    assert!(whole[0] != tiled[0] && whole[1] != tiled[1]);
    assert!(coded(VaeTiling::AUTO, Some(1 << 40)) == whole);
    assert!(coded(VaeTiling::AUTO, None) == whole, "what is unknown is no reason");
    assert!(coded(VaeTiling::AUTO, Some(1 << 10)) == tiled);
    assert!(coded(VaeTiling::Always(false), Some(1 << 10)) == whole);
}

#[test]
fn auto_decides_by_the_cost_that_can_be_asked_for() {
    let mut vae = wan();
    vae.tiling = Some(Tiling::square(32, 24));
    vae.memory.tiling = VaeTiling::AUTO;
    let size = [5, 40, 72];
    let latents = latents(size, [4, 8], vae.config.z_dim);
    let whole = vae.decode(&latents).unwrap();
    let cost = vae.cost(Parts::Decoder, size).unwrap();
    let needed = cost.weights + cost.whole;
    assert!(cost.weights > 0 && cost.tiled.unwrap() < cost.whole && !cost.cuts);
    for (free, cuts) in [(needed + needed / 6, false), (needed + needed / 9, true)] {
        vae.memory.free = Some(free);
        let cost = vae.cost(Parts::Decoder, size).unwrap();
        assert_eq!(cost.cuts, cuts, "{free} bytes for {needed}");
        assert_eq!(
            cost.peak() - cost.weights,
            if cuts { cost.tiled.unwrap() } else { cost.whole }
        );
        let decoded = vae.decode(&latents).unwrap();
        assert_eq!(relative_error(&decoded, &whole) > 0.0, cuts);
    }
    // A picture is cut where the clip that it begins is.
    let picture = vae.cost(Parts::Encoder, [1, 40, 72]).unwrap();
    assert_eq!(picture.whole, vae.cost(Parts::Encoder, [81, 40, 72]).unwrap().whole);
    assert_eq!(
        vae.cost(Parts::Encoder, [5, 24, 32]).unwrap().tiled,
        None,
        "no larger than a tile"
    );
}

/// Collects what the program logs.
struct Collecting;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Collecting {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        LINES.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn auto_says_once_why_frames_are_cut_with_what_they_take_and_what_is_free() {
    log::set_logger(&Collecting).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut vae = wan();
    vae.tiling = Some(Tiling::square(32, 24));
    let latents = latents([1, 40, 72], [4, 8], vae.config.z_dim);
    let mut decode = |tiling, free| {
        vae.memory = VaeMemory {
            tiling,
            slicing: false,
            free,
        };
        vae.decode(&latents).unwrap();
        let said = "clips of 1x40x72 are decoded in tiles of ";
        let lines = LINES.lock().unwrap();
        let lines: Vec<String> = lines.iter().filter(|line| line.starts_with(said)).cloned().collect();
        let cost = vae.cost(Parts::Decoder, [1, 40, 72]).unwrap();
        (lines, cost.weights + cost.whole)
    };
    assert!(decode(TILES, Some(1 << 10)).0.is_empty(), "it was asked for");
    assert!(decode(VaeTiling::AUTO, Some(1 << 40)).0.is_empty(), "it fits");
    let (lines, whole) = decode(VaeTiling::AUTO, Some(2 << 10));
    let whole = indicatif::BinaryBytes(whole);
    let said = format!(
        "clips of 1x40x72 are decoded in tiles of {}: whole they take {whole}, and 2.00 KiB are free",
        Tiling::square(32, 24).name()
    );
    assert_eq!(lines, std::slice::from_ref(&said));
    assert_eq!(decode(VaeTiling::AUTO, Some(1 << 10)).0, [said], "once");
}

/// Frames of the clip fit into a tile, those of the video do not.
#[test]
fn validation_videos_are_decoded_in_tiles_where_the_run_file_says_so() {
    let videos = ["false", "true", "auto"].map(|tiling| {
        let run = Run::new("");
        shapes(&run.folder.path().join("data"), 1);
        let copy = run.folder.path().join("model");
        crate::fuzz::copy(&model(), &copy);
        let config = copy.join("vae/config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let text = text.replace("\"sample_height\": 32", "\"sample_height\": 96");
        std::fs::write(&config, text.replace("\"sample_width\": 48", "\"sample_width\": 80")).unwrap();
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: ./model, dtype: f32}}\nlora: {{rank: 2}}\ntrain: {{steps: 1}}\n\
             datasets: [{{path: data, buckets: [[1, 32, 32]]}}]\nprecompute: {{vae_tiling: {tiling}}}\n\
             validation: {{every: 9, prompts: [{{prompt: a, num_frames: 1, height: 64, width: 96, steps: 1}}]}}\n"
        );
        std::fs::write(run.file(), text).unwrap();
        run.train(&[]);
        std::fs::read(run.out().join("validation/step-000000/00-a.mp4")).unwrap()
    });
    assert!(videos[0] != videos[1], "tiles leave their mark");
    assert!(videos[0] == videos[2], "auto: it fits");
}

/// One checkpoint of each family, and a size that all of them take.
const CHECKPOINTS: [&str; 3] = ["cogvideox/cogvideox-2b", "ltx_video/ltx-0.9.5", "wan/wan-2.1-t2v"];

fn open(name: &str) -> Box<dyn Family> {
    models::open(fixtures().join(name).as_path(), FamilyName::Auto).unwrap()
}

/// The estimate counts activations; norms' tables and pixels in another order come on top.
#[test]
fn the_cost_read_from_headers_is_within_a_tenth_of_the_bytes_that_are_held() {
    on_one_thread(|| CHECKPOINTS.into_iter().for_each(assert_estimated));
}

fn assert_estimated(name: &str) {
    // What lags comes in pieces of the usual length only after some frames, and a tiny encoder's first convolution takes few
    // blocks of pixels at a time.
    let [clip, video] = match name.starts_with("ltx") {
        true => [[17, 96, 160], [97, 64, 96]],
        false => [[17, 32, 64]; 2],
    };
    for (half, size) in [(Parts::Encoder, clip), (Parts::Decoder, video)] {
        let load = Load::new(DType::F32, &Device::Cpu);
        let family = open(name);
        let estimate = family.vae_cost(half, &load, size).unwrap().whole;
        let bytes = held(&*family, &load, half, size);
        let ratio = estimate as f64 / bytes as f64;
        println!("{name} {half:?}: {estimate} estimated, {bytes} held, {ratio:.3}");
        assert!(
            (ratio - 1.0).abs() < OFF,
            "{name} {half:?}: {estimate} estimated, {bytes} held"
        );
    }
}

/// Returns the most bytes that are held while a half that is loaded codes, and drops what it emits.
fn held(family: &dyn Family, load: &Load, half: Parts, size: [usize; 3]) -> u64 {
    let canvas = family.latent_size(size[0], size[1], size[2]).unwrap();
    match half {
        Parts::Decoder => {
            let decoder = family.video_decoder(load).unwrap();
            let (latents, mut rng) = (drawn(4, canvas.shape), Rng::new(0));
            let (done, bytes) = peak(|| decoder.decode(&latents, &canvas, &mut rng, &mut |_| Ok(())));
            done.unwrap();
            bytes
        }
        _ => {
            let (encoder, clip) = (family.video_encoder(load).unwrap(), clip(size));
            let (done, bytes) = peak(|| encoder.encode(&clip));
            done.unwrap();
            bytes
        }
    }
}

#[test]
fn a_plan_of_clip_encoding_counts_the_weights_and_the_clip_besides() {
    on_one_thread(|| {
        let (family, clip) = (open(CHECKPOINTS[2]), clip([17, 32, 64]));
        let load = Load::new(DType::F32, &Device::Cpu);
        let (done, bytes) = peak(|| family.video_encoder(&load).unwrap().encode(&clip).map(drop));
        done.unwrap();
        let held = bytes + (clip.elem_count() * clip.dtype().size_in_bytes()) as u64;
        let text = format!(
            "model: {{path: {}, dtype: f32}}\ndatasets: [{{path: c, buckets: [[17, 32, 64]]}}]\n",
            family.spec().directory.source().display()
        );
        let config = RunConfig::parse(&text, Path::new("run.yaml"), Path::new("/"), &[]).unwrap();
        let machine = (Place::Host { threads: 1 }, None);
        let subject = Subject::new(&config, family.spec().directory.clone(), Some(&*family), None, machine);
        let planned = subject.plan(&config).unwrap().encode.unwrap().peak_bytes;
        let ratio = planned as f64 / held as f64;
        assert!((ratio - 1.0).abs() < OFF, "{planned} planned, {held} held");
    });
}

#[test]
fn the_cost_of_tiles_counts_the_clip_that_they_are_put_together_to() {
    on_one_thread(|| {
        let mut vae = wan();
        vae.tiling = Some(Tiling::square(32, 24));
        vae.memory.tiling = TILES;
        for (half, size) in [(Parts::Decoder, [9, 56, 80]), (Parts::Encoder, [9, 56, 80])] {
            let estimate = vae.cost(half, size).unwrap().tiled.unwrap();
            let (clip, latents) = (clip(size), latents(size, [4, 8], vae.config.z_dim));
            let (done, bytes) = match half {
                Parts::Decoder => peak(|| vae.decode_batches(&latents, |_| candle_core::Result::Ok(()))),
                _ => peak(|| vae.encode(&clip).map(drop)),
            };
            done.unwrap();
            let ratio = estimate as f64 / bytes as f64;
            println!("{half:?}: {estimate} estimated, {bytes} held, {ratio:.3}");
            assert!(
                (ratio - 1.0).abs() < OFF,
                "{half:?}: {estimate} estimated, {bytes} held"
            );
        }
    });
}

#[test]
fn every_family_tiles_both_ways_where_its_spec_says_so() {
    for name in CHECKPOINTS {
        let family = open(name);
        let tiling = family.spec().tiling;
        assert_eq!(
            tiling.is_some(),
            !name.starts_with("cogvideox"),
            "the tiny CogVideoX's tiles do not line up"
        );
        if let Some(tiling) = tiling {
            let height = tiling.height.size;
            assert!(tiling.splits([1, height + 1, 8]) && !tiling.splits([1, height, 8]));
        }
    }
}

#[test]
fn the_program_decodes_in_tiles_where_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let sample = |tiling: &[&str]| {
        let frames = folder.path().join("frames/");
        let _ = std::fs::remove_dir_all(&frames);
        let done = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(
                "sample --device cpu --dtype f32 --prompt ball --num-frames 9 --steps 2 --guidance-scale 1".split(' '),
            )
            .args("--height 32 --width 544".split(' '))
            .arg("--model")
            .arg(fixtures().join("ltx_video/ltx-0.9.0"))
            .args(["--output", &format!("{}/", frames.display())])
            .args(tiling)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let pictures = std::fs::read_dir(&frames).map_or(Vec::new(), |entries| {
            let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
        });
        (done.status.code(), said, pictures)
    };
    let (whole, tiled) = (sample(&["--vae-tiling", "false"]), sample(&["--vae-tiling", "true"]));
    assert_eq!(
        (whole.0, whole.2.len(), tiled.0),
        (Some(0), 9, Some(0)),
        "{} {}",
        whole.1,
        tiled.1
    );
    assert!(whole.2 != tiled.2);
    assert!(sample(&[]).2 == whole.2, "auto: it fits");
    let (code, said, _) = sample(&["--vae-tiling", "maybe"]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("--vae-tiling") && said.contains("none of auto, true, false"),
        "{said}"
    );
}

#[test]
fn pieces_of_a_clip_come_together_in_order() {
    let vae = wan();
    let latents = latents([9, 16, 24], [4, 8], vae.config.z_dim);
    let together = collected(|emit| vae.decode_batches(&latents, emit)).unwrap();
    assert_near(&together, &vae.decode(&latents).unwrap(), 0.0);
}
