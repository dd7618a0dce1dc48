"""Checkpoints of published sizes without numbers, for plans: files of safetensors with the names and shapes of every tensor
in bf16, and a hole in place of the numbers, so that they take no room on disk. Nothing is downloaded.
"""

import json
import struct
from pathlib import Path

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

MODELS = Path(__file__).resolve().parent.parent / "gpu_check" / "models"
XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
LLAMA = dict(
    vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=8192,
)  # fmt: skip
CLIP = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
)
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def t5():
    return {"text_encoder": T5EncoderModel(T5Config(vocab_size=32128, **XXL))}


def umt5():
    return {"text_encoder": UMT5EncoderModel(UMT5Config(vocab_size=256384, **XXL))}


def llama():
    return {"text_encoder": LlamaModel(LlamaConfig(**LLAMA)), "text_encoder_2": CLIPTextModel(CLIPTextConfig(**CLIP))}


# Name: pipeline, transformer's configuration and changes to it, transformer, autoencoder, text encoders, scheduler.
CHECKPOINTS = {
    "CogVideoX-5b": (
        "CogVideoXPipeline", "cogvideox-5b", {}, "CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX", t5,
        {
            "_class_name": "CogVideoXDPMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0,
            "timestep_spacing": "trailing",
        },
    ),
    "LTX-Video 2B": (
        "LTXPipeline", "ltx-video-2b", {}, "LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo", t5,
        {**FLOW, "use_dynamic_shifting": True},
    ),
    "Wan 2.1 14B": (
        "WanPipeline", "wan-2.1-1.3b", WAN_14B, "WanTransformer3DModel", "AutoencoderKLWan", umt5, {**FLOW, "shift": 3.0}
    ),
    "HunyuanVideo": (
        "HunyuanVideoPipeline", "hunyuan-video", {}, "HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo", llama,
        {**FLOW, "shift": 7.0},
    ),
    "Mochi 1": (
        "MochiPipeline", "mochi-1", {}, "MochiTransformer3DModel", "AutoencoderKLMochi", t5, {**FLOW, "invert_sigmas": True}
    ),
    "Allegro": (
        "AllegroPipeline", "allegro", {}, "AllegroTransformer3DModel", "AutoencoderKLAllegro", t5,
        {
            "_class_name": "EulerAncestralDiscreteScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
            "prediction_type": "epsilon", "timestep_spacing": "linspace",
        },
    ),
}  # fmt: skip


def hollow(module, path):
    """A safetensors file of the module's names and shapes in bf16, with a hole in place of numbers."""
    header, offset = {}, 0
    for name, tensor in module.state_dict().items():
        size = 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def checkpoint(name, folder):
    """Writes the checkpoint of this name to a folder."""
    pipeline, config, changes, transformer, vae, texts, scheduler = CHECKPOINTS[name]
    config = {**json.loads((MODELS / f"{config}.json").read_text()), **changes}
    with torch.device("meta"):
        parts = {
            "transformer": getattr(diffusers, transformer).from_config(config),
            "vae": getattr(diffusers, vae)(),
            **texts(),
        }
    for part, module in parts.items():
        (folder / part).mkdir(parents=True)
        text = part.startswith("text")
        module.config.save_pretrained(folder / part) if text else module.save_config(folder / part)
        hollow(module, folder / part / ("model.safetensors" if text else "diffusion_pytorch_model.safetensors"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
