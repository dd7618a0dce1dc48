"""A training step with every block streamed against one with all in memory: time and memory.

    python scripts/bench/streamed_steps.py target/release/vtrain [--rounds 5] [--steps 3] [--forms none,nf4]

CogVideoX `mid` of quantized_steps.py at 9x256x384 (1,378 tokens), made-up weights, rank 64, what is kept between the passes the
same for both. Every round runs each form in memory and streamed, in turns, each a process of its own; times are
medians (minima) of all steps. The files are in the page cache. Prints a table in Markdown.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from quantized_steps import MIB, MID

OFFLOAD = {"in memory": "none", "streamed": "group"}


def measure(vtrain, run, form, offload, steps):
    command = [vtrain, "bench", "--config", run, "--random-weights", "--json", "--steps", str(steps)]
    sets = [f"model.quantization={form}", f"model.offload={offload}"]
    if offload == "group":
        sets.append("model.offload_resident=0")
    command += [word for value in sets for word in ("--set", value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--forms", default="none,nf4")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        transformer = Path(folder) / "model/transformer"
        transformer.mkdir(parents=True)
        (transformer / "config.json").write_text(json.dumps(MID))
        run = Path(folder) / "run.yaml"
        run.write_text(
            "output_dir: out\ndevice: cpu\nmodel: {path: model, dtype: bf16}\nlora: {rank: 64, alpha: 64}\n"
            "train: {activation_policy: inputs+attention}\ndatasets: [{path: nowhere, buckets: [[9, 256, 384]]}]\n"
        )
        for _ in range(args.rounds):
            for form in args.forms.split(","):
                for name, offload in OFFLOAD.items():
                    told = measure(args.vtrain, run, form, offload, args.steps)
                    found.setdefault((form, name), []).append(told)
    columns = ["form", "blocks", "step", "time, of that in memory", "blocks in memory at most", "step peak"]
    print(f"| {' | '.join(columns)} |")
    print("|" + " --- |" * len(columns))
    for (form, name), tells in found.items():
        times = [second for told in tells for second in told["step_seconds"]]
        base = [second for told in found[form, "in memory"] for second in told["step_seconds"]]
        ratio, least = statistics.median(times) / statistics.median(base), min(times) / min(base)
        blocks = tells[0].get("block_bytes_peak") or tells[0]["weight_bytes"]
        peak = statistics.median(told["peak_memory_bytes"] for told in tells)
        print(
            f"| {'bf16' if form == 'none' else form} | {name} | {statistics.median(times):.3f} s ({min(times):.3f}) "
            f"| {ratio:.2f} ({least:.2f}) | {blocks / MIB:.0f} MiB | {peak / MIB:.0f} MiB |"
        )


if __name__ == "__main__":
    main()
