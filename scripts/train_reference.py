#!/usr/bin/env python3
"""The training loop of vtrain in PyTorch, diffusers and PEFT: what its losses and adapters are held against.

    vtrain precompute --config run.yaml --json > listing.json
    python scripts/train_reference.py --config run.yaml --listing listing.json --out reference.safetensors

Reads the run file (model.path, seed, lora, train, diffusion, optimizer, lr_scheduler, precompute.latents; paths relative
to the file), the latents and embeddings that vtrain precomputed, and draws what vtrain draws: the order of batches, and from
`torch.Generator("cpu").manual_seed(seed + i)` for micro-batch i the posterior noise, the timesteps, the noise. The model,
its adapters, gradients, clipping, AdamW and schedules are PyTorch's and diffusers' own; how a family mixes noise and what
its loss is stands in `scripts/fixtures/FAMILY/training.py`. f32, CPU.

Writes the losses and gradient norms of all steps, the gradients of the first step before clipping (`grad.<layer>...`)
and the final adapters (`final.<layer>...`). With `--init-only` it writes a fresh adapter file to `--out` instead, for
`lora.init`, with a B that is not zero.

Needs scripts/requirements.txt.
"""
import argparse
import importlib
import json
from pathlib import Path

import torch
import yaml
from diffusers.optimization import get_scheduler
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

U64 = (1 << 64) - 1
# What a pipeline's class begins with, and the folder below scripts/fixtures.
FAMILIES = {"CogVideoX": "cogvideox", "LTX": "ltx_video", "Wan": "wan"}
DEFAULTS = {
    "seed": 42,
    "precompute": {"latents": "sample"},
    "diffusion": {"timesteps": "uniform", "shift": "auto", "weighting": "none"},
    "lora": {"rank": 128, "alpha": 128.0, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "init": None},
    "train": {"steps": 1200, "batch_size": 1, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0,
              "first_frame": 0.0},
    "optimizer": {"lr": 3e-5, "beta1": 0.9, "beta2": 0.95, "weight_decay": 1e-4, "epsilon": 1e-8},
    "lr_scheduler": {"name": "constant_with_warmup", "warmup_steps": 100, "num_cycles": 1, "power": 1.0},
}


def settings(path):
    """The run file with vtrain's defaults."""
    given = yaml.safe_load(path.read_text())
    merged = {key: {**value, **given.get(key, {})} if isinstance(value, dict) else given.get(key, value)
              for key, value in DEFAULTS.items()}
    merged["model"] = path.parent / given["model"]["path"]
    # PyYAML takes 1e-3 for a text: YAML 1.1 wants a point in it.
    merged["optimizer"] = {key: float(value) for key, value in merged["optimizer"].items() if key in DEFAULTS["optimizer"]}
    if merged["lora"]["init"]:
        merged["lora"]["init"] = path.parent / merged["lora"]["init"]
    return merged


def family(run):
    """The module that says what the run's model trains on."""
    name = json.loads((run["model"] / "model_index.json").read_text())["_class_name"]
    folder = next(folder for start, folder in FAMILIES.items() if name.startswith(start))
    return importlib.import_module(f"fixtures.{folder}.training")


def splitmix64(seed):
    z = (seed + 0x9E3779B97F4A7C15) & U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return z ^ (z >> 31)


def epoch(samples, batch_size, seed, number):
    """The batches of an epoch, as lists of indices into `samples`."""
    generator = torch.Generator("cpu").manual_seed(splitmix64((splitmix64(seed) + number) & U64))
    items = [index for index, sample in enumerate(samples) for _ in range(sample.get("repeats", 1))]
    buckets = list(dict.fromkeys(tuple(sample["bucket"]) for sample in samples))
    piles, batches = {bucket: [] for bucket in buckets}, []
    for item in torch.randperm(len(items), generator=generator).tolist():
        pile = piles[tuple(samples[items[item]]["bucket"])]
        pile.append(items[item])
        if len(pile) == batch_size:
            batches.append(list(pile))
            pile.clear()
    batches += [piles[bucket] for bucket in buckets if piles[bucket]]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def init_adapters(model, run, out):
    torch.manual_seed(run["seed"])
    state = get_peft_model_state_dict(model)
    for name, tensor in state.items():
        scale = 0.05 if "lora_B" in name else tensor.shape[1] ** -0.5
        state[name] = torch.randn_like(tensor) * scale
    save(state, run, out)


