"""Makes datasets/tiny-world: a small CogVideoX that was trained, as a diffusers directory of 6 MB.

    pip install -r scripts/requirements.txt
    python scripts/make_tiny_world.py --work /tmp/tiny-world --out datasets/tiny-world

It knows one world (`scripts/tiny_world/world.py`): a red, green, blue or yellow ball, square or triangle that moves, turns or
grows. Five stages, each of which goes on where it was stopped: the tokenizer, the text encoder, the VAE, clips through the VAE,
and the transformer. Seeds are fixed. About an hour and a quarter on two cores.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, mse_loss
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tiny_world import text, world

MAX_LENGTH = 32
NUM_CLIPS = 6000
BATCH = {"vae": 4, "dit": 32}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what the stages leave for one another")
    parser.add_argument("--out", type=Path, default=Path("datasets/tiny-world"))
    parser.add_argument("--encoder-steps", type=int, default=2000)
    parser.add_argument("--vae-steps", type=int, default=1400)
    parser.add_argument("--dit-steps", type=int, default=8500)
    args = parser.parse_args()
    torch.set_num_threads(2)
    args.work.mkdir(parents=True, exist_ok=True)
    text.write_folder(args.work / "tokenizer", MAX_LENGTH)
    pieces = text.Pieces(args.work / "tokenizer" / "spiece.model", MAX_LENGTH)
    encoder = train_encoder(args.work, args.encoder_steps, pieces)
    vae = train_vae(args.work, args.vae_steps)
    latents = encode_clips(args.work, vae)
    transformer = train_dit(args.work, args.dit_steps, latents, pieces, encoder)
    write(args, vae, encoder, transformer)


def clips(step, count, **kind):
    """Scenes and their clips (count, 3, frames, height, width), -1 to 1: always the same ones for a step."""
    rng = np.random.default_rng([20261123, step])
    scenes = [world.scene(rng, **kind) for _ in range(count)]
    frames = torch.from_numpy(np.stack([world.draw(scene) for scene in scenes]))
    return scenes, (frames / 127.5 - 1).permute(0, 4, 1, 2, 3).contiguous()


def warm_cosine(step, steps, warm=100):
    return min(1, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class Stage:
    """A training run that is saved now and then, and taken up again."""

    def __init__(self, path, steps, lr, modules, decay):
        self.path, self.steps, self.lr, self.modules = path, steps, lr, modules
        self.parameters = [p for module in modules for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.decay, self.step, self.began = decay, 0, time.time()
        if path.exists():
            state = torch.load(path)
            for module, weights in zip(modules, state["modules"]):
                module.load_state_dict(weights)
            self.averages, self.step = state["averages"], state["step"]
            self.optimizer.load_state_dict(state["optimizer"])

    def update(self, loss, said):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warm_cosine(self.step, self.steps)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
        if self.step % 50 == 0:
            print(f"{self.path.stem} {self.step}/{self.steps} {said} {time.time() - self.began:.0f} s", flush=True)
        if self.step % 250 == 0 or self.step == self.steps:
            state = {"modules": [module.state_dict() for module in self.modules], "averages": self.averages}
            state |= {"step": self.step, "optimizer": self.optimizer.state_dict()}
            torch.save(state, self.path.with_suffix(".new"))
            self.path.with_suffix(".new").replace(self.path)

    def finish(self):
        """The moving averages take the weights' place."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages):
                parameter.copy_(average.to(torch.bfloat16))  # as they are kept
        for module in self.modules:
            module.eval().requires_grad_(False)


def train_encoder(work, steps, pieces):
    """It learns language, as far as there is one: which pieces stood there, where one in five was exchanged for another.

    The transformer then learns from its states as they are. Trained together, the two would agree that words without a
    meaning are nothing, and no adapter could ever give them one.
    """
    torch.manual_seed(0)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=pieces.count, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
    head = torch.nn.Linear(64, pieces.count)
    stage = Stage(work / "encoder.pt", steps, 2e-3, [encoder, head], 0.99)
    while stage.step < steps:
        rng = np.random.default_rng([1, stage.step])
        torch.manual_seed(9000 + stage.step)
        ids = pieces.ids([text.babble(rng) for _ in range(64)])
        exchanged = torch.where(torch.rand(ids.shape) < 0.2, torch.randint(pieces.count, ids.shape), ids)
        loss = cross_entropy(head(encoder(exchanged)[0]).flatten(0, 1), ids.flatten())
        stage.update(loss, f"loss {loss.item():.4f}")
    stage.finish()
    return encoder


