"""The table of expected efficiency in docs/cluster.md: a model, not a measurement.

    python scripts/bench/model_efficiency.py [BYTES [GIGABITS]]

BYTES: what a rank puts into the sum of a step, as `communication_bytes` in metrics.jsonl says (without: the adapters of
CogVideoX-5b at rank 128 on to_q, to_k, to_v, to_out.0). GIGABITS: of each rank's link, a second.

    seconds(N) = 2 (N - 1) / N * BYTES / bandwidth + 2 (N - 1) * LATENCY     a ring: reduce-scatter, then all-gather
    efficiency = step / (step + seconds(N))                                  nothing overlaps with the backward pass
"""

import sys

LAYERS, WIDTH, RANK, MATRICES = 42, 3072, 128, 4
LATENCY = 20e-6  # of one message, assumed
STEPS = [1.0, 3.0, 8.0]  # seconds of a step on one rank

adapters = LAYERS * MATRICES * 2 * RANK * WIDTH * 4
size = float(sys.argv[1]) if len(sys.argv) > 1 else adapters
link = (float(sys.argv[2]) if len(sys.argv) > 2 else 100.0) * 1e9 / 8

print(f"{size:.0f} bytes a step, {link / 1e9:.1f} GB/s")
print("| ranks | sum | " + " | ".join(f"step of {step:g} s" for step in STEPS) + " |")
print("| --- | --- |" + " --- |" * len(STEPS))
for ranks in [2, 4, 8, 16, 32, 64]:
    seconds = 2 * (ranks - 1) / ranks * size / link + 2 * (ranks - 1) * LATENCY
    cells = " | ".join(f"{100 * step / (step + seconds):.1f} %" for step in STEPS)
    print(f"| {ranks} | {1000 * seconds:.1f} ms | {cells} |")
