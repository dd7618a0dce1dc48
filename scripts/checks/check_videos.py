"""Samples with vtrain and with diffusers under one adapter and compares the videos; fails above 2/255 of difference.

    python scripts/checks/check_videos.py VTRAIN MODEL_DIR LORA_FILE [--prompt TEXT]

VTRAIN is the program. Both sample in f32, from the noise that torch draws for the seed. The mean is over all
values of all frames.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

SEEDS = (0, 1)


def ours(args, seed):
    with tempfile.TemporaryDirectory() as folder:
        command = [args.vtrain, "sample", "-qq", "--dtype", "f32", "--device", "cpu", "--model", args.model]
        command += ["--lora", args.lora, "--prompt", args.prompt, "--num-frames", "9", "--height", "64", "--width", "96"]
        command += ["--steps", "20", "--guidance-scale", "3", "--seed", str(seed), "--output", f"{folder}/"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        files = sorted(Path(folder).iterdir())
        return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files])


def theirs(pipe, prompt, seed):
    frames = pipe(
        prompt=prompt,
        negative_prompt="",
        num_frames=9,
        height=64,
        width=96,
        num_inference_steps=20,
        guidance_scale=3.0,
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).frames[0]
    return 255 * frames


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vtrain")
    parser.add_argument("model")
    parser.add_argument("lora")
    parser.add_argument("--prompt", default="DISSOLVE_FX a red square turns")
    args = parser.parse_args()
    pipe = diffusers.CogVideoXPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    file = Path(args.lora).resolve()
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    pipe.set_progress_bar_config(disable=True)
    for seed in SEEDS:
        difference = np.abs(ours(args, seed) - theirs(pipe, args.prompt, seed)).mean()
        print(f"seed {seed}: mean absolute difference {difference:.3f}/255")
        if difference > 2:
            sys.exit("the videos differ")


if __name__ == "__main__":
    main()
