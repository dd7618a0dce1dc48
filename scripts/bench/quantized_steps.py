"""A training step over weights in each form: time and memory against those over bf16.

    python scripts/bench/quantized_steps.py target/release/vtrain [--rounds 5] [--steps 3] [--forms nf4,q4_k]

CogVideoX `mid` (8 heads of 64, 6 layers, 17x256x384: 2,146 tokens), made-up weights, rank 64. Every round runs each form once, in
turns with bf16; times are medians (minima) of all steps. Each is a process of its own, whose
peak is its resident memory. Prints a table in Markdown.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

FORMS = "fp8 fp8-scaled int8 nf4 fp4 q8_0 q6_k q5_k q5_1 q5_0 q4_k q4_1 q4_0 q3_k q2_k"
MID = {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "num_layers": 6,
    "in_channels": 16,
    "out_channels": 16,
    "text_embed_dim": 512,
    "time_embed_dim": 512,
    "use_rotary_positional_embeddings": True,
}
MIB = 1 << 20


def measure(vtrain, run, form, steps):
    command = [vtrain, "bench", "--config", run, "--random-weights", "--json", "--steps", str(steps)]
    done = subprocess.run(command + ["--set", f"model.quantization={form}"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--forms", default=",".join(FORMS.split()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        transformer = Path(folder) / "model/transformer"
        transformer.mkdir(parents=True)
        (transformer / "config.json").write_text(json.dumps(MID))
        run = Path(folder) / "run.yaml"
        run.write_text(
            "output_dir: out\ndevice: cpu\nmodel: {path: model, dtype: bf16}\nlora: {rank: 64, alpha: 64}\n"
            "datasets: [{path: nowhere, buckets: [[17, 256, 384]]}]\n"
        )
        forms = ["none", *args.forms.split(",")]
        found = {form: [] for form in forms}
        for _ in range(args.rounds):
            for form in forms:
                found[form].append(measure(args.vtrain, run, form, args.steps))
    dense = found["none"]
    seconds = {form: [second for told in tells for second in told["step_seconds"]] for form, tells in found.items()}
    of = lambda form, key: statistics.median(told[key] for told in found[form])
    without = of("none", "peak_memory_bytes") - of("none", "weight_bytes")
    columns = ["form", "weights, of bf16's", "step", "time, of bf16's", "loading peak", "step peak", "bf16's with these weights"]
    print(f"| {' | '.join(columns)} |")
    print("|" + " --- |" * len(columns))
    for form in forms:
        times = seconds[form]
        share = of(form, "weight_bytes") / dense[0]["weight_bytes"]
        ratio = statistics.median(times) / statistics.median(seconds["none"])
        least = min(times) / min(seconds["none"])
        loading, peak = of(form, "loading_peak_bytes"), of(form, "peak_memory_bytes")
        print(
            f"| {'bf16' if form == 'none' else form} | {share:.3f} | {statistics.median(times):.3f} s ({min(times):.3f}) "
            f"| {ratio:.2f} ({least:.2f}) | {loading / MIB:.0f} MiB | {peak / MIB:.0f} MiB "
            f"| {(without + of(form, 'weight_bytes')) / MIB:.0f} MiB |"
        )


if __name__ == "__main__":
    main()
