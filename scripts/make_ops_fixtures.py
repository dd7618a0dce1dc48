"""Writes tests/fixtures/ops: what torch makes of attention and linear layers, and of their gradients, for tests/ops.rs.

    pip install -r scripts/requirements.txt
    python scripts/make_ops_fixtures.py

Inputs are not written down: both sides draw them from the same generator, one tensor behind the other.
Everything runs on the CPU in one thread; a second run writes the same bytes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "ops"

# Samples, queries, keys, heads, features a head; the mask, if any.
ATTENTION = {
    "self": ((1, 37, 37, 2, 64), None),
    "narrow": ((1, 5, 5, 1, 24), None),
    "cross": ((1, 19, 133, 1, 80), None),
    "one_query": ((1, 1, 9, 1, 256), None),
    "one_key": ((2, 3, 1, 2, 128), None),
    "long": ((1, 203, 261, 1, 24), None),
    "bias": ((2, 33, 70, 2, 32), "bias"),
    "padding": ((2, 21, 45, 2, 48), "padding"),
}

# The shape of x before its features; features in and out, rank, whether there is a bias.
LINEAR = {
    "plain": ((2, 7), 10, 13, 4, True),
    "one_row": ((1,), 17, 5, 1, True),
    "no_bias": ((3, 5, 2), 33, 70, 8, False),
    "wide": ((131,), 96, 80, 16, True),
}
SCALE = 0.5


def attention(shape, mask):
    """A sum over the heads' outputs, weighted at random: the output, and the gradients of q, k and v."""
    samples, queries, keys, heads, width = shape
    generator = torch.Generator("cpu").manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    q, k, v = (draw(samples, n, heads, width).requires_grad_() for n in (queries, keys, keys))
    weights = draw(samples, queries, heads, width)
    if mask == "bias":
        mask = draw(samples, 1, queries, keys)
    elif mask == "padding":  # the last sample has a third of its keys
        mask = torch.zeros(samples, 1, 1, keys)
        mask[-1, ..., keys // 3 :] = -torch.inf
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)
    (out * weights).sum().backward()
    return {"out": out, "q": q.grad, "k": k.grad, "v": v.grad}


def linear(shape, features, out_features, rank, has_bias):
    """A linear layer whose matrix has been rounded to bf16, alone and with an adapter: outputs and gradients."""
    generator = torch.Generator("cpu").manual_seed(6)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    x = draw(*shape, features).requires_grad_()
    weight = draw(out_features, features).bfloat16().float()
    bias = draw(out_features) if has_bias else None
    a, b = draw(rank, features).requires_grad_(), draw(out_features, rank).requires_grad_()
    weights = draw(*shape, out_features)
    frozen = F.linear(x, weight, bias)
    (frozen * weights).sum().backward()
    frozen_grad, x.grad = x.grad, None
    y = F.linear(x, weight, bias) + SCALE * (x @ a.T @ b.T)
    (y * weights).sum().backward()
    return {"frozen": frozen, "frozen_x": frozen_grad, "y": y, "x": x.grad, "a": a.grad, "b": b.grad}


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    OUT.mkdir(parents=True, exist_ok=True)
    for kind, compute, cases in (("attention", attention, ATTENTION), ("linear", linear, LINEAR)):
        tensors = {
            f"{name}.{part}": tensor.detach().contiguous()
            for name, case in cases.items()
            for part, tensor in compute(*case).items()
        }
        save_file(tensors, OUT / f"{kind}.safetensors")


if __name__ == "__main__":
    main()
