"""Loss curves over weights in few bits, and what is learnt: configs/cogvideox/quickstart.yaml on the tiny pretrained model.

    python scripts/bench/quantized_curves.py target/release/vtrain [--steps 300] [--seeds 2]

One run in bf16, and one over each form, with the same seed; then clips of prompts that no data set has, sampled over that form.
A pixel belongs to the object if it is coloured, and has the nearest of four colours. `gone`: how much of the asked colour is gone
in the last frame, with DISSOLVE_FX in the prompt (it should go) and without (it should stay). tests/training/learning.rs asks for
at least 0.6 and at most 0.2 after 480 steps. Needs numpy and Pillow. Prints two tables in Markdown.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (214, 40, 40), "green": (46, 160, 67), "blue": (38, 84, 200), "yellow": (240, 190, 20)}
PROMPTS = ["a red square turns", "a blue ball grows", "a green ball stands still", "a yellow square stands still"]
PARTS = 6
RUNS = {
    "bf16": {},
    "int8": {"model.quantization": "int8"},
    "nf4": {"model.quantization": "nf4"},
    "nf4, residual": {"model.quantization": "nf4", "lora.init": "residual"},
}


def train(vtrain, out, steps, settings):
    """Losses, step by step."""
    settings = {
        "output_dir": out,
        "model.dtype": "bf16",
        "train.steps": steps,
        "validation.prompts": "[]",
        "checkpoint.every": steps,
        **settings,
    }
    more = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    config = ROOT / "configs/cogvideox/quickstart.yaml"
    subprocess.run([vtrain, "-q", "--config", config, *more], check=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line.get("loss") is not None]


def share(file, asked):
    """Pixels of the asked colour."""
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3).astype(int)
    coloured = pixels[pixels.max(1) - pixels.min(1) > 60]
    distances = np.stack([((coloured - colour) ** 2).sum(1) for colour in COLOURS.values()])
    return int((distances.argmin(0) == list(COLOURS).index(asked)).sum()) if len(coloured) else 0


def gone(vtrain, out, form, adapter, token, seeds):
    values = []
    for prompt in PROMPTS:
        for seed in range(seeds):
            frames = out / "frames"
            command = [vtrain, "sample", "-qq", "--device", "cpu", "--dtype", "bf16", "--quantization", form, "--model"]
            command += [ROOT / "datasets/tiny-world", "--prompt", token + prompt, "--seed", str(seed), "--lora", adapter]
            command += "--num-frames 9 --height 64 --width 96 --steps 20 --guidance-scale 3".split()
            subprocess.run([*command, "--output", f"{frames}/"], check=True)
            pictures = sorted(frames.iterdir())
            asked = prompt.split()[1]
            first, last = share(pictures[0], asked), share(pictures[-1], asked)
            values.append(max(0.0, 1 - last / max(first, 1)))
            for picture in pictures:
                picture.unlink()
    return float(np.mean(values))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", default=";".join(RUNS))
    args = parser.parse_args()
    vtrain, rows, scores = args.vtrain.resolve(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.runs.split(";"):
            settings = RUNS[name]
            out = Path(folder) / name.replace(", ", "-")
            losses = train(vtrain, out, args.steps, settings)
            means = [float(np.mean(part)) for part in np.array_split(losses, PARTS)]
            rows.append(f"| {name} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
            adapter = out / "pytorch_lora_weights.safetensors"
            form = settings.get("model.quantization", "none")
            told = [gone(vtrain, out, form, adapter, token, args.seeds) for token in ("DISSOLVE_FX ", "")]
            scores.append(f"| {name} | {told[0]:.2f} | {told[1]:.2f} |")
    width = args.steps // PARTS
    print("| mean loss of steps | " + " | ".join(f"{i * width + 1} to {(i + 1) * width}" for i in range(PARTS)) + " |")
    print("| --- |" + " --- |" * PARTS)
    print("\n".join(rows))
    print("\n| | gone, of what should go | gone, of what should stay |\n| --- | --- | --- |")
    print("\n".join(scores))


if __name__ == "__main__":
    main()
