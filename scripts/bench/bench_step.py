"""A LoRA training step: vtrain against PyTorch, diffusers and PEFT, taking turns.

    cargo build --release
    python scripts/bench/bench_step.py target/release/vtrain --layers 6 --heads 8 --bucket 17,256,384
    python scripts/bench/bench_step.py target/release/vtrain --family wan

Random weights, made-up latents and text, LoRA of rank 64 on the attention projections, loss, backward pass, clipping, AdamW;
f32 or bf16, as many threads on both sides, each measurement in a process of its own. Prints medians and minima of the times, and
the peak resident memory of the processes. With `--forward` a sampling step is measured: no adapters, no way back.

Needs scripts/setup/requirements.txt.
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

HEAD = 64  # features of a head


class CogVideoX:
    """Text and video attend to each other as one sequence."""

    transformer = "CogVideoXTransformer3DModel"

    def __init__(self, args):
        frames, height, width = args.bucket
        self.frames, self.height, self.width = (frames - 1) // 4 + 1, height // 8, width // 8
        self.text_width, self.rotary = args.text_width, args.rotary
        self.config = dict(
            num_attention_heads=args.heads,
            num_layers=args.layers,
            text_embed_dim=args.text_width,
            time_embed_dim=args.text_width,
            use_rotary_positional_embeddings=args.rotary,
            sample_width=self.width,
            sample_height=self.height,
            sample_frames=frames,
        )

    def call(self, torch):
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        grid = (self.height // 2, self.width // 2)
        rotary = get_3d_rotary_pos_embed(HEAD, ((0, 0), grid), grid, self.frames) if self.rotary else None
        latents = torch.randn(1, self.frames, 16, self.height, self.width)
        return dict(
            hidden_states=latents,
            encoder_hidden_states=torch.randn(1, 226, self.text_width),
            timestep=torch.tensor([500]),
            image_rotary_emb=rotary,
        )


class LtxVideo:
    """Few tokens, packed by the pipeline; text by cross-attention, with a mask."""

    transformer = "LTXVideoTransformer3DModel"

    def __init__(self, args):
        frames, height, width = args.bucket
        self.grid, self.text_width = ((frames - 1) // 8 + 1, height // 32, width // 32), args.text_width
        self.config = dict(
            num_attention_heads=args.heads,
            attention_head_dim=HEAD,
            num_layers=args.layers,
            cross_attention_dim=args.heads * HEAD,
            caption_channels=args.text_width,
        )

    def call(self, torch):
        frames, height, width = self.grid
        return dict(
            hidden_states=torch.randn(1, frames * height * width, 128),
            encoder_hidden_states=torch.randn(1, 128, self.text_width),
            timestep=torch.tensor([500.0]),
            encoder_attention_mask=torch.ones(1, 128),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(8 / 25, 32, 32),
        )


class Wan:
    """Text by cross-attention, without a mask."""

    transformer = "WanTransformer3DModel"

    def __init__(self, args):
        frames, height, width = args.bucket
        self.shape, self.text_width = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8), args.text_width
        self.config = dict(
            num_attention_heads=args.heads,
            attention_head_dim=HEAD,
            num_layers=args.layers,
            ffn_dim=4 * args.heads * HEAD,
            text_dim=args.text_width,
        )

    def call(self, torch):
        return dict(
            hidden_states=torch.randn(self.shape),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 512, self.text_width),
        )


class HunyuanVideo:
    """Text and video attend to each other, in two streams and then in one, by half as many heads of twice the width, as
    published. All of the text is valid."""

    transformer = "HunyuanVideoTransformer3DModel"

    def __init__(self, args):
        frames, height, width = args.bucket
        self.shape, self.text_width = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8), args.text_width
        dual = max(1, args.layers // 3)
        self.config = dict(
            num_attention_heads=args.heads // 2,
            attention_head_dim=2 * HEAD,
            num_layers=dual,
            num_single_layers=args.layers - dual,
            text_embed_dim=args.text_width,
            rope_axes_dim=(16, 56, 56),
        )

    def call(self, torch):
        return dict(
            hidden_states=torch.randn(self.shape),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 256, self.text_width),
            encoder_attention_mask=torch.ones(1, 256),
            pooled_projections=torch.randn(1, 768),
            guidance=torch.tensor([1000.0]),
        )


class Mochi:
    """Text and video attend to each other, the text in a stream of half the width, as published. All of the text is valid."""

    transformer = "MochiTransformer3DModel"

    def __init__(self, args):
        frames, height, width = args.bucket
        self.shape, self.text_width = (1, 12, (frames - 1) // 6 + 1, height // 8, width // 8), args.text_width
        self.config = dict(
            num_attention_heads=args.heads // 2,
            attention_head_dim=2 * HEAD,
            num_layers=args.layers,
            pooled_projection_dim=args.heads * HEAD // 2,
            text_embed_dim=args.text_width,
        )

    def call(self, torch):
        return dict(
            hidden_states=torch.randn(self.shape),
            encoder_hidden_states=torch.randn(1, 256, self.text_width),
            timestep=torch.tensor([500.0]),
            encoder_attention_mask=torch.ones(1, 256, dtype=torch.bool),
        )


class Allegro:
    """Text by cross-attention, with a mask; heads of 96 features, as published, about as wide together as the others'."""

    transformer = "AllegroTransformer3DModel"
    head = 96

    def __init__(self, args):
        frames, height, width = args.bucket
        self.shape, self.text_width = (1, 4, (frames - 1) // 4 + 1, height // 8, width // 8), args.text_width
        heads = max(1, round(args.heads * HEAD / self.head))
        self.config = dict(
            num_attention_heads=heads,
            attention_head_dim=self.head,
            num_layers=args.layers,
            cross_attention_dim=heads * self.head,
            caption_channels=args.text_width,
        )

    def call(self, torch):
        from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

        _, _, frames, height, width = self.shape
        grid = (height // 2, width // 2)
        *tables, t, h, w = get_3d_rotary_pos_embed_allegro(self.head, ((0, 0), grid), grid, frames, (2.2, 2.0, 2.0))
        places = torch.cartesian_prod(t.long(), h.long(), w.long()).reshape(-1, 3).T.reshape(3, 1, -1)
        return dict(
            hidden_states=torch.randn(self.shape),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 512, self.text_width),
            encoder_attention_mask=torch.ones(1, 512),
            image_rotary_emb=(tuple(tables), tuple(places)),
        )


FAMILIES = {
    "cogvideox": CogVideoX,
    "ltx_video": LtxVideo,
    "wan": Wan,
    "hunyuan_video": HunyuanVideo,
    "mochi": Mochi,
    "allegro": Allegro,
}


def peer(args):
    """Steps of the PyTorch loop; prints a JSON object."""
    import diffusers
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    family = FAMILIES[args.family](args)
    model = getattr(diffusers, family.transformer)(**family.config).requires_grad_(False)
    call = dict(family.call(torch), return_dict=False)
    target = torch.randn_like(call["hidden_states"])
    learning = []
    if not args.forward:
        lora = LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        inject_adapter_in_model(lora, model)  # as `add_adapter`, which not every class has
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-4)
        if not args.keep:
            model.enable_gradient_checkpointing()
        model.train()
    narrow = args.dtype == "bf16"
    if narrow and args.whole:
        model.to(torch.bfloat16)
        call = {name: lowered(torch, value) for name, value in call.items()}
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=narrow and not args.whole)
        if args.forward:
            with torch.no_grad(), autocast:
                model(**call)
        else:
            with autocast:
                output = model(**call)[0]
            (output - target).pow(2).mean().backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(step_seconds=seconds[1:], peak_memory_bytes=peak)))


