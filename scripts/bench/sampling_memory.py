"""Peak memory of sampling a video with HunyuanVideo, as `vtrain plan` gives it, beside what diffusers was measured to take.

    pip install -r scripts/setup/requirements.txt
    python scripts/bench/sampling_memory.py target/release/vtrain

Prints the table of docs/hardware.md. Nothing is downloaded: hollow_checkpoints.py makes files of the published sizes without
numbers. The video is planned as a validation video of a run with adapters of rank 1, 121x512x768 in bf16. The figures of
diffusers are those of its article on video models (huggingface.co/blog/video_gen, an A100 of 80 GB).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hollow_checkpoints import checkpoint

CLIPS = Path(__file__).resolve().parent.parent.parent / "datasets/shapes/videos"
MODEL, TILES = ["model.offload=model"], ["precompute.vae_tiling=true"]


def form(name):
    return [f"model.quantization={name}"]


# Technique, settings, GB of the article.
ROWS = [
    ("none", [], 60.10),
    ("model offload", MODEL, 28.87),
    ("VAE tiling", TILES, 43.58),
    ("int8", form("int8"), 49.90),
    ("int8 + offload", form("int8") + MODEL, 35.66),
    ("int8 + tiling", form("int8") + TILES, 36.92),
    ("int8 + both", form("int8") + MODEL + TILES, 26.18),
    ("nf4", form("nf4"), 42.96),
    ("nf4 + offload", form("nf4") + MODEL, 21.99),
    ("nf4 + tiling", form("nf4") + TILES, 26.42),
    ("nf4 + both", form("nf4") + MODEL + TILES, 14.15),
    ("fp8", form("fp8"), 51.70),
    ("fp8 + offload", form("fp8") + MODEL, 21.99),
    ("fp8 + tiling", form("fp8") + TILES, 35.17),
    ("nf4 + group + tiling", form("nf4") + ["model.offload=group", "model.text_encoder_quantization=nf4"] + TILES, None),
]


def plan(vtrain, folder, sets):
    command = [vtrain, "plan", "--config", folder / "run.yaml", "--no-calibration", "--json", "--device-memory", "1000GB"]
    for value in sets:
        command += ["--set", value]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    output.check_returncode()
    planned = json.loads(output.stdout)
    return planned["text"]["peak_bytes"], planned["validation"]["peak_bytes"]


def main():
    print("| technique | text | denoising and decoding | diffusers |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        checkpoint("HunyuanVideo", folder / "model")
        (folder / "clips").mkdir()
        shutil.copy(CLIPS / "ball_rolls.mp4", folder / "clips/a.mp4")
        (folder / "clips/a.txt").write_text("a")
        (folder / "run.yaml").write_text(
            "model: {path: ./model}\ndatasets: [{path: ./clips, buckets: [[1, 64, 64]]}]\nlora: {rank: 1, alpha: 1}\n"
            "validation: {prompts: [{prompt: a, num_frames: 121, height: 512, width: 768}]}\n"
        )
        for technique, sets, theirs in ROWS:
            cells = [f"{bytes_needed / 1e9:.2f} GB" for bytes_needed in plan(sys.argv[1], folder, sets)]
            print(f"| {technique} | {' | '.join(cells)} | {f'{theirs:.2f} GB' if theirs else ''} |", flush=True)


if __name__ == "__main__":
    main()