def save(state, run, out):
    lora = run["lora"]
    metadata = {"transformer.r": lora["rank"], "transformer.lora_alpha": lora["alpha"]}
    tensors = {f"transformer.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, out, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})


def load_model(run):
    model = family(run).Transformer.from_pretrained(run["model"], subfolder="transformer", torch_dtype=torch.float32)
    model.requires_grad_(False)
    lora = run["lora"]
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["target_modules"])
    model.add_adapter(config)
    if lora["init"]:
        state = {name.removeprefix("transformer."): tensor for name, tensor in load_file(lora["init"]).items()}
        with safe_open(lora["init"], "pt") as file:
            alpha = json.loads(file.metadata()["lora_adapter_metadata"])["transformer.lora_alpha"]
        assert alpha == lora["alpha"], (alpha, lora["alpha"])
        outcome = set_peft_model_state_dict(model, state)
        assert not outcome.unexpected_keys, outcome.unexpected_keys
    model.train()
    return model


def train(run, listing, steps):
    """-> losses, gradient norms, gradients of the first step, the model."""
    model = load_model(run)
    objective = family(run).Objective(run)
    samples = listing["samples"]
    clips = [load_file(sample["latents"]) | load_file(sample["embeds"]) | {"fps": sample["fps"]} for sample in samples]
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    o, s, t = run["optimizer"], run["lr_scheduler"], run["train"]
    optimizer = torch.optim.AdamW(named.values(), lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["epsilon"],
                                  weight_decay=o["weight_decay"])
    schedule = get_scheduler(s["name"], optimizer, num_warmup_steps=s["warmup_steps"], num_training_steps=t["steps"],
                             num_cycles=s["num_cycles"], power=s["power"])
    accumulation, batch_size = t["gradient_accumulation_steps"], t["batch_size"]
    per_epoch = len(epoch(samples, batch_size, run["seed"], 0))
    losses, norms, first = [], [], {}
    for step in range(steps):
        mean = 0.0
        for m in range(accumulation):
            i = step * accumulation + m
            batch = epoch(samples, batch_size, run["seed"], i // per_epoch)[i % per_epoch]
            generator = torch.Generator("cpu").manual_seed(run["seed"] + i)
            clean = torch.stack([clips[k]["mean"] for k in batch])  # (B, C, F, H, W)
            if run["precompute"]["latents"] == "sample":
                deviation = torch.exp(0.5 * torch.stack([clips[k]["logvar"] for k in batch]))
                clean = clean + deviation * torch.randn(clean.shape, generator=generator)
            text = torch.stack([clips[k]["embeds"] for k in batch])
            loss = objective.loss(model, [clips[k] for k in batch], text, clean, generator)
            (loss / accumulation).backward()
            mean += loss.item() / accumulation
        if step == 0:
            first = {name: parameter.grad.clone() for name, parameter in named.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), t["max_grad_norm"]).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(mean)
        if step % 50 == 49:
            print(f"step {step + 1}: mean loss of the last 50 {sum(losses[-50:]) / 50:.6f}", flush=True)
    return losses, norms, first, model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--listing", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="fewer than the run file's train.steps")
    parser.add_argument("--losses-only", action="store_true", help="leave gradients and adapters out")
    parser.add_argument("--init-only", action="store_true")
    args = parser.parse_args()
    run = settings(args.config)
    if args.init_only:
        run["lora"]["init"] = None
        return init_adapters(load_model(run), run, args.out)
    listing = json.loads(args.listing.read_text())
    losses, norms, first, model = train(run, listing, args.steps or run["train"]["steps"])
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64), "grad_norms": torch.tensor(norms)}
    if not args.losses_only:
        plain = lambda name: name.replace(".default.weight", ".weight")
        tensors |= {f"grad.{plain(name)}": gradient.contiguous() for name, gradient in first.items()}
        tensors |= {f"final.{name}": tensor.contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(tensors, args.out)


if __name__ == "__main__":
    main()
