"""Writes tests/fixtures/wan: tiny random transformers and what diffusers and PEFT make of them.

    pip install -r scripts/requirements.txt
    python scripts/make_dit_fixtures.py [FOLDER]

Everything is f32 on the CPU, in one thread, from fixed seeds. Only `*/transformer` and `dit.safetensors` are written.
"""

import logging
import sys
from pathlib import Path

import torch

from fixtures import wan_dit

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures"


def main():
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else OUT
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    for family, maker in [("wan", wan_dit)]:
        models = maker.models()
        for name, model in models.items():
            model.save_pretrained(out / family / name / "transformer")
        maker.record(models).save(out / family)


if __name__ == "__main__":
    main()
