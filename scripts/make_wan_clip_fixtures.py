"""Writes what the image encoder of Wan's image-to-video pipelines is tested with.

    python scripts/make_wan_clip_fixtures.py

`tests/fixtures/wan/wan-2.1-i2v/image_encoder` (keys below `vision_model.`, as published) and `image_processor` are folders
of a checkpoint. `clip.safetensors` holds pictures of several sizes (bytes), what `CLIPImageProcessor` makes of them, what
`WanImageToVideoPipeline.encode_image` makes of that, and a second encoder (`quick.*`: QuickGELU, its keys without prefix,
a picture that patches do not fill).
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline
from fixtures.weights import generator, randomise
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "wan"
SIZE = 42
SIZES = [(60, 91), (97, 50), (42, 42), (20, 31), (43, 43)]


def picture(size, draw):
    """Noise of several widths: edges for the filter to ring at, and slow parts."""
    layers = [torch.rand(1, 3, -(-size[0] // n), -(-size[1] // n), generator=draw) for n in (1, 3, 11)]
    layers = [torch.nn.functional.interpolate(layer, size) for layer in layers]
    mixed = (layers[0] * 0.3 + layers[1] * 0.4 + layers[2] * 0.5).clamp(0, 1)[0]
    return (mixed * 255).round().byte().permute(1, 2, 0).contiguous()


def encoder(seed, **changes):
    config = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 12,
    }
    return randomise(CLIPVisionModel(CLIPVisionConfig(**(config | changes))), seed)


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = OUT / "wan-2.1-i2v"
    for part in ("image_encoder", "image_processor"):
        shutil.rmtree(folder / part, ignore_errors=True)
    model = encoder(50)
    model.save_pretrained(folder / "image_encoder")
    path = folder / "image_encoder" / "model.safetensors"
    weights = {"vision_model." + key.removeprefix("vision_model."): value for key, value in load_file(path).items()}
    save_file(weights, path)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(folder / "image_processor")
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=None,
        image_processor=processor,
        image_encoder=model,
    )
    tensors, draw = {}, generator(51)
    for i, size in enumerate(SIZES):
        pixels = picture(size, draw)
        image = Image.fromarray(pixels.numpy())
        tensors[f"{i}.picture"] = pixels
        tensors[f"{i}.pixels"] = processor(images=image, return_tensors="pt").pixel_values
        tensors[f"{i}.embedding"] = pipe.encode_image(image, device="cpu")
    quick = encoder(52, hidden_act="quick_gelu", patch_size=16, num_attention_heads=3, num_hidden_layers=2)
    tensors["quick.embedding"] = quick(tensors["0.pixels"], output_hidden_states=True).hidden_states[-2]
    tensors |= {f"quick.{key.removeprefix('vision_model.')}": value for key, value in quick.state_dict().items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / "clip.safetensors")
    for path in [OUT / "clip.safetensors", *folder.rglob("*.safetensors")]:
        path.chmod(0o644)
    print(json.dumps(sorted(weights)[:3]))


if __name__ == "__main__":
    main()
