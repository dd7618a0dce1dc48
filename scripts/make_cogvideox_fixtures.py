"""Writes tests/fixtures/cogvideox: tiny random CogVideoX checkpoints and what diffusers makes of them.

    pip install -r scripts/requirements.txt
    python scripts/make_cogvideox_fixtures.py [FOLDER]

Everything is f32 on the CPU, in one thread, from fixed seeds: a second run writes the same bytes. On
another processor the last digits of the answers may differ, which the tests' tolerance of 1e-4 covers.
"""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers.utils import logging as diffusers_logging
from transformers import T5Tokenizer
from transformers.utils import logging as transformers_logging

from fixtures import t5, tokenizer
from fixtures.cogvideox import checkpoints, dit, lora, pipelines, readme, schedulers, vae

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "cogvideox"


def make(out):
    """Checkpoints first, then one record after another."""
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "tokenizer"
        tokenizer.write_folder(files, tokenizer.train())
        differences = tokenizer.write_ids(out / "tokens.json", files)
        tokens = T5Tokenizer.from_pretrained(files)
        gated, relu = t5.encoder("gated-gelu", 10), t5.encoder("relu", 11)
        relu.save_pretrained(out / "t5-relu")
        pipes = {name: checkpoints.pipeline(name, tokens, gated) for name in checkpoints.TRANSFORMERS}
        for name, pipe in pipes.items():
            checkpoints.save(pipe, out / name, files)
    records = [t5.record(tokens, gated, relu), vae.record(pipes["cogvideox-2b"].vae), dit.record(pipes)]
    records += [schedulers.record(), *pipelines.record_all(pipes)]
    records += lora.record_all(pipes["cogvideox-5b"], out / "lora")
    for record in records:
        record.save(out)
    readme.write(out / "README.md", records, differences)


def main():
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else OUT
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    make(out)


if __name__ == "__main__":
    main()
