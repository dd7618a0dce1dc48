"""Writes tests/fixtures/rng/seed-*.json: what torch's CPU generator answers, for tests/rng.rs.

    python scripts/make_rng_fixtures.py

Each file holds one seed and several streams. A stream is a list of calls made on one fresh
`torch.Generator("cpu").manual_seed(seed)`, each call with what came back. Floats are written with
the fewest digits that name the f32. `randn_bits_sum` stands for a longer call: the sum, as 64-bit
integers, of the bit patterns of `randn(n)`.

The numbers are those of torch on x86-64 with AVX2 (see src/rng.rs); the script stops elsewhere.
"""

import json
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "rng"
SEEDS = [0, 42, 2**31 + 11, 2**33 + 5]
SIZES = [1, 5, 15, 16, 17, 31, 33, 100, 1000]


def floats(tensor):
    """Shortest decimals, as JSON numbers."""
    return [float(str(x)) for x in tensor.numpy()]


def call(generator, name, *args):
    """Makes one call and records it."""
    if name == "randn":
        out = floats(torch.randn(*args, generator=generator))
    elif name == "rand":
        out = floats(torch.rand(*args, generator=generator))
    elif name == "rand_one":
        out = torch.rand(1, dtype=torch.float64, generator=generator).item()
    elif name == "randint":
        low, high, n = args
        out = torch.randint(low, high, (n,), generator=generator).tolist()
    elif name == "randperm":
        out = torch.randperm(*args, generator=generator).tolist()
    elif name == "randn_bits_sum":
        bits = torch.randn(*args, generator=generator).numpy().view(np.uint32)
        out = int(bits.astype(np.uint64).sum())
    else:
        raise ValueError(name)
    return {"call": name, "args": list(args), "out": out}


def streams():
    """Calls to make, each list on a generator of its own."""
    yield from ([("randn", n)] for n in SIZES)
    yield [("rand", 40), ("rand_one",), ("rand", 3)]
    # The first range takes 32 bits a draw, the others 64.
    yield [
        ("randint", 0, 1000, 12),
        ("randint", -5, 2**28 - 6, 4),
        ("randint", -5, 2**28 - 5, 4),
        ("randint", 10**6, 10**6 + 2**40, 4),
        ("randint", -(2**63), 2**63 - 1, 4),
    ]
    yield [("randperm", n) for n in (0, 1, 2, 12, 100)]
    # An odd short call leaves a normal waiting; only the next short call may take it.
    yield [
        ("randn", 5),
        ("rand", 3),
        ("randn", 40),
        ("randint", 0, 1000, 2),
        ("randn", 2),
        ("randperm", 7),
        ("randn", 1),
        ("randn", 16),
        ("randn", 3),
        ("rand", 1),
    ]
    # Longer than the engine's 624 words many times over, with a tail.
    yield [("randn_bits_sum", 200_003), ("rand", 2)]


def main():
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        raise SystemExit("these fixtures need a processor with AVX2")
    OUT.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        recorded = []
        for stream in streams():
            generator = torch.Generator("cpu").manual_seed(seed)
            recorded.append([call(generator, *one) for one in stream])
        lines = ",\n".join(json.dumps(stream) for stream in recorded)
        text = f'{{"seed": {seed}, "torch": "{torch.__version__.split("+")[0]}", "streams": [\n{lines}\n]}}\n'
        (OUT / f"seed-{seed}.json").write_text(text)


if __name__ == "__main__":
    main()
