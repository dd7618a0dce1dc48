//! Adapters that vtrain trained, in diffusers' pipelines: loaded without a warning, and sampled under.
//! `scripts/fixtures/make_training.py` and `scripts/checks/check_lora.py` make and look at them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Device;
use vtrain::video::{Frames, write};

use super::{FINAL, Run, fixture, relative, root, shapes, stderr};
use crate::needs::python;

/// A checkpoint below `tests/fixtures`, and how it is trained and sampled.
struct Kind {
    checkpoint: &'static str,
    record: &'static str,
    /// Besides attention's usual layers.
    targets: &'static str,
    /// Further keys of `train`.
    train: &'static str,
    /// Pipeline of diffusers.
    pipeline: &'static str,
    /// The record of a pipeline, with the picture to start from.
    image: Option<&'static str>,
    size: [usize; 2],
    /// Besides its own, formats that diffusers reads.
    formats: &'static [&'static str],
}

const WAN: Kind = Kind {
    checkpoint: "wan/wan-2.1-t2v",
    record: "wan-t2v-exported",
    targets: ", ffn.net.0.proj, ffn.net.2", // diffusers wants all of them in files of kohya's kind
    train: "",
    pipeline: "WanPipeline",
    image: None,
    size: [32, 48],
    formats: &["comfyui", "kohya"],
};

const LTX: Kind = Kind {
    checkpoint: "ltx_video/ltx-0.9.0",
    targets: "",
    record: "ltx-t2v-exported",
    pipeline: "LTXPipeline",
    size: [64, 96],
    formats: &["comfyui"],
    ..WAN
};

const KINDS: [Kind; 5] = [
    Kind {
        checkpoint: "cogvideox/cogvideox-5b",
        record: "exported",
        targets: "",
        pipeline: "CogVideoXPipeline",
        formats: &[],
        ..WAN
    },
    WAN,
    Kind {
        checkpoint: "wan/wan-2.1-i2v",
        record: "wan-i2v-exported",
        targets: ", add_k_proj, add_v_proj, ffn.net.0.proj, ffn.net.2",
        pipeline: "WanImageToVideoPipeline",
        image: Some("wan/pipelines/i2v"),
        ..WAN
    },
    LTX,
    Kind {
        record: "ltx-i2v-exported",
        train: ", first_frame_conditioning_p: 0.5",
        pipeline: "LTXImageToVideoPipeline",
        image: Some("ltx_video/pipelines/i2v-ltx-0.9.0"),
        ..LTX
    },
];

impl Kind {
    fn model(&self) -> PathBuf {
        root().join("tests/fixtures").join(self.checkpoint)
    }

    /// `--image FILE` with the picture of the recorded pipelines, where the checkpoint starts from one.
    fn image(&self, folder: &Path) -> Vec<PathBuf> {
        let Some(record) = self.image else {
            return Vec::new();
        };
        let record = root().join(format!("tests/fixtures/{record}.safetensors"));
        let image = candle_core::safetensors::load(record, &Device::Cpu).unwrap()["image"].clone();
        let (height, width, _) = image.dims3().unwrap();
        let frames = Frames {
            data: image.flatten_all().unwrap().to_vec1().unwrap(),
            num_frames: 1,
            height,
            width,
        };
        let out = folder.join("image");
        write(&out.join(""), &frames, 1.0).unwrap();
        vec!["--image".into(), out.join("00000.png")]
    }

    /// The run's adapter in every other format that diffusers reads: first what the run itself wrote for ComfyUI.
    fn in_other_formats(&self, out: &Path, folder: &Path) -> Vec<PathBuf> {
        let convert = |format: &&str| {
            let path = folder.join(format!("{format}.safetensors"));
            lora(&[
                "convert".as_ref(),
                out.join(FINAL).as_os_str(),
                "--to".as_ref(),
                format.as_ref(),
                path.as_os_str(),
            ]);
            path
        };
        let own = out.join("comfyui_lora.safetensors");
        let own = self.formats.contains(&"comfyui").then_some(own);
        own.into_iter().chain(self.formats.iter().map(convert)).collect()
    }

    /// Returns the latents of `vtrain sample` under an adapter, comparable with diffusers' by
    /// `scripts/checks/check_lora.py`.
    fn sample_under(&self, adapter: &Path, folder: &Path) -> PathBuf {
        let latents = folder.join("latents.safetensors");
        let [height, width] = self.size;
        let common = "--dtype f32 --device cpu --num-frames 9 --steps 4 --seed 42";
        let common = format!("{common} --height {height} --width {width}");
        let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(["sample", "--prompt", "a red ball", "--negative-prompt", "blue"])
            .args(common.split(' '))
            .arg("--model")
            .arg(self.model())
            .arg("--lora")
            .arg(adapter)
            .args(self.image(folder))
            .arg("--output")
            .arg(folder.join("clip.mp4"))
            .arg("--output-latents")
            .arg(&latents)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        latents
    }
}

/// `vtrain lora ...`
fn lora(args: &[&OsStr]) {
    let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .arg("lora")
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn diffusers_loads_the_adapter_in_every_format_and_samples_what_vtrain_samples() {
    for kind in KINDS {
        let run = Run::new("");
        let data = run.folder.path().join("data");
        shapes(&data, 4);
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
             datasets: [{{path: {}, buckets: [[17, 64, 96]]}}]\n\
             lora: {{rank: 4, alpha: 12, init: null, target_modules: [to_q, to_k, to_v, to_out.0{}]}}\ntrain: {{steps: 40{}}}\n\
             optimizer: {{lr: 0.01}}\nlr_scheduler: {{name: constant}}\n",
            kind.model().display(),
            data.display(),
            kind.targets,
            kind.train
        );
        fs::write(run.file(), text).unwrap();
        run.train(&[]);
        let (adapter, folder) = (run.out().join(FINAL), run.folder.path());
        let latents = kind.sample_under(&adapter, folder);
        let merged = folder.join("merged");
        lora(&[
            "merge".as_ref(),
            "--model".as_ref(),
            kind.model().as_os_str(),
            "--lora".as_ref(),
            adapter.as_os_str(),
            merged.as_os_str(),
        ]);
        let same = kind.in_other_formats(&run.out(), folder);
        let output = Command::new(python())
            .arg(root().join("scripts/checks/check_lora.py"))
            .arg(kind.model())
            .arg(&adapter)
            .args([
                "--pipeline",
                kind.pipeline,
                "--size",
                &format!("{}x{}", kind.size[0], kind.size[1]),
            ])
            .args(kind.image(folder))
            .arg("--latents")
            .arg(&latents)
            .arg("--merged")
            .arg(merged)
            .args(same.iter().flat_map(|file| [OsStr::new("--same"), file.as_os_str()]))
            .output()
            .unwrap();
        println!("{}: {}", kind.checkpoint, String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}: {}", kind.checkpoint, stderr(&output));
    }
}

#[test]
fn under_an_exported_adapter_sampling_is_that_of_diffusers() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let read = |path: &Path| candle_core::safetensors::load(path, &Device::Cpu).unwrap()["latents"].clone();
        let adapter = fixture(&format!("{}.safetensors", kind.record));
        let ours = read(&kind.sample_under(&adapter, folder.path()));
        let error = relative(&ours, &read(&fixture(&format!("{}_latents.safetensors", kind.record))));
        println!("{}: latents differ by {error:.1e}", kind.record);
        assert!(error <= 1e-3, "{}: {error:e}", kind.record);
    }
}
