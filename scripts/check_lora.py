"""Loads an adapter file into a CogVideoX pipeline of diffusers and says what arrived; stops at the first thing wrong.

    python scripts/check_lora.py MODEL_DIR LORA_FILE

Python's warnings are errors, and so is anything that diffusers or PEFT log from warnings on: unused keys, missing keys,
settings that do not fit the weights. Every adapter must hold the file's numbers, and the scale that its metadata gives.
"""

import json
import logging
import math
import sys
import warnings
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline
from safetensors import safe_open


class Complaints(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name}: {record.getMessage()}")


def load(model, file):
    """The transformer under the adapter."""
    complaints = Complaints()
    pipe = CogVideoXPipeline.from_pretrained(model)
    for name in ("diffusers", "peft", "transformers"):
        logging.getLogger(name).addHandler(complaints)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="checked")
    if complaints.lines:
        sys.exit("\n".join(complaints.lines))
    return pipe.transformer


def compare(transformer, tensors, settings):
    """Every adapter against the file."""
    rank, alpha = settings["transformer.r"], settings["transformer.lora_alpha"]
    scale = alpha / (math.sqrt(rank) if settings["transformer.use_rslora"] else rank)
    layers = {name: module for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    for name, module in layers.items():
        for half in ("lora_A", "lora_B"):
            found = getattr(module, half)["checked"].weight
            if not torch.equal(found, tensors.pop(f"transformer.{name}.{half}.weight")):
                sys.exit(f"{name}.{half} holds other numbers than the file")
        if module.r["checked"] != rank or module.lora_alpha["checked"] != alpha:
            sys.exit(f"{name}: rank {module.r}, alpha {module.lora_alpha}")
        if not math.isclose(module.scaling["checked"], scale):
            sys.exit(f"{name}: scale {module.scaling}, not {scale}")
    if tensors or not layers:
        sys.exit(f"{len(tensors)} tensors of the file have no place: {sorted(tensors)[:3]}")
    print(f"{len(layers)} adapters of rank {rank}, alpha {alpha}, scale {scale:.6g}: no warning, no key too many or too few")


def main():
    model, file = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    compare(load(model, file), tensors, settings)


if __name__ == "__main__":
    main()
