#!/usr/bin/env python3
"""Writes tests/fixtures/training: runs of the PyTorch loop that vtrain's training is held against.

    pip install -r scripts/requirements.txt
    cargo build --release && python scripts/make_training_fixtures.py target/release/vtrain [CASE ...]

For each case it writes the run file that the test reads, has vtrain precompute the clips of datasets/shapes, and runs
`scripts/train_reference.py` on them. `exported.safetensors` and `FAMILY-exported.safetensors` are adapters that vtrain
trained and exported, and `..._latents.safetensors` what diffusers samples under them, loaded without a warning
(`scripts/check_lora.py`). With names of cases only these are made, those of adapters (`wan-t2v-exported`) among them.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fixtures.ltx_video import pipelines as ltx
from fixtures.wan import pipelines as wan
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
OUT = FIXTURES / "training"
REFERENCE = [sys.executable, str(ROOT / "scripts" / "train_reference.py")]

# Two buckets, batches that come out short at the end of an epoch, adapters from a file, a rate that moves.
BASE = """\
output_dir: out
seed: 7
device: cpu
model: {{path: {fixtures}/{model}, dtype: f32}}
datasets: [{{path: {data}, buckets: {buckets}}}]
precompute: {{latents: {latents}}}
lora: {{rank: 4, alpha: 8, init: {init}{more}}}
train: {{steps: {steps}, batch_size: {batch}, gradient_accumulation_steps: {accumulation}, max_grad_norm: {norm}{first}}}
optimizer: {{lr: {lr}, weight_decay: 0.01}}
lr_scheduler: {{name: {schedule}, warmup_steps: 3}}
tracking: {{tensorboard: false}}
{diffusion}"""
BOTH = "[[17, 64, 96], [33, 64, 96]]"
SHORT = dict(
    model="cogvideox/cogvideox-5b", init="init", more="", first="", diffusion="", steps=10, batch=2, buckets=BOTH, lr="1e-3",
    schedule="cosine", norm=1.0, latents="mode", accumulation=1, clips=12,
)  # fmt: skip
WAN = SHORT | dict(model="wan/wan-2.1-t2v", init="wan-t2v-init")
# What image to video attends to the image with learns too.
WAN_IMAGE = WAN | dict(
    model="wan/wan-2.1-i2v", init="wan-i2v-init",
    more=", target_modules: [to_q, to_k, to_v, to_out.0, add_k_proj, add_v_proj]",
)  # fmt: skip
LTX = SHORT | dict(model="ltx_video/ltx-0.9.0", init="ltx-init")
LTX_IMAGE = LTX | dict(first=", first_frame: 0.5")
CASES = {
    "plain": SHORT,
    "accumulated": SHORT | dict(accumulation=2, norm=0.01),
    "sampled": SHORT | dict(latents="sample", schedule="linear"),
    "long": SHORT | dict(steps=400, batch=1, buckets="[[17, 64, 96]]", lr="2e-3", schedule="constant_with_warmup", clips=8),
    "wan-t2v": WAN,
    "wan-i2v": WAN_IMAGE | dict(
        accumulation=2, latents="sample", clips=8, steps=5,
        diffusion="diffusion: {timesteps: logit_normal, shift: 2.5, weighting: cosmap}\n",
    ),
    "ltx-t2v": LTX,
    "ltx-i2v": LTX_IMAGE | dict(
        accumulation=2, latents="sample", clips=8, steps=5, diffusion="diffusion: {timesteps: logit_normal}\n",
    ),
}  # fmt: skip
EXPORTED = {
    "exported": SHORT, "wan-t2v-exported": WAN, "wan-i2v-exported": WAN_IMAGE,
    "ltx-t2v-exported": LTX, "ltx-i2v-exported": LTX_IMAGE,
}  # fmt: skip
# What the pipelines under them start from, and what else `check_lora.py` is told.
IMAGES = {"wan-i2v-exported": wan.image, "ltx-i2v-exported": ltx.image}
CHECKS = {
    "ltx-t2v-exported": ["--size", "64x96", "--pipeline", "LTXPipeline"],
    "ltx-i2v-exported": ["--size", "64x96", "--pipeline", "LTXImageToVideoPipeline"],
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


def text(settings, **places):
    """The run file; what is below tests/fixtures by `fixtures`, which the test puts in."""
    init = settings["init"] and f"{places['fixtures']}/training/{settings['init']}.safetensors"
    return BASE.format(**(settings | places | {"init": init or "null"}))


def exported(vtrain, name, settings):
    settings = settings | dict(steps=40, lr="1e-2", schedule="constant", buckets="[[17, 64, 96]]", init=None)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shapes(folder / "data", settings["clips"])
        (folder / "run.yaml").write_text(text(settings, fixtures=FIXTURES, data=folder / "data"))
        subprocess.run([vtrain, "--config", folder / "run.yaml"], check=True)
        adapter = OUT / f"{name}.safetensors"
        shutil.copy(folder / "out" / "pytorch_lora_weights.safetensors", adapter)
        check = [sys.executable, ROOT / "scripts" / "check_lora.py", FIXTURES / settings["model"], adapter]
        check += CHECKS.get(name, [])
        if name in IMAGES:
            Image.fromarray(IMAGES[name]()).save(folder / "image.png")
            check += ["--image", folder / "image.png"]
        subprocess.run([*check, "--write-latents", OUT / f"{name}_latents.safetensors"], check=True)


def trained(vtrain, case, settings):
    (OUT / f"{case}.yaml").write_text(text(settings, fixtures="FIXTURES", data="DATA"))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shapes(folder / "data", settings["clips"])
        run = folder / "run.yaml"
        run.write_text(text(settings, fixtures=FIXTURES, data=folder / "data"))
        init = OUT / f"{settings['init']}.safetensors"
        if not init.exists():
            subprocess.run([*REFERENCE, "--config", run, "--out", init, "--init-only"], check=True)
        listing = subprocess.run([vtrain, "precompute", "--config", run, "--json"], check=True, stdout=subprocess.PIPE)
        (folder / "listing.json").write_bytes(listing.stdout)
        arguments = ["--config", run, "--listing", folder / "listing.json", "--out", OUT / f"{case}.safetensors"]
        arguments += ["--losses-only"] if case == "long" else []
        subprocess.run([*REFERENCE, *arguments], check=True)
        print(case, json.loads(listing.stdout)["samples"][0]["bucket"], "clips:", settings["clips"])


def main():
    vtrain, only = Path(sys.argv[1]).resolve(), sys.argv[2:]
    OUT.mkdir(exist_ok=True)
    for cases, make in [(CASES, trained), (EXPORTED, exported)]:
        for name, settings in cases.items():
            if name in only or not only:
                make(vtrain, name, settings)


if __name__ == "__main__":
    main()
