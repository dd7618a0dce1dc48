"""The time of a step as `vtrain plan` has it, against the same steps measured by `vtrain bench`.

    python scripts/bench/planned_steps.py target/release/vtrain [--rounds 3] [--steps 3] [--cases NAME,...]

Transformers of three families with few blocks, made-up weights, rank 16, on the CPU. A round plans and measures each case, one
process after the other; the planned time is the median of the plans, the measured one that of all steps. Prints a table in
Markdown, and ends with 1 if a plan is off by more than a quarter.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from quantized_steps import MID

MODELS = Path(__file__).resolve().parent.parent / "gpu_check" / "models"
BAR = 0.25


def published(name, **changes):
    return {**json.loads((MODELS / f"{name}.json").read_text()), **changes}


TINY = {**MID, "num_attention_heads": 2, "num_layers": 2, "text_embed_dim": 64, "time_embed_dim": 64}
LTX = published("ltx-video-2b", num_layers=3, num_attention_heads=8, cross_attention_dim=512)
WAN = published("wan-2.1-1.3b", num_layers=3, num_attention_heads=4, ffn_dim=2048)
INPUTS = "train.activation_policy=inputs"
# Name, configuration, bucket, settings.
CASES = {
    "CogVideoX tiny, 17x128x192, f32": (TINY, [17, 128, 192], ["model.dtype=f32"]),
    "CogVideoX mid, 9x256x384": (MID, [9, 256, 384], []),
    "CogVideoX mid, 9x256x384, `inputs`": (MID, [9, 256, 384], [INPUTS]),
    "CogVideoX mid, 17x256x384, nf4": (MID, [17, 256, 384], ["model.quantization=nf4"]),
    "CogVideoX mid, 9x256x384, `all`, 2 clips": (
        MID,
        [9, 256, 384],
        ["train.activation_policy=all", "train.batch_size=2"],
    ),
    "LTX-Video, 3 blocks of width 512, 49x320x480": (LTX, [49, 320, 480], []),
    "LTX-Video, the same, `inputs`, f32": (LTX, [49, 320, 480], [INPUTS, "model.dtype=f32"]),
    "Wan 2.1, 3 blocks of width 512, 17x256x384": (WAN, [17, 256, 384], []),
    "Wan 2.1, the same, `offloaded`": (WAN, [17, 256, 384], ["train.activation_policy=offloaded"]),
}


def told(vtrain, run, verb, options, sets):
    command = [vtrain, verb, "--config", run, "--json", *options]
    command += [word for value in sets for word in ("--set", value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cases", help="parts of names")
    args = parser.parse_args()
    wanted = args.cases.split(",") if args.cases else [""]
    wrong = False
    print("| transformer, clip | planned | measured | planned, of measured |")
    print("| --- | --- | --- | --- |")
    for name, (config, bucket, sets) in CASES.items():
        if not any(part in name for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            transformer = Path(folder) / "model/transformer"
            transformer.mkdir(parents=True)
            (transformer / "config.json").write_text(json.dumps(config))
            run = Path(folder) / "run.yaml"
            run.write_text(
                "output_dir: out\ndevice: cpu\nmodel: {path: ./model, dtype: bf16}\nlora: {rank: 16, alpha: 16}\n"
                f"datasets: [{{path: ., buckets: [{bucket}]}}]\n"
            )
            planned, measured = [], []
            for _ in range(args.rounds):
                planned.append(told(args.vtrain, run, "plan", ["--configs-only"], sets)["time"]["step_seconds"])
                options = ["--random-weights", "--steps", str(args.steps)]
                measured += told(args.vtrain, run, "bench", options, sets)["step_seconds"]
        plan, truth = statistics.median(planned), statistics.median(measured)
        wrong |= abs(plan / truth - 1) > BAR
        print(f"| {name} | {plan:.3f} s | {truth:.3f} s | {plan / truth:.2f} |", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
