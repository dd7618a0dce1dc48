//! GGUF files that `vtrain quantize` writes, in place of the transformer that they were made of.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::models::relative;
use super::written::{quantize, stderr, vtrain};
use crate::storage::fixture;

/// Latents of a clip.
fn sampled(checkpoint: &Path, transformer: Option<&Path>, folder: &Path) -> Tensor {
    let (clip, latents) = (folder.join("clip.gif"), folder.join("latents.safetensors"));
    let mut args = vec!["--model", checkpoint.to_str().unwrap()];
    args.extend([
        "--output",
        clip.to_str().unwrap(),
        "--output-latents",
        latents.to_str().unwrap(),
    ]);
    args.extend(
        transformer
            .iter()
            .flat_map(|file| ["--transformer", file.to_str().unwrap()]),
    );
    let fixed = "sample --device cpu --dtype f32 --prompt ball --num-frames 9 --height 32 --width 64 --steps 2";
    let output = vtrain(&fixed.split(' ').chain(args).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    candle_core::safetensors::load(latents, &Device::Cpu).unwrap()["latents"].clone()
}

#[test]
fn a_clip_sampled_from_a_written_gguf_file_is_the_checkpoints_but_for_what_its_form_rounds() {
    for checkpoint in ["wan/wan-2.1-t2v", "ltx_video/ltx-0.9.0"] {
        let (folder, checkpoint) = (tempfile::tempdir().unwrap(), fixture("..").join(checkpoint));
        let file = folder.path().join("written.gguf");
        quantize("q8_0", &checkpoint, &file);
        let expected = sampled(&checkpoint, None, folder.path());
        let off = relative(&sampled(&checkpoint, Some(&file), folder.path()), &expected);
        println!("{}: {off:.1e}", checkpoint.display());
        assert!(off > 0.0 && off < 2e-2, "{}: {off:e}", checkpoint.display());
    }
}
