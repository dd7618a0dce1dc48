"""Loads the same adapters from several files into a transformer of diffusers; stops where they are not the same.

    python scripts/checks/check_lora_formats.py FAMILY TRANSFORMER_DIR FILE FILE...

FAMILY is cogvideox, hunyuan_video, ltx_video, mochi or wan. TRANSFORMER_DIR may lack weights: the adapters alone are loaded
then. Every file goes the way of the family's pipeline (`lora_state_dict`, `load_lora_into_transformer`). Python's warnings are
errors, and so is anything that diffusers or PEFT log from warnings on: unused keys, missing keys, settings that do not fit the
weights. B A of every layer, scaled, must be that of the first file to 1e-6 of its norm, and so must be the bias of lora_B
where there is one. Layers that the first file lacks must have a B of zeros.
"""

import sys
from pathlib import Path

import diffusers
import torch

from silence import silent

FAMILIES = {
    "cogvideox": (diffusers.CogVideoXPipeline, diffusers.CogVideoXTransformer3DModel),
    "hunyuan_video": (diffusers.HunyuanVideoPipeline, diffusers.HunyuanVideoTransformer3DModel),
    "ltx_video": (diffusers.LTXPipeline, diffusers.LTXVideoTransformer3DModel),
    "mochi": (diffusers.MochiPipeline, diffusers.MochiTransformer3DModel),
    "wan": (diffusers.WanPipeline, diffusers.WanTransformer3DModel),
}


def adapters(model):
    """A, B, scale and bias of lora_B of every layer with an adapter."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["checked"], module.lora_B["checked"]
            bias = None if b.bias is None else b.bias.detach()
            found[name] = (a.weight.detach(), b.weight.detach(), module.scaling["checked"], bias)
    return found


def load(family, folder, file):
    pipeline, transformer = FAMILIES[family]
    if any(folder.glob("*.safetensors")):
        model = transformer.from_pretrained(folder)
    else:
        with torch.device("meta"):
            model = transformer.from_config(transformer.load_config(folder))
        model.to_empty(device="cpu")  # memory that nobody writes to takes none
    state, metadata = pipeline.lora_state_dict(str(file.parent), weight_name=file.name, return_lora_metadata=True)
    if not all("lora" in key for key in state):
        sys.exit(f"{file}: keys without 'lora', which load_lora_weights refuses")
    kept = {} if metadata is None else {"metadata": metadata}
    pipeline.load_lora_into_transformer(state, transformer=model, adapter_name="checked", **kept)
    return adapters(model)


def norm(b, a):
    """Frobenius norm of B A, which is not computed itself: it may be large."""
    b, a = b.double(), a.double()
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()


def difference(ours, theirs):
    """Relative difference of two layers' scaled products by their norm, or that of their biases if it is larger."""
    (a, b, scale, bias), (first_a, first_b, first_scale, first_bias) = ours, theirs
    both = norm(torch.cat([b * scale, -first_b * first_scale], 1), torch.cat([a, first_a]))
    error = both / norm(first_b * first_scale, first_a)
    if bias is not None or first_bias is not None:
        first_bias = first_bias * first_scale
        error = max(error, ((bias * scale - first_bias).abs().max() / first_bias.abs().max()).item())
    return error


def main():
    family, folder, *files = sys.argv[1:]
    first = None
    for file in map(Path, files):
        with silent(file):
            found = load(family, Path(folder), file.resolve())
        first = first or found
        zeros = {name for name, (_, b, _, _) in found.items() if name not in first and not b.any()}
        if not found or found.keys() - zeros != first.keys():
            sys.exit(f"{file}: adapters of {len(found)} layers, not of {len(first)}")
        error = max(difference(found[name], first[name]) for name in first)
        if not error <= 1e-6:
            sys.exit(f"{file}: products differ by {error:.1e}")
        biases = sum(bias is not None for _, _, _, bias in found.values())
        print(f"{file.name}: {len(found)} adapters, {biases} biases, products differ by {error:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
