"""Seconds that `vtrain plan` takes for published models of six families, from headers and configs alone.

    pip install -r scripts/setup/requirements.txt
    python scripts/bench/plan_seconds.py target/release/vtrain [--rounds 3] [--cases NAME,...]

Prints the table of docs/benchmarks.md. Nothing is downloaded: hollow_checkpoints.py makes checkpoints without numbers. Each plan
has all stages, with adapters of rank 128 and a validation video of the clips' size, for a GPU: "fits" in 1000 GB; "suggestions"
in 12 GB, in which nothing fits as it is; "auto" in 12 GB with every `auto` that there is. Medians of all rounds:
time, and that of all processor cores.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from hollow_checkpoints import checkpoint

# Bucket of each.
BUCKETS = {
    "CogVideoX-5b": [49, 480, 720],
    "LTX-Video 2B": [49, 512, 768],
    "Wan 2.1 14B": [81, 480, 832],
    "HunyuanVideo": [49, 512, 768],
    "Mochi 1": [37, 480, 848],
    "Allegro": [88, 720, 1280],
}
AUTO = ["model.offload=auto", "model.quantization=auto", "model.text_encoder_quantization=auto"]
# Heading, memory, settings.
PLANS = [("fits", "1000GB", []), ("suggestions", "12GB", []), ("`auto`", "12GB", AUTO)]


def hollow_clip(path, frames, height, width):
    """A clip of this size, with holes in place of its pixels."""
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F16:1 Ip A1:1 C420\n".encode())
        for _ in range(frames):
            file.write(b"FRAME\n")
            file.seek(height * width * 3 // 2, 1)
        file.truncate()


def seconds(vtrain, run, memory, sets):
    command = [vtrain, "plan", "--config", run, "--no-calibration", "--json", "--device-memory", memory]
    command += [word for value in sets for word in ("--set", value)]
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return elapsed, processor


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", help="parts of names")
    args = parser.parse_args()
    wanted = args.cases.split(",") if args.cases else [""]
    print("| model, clip | " + " | ".join(heading for heading, _, _ in PLANS) + " |")
    print("| --- " * (len(PLANS) + 1) + "|")
    for name, bucket in BUCKETS.items():
        if not any(part in name for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            checkpoint(name, folder / "model")
            (folder / "clips").mkdir()
            hollow_clip(folder / "clips/a.y4m", *bucket)
            (folder / "clips/a.txt").write_text("a")
            frames, height, width = bucket
            run = folder / "run.yaml"
            run.write_text(
                f"model: {{path: ./model}}\ndatasets: [{{path: ./clips, buckets: [{bucket}]}}]\n"
                "lora: {rank: 128, alpha: 128}\n"
                f"validation: {{prompts: [{{prompt: a, num_frames: {frames}, height: {height}, width: {width}}}]}}\n"
            )
            cells = []
            for _, memory, sets in PLANS:
                rounds = [seconds(args.vtrain, run, memory, sets) for _ in range(args.rounds)]
                elapsed, processor = (statistics.median(times) for times in zip(*rounds, strict=True))
                cells.append(f"{elapsed:.2f} s ({processor:.2f})")
            clip = "x".join(str(side) for side in bucket)
            print(f"| {name}, {clip} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
