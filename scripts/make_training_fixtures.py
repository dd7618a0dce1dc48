#!/usr/bin/env python3
"""Writes tests/fixtures/training: runs of the PyTorch loop that vtrain's training is held against.

    pip install -r scripts/requirements.txt
    cargo build --release && python scripts/make_training_fixtures.py target/release/vtrain

For each case it writes the run file that the test reads, has vtrain precompute the clips of datasets/shapes, and runs
`scripts/train_reference.py` on them.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "training"
REFERENCE = [sys.executable, str(ROOT / "scripts" / "train_reference.py")]

# Two buckets, batches that come out short at the end of an epoch, adapters from a file, a rate that moves.
BASE = """\
output_dir: out
seed: 7
device: cpu
model: {{path: {model}, dtype: f32}}
datasets: [{{path: {data}, buckets: {buckets}}}]
precompute: {{latents: {latents}}}
lora: {{rank: 4, alpha: 8, init: {init}}}
train: {{steps: {steps}, batch_size: {batch}, gradient_accumulation_steps: {accumulation}, max_grad_norm: {norm}}}
optimizer: {{lr: {lr}, weight_decay: 0.01}}
lr_scheduler: {{name: {schedule}, warmup_steps: 3}}
tracking: {{tensorboard: false}}
"""
BOTH = "[[17, 64, 96], [33, 64, 96]]"
SHORT = dict(steps=10, batch=2, buckets=BOTH, lr="1e-3", schedule="cosine", norm=1.0, latents="mode", accumulation=1, clips=12)
CASES = {
    "plain": SHORT,
    "accumulated": SHORT | dict(accumulation=2, norm=0.01),
    "sampled": SHORT | dict(latents="sample", schedule="linear"),
    "long": SHORT | dict(steps=400, batch=1, buckets="[[17, 64, 96]]", lr="2e-3", schedule="constant_with_warmup", clips=8),
}


def shapes(folder, count):
    """The first `count` clips of datasets/shapes."""
    source = ROOT / "datasets" / "shapes"
    folder.mkdir()
    for name in ["prompt.txt", "videos.txt"]:
        lines = (source / name).read_text().splitlines()[:count]
        (folder / name).write_text("\n".join(lines) + "\n")
        if name == "videos.txt":
            for line in lines:
                (folder / line).parent.mkdir(exist_ok=True)
                shutil.copy(source / line, folder / line)


def main():
    vtrain = Path(sys.argv[1]).resolve()
    OUT.mkdir(exist_ok=True)
    names = {"model": "MODEL", "data": "DATA", "init": "INIT"}  # the test puts its own paths in
    init = OUT / "init.safetensors"
    for case, settings in CASES.items():
        settings = dict(settings)
        clips = settings.pop("clips")
        (OUT / f"{case}.yaml").write_text(BASE.format(**names, **settings))
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            shapes(folder / "data", clips)
            run = folder / "run.yaml"
            paths = dict(model=ROOT / "tests/fixtures/cogvideox/cogvideox-5b", data=folder / "data", init=init)
            run.write_text(BASE.format(**paths, **settings))
            if not init.exists():
                subprocess.run([*REFERENCE, "--config", run, "--out", init, "--init-only"], check=True)
            listing = subprocess.run([vtrain, "precompute", "--config", run, "--json"], check=True, stdout=subprocess.PIPE)
            (folder / "listing.json").write_bytes(listing.stdout)
            arguments = ["--config", run, "--listing", folder / "listing.json", "--out", OUT / f"{case}.safetensors"]
            arguments += ["--losses-only"] if case == "long" else []
            subprocess.run([*REFERENCE, *arguments], check=True)
            print(case, json.loads(listing.stdout)["samples"][0]["bucket"], "clips:", clips)


if __name__ == "__main__":
    main()