def train_vae(work, steps):
    """CogVideoX's own layout and compression (8 x 8, and 4 in time), at 16 and 32 channels."""
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=world.HEIGHT,
        sample_width=world.WIDTH,
    )
    stage = Stage(work / "vae.pt", steps, 3e-3, [vae], 0.995)
    while stage.step < steps:
        torch.manual_seed(1000 + stage.step)
        _, clip = clips(stage.step, BATCH["vae"] // 2)
        _, dust = clips(10**6 + stage.step, BATCH["vae"] // 2, dissolve=True)
        clip = torch.cat([clip, dust])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(clip).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        error = mse_loss(made, clip)
        stage.update(error + 0.3 * (made - clip).abs().mean() + 1e-4 * kl, f"PSNR {10 * math.log10(4 / error.item()):.1f}")
    stage.finish()
    return vae


@torch.no_grad()
def encode_clips(work, vae):
    """Captions, latents (N, frames, channels, height, width) of their posteriors' means, and what makes their scale 1."""
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path)
    captions, latents = [], []
    for index in range(NUM_CLIPS // 8):
        scenes, clip = clips(2 * 10**6 + index, 8)
        captions += [scene.caption for scene in scenes]
        latents.append(vae.encode(clip).latent_dist.mean)
    latents = torch.cat(latents).permute(0, 2, 1, 3, 4).contiguous()
    found = {"captions": captions, "latents": latents, "scaling_factor": round(1 / latents.std().item(), 4)}
    torch.save(found, path)
    return found


def train_dit(work, steps, data, pieces, encoder):
    torch.manual_seed(2)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=5, attention_head_dim=32, num_layers=5, time_embed_dim=64, text_embed_dim=64,
        in_channels=16, out_channels=16, max_text_seq_length=MAX_LENGTH, use_rotary_positional_embeddings=True,
        sample_height=8, sample_width=12, sample_frames=world.FRAMES,
    )  # fmt: skip
    scheduler = scheduler_of_5b()
    rotary = rotary_of(transformer)
    alphas = scheduler.alphas_cumprod.float()
    latents = data["latents"] * data["scaling_factor"]
    stage = Stage(work / "dit.pt", steps, 1.5e-3, [transformer], 0.998)
    while stage.step < steps:
        rng = np.random.default_rng([3, stage.step])
        torch.manual_seed(5000 + stage.step)
        chosen = rng.integers(len(latents), size=BATCH["dit"])
        said = [text.disturb(data["captions"][i], rng) for i in chosen]
        clean = latents[torch.from_numpy(chosen)]
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (BATCH["dit"],))
        alpha = alphas[t].view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states = encoder(pieces.ids(said))[0]
            made = transformer(noisy, states, t, image_rotary_emb=rotary, return_dict=False)[0]
        loss = mse_loss(made.float(), velocity)
        stage.update(loss, f"loss {loss.item():.4f}")
    stage.finish()
    return transformer


def scheduler_of_5b():
    return CogVideoXDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
        rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing", set_alpha_to_one=True,
    )  # fmt: skip


def rotary_of(transformer):
    """As the pipeline has them for clips of the world's size."""
    shape = {"vae_scale_factor_spatial": 8, "transformer": transformer}
    pipe = type("Pipe", (), shape)()
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipe, world.HEIGHT, world.WIDTH, (world.FRAMES - 1) // 4 + 1, torch.device("cpu")
    )


def write(args, vae, encoder, transformer):
    """The directory, in bf16."""
    latents = torch.load(args.work / "latents.pt")
    vae.register_to_config(scaling_factor=latents["scaling_factor"])
    tokenizer = T5Tokenizer.from_pretrained(args.work / "tokenizer")
    pipe = CogVideoXPipeline(tokenizer, encoder, vae, transformer, scheduler_of_5b()).to(torch.bfloat16)
    shutil.rmtree(args.out, ignore_errors=True)
    pipe.save_pretrained(args.out)
    shutil.rmtree(args.out / "tokenizer")
    shutil.copytree(args.work / "tokenizer", args.out / "tokenizer")  # without what transformers would add
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
