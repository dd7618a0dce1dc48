"""Time of twenty clips by one call of `vtrain sample --prompts`, against twenty calls for one prompt each.

    pip install -r scripts/setup/requirements.txt
    python scripts/bench/many_prompts.py target/release/vtrain [--rounds 3] [--count 20] [--models NAME,...]

Prints the table of docs/benchmarks.md. The checkpoints are the tiny ones of tests/fixtures; clips of 5x32x48 (9x64x96 for
LTX-Video), 4 steps, with guidance. What is measured is therefore what a call costs besides its steps: starting, reading and
building each part. Every text is another one. Seconds on the clock, and of all processor cores, which count on a machine that is
busy; medians of all rounds; calls alternate, each into a fresh folder.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
# Checkpoint, and the frames, rows and columns of a clip.
MODELS = {
    "CogVideoX": (FIXTURES / "cogvideox" / "cogvideox-2b", (5, 32, 48)),
    "Wan 2.1": (FIXTURES / "wan" / "wan-2.1-t2v", (5, 32, 48)),
    "LTX-Video": (FIXTURES / "ltx_video" / "ltx-0.9.0", (9, 64, 96)),
}
PARTS = ("text encoder", "transformer", "VAE's decoder")


def sample(vtrain, model, size, arguments):
    """Seconds of a call on the clock and of the processor, and what it says."""
    frames, height, width = size
    command = [vtrain, "sample", "--model", model, "--num-frames", frames, "--height", height, "--width", width]
    command += ["--steps", 4, "--guidance-scale", 3, "--dtype", "f32", "--device", "cpu", *arguments]
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    elapsed, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return (elapsed, processor), done.stderr


def medians(rounds):
    """Medians of both kinds of seconds."""
    return [statistics.median(kind) for kind in zip(*rounds, strict=True)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vtrain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--models", help="names, separated by commas")
    options = parser.parse_args()
    names = options.models.split(",") if options.models else list(MODELS)
    texts = [f"a red ball rolls, number {n}" for n in range(options.count)]
    print("| model | one call (s) | processor (s) | single calls (s) | processor (s) | loads of text encoder, transformer, VAE |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        model, size = MODELS[name]
        together, alone = [], []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                prompts = folder / "prompts.txt"
                prompts.write_text("\n".join(texts))
                seconds, said = sample(options.vtrain, model, size, ["--prompts", prompts, "--output", folder / "out"])
                together.append(seconds)
                single = []
                for n, text in enumerate(texts):
                    clip = folder / f"{n:02}.mp4"
                    single.append(sample(options.vtrain, model, size, ["--prompt", text, "--output", clip])[0])
                alone.append([sum(kind) for kind in zip(*single, strict=True)])
        (one, one_work), (many, many_work) = medians(together), medians(alone)
        loads = ", ".join(str(said.count(f"loading the {part}")) for part in PARTS)
        print(f"| {name} | {one:.1f} | {one_work:.1f} | {many:.1f} | {many_work:.1f} | {loads} |", flush=True)


if __name__ == "__main__":
    main()
