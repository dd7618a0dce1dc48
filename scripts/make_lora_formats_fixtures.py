"""Writes tests/fixtures/lora/formats: adapter files of several programs, and what diffusers makes of them.

    pip install -r scripts/requirements.txt
    python scripts/make_lora_formats_fixtures.py

* musubi_wan, comfyui_wan, comfyui_ltx_video: files as those programs name them, made up; `*.expected` is what diffusers turns
  them into, with alpha multiplied in
* diffusers_wan: saved by diffusers from a Wan transformer whose layers have different ranks and alphas; `.expected` has B A
  of every layer, scaled as PEFT does
* peft_cogvideox/: saved by PEFT itself (`PeftModel.save_pretrained`), rank-stabilised; `.expected` as above

Everything runs on the CPU in one thread; a second run writes the same bytes.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel, WanPipeline, WanTransformer3DModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_ltxv_lora_to_diffusers,
    _convert_non_diffusers_wan_lora_to_diffusers,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
OUT = FIXTURES / "lora" / "formats"


def random(generator, *shape):
    return torch.randn(*shape, generator=generator)


def save(name, tensors, metadata=None):
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / f"{name}.safetensors", metadata)


def made_up(names, spell, generator, alpha, rank=2, width=6, dtype=torch.float32):
    """An adapter of each name."""
    down, up = spell
    tensors = {}
    for index, name in enumerate(names):
        tensors[f"{name}.{down}.weight"] = random(generator, rank, width).to(dtype)
        tensors[f"{name}.{up}.weight"] = random(generator, width, rank).to(dtype)
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha[index % len(alpha)]))
    return tensors


def products(model):
    """B A of every layer with an adapter, scaled."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            (adapter,) = module.lora_A.keys()
            product = module.lora_B[adapter].weight @ module.lora_A[adapter].weight
            found[name] = product.detach() * module.scaling[adapter]
    return found


def stir(model, generator):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = random(generator, *parameter.shape)


def wan_names(image):
    attn = [f"{attn}.{part}" for attn in ("self_attn", "cross_attn") for part in "qkvo"]
    return [
        f"blocks.{block}.{part}"
        for block in range(2)
        for part in [*attn, *(["cross_attn.k_img", "cross_attn.v_img"] if image else []), "ffn.0", "ffn.2"]
    ]


def foreign(generator):
    """Files that diffusers converts."""
    names = [f"lora_unet_{name.replace('.', '_')}" for name in wan_names(True)]
    tensors = made_up(names, ("lora_down", "lora_up"), generator, [1.0, 2.0, 3.5])
    save("musubi_wan", tensors, {"ss_network_module": "networks.lora_wan", "modelspec.trigger_phrase": "a red ball"})
    save("musubi_wan.expected", _convert_musubi_wan_lora_to_diffusers(dict(tensors)))

    names = [f"diffusion_model.{name}" for name in wan_names(False)]
    rest = ["time_projection.1", "head.head", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    tensors = made_up(names, ("lora_A", "lora_B"), generator, [4.0, 0.5])
    tensors |= made_up([f"diffusion_model.{name}" for name in rest], ("lora_A", "lora_B"), generator, None)
    save("comfyui_wan", tensors)
    save("comfyui_wan.expected", _convert_non_diffusers_wan_lora_to_diffusers({k: v.clone() for k, v in tensors.items()}))

    layers = ["attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ff.net.0.proj", "ff.net.2"]
    names = [f"diffusion_model.transformer_blocks.{block}.{layer}" for block in range(2) for layer in layers]
    tensors = made_up(names, ("lora_A", "lora_B"), generator, None, dtype=torch.bfloat16)
    save("comfyui_ltx_video", tensors)
    save("comfyui_ltx_video.expected", _convert_non_diffusers_ltxv_lora_to_diffusers(dict(tensors)))


def by_diffusers(generator):
    """Saved by a pipeline, with patterns of ranks and alphas."""
    model = WanTransformer3DModel.from_pretrained(FIXTURES / "wan" / "wan-2.1-t2v" / "transformer")
    model.add_adapter(
        LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=["to_q", "to_v", "net.2"],
            rank_pattern={"attn2.to_q": 3},
            alpha_pattern={r"blocks\.1\.attn1\.to_.": 5, "net.2": 7},
        )
    )
    stir(model, generator)
    folder = OUT / "saved"
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    metadata = {key: list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    WanPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=metadata,
    )
    shutil.move(folder / "pytorch_lora_weights.safetensors", OUT / "diffusers_wan.safetensors")
    folder.rmdir()
    save("diffusers_wan.expected", products(model))


def by_peft(generator):
    """Saved by PEFT, which writes its settings beside."""
    folder = FIXTURES / "cogvideox" / "cogvideox-5b" / "transformer"
    model = CogVideoXTransformer3DModel.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["to_k", "proj_out"]))
    stir(model, generator)
    model.save_pretrained(OUT / "peft_cogvideox")
    (OUT / "peft_cogvideox" / "README.md").unlink()
    path = OUT / "peft_cogvideox" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None  # a path of this machine
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    found = {name.removeprefix("base_model.model."): product for name, product in products(model).items()}
    save("peft_cogvideox.expected", found)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(10)
    foreign(generator)
    by_diffusers(generator)
    by_peft(generator)


if __name__ == "__main__":
    main()
