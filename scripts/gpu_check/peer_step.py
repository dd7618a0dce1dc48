#!/usr/bin/env python3
"""One LoRA training step in PyTorch, diffusers and PEFT, timed: the peer of `vtrain bench` on a GPU.

    python peer_step.py --model MODEL --bucket 49,480,720 --rank 128 --dtype bf16 --device cuda --steps 3

MODEL is the folder that `vtrain bench --random-weights` is given: nothing but transformer/config.json is read. Random
weights, made-up latents and text, LoRA on the attention projections with its parameters in f32, gradient checkpointing
unless told otherwise, loss, backward pass, clipping, AdamW. Prints one JSON object.

`peak_memory_bytes` is `torch.cuda.max_memory_allocated`, what tensors took at most, as vtrain's is what tensors took of the
device's pool at most; on the CPU both are the peak resident size of the process. `peak_reserved_bytes` is what PyTorch held
of the card to that end.

Needs torch, diffusers, transformers, peft.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch

TIMESTEP = 500
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def cogvideox(model, bucket, random):
    """Text and video attend to each other as one sequence."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, height, width = (bucket[0] - 1) // 4 + 1, bucket[1] // 8, bucket[2] // 8
    latents = random(1, frames, model.config.in_channels, height, width)
    grid = (height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(model.config.attention_head_dim, ((0, 0), grid), grid, frames)
    return latents, {
        "hidden_states": latents,
        "encoder_hidden_states": random(1, 226, model.config.text_embed_dim),
        "timestep": torch.tensor([TIMESTEP], device=latents.device),
        "image_rotary_emb": tuple(table.to(latents.device) for table in rotary),
    }


def ltx_video(model, bucket, random):
    """Few tokens, packed by the pipeline; text by cross-attention, with a mask."""
    frames, height, width = (bucket[0] - 1) // 8 + 1, bucket[1] // 32, bucket[2] // 32
    latents = random(1, frames * height * width, model.config.in_channels)
    return latents, {
        "hidden_states": latents,
        "encoder_hidden_states": random(1, 128, model.config.caption_channels),
        "timestep": torch.tensor([float(TIMESTEP)], device=latents.device),
        "encoder_attention_mask": torch.ones(1, 128, device=latents.device),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def wan(model, bucket, random):
    """Text by cross-attention, without a mask."""
    frames, height, width = (bucket[0] - 1) // 4 + 1, bucket[1] // 8, bucket[2] // 8
    latents = random(1, model.config.in_channels, frames, height, width)
    return latents, {
        "hidden_states": latents,
        "encoder_hidden_states": random(1, 512, model.config.text_dim),
        "timestep": torch.tensor([float(TIMESTEP)], device=latents.device),
    }


def hunyuan_video(model, bucket, random):
    """Text and video attend to each other, in two streams and then in one. All of the text is valid."""
    frames, height, width = (bucket[0] - 1) // 4 + 1, bucket[1] // 8, bucket[2] // 8
    latents = random(1, model.config.in_channels, frames, height, width)
    return latents, {
        "hidden_states": latents,
        "timestep": torch.tensor([float(TIMESTEP)], device=latents.device),
        "encoder_hidden_states": random(1, 256, model.config.text_embed_dim),
        "encoder_attention_mask": torch.ones(1, 256, device=latents.device),
        "pooled_projections": random(1, model.config.pooled_projection_dim),
        "guidance": torch.tensor([1000.0], device=latents.device),
    }


def mochi(model, bucket, random):
    """Text and video attend to each other, the text in a stream of half the width. All of the text is valid."""
    frames, height, width = (bucket[0] - 1) // 6 + 1, bucket[1] // 8, bucket[2] // 8
    latents = random(1, model.config.in_channels, frames, height, width)
    return latents, {
        "hidden_states": latents,
        "encoder_hidden_states": random(1, 256, model.config.text_embed_dim),
        "timestep": torch.tensor([float(TIMESTEP)], device=latents.device),
        "encoder_attention_mask": torch.ones(1, 256, dtype=torch.bool, device=latents.device),
    }


def allegro(model, bucket, random):
    """Text by cross-attention, with a mask."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    frames, height, width = (bucket[0] - 1) // 4 + 1, bucket[1] // 8, bucket[2] // 8
    latents = random(1, model.config.in_channels, frames, height, width)
    grid = (height // 2, width // 2)
    scales = [model.config[f"interpolation_scale_{axis}"] for axis in "thw"]
    head = model.config.attention_head_dim
    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(head, ((0, 0), grid), grid, frames, scales)
    places = torch.cartesian_prod(t.long(), h.long(), w.long()).reshape(-1, 3).T.reshape(3, 1, -1)
    tables = [tuple(table.to(latents.device) for table in pair) for pair in tables]
    return latents, {
        "hidden_states": latents,
        "timestep": torch.tensor([TIMESTEP], device=latents.device),
        "encoder_hidden_states": random(1, 512, model.config.caption_channels),
        "encoder_attention_mask": torch.ones(1, 512, device=latents.device),
        "image_rotary_emb": (tuple(tables), tuple(places.to(latents.device))),
    }


FAMILIES = {
    "CogVideoXTransformer3DModel": cogvideox,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "MochiTransformer3DModel": mochi,
    "AllegroTransformer3DModel": allegro,
    "LTXVideoTransformer3DModel": ltx_video,
    "WanTransformer3DModel": wan,
}


def build(args, dtype):
    """The transformer with adapters, the parameters that learn, its latents and a function that calls it."""
    import diffusers
    from peft import LoraConfig, inject_adapter_in_model

    config = json.loads((args.model / "transformer" / "config.json").read_text())
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    torch.set_default_dtype(usual)
    model = model.to(args.device, dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(args.device, dtype)

    latents, call = FAMILIES[config["_class_name"]](model, args.bucket, random)
    model = inject_adapter_in_model(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS), model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.float()
    model.train()
    if args.checkpointing:
        model.enable_gradient_checkpointing()
    return model, learning, latents, call


def step(model, learning, optimizer, latents, call, dtype):
    """One step; the loss."""
    with torch.autocast(latents.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = model(**call, return_dict=False)[0]
    loss = (output.float() - latents.float()).pow(2).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learning, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def memory(device):
    """The most that was in use."""
    if device.startswith("cuda"):
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "peak_reserved_bytes": torch.cuda.max_memory_reserved()}
    return {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--bucket", type=lambda text: tuple(map(int, text.split(","))), required=True)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="that are measured, after one that is not")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    torch.manual_seed(0)
    model, learning, latents, call = build(args, dtype)
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    seconds = []
    for _ in range(args.steps + 1):
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        started = time.perf_counter()
        loss = step(model, learning, optimizer, latents, call, dtype)
        finite = bool(torch.isfinite(loss))  # waits for the step
        seconds.append(time.perf_counter() - started)
    import diffusers
    import peft

    print(
        json.dumps(
            dict(
                peer=f"torch {torch.__version__}, diffusers {diffusers.__version__}, peft {peft.__version__}",
                device=args.device,
                dtype=args.dtype,
                bucket=args.bucket,
                rank=args.rank,
                checkpointing=args.checkpointing,
                params=sum(parameter.numel() for parameter in model.parameters()) - sum(map(torch.numel, learning)),
                trainable=sum(map(torch.numel, learning)),
                step_seconds=seconds[1:],
                step_seconds_median=statistics.median(seconds[1:]),
                loss_finite=finite,
                **memory(args.device),
            )
        )
    )


if __name__ == "__main__":
    main()
