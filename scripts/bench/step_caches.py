"""Time and PSNR against plain sampling of each cache between steps, on the model that ships.

    python scripts/bench/step_caches.py target/release/vtrain [--rounds 3] [--caches first-block:threshold=0.1 ...]

Prints the table of docs/benchmarks.md: datasets/tiny-world, 9 frames of 64x96, 50 steps, guidance 3, in f32 on the CPU. Time is
that of the steps alone, each run in a process of its own, in turns with a plain one; the ratio is of the shortest runs, summed
over the prompts. PSNR is over the pictures of a clip.
"""

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = Path(__file__).resolve().parents[2] / "datasets/tiny-world"
STEPS = 50
PROMPTS = ["a red square turns", "a blue ball grows", "a yellow triangle moves", "a green ball stands still"]
CACHES = [
    "auto",
    *(f"first-block:threshold={threshold}" for threshold in (0.15, 0.2, 0.3)),
    *(f"taylorseer:interval={setting}" for setting in ("2", "3,before=12,after=42", "5,before=12,after=42")),
    *(f"taylorseer:interval={setting},of=attention" for setting in ("2", "3,before=12,after=42", "5,before=12,after=42")),
    *(f"taylorseer:interval={setting},of=layers" for setting in ("2", "3,before=12,after=42", "5,before=12,after=42")),
    *(f"magcache:ratios=TABLE,threshold={threshold}" for threshold in (0.04, 0.08, 0.12)),
    *(f"pab:{setting}" for setting in ("skip=2", "skip=3", "skip=5")),
    *(f"fastercache:{setting}" for setting in ("negative-skip=2,range=-1..0", "negative-skip=2", "negative-skip=5")),
]


def sample(vtrain, prompt, out, more):
    """Pictures of a clip, seconds of its steps, and how many of its passes computed everything."""
    command = [vtrain, "sample", "--model", MODEL, "--prompt", prompt, "--output", f"{out}/", "--json"]
    command += f"--num-frames 9 --height 64 --width 96 --steps {STEPS} --guidance-scale 3 --dtype f32 --device cpu".split()
    done = subprocess.run(command + more, check=True, capture_output=True, text=True)
    steps = json.loads(done.stdout)["steps"]
    works = [step[branch] for step in steps for branch in ("positive", "negative")]
    pictures = np.stack([np.asarray(Image.open(path), np.float64) for path in sorted(out.glob("*.png"))])
    return pictures, sum(step["seconds"] for step in steps), works.count("computed") / len(works)


def decibels(a, b):
    error = ((a - b) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--caches", nargs="*", default=CACHES)
    args = parser.parse_args()
    print("| cache | passes that compute all | time | PSNR, lowest | mean |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        table = folder / "ratios.json"
        sample(args.vtrain, PROMPTS[0], folder / "calibrated", ["--calibrate-magcache", str(table)])
        for cache in args.caches:
            given = ["--cache", cache.replace("TABLE", str(table))]
            plain_seconds, seconds, shares, found = 0, 0, [], []
            for prompt in PROMPTS:
                runs = [
                    (sample(args.vtrain, prompt, folder / "plain", []), sample(args.vtrain, prompt, folder / "cached", given))
                    for _ in range(args.rounds)
                ]
                plain_seconds += min(plain[1] for plain, _ in runs)
                seconds += min(cached[1] for _, cached in runs)
                (plain, _, _), (cached, _, share) = runs[0]
                shares.append(share)
                found.append(decibels(plain, cached))
            ratio, share = plain_seconds / seconds, sum(shares) / len(shares)
            cells = [f"`{cache}`", f"{share:.0%}", f"{ratio:.2f}x", f"{min(found):.1f} dB"]
            print(f"| {' | '.join(cells)} | {sum(found) / len(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
