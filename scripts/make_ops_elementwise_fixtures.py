"""What torch makes of norms, activations, rotary embedding and gated residuals, forwards and back.

Writes tests/fixtures/ops/elementwise.safetensors. The keys of a case: `<case>.<input>`, `<case>.weights` (what the
gradient's sum is weighted with), `<case>.out`, `<case>.d<input>`. All in f32, of inputs that are small on purpose.

    python scripts/make_ops_elementwise_fixtures.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "tests/fixtures/ops"
EPS = 1e-5
PARTS = [3, 6]  # rows


def by_row(table):
    """(B, P, D) -> (B, R, D)"""
    return torch.cat([table[:, [part]].expand(-1, rows, -1) for part, rows in enumerate(PARTS)], 1)


def layer(x, gain, offset):
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * by_row(gain) + by_row(offset)


def rms(x, gain, offset):
    return F.rms_norm(x, x.shape[-1:], eps=EPS) * by_row(gain) + by_row(offset)


def residual(x, update, gate):
    return x + by_row(gate) * update


def angles(tokens, pairs):
    return torch.arange(tokens)[:, None] / 7 + torch.arange(pairs)[None] / 3


def neighbours(x):
    """The first 2 tokens do not turn."""
    turning = torch.view_as_complex(x[:, 2:].unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones(()), angles(x.shape[1] - 2, x.shape[-1] // 2))[:, None]
    return torch.cat([x[:, :2], torch.view_as_real(turning * turn).flatten(-2)], 1)


def halves(x):
    angle = angles(x.shape[1], x.shape[-1] // 2).repeat(1, 2)[:, None]
    x0, x1 = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-x1, x0], -1) * angle.sin()


def main():
    torch.manual_seed(0)
    tensors = {}

    def case(name, compute, **inputs):
        for tensor in inputs.values():
            tensor.requires_grad_()
        out = compute(**inputs)
        weights = torch.randn_like(out)
        (out * weights).sum().backward()
        tensors.update({f"{name}.weights": weights, f"{name}.out": out.detach()})
        for key, tensor in inputs.items():
            tensors.update({f"{name}.{key}": tensor.detach(), f"{name}.d{key}": tensor.grad})

    rows, width = sum(PARTS), 37
    for name, compute, samples in [("layer", layer, 2), ("rms", rms, 2), ("layer-shared", layer, 1)]:
        table = lambda: torch.randn(samples, len(PARTS), width)
        case(name, compute, x=3 * torch.randn(2, rows, width) + 1, gain=table(), offset=table())
    for name, samples in [("residual", 2), ("residual-shared", 1)]:
        x, update = torch.randn(2, 2, rows, width)
        case(name, residual, x=x.clone(), update=update.clone(), gate=torch.randn(samples, len(PARTS), width))
    line = torch.linspace(-12, 12, 501)
    case("gelu-erf", lambda x: F.gelu(x), x=line.clone())
    case("gelu-tanh", lambda x: F.gelu(x, approximate="tanh"), x=line.clone())
    case("silu", lambda x: F.silu(x), x=line.clone())
    case("neighbours", neighbours, x=torch.randn(2, 7, 3, 10))
    case("halves", halves, x=torch.randn(2, 7, 3, 10))
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, FOLDER / "elementwise.safetensors")


if __name__ == "__main__":
    main()
