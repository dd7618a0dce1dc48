"""Writes tests/fixtures/lora: what PEFT and torch make of adapters, for tests/lora.rs.

    pip install -r scripts/requirements.txt
    python scripts/make_lora_fixtures.py

* targets.json: which names a `target_modules` matches, and which layers of the tiny CogVideoX checkpoints get an adapter
* init.json: first values of A, as torch's `kaiming_uniform_` draws them from one generator
* linear/model.safetensors, linear.safetensors: a linear layer, and what it answers under a rank-stabilised adapter

Needs tests/fixtures/cogvideox. Everything runs on the CPU in one thread; a second run writes the same bytes.
"""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import CogVideoXTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
OUT = FIXTURES / "lora"

NAMES = [
    "to_q", "xto_q", "x.to_q", "to_q.x", "to_q.", ".to_q", "TO_Q", "proj", "proj_out", "norm_out.linear", "text_proj",
    "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k", "transformer_blocks.0.attn1.to_v",
    "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.attn1.to_out.1",
    "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2", "transformer_blocks.0.norm1.linear",
    "transformer_blocks.1.attn1.to_q", "transformer_blocks.10.attn1.to_q", "transformer_blocks.11.ff.net.2",
    "transformer_blocks.29.attn1.add_q_proj", "time_embedding.linear_1", "time_embedding.linear_2", "patch_embed.proj",
]
PATTERNS = [
    ["to_q"], ["to_k", "to_v"], ["to_out.0"], ["0"], ["out.0"], ["attn1.to_q"], ["proj", "linear"], ["net.2", "text_proj"],
    ["transformer_blocks.0.attn1.to_q"], ["all-linear"], [".to_q"], ["to_q."], ["to_.*"],
    "to_q", ".*to_q", r".*\.to_q", r".*\.(to_q|to_k)", "to|to_q", r"transformer_blocks\.\d\..*", "(?i).*TO_Q",
    r"transformer_blocks\.(?!0\.).*\.to_q", r".*(?<!norm1)\.linear", r"(?:.*\.)?(?P<kind>to_[qkv])",
    r"transformer_blocks\.(\d)\1\..*", r".*attn1\.to_(q|k|v|out\.0)$", "^.*proj$", r".*\.net\.(0\.proj|2)",
    r"transformer_blocks\.(?:[0-9]|1[0-1])\.attn1\..*", ".*", r"[^.]*", r"\w+", r".*to_q|.*to_k", "to_q.?", r".*1.*|proj",
    r"(?s:.*)to_[a-q]", r".*\bto_q\b.*", r".*(?=to_q)to_q", r"(.*\.)?t{1,2}o_q",
]  # fmt: skip
ON_MODELS = [
    ["to_q", "to_k", "to_v", "to_out.0"], ["proj"], ["ff.net.0.proj", "linear"], "all-linear", "All-Linear",
    r"transformer_blocks\.1\.(?!attn).*\.(proj|linear|2)",
]  # fmt: skip
SIZES = [(4, 32), (3, 5), (16, 33), (7, 129), (8, 3072)]  # (rank, in), drawn in this order


def matching():
    """One row for each pattern: the names that it matches."""
    for pattern in PATTERNS:
        config = SimpleNamespace(target_modules=pattern)
        matches = [name for name in NAMES if check_target_module_exists(config, name)]
        yield {"pattern": pattern, "matches": matches}


def on_models():
    """The layers that PEFT gives an adapter. Convolutions are left out: vtrain trains linear layers only."""
    for name in ("cogvideox-2b", "cogvideox-5b-i2v", "cogvideox-1.5-5b-i2v"):
        for pattern in ON_MODELS:
            model = CogVideoXTransformer3DModel.from_pretrained(FIXTURES / "cogvideox" / name / "transformer")
            linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
            inject_adapter_in_model(LoraConfig(r=1, target_modules=pattern), model)
            layers = {path.split(".lora_A")[0] for path, _ in model.named_modules() if ".lora_A" in path}
            yield {"model": name, "pattern": pattern, "layers": sorted(layers & linear)}


def init():
    """The first and last numbers of each A, and the sum of the bit patterns of all."""
    generator = torch.Generator("cpu").manual_seed(17)
    for rank, width in SIZES:
        a = torch.empty(rank, width)
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        bits = a.flatten().view(torch.int32).tolist()
        yield {"rank": rank, "in": width, "bits": bits[:3] + bits[-3:], "sum": sum(b & 0xFFFFFFFF for b in bits)}


def forward():
    """A layer from 6 to 5 numbers under an adapter of rank 4, alpha 3, rank-stabilised."""
    generator = torch.Generator("cpu").manual_seed(18)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    model = torch.nn.Sequential()
    model.add_module("layer", torch.nn.Linear(6, 5))
    with torch.no_grad():
        model.layer.weight.copy_(draw(5, 6))
        model.layer.bias.copy_(draw(5))
    frozen = {f"layer.{name}": value.detach().clone() for name, value in model.layer.named_parameters()}
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["layer"])
    inject_adapter_in_model(config, model)
    a, b = model.layer.lora_A.default.weight, model.layer.lora_B.default.weight
    with torch.no_grad():
        a.copy_(draw(4, 6))
        b.copy_(draw(5, 4))
    x = draw(2, 3, 6).requires_grad_(True)
    y = model(x)
    weights = draw(2, 3, 5)
    (y * weights).sum().backward()
    answers = {"a": a, "b": b, "x": x, "y": y, "weights": weights, "grad.a": a.grad, "grad.b": b.grad, "grad.x": x.grad}
    return frozen, {name: value.detach().clone() for name, value in answers.items()}


def write(path, rows, **more):
    """A JSON file with one row a line."""
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in more.items())
    path.write_text(f'{{{head}"rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")


def main():
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    (OUT / "linear").mkdir(parents=True, exist_ok=True)
    write(OUT / "targets.json", matching(), names=NAMES, models=list(on_models()))
    write(OUT / "init.json", init(), seed=17)
    frozen, answers = forward()
    save_file(frozen, OUT / "linear" / "model.safetensors")
    save_file(answers, OUT / "linear.safetensors")


if __name__ == "__main__":
    main()
