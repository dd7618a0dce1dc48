"""Loads an adapter file into the pipeline of diffusers that it is for and says what arrived; stops at the first thing wrong.

    python scripts/checks/check_lora.py MODEL_DIR LORA_FILE [--pipeline CLASS] [--image FILE] [--size HxW]
        [--latents FILE] [--write-latents FILE]

Python's warnings are errors, and so is anything that diffusers or PEFT log from warnings on: unused keys, missing keys,
settings that do not fit the weights. Every adapter must hold the file's numbers, and the scale that its metadata gives.

With `--latents` the pipeline samples under the adapter, and the denoised latents must be those of the file to 1e-3, which
`vtrain sample --dtype f32 --lora LORA_FILE --prompt "a red ball" --negative-prompt blue --num-frames 9 --height 32 --width 48
--steps 4 --seed 42 --output-latents FILE` wrote, with an `--image` where the model wants one and at the `--size` if there is
one. With `--write-latents` they are written, for tests without Python.

`--same FILE` (repeatable) is the same adapter in another format: it must load as cleanly, and give the same latents to 1e-3.
`--merged DIR` is the checkpoint with the adapter folded in: it must give the same latents without it, to 1e-4.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import diffusers
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from silence import silent


def load(pipeline, model, file):
    """The pipeline under the adapter."""
    pipe = getattr(diffusers, pipeline).from_pretrained(model)
    with silent(file):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="checked")
    return pipe


def sample(pipe, image, size):
    """Denoised latents, in the order that the pipeline draws them in."""
    start = {"image": Image.open(image).convert("RGB")} if image else {}
    height, width = size
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        prompt="a red ball",
        negative_prompt="blue",
        num_frames=9,
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=6.0,
        generator=torch.Generator("cpu").manual_seed(42),
        output_type="latent",
        **start,
    ).frames
    if latents.dim() == 3:  # tokens, of pipelines that pack their latents
        space, time = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
        latents = pipe._unpack_latents(latents, 8 // time + 1, height // space, width // space)
    return latents


def compare(transformer, tensors, settings):
    """Every adapter against the file."""
    rank, alpha = settings["transformer.r"], settings["transformer.lora_alpha"]
    scale = alpha / (math.sqrt(rank) if settings.get("transformer.use_rslora", False) else rank)
    layers = {name: module for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    for name, module in layers.items():
        for half in ("lora_A", "lora_B"):
            found = getattr(module, half)["checked"].weight
            if not torch.equal(found, tensors.pop(f"transformer.{name}.{half}.weight")):
                sys.exit(f"{name}.{half} holds other numbers than the file")
        if module.r["checked"] != rank or module.lora_alpha["checked"] != alpha:
            sys.exit(f"{name}: rank {module.r}, alpha {module.lora_alpha}")
        if not math.isclose(module.scaling["checked"], scale):
            sys.exit(f"{name}: scale {module.scaling}, not {scale}")
    if tensors or not layers:
        sys.exit(f"{len(tensors)} tensors of the file have no place: {sorted(tensors)[:3]}")
    print(f"{len(layers)} adapters of rank {rank}, alpha {alpha}, scale {scale:.6g}: no warning, no key too many or too few")


def agree(what, ours, theirs, bound):
    error = (torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs)).item()
    print(f"{what}: latents differ by {error:.1e}")
    if not error <= bound:
        sys.exit(f"{what}: the latents do not agree")


def compare_others(args, pipe):
    """Other files of the same adapter, and the checkpoint it was merged into."""
    theirs = sample(pipe, args.image, args.size)
    for file in args.same:
        other = load(args.pipeline, args.model, file.resolve())
        agree(file.name, sample(other, args.image, args.size), theirs, 1e-3)
    if args.merged:
        merged = getattr(diffusers, args.pipeline).from_pretrained(args.merged)
        agree("merged", sample(merged, args.image, args.size), theirs, 1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pipeline", default="DiffusionPipeline", help="its class, where not the checkpoint's own")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--size", type=lambda size: [int(side) for side in size.split("x")], default=[32, 48])
    parser.add_argument("--latents", type=Path)
    parser.add_argument("--write-latents", type=Path)
    parser.add_argument("--same", type=Path, action="append", default=[])
    parser.add_argument("--merged", type=Path)
    args = parser.parse_args()
    file = args.file.resolve()
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    pipe = load(args.pipeline, args.model, file)
    compare(pipe.transformer, tensors, settings)
    if args.same or args.merged:
        compare_others(args, pipe)
    if args.write_latents:
        save_file({"latents": sample(pipe, args.image, args.size).contiguous()}, args.write_latents)
    if args.latents:
        ours, theirs = load_file(args.latents)["latents"], sample(pipe, args.image, args.size)
        error = (torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs)).item()
        pipe.disable_lora()
        without = (torch.linalg.norm(sample(pipe, args.image, args.size) - theirs) / torch.linalg.norm(theirs)).item()
        print(f"latents differ by {error:.1e}; without the adapter by {without:.1e}")
        if error > 1e-3 or without < 1e-2:
            sys.exit("the latents do not agree, or the adapter does nothing")


if __name__ == "__main__":
    main()
