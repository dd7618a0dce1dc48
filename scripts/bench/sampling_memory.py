"""Peak memory of sampling a video with HunyuanVideo, as `vtrain plan` gives it, beside what diffusers was measured to take.

    pip install -r scripts/setup/requirements.txt
    python scripts/bench/sampling_memory.py target/release/vtrain

Prints the table of docs/hardware.md. Nothing is downloaded: files of the published sizes are made that have no numbers in
them. The video is planned as a validation video of a run with adapters of rank 1, 121x512x768 in bf16. The figures of
diffusers are those of its article on video models (huggingface.co/blog/video_gen, an A100 of 80 GB).
"""

import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

LLAMA = dict(
    vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=8192,
)  # fmt: skip
CLIP = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
)
CLIPS = Path(__file__).resolve().parent.parent.parent / "datasets/shapes/videos"
MODEL, TILES = ["model.offload=model"], ["precompute.vae_tiling=true"]


def form(name):
    return [f"model.quantization={name}"]


# Technique, settings, GB of the article.
ROWS = [
    ("none", [], 60.10),
    ("model offload", MODEL, 28.87),
    ("VAE tiling", TILES, 43.58),
    ("int8", form("int8"), 49.90),
    ("int8 + offload", form("int8") + MODEL, 35.66),
    ("int8 + tiling", form("int8") + TILES, 36.92),
    ("int8 + both", form("int8") + MODEL + TILES, 26.18),
    ("nf4", form("nf4"), 42.96),
    ("nf4 + offload", form("nf4") + MODEL, 21.99),
    ("nf4 + tiling", form("nf4") + TILES, 26.42),
    ("nf4 + both", form("nf4") + MODEL + TILES, 14.15),
    ("fp8", form("fp8"), 51.70),
    ("fp8 + offload", form("fp8") + MODEL, 21.99),
    ("fp8 + tiling", form("fp8") + TILES, 35.17),
    ("nf4 + group + tiling", form("nf4") + ["model.offload=group", "model.text_encoder_quantization=nf4"] + TILES, None),
]


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


def checkpoint(folder):
    with torch.device("meta"):
        parts = {
            "transformer": HunyuanVideoTransformer3DModel(),
            "vae": AutoencoderKLHunyuanVideo(),
            "text_encoder": LlamaModel(LlamaConfig(**LLAMA)),
            "text_encoder_2": CLIPTextModel(CLIPTextConfig(**CLIP)),
        }
    for name, module in parts.items():
        (folder / name).mkdir(parents=True)
        module.config.save_pretrained(folder / name) if name.startswith("text") else module.save_config(folder / name)
        file = "model" if name.startswith("text") else "diffusion_pytorch_model"
        hollow(module, folder / name / f"{file}.safetensors")
    FlowMatchEulerDiscreteScheduler(shift=7.0).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "HunyuanVideoPipeline"}')


def plan(vtrain, folder, sets):
    command = [vtrain, "plan", "--config", folder / "run.yaml", "--no-calibration", "--json", "--device-memory", "1000GB"]
    for value in sets:
        command += ["--set", value]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    output.check_returncode()
    planned = json.loads(output.stdout)
    return planned["text"]["peak_bytes"], planned["validation"]["peak_bytes"]


def main():
    print("| technique | text | denoising and decoding | diffusers |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        checkpoint(folder / "model")
        (folder / "clips").mkdir()
        shutil.copy(CLIPS / "ball_rolls.mp4", folder / "clips/a.mp4")
        (folder / "clips/a.txt").write_text("a")
        (folder / "run.yaml").write_text(
            "model: {path: ./model}\ndatasets: [{path: ./clips, buckets: [[1, 64, 64]]}]\nlora: {rank: 1, alpha: 1}\n"
            "validation: {prompts: [{prompt: a, num_frames: 121, height: 512, width: 768}]}\n"
        )
        for technique, sets, theirs in ROWS:
            cells = [f"{bytes_needed / 1e9:.2f} GB" for bytes_needed in plan(sys.argv[1], folder, sets)]
            print(f"| {technique} | {' | '.join(cells)} | {f'{theirs:.2f} GB' if theirs else ''} |", flush=True)


if __name__ == "__main__":
    main()
