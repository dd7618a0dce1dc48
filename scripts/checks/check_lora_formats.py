"""Loads the same adapters from several files into a transformer of diffusers; stops where they are not the same.

    python scripts/checks/check_lora_formats.py FAMILY TRANSFORMER_DIR FILE FILE...

FAMILY is cogvideox, ltx_video or wan. Every file goes the way of the family's pipeline (`lora_state_dict`,
`load_lora_into_transformer`). Python's warnings are errors, and so is anything that diffusers or PEFT log from warnings on:
unused keys, missing keys, settings that do not fit the weights. B A of every layer, scaled, must be that of the first file
to 1e-6, and so must be the bias of lora_B where there is one.
"""

import sys
from pathlib import Path

import diffusers
import torch

from silence import silent

FAMILIES = {
    "cogvideox": (diffusers.CogVideoXPipeline, diffusers.CogVideoXTransformer3DModel),
    "ltx_video": (diffusers.LTXPipeline, diffusers.LTXVideoTransformer3DModel),
    "wan": (diffusers.WanPipeline, diffusers.WanTransformer3DModel),
}


def products(model):
    """Scaled B A of every layer with an adapter, and the scaled bias of lora_B under `<layer>.bias`."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b, scale = module.lora_A["checked"], module.lora_B["checked"], module.scaling["checked"]
            found[name] = (b.weight @ a.weight).detach() * scale
            if b.bias is not None:
                found[f"{name}.bias"] = b.bias.detach() * scale
    return found


def load(family, folder, file):
    pipeline, transformer = FAMILIES[family]
    model = transformer.from_pretrained(folder)
    state, metadata = pipeline.lora_state_dict(str(file.parent), weight_name=file.name, return_lora_metadata=True)
    if not all("lora" in key for key in state):
        sys.exit(f"{file}: keys without 'lora', which load_lora_weights refuses")
    kept = {} if metadata is None else {"metadata": metadata}
    pipeline.load_lora_into_transformer(state, transformer=model, adapter_name="checked", **kept)
    return products(model)


def main():
    family, folder, *files = sys.argv[1:]
    first = None
    for file in map(Path, files):
        with silent(file):
            found = load(family, folder, file.resolve())
        first = first or found
        if not found or found.keys() != first.keys():
            sys.exit(f"{file}: adapters of {len(found)} layers, not of {len(first)}")
        errors = [((found[name] - first[name]).abs().max() / first[name].abs().max()).item() for name in first]
        if not max(errors) <= 1e-6:
            sys.exit(f"{file}: products differ by {max(errors):.1e}")
        biases = sum(name.endswith(".bias") for name in found)
        print(f"{file.name}: {len(found) - biases} adapters, {biases} biases, products differ by {max(errors):.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
