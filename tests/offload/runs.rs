//! Whole runs and clips, of the program: no byte of what they write depends on where the weights wait.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device};
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::nn::residency::{Residency, ResidentShare};
use vtrain::sample::{self, Request, Start};

use crate::training::{FINAL, Run, model, shapes, stderr};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn run() -> Run {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), 2);
    let text = format!(
        "output_dir: out\ndevice: cpu\n\
         model: {{path: {}, dtype: f32, quantization: nf4, text_encoder_quantization: int8}}\n\
         datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\noptimizer: {{lr: 0.01}}\n\
         train: {{steps: 4}}\ncheckpoint: {{every: 2}}\n\
         validation: {{every: 4, prompts: [{{prompt: a, num_frames: 1, height: 32, width: 48, steps: 2}}]}}\n",
        model().display()
    );
    fs::write(run.file(), text).unwrap();
    run
}

/// The adapter, the losses, and the videos of the base model and of what was learnt.
fn written(run: &Run) -> (Vec<u8>, Vec<f64>, [Vec<u8>; 2]) {
    let video = |step: &str| fs::read(run.out().join(format!("validation/{step}/00-a.mp4"))).unwrap();
    let adapter = fs::read(run.out().join(FINAL)).unwrap();
    (adapter, run.column("loss"), ["step-000000", "step-000004"].map(video))
}

#[test]
fn a_run_with_streamed_blocks_learns_the_same_and_may_go_on_with_others() {
    let whole = run();
    let told = stderr(&whole.train(&[]));
    assert!(!told.contains("in files"), "{told}");
    let group = run();
    let none_stay = ["--set=model.offload=group", "--set=model.offload_resident=0"];
    let told = stderr(&group.train(&[&none_stay[..], &["--set=train.steps=2", "--set=validation.every=9"]].concat()));
    // The text encoder's, and the transformer's.
    assert_eq!(
        told.matches(": 0 blocks of 0 B in all stay in memory").count(),
        2,
        "{told}"
    );
    let told = stderr(&group.train(&["--verbose", "--set=model.offload=model"]));
    assert!(
        told.contains("the matrices of 2 blocks are in files") && told.contains(": 2 blocks of"),
        "{told}"
    );
    // One video is left to be made.
    assert_eq!(told.matches("blocks make room for another part").count(), 1, "{told}");
    fs::remove_dir_all(group.out().join("validation/step-000002")).unwrap();
    assert!(written(&group) == written(&whole));
}

#[test]
fn clips_of_every_family_have_the_same_latents() {
    for (checkpoint, num_frames) in [
        ("cogvideox/cogvideox-5b", 1),
        ("ltx_video/ltx-0.9.0", 1),
        ("wan/wan-2.1-t2v", 1),
        ("hunyuan_video/checkpoints/t2v", 1),
        ("mochi/mochi-1", 1),
        ("allegro/allegro-t2v", 4),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let family = models::open(&crate::training::whole(checkpoint, folder.path()), FamilyName::Auto).unwrap();
        let latents = |residency: Residency| {
            let request = Request {
                prompt: "a ball".into(),
                negative_prompt: String::new(),
                num_frames,
                height: 32,
                width: 64,
                steps: 2,
                guidance: vtrain::diffusion::guidance::Guidance::classifier_free(3.0),
                step_list: None,
                scheduler: None,
                dynamic_guidance: false,
                seed: 5,
                fps: 10.0,
                start: Start::Text,
                latents: None,
                cache: Default::default(),
            };
            let load = Load::new(DType::BF16, &Device::Cpu).with_residency(residency);
            let sampled = sample::sample(&*family, &load, request, &|_, _| Ok(())).unwrap();
            let numbers = sampled.latents.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            let numbers = numbers.to_vec1::<f32>().unwrap().into_iter();
            numbers.map(f32::to_bits).collect::<Vec<u32>>()
        };
        let whole = latents(Residency::Whole);
        for share in [0.0, 0.5] {
            let streamed = latents(Residency::Streamed(ResidentShare::Share(share)));
            assert!(streamed == whole, "{:?}, {share}", family.spec().family);
        }
    }
}

#[test]
fn a_sampled_clip_is_the_same_wherever_weights_wait() {
    let folder = tempfile::tempdir().unwrap();
    let sampled = |offload: &str| {
        let clip = folder.path().join(format!("{offload}.gif"));
        let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(
                "sample --device cpu --dtype f32 --prompt ball --num-frames 1 --height 32 --width 48 --steps 2"
                    .split(' '),
            )
            .args(["--quantization", "nf4", "--offload", offload, "--model"])
            .arg(fixture("wan/wan-2.1-t2v"))
            .arg("--output")
            .arg(&clip)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (
            stderr(&output).matches("blocks are in files").count(),
            fs::read(clip).unwrap(),
        )
    };
    let (streams, whole) = sampled("none");
    assert_eq!(streams, 0);
    // Under model nothing has to move: each part goes before the next one comes.
    for (offload, expected) in [("model", 0), ("group", 2)] {
        let (streams, clip) = sampled(offload);
        assert_eq!(streams, expected, "the text encoder and the transformer: {offload}");
        assert!(clip == whole, "{offload}");
    }
}
