"""Writes tests/fixtures/wan: tiny random Wan checkpoints and what diffusers makes of them.

    pip install -r scripts/requirements.txt
    python scripts/make_wan_fixtures.py [FOLDER] [--only PART ...]

Everything is f32 on the CPU, in one thread, from fixed seeds: a second run writes the same bytes. On
another processor the last digits of the answers may differ, which the tests' tolerance of 1e-4 covers.
"""

import argparse
import logging
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from fixtures.wan import clip, dit, lora, pipelines, text, vae

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "wan"

# Each writes its own files below the folder that it is given. The pipelines are put together from what the parts before
# them have written; else no part needs another.
PARTS = {part.__name__.split(".")[-1]: part.make for part in (vae, text, clip, dit, pipelines, lora)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    for part in arguments.only:
        PARTS[part](arguments.folder.resolve())


if __name__ == "__main__":
    main()