def lowered(torch, value):
    """Numbers of a call in bf16."""
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if floats else value


def run_file(args, folder):
    """A run file beside a model that is nothing but its config."""
    transformer = folder / "model" / "transformer"
    transformer.mkdir(parents=True)
    family = FAMILIES[args.family](args)
    text = json.dumps(dict(family.config, _class_name=family.transformer))
    (transformer / "config.json").write_text(text)
    policy = "all" if args.keep else args.policy
    (folder / "run.yaml").write_text(
        f"output_dir: out\ndevice: cpu\nmodel: {{path: model, dtype: {args.dtype}}}\n"
        f"datasets: [{{path: none, buckets: [{list(args.bucket)}]}}]\nlora: {{rank: {args.rank}, alpha: {args.rank}}}\n"
        f"train: {{activation_policy: {policy}}}\n"
    )
    return folder / "run.yaml"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vtrain", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="cogvideox")
    parser.add_argument("--bucket", type=lambda text: tuple(map(int, text.split(","))), default=(17, 256, 384))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--text-width", type=int, default=512)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rotary", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--whole", action="store_true", help="bf16: PyTorch's model in it, rather than autocast")
    parser.add_argument("--keep", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--policy", default="auto", help="train.activation_policy, with gradient checkpointing")
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
    ratios = [ours / theirs for ours, theirs in zip(figures["vtrain"], figures["PyTorch"], strict=True)]
    print("ratio    {:.2f} of medians, {:.2f} of minima, {:.2f} of memory".format(*ratios))


if __name__ == "__main__":
    main()
