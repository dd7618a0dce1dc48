#!/usr/bin/env python3
"""A LoRA training step of CogVideoX: vtrain against PyTorch, diffusers and PEFT, taking turns.

    cargo build --release
    python scripts/bench_step.py target/release/vtrain --layers 6 --heads 8 --bucket 17,256,384

Random weights, made-up latents and text, LoRA of rank 64 on the attention projections, loss, backward pass, clipping, AdamW;
f32, as many threads on both sides, each measurement in a process of its own. Prints medians and minima of the times, and the
peak resident memory of the processes. With `--forward` a sampling step is measured: no adapters, no way back.

Needs scripts/requirements.txt.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE, FRAMES, PATCH, TEXT = 8, 4, 2, 226  # compression of the VAE, patch size, text tokens


def config(args):
    frames, height, width = args.bucket
    return dict(
        num_attention_heads=args.heads, num_layers=args.layers, text_embed_dim=args.text_width, time_embed_dim=args.text_width,
        use_rotary_positional_embeddings=args.rotary, sample_width=width // SIDE, sample_height=height // SIDE,
        sample_frames=frames,
    )


def peer(args):
    """Steps of the PyTorch loop; prints a JSON object."""
    import torch
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from peft import LoraConfig

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = CogVideoXTransformer3DModel(**config(args)).requires_grad_(False)
    frames, height, width = (args.bucket[0] - 1) // FRAMES + 1, args.bucket[1] // SIDE, args.bucket[2] // SIDE
    grid = (height // PATCH, width // PATCH)
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), grid), grid, frames) if args.rotary else None
    latents, text = torch.randn(1, frames, 16, height, width), torch.randn(1, TEXT, args.text_width)
    target = torch.randn_like(latents)
    call = dict(hidden_states=latents, encoder_hidden_states=text, timestep=torch.tensor([500]), image_rotary_emb=rotary,
                return_dict=False)
    learning = []
    if not args.forward:
        model.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-4)
        if not args.keep:
            model.enable_gradient_checkpointing()
        model.train()
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        if args.forward:
            with torch.no_grad():
                model(**call)
        else:
            (model(**call)[0] - target).pow(2).mean().backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(step_seconds=seconds[1:], peak_memory_bytes=peak)))


def run_file(args, folder):
    """A run file beside a model that is nothing but its config."""
    transformer = folder / "model" / "transformer"
    transformer.mkdir(parents=True)
    text = json.dumps(dict(config(args), _class_name="CogVideoXTransformer3DModel"))
    (transformer / "config.json").write_text(text)
    checkpointing = str(not args.keep).lower()
    (folder / "run.yaml").write_text(
        f"output_dir: out\ndevice: cpu\nmodel: {{path: model, dtype: f32}}\n"
        f"datasets: [{{path: none, buckets: [{list(args.bucket)}]}}]\nlora: {{rank: {args.rank}, alpha: {args.rank}}}\n"
        f"train: {{gradient_checkpointing: {checkpointing}}}\n")
    return folder / "run.yaml"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vtrain", type=Path)
    parser.add_argument("--bucket", type=lambda text: tuple(map(int, text.split(","))), default=(17, 256, 384))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--text-width", type=int, default=512)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rotary", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    measured = {"vtrain": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as folder:
        run = run_file(args, Path(folder))
        ours = [args.vtrain, "bench", "--config", run, "--random-weights", "--json", "--steps", str(args.steps)]
        ours += ["--forward"] if args.forward else []
        theirs = [sys.executable, *sys.argv, "--peer"]
        environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
        for _ in range(args.rounds):
            for name, command in [("vtrain", ours), ("PyTorch", theirs)]:
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
                measured[name].append(json.loads(output.splitlines()[-1]))
    figures = {}
    for name, runs in measured.items():
        seconds = [second for run in runs for second in run["step_seconds"]]
        figures[name] = (statistics.median(seconds), min(seconds), max(run["peak_memory_bytes"] for run in runs))
        median, least, peak = figures[name]
        print(f"{name:8} {median:.3f} s a step ({least:.3f} at best), {peak / 2**20:.0f} MiB")
    ratios = [ours / theirs for ours, theirs in zip(figures["vtrain"], figures["PyTorch"])]
    print("ratio    {:.2f} of medians, {:.2f} of minima, {:.2f} of memory".format(*ratios))


if __name__ == "__main__":
    main()
