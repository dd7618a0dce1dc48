"""Writes tests/fixtures/ltx_video: tiny random LTX-Video checkpoints and what diffusers makes of them.

    pip install -r scripts/requirements.txt
    python scripts/make_ltx_video_fixtures.py [FOLDER] [--only PART]

Everything is f32 on the CPU, in one thread, from fixed seeds: a second run writes the same bytes. On
another processor the last digits of the answers may differ, which the tests' tolerance of 1e-4 covers.
"""

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers.utils import logging as diffusers_logging

from fixtures.ltx_video import dit, pipelines, vae

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "ltx_video"

# Each writes its files into a folder; the pipelines are put together from what those before them have written.
PARTS = {"vae": vae.write, "dit": dit.write, "pipelines": pipelines.write}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", nargs="?", type=Path, default=OUT)
    arguments.add_argument("--only", action="append", choices=PARTS, help="write this part; may be given again")
    arguments = arguments.parse_args()
    diffusers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    for part in arguments.only or PARTS:
        PARTS[part](arguments.folder)


if __name__ == "__main__":
    main()
