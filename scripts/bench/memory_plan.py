"""The memory that training needs, planned from published configurations: arithmetic, not a measurement.

    pip install -r scripts/setup/requirements.txt
    python scripts/bench/memory_plan.py [RANK]

Prints the table of docs/hardware.md. Nothing is downloaded and no weights are allocated. Weights are bf16, adapters on queries,
keys, values and outputs are f32 in four copies (with a gradient and two moments). With gradient checkpointing every block's
input is kept, and the block that runs holds about 23 times its input: so measured for `gradient_checkpointing: false` in
docs/benchmarks.md, "Peak memory over blocks". Text encoder, VAE and transformer are loaded one after the other.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel, LTXVideoTransformer3DModel, WanTransformer3DModel
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

MODELS = Path(__file__).resolve().parent.parent / "gpu_check" / "models"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
BLOCK = 23
GIB = 2**30


def published(name, **changes):
    return {**json.loads((MODELS / f"{name}.json").read_text()), **changes}


def cogvideox(frames, height, width):
    return 226 + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def cogvideox_1_5(frames, height, width):
    """Two latent frames make a token."""
    return 226 + (((frames - 1) // 4 + 2) // 2) * (height // 16) * (width // 16)


def ltx_video(frames, height, width):
    return ((frames - 1) // 8 + 1) * (height // 32) * (width // 32)


def wan(frames, height, width):
    return ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


COGVIDEOX_2B = {
    "num_attention_heads": 30,
    "num_layers": 30,
    "use_rotary_positional_embeddings": False,
}
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
PATCH_1_5 = {"patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300, "sample_frames": 81}
# Name, class, configuration, tokens of a clip, bucket, text encoder.
CASES = [
    ("CogVideoX-2b", CogVideoXTransformer3DModel, published("cogvideox-5b", **COGVIDEOX_2B), cogvideox, (49, 480, 720), "T5"),
    ("CogVideoX-5b", CogVideoXTransformer3DModel, published("cogvideox-5b"), cogvideox, (49, 480, 720), "T5"),
    (
        "CogVideoX1.5-5B",
        CogVideoXTransformer3DModel,
        published("cogvideox-5b", **PATCH_1_5),
        cogvideox_1_5,
        (81, 768, 1360),
        "T5",
    ),
    ("LTX-Video 2B", LTXVideoTransformer3DModel, published("ltx-video-2b"), ltx_video, (49, 512, 768), "T5"),
    ("Wan 2.1 1.3B", WanTransformer3DModel, published("wan-2.1-1.3b"), wan, (81, 480, 832), "UMT5"),
    ("Wan 2.1 14B", WanTransformer3DModel, published("wan-2.1-1.3b", **WAN_14B), wan, (81, 480, 832), "UMT5"),
]
XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def main():
    rank = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    with torch.device("meta"):
        texts = {
            "T5": count(T5EncoderModel(T5Config(vocab_size=32128, **XXL))),
            "UMT5": count(UMT5EncoderModel(UMT5Config(vocab_size=256384, **XXL))),
        }
        print(f"| model, clip | text encoder | weights | adapters of rank {rank} | inputs of blocks | a block | training |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, kind, config, tokens_of, bucket, text in CASES:
            model = kind.from_config(config)
            width = config["num_attention_heads"] * config["attention_head_dim"]
            layers = [
                module for path, module in model.named_modules() if path.endswith(TARGETS) and isinstance(module, torch.nn.Linear)
            ]
            adapters = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
            block_input = 2 * tokens_of(*bucket) * width
            parts = [2 * count(model), 16 * adapters, config["num_layers"] * block_input, BLOCK * block_input]
            cells = [2 * texts[text], *parts, sum(parts)]
            clip = "x".join(str(side) for side in bucket)
            print(f"| {name}, {clip} | {' | '.join(f'{cell / GIB:.1f} GiB' for cell in cells)} |")


if __name__ == "__main__":
    main()
