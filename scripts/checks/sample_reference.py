"""Samples a tiny checkpoint with a pipeline of diffusers, and says as JSON which calls of the transformer ran their blocks and
what the latents are.

    python scripts/checks/sample_reference.py MODEL_DIR RUN...

Each RUN is a JSON object: `frames`, `size` [H, W], `steps`, `guidance`, and of these what the run is about:

- `cache`: ["first-block", threshold], ["taylorseer", interval, order, before] in its lite mode,
  ["magcache", ratios, threshold, max_skips, retention] or ["calibrate"]
- `scheduler`: [class name, {setting: value}], made from the checkpoint's own by `from_config`
- `sigmas`, `timesteps`: the scheduler's `set_timesteps` gets these in place of what the pipeline passes
- `guider`: ["zero-star", zero_steps, start, stop] or ["apg", eta, norm, momentum, start, stop]: what the pipeline
  does with both predictions (Wan only, whose pipeline has them apart)

Prints a list with {"computed": [...], "latents": [...], "ratios": [...]} for each run; `computed` has a truth value for each
call.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import diffusers
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_taylorseer_cache,
)
from transformers import PreTrainedTokenizerFast

PROMPT, NEGATIVE = "a red ball", "blue"


def load(model):
    """The pipeline; Wan's tokenizer is taken as tokenizer.json has it, which transformers would rebuild."""
    index = json.loads((model / "model_index.json").read_text())
    more = {}
    if index["_class_name"] == "WanPipeline":
        roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        more["tokenizer"] = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer" / "tokenizer.json"), **roles)
    pipe = getattr(diffusers, index["_class_name"]).from_pretrained(model, torch_dtype=torch.float32, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def watch(transformer):
    """A list that grows by a truth value a call: whether the last block's first linear layer ran."""
    computed = []
    transformer.register_forward_pre_hook(lambda *_: computed.append(False))
    lists = [child for name, child in transformer.named_children() if name.endswith("blocks")]
    linear = next(part for part in lists[-1][-1].modules() if isinstance(part, torch.nn.Linear))

    def ran(*_):
        computed[-1] = True

    linear.register_forward_hook(ran)
    return computed


def enable(transformer, run):
    kind, *settings = run["cache"]
    if kind == "first-block":
        apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=settings[0]))
    elif kind == "taylorseer":
        interval, order, before = settings
        config = TaylorSeerCacheConfig(
            cache_interval=interval, max_order=order, disable_cache_before_step=before, use_lite_mode=True
        )
        apply_taylorseer_cache(transformer, config)
    else:
        if kind == "magcache":
            ratios, threshold, skips, retention = settings
            more = {"mag_ratios": ratios, "threshold": threshold, "max_skip_steps": skips, "retention_ratio": retention}
        else:
            more = {"calibrate": True}
        apply_mag_cache(transformer, MagCacheConfig(num_inference_steps=run["steps"], **more))


class Guided(torch.nn.Module):
    """Wan's transformer, called for the prompt and then for the negative one: what it returns for the second makes the
    pipeline's own classifier-free guidance give what a guider gives."""

    def __init__(self, transformer, guider, scale, steps):
        super().__init__()
        self.inner, self.guider, self.scale, self.steps, self.calls = transformer, guider, scale, steps, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, **inputs):
        output = self.inner(**inputs)[0]
        step, second = divmod(self.calls, 2)
        self.calls += 1
        if not second:
            self.positive = output
            return (output,)
        self.guider.set_state(step=step, num_inference_steps=self.steps, timestep=None)
        if step == 0:
            self.guider.prepare_inputs({})
        wanted = self.guider.forward(self.positive, output).pred
        # n + g (p - n) = wanted
        return ((wanted - self.scale * self.positive) / (1 - self.scale),)


def guider(run):
    kind, *settings = run["guider"]
    scale = run["guidance"]
    if kind == "zero-star":
        zero_steps, start, stop = settings
        return ClassifierFreeZeroStarGuidance(scale, zero_init_steps=zero_steps, start=start, stop=stop)
    eta, norm, momentum, start, stop = settings
    return AdaptiveProjectedGuidance(scale, momentum, norm, eta=eta, start=start, stop=stop)


def sample(model, run):
    pipe = load(model)
    computed = watch(pipe.transformer)
    if "scheduler" in run:
        name, settings = run["scheduler"]
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    given = {key: run[key] for key in ("sigmas", "timesteps") if key in run}
    if given:
        own = pipe.scheduler.set_timesteps

        def set_timesteps(*_, device=None, **__):
            own(device=device, **{key: torch.tensor(value, dtype=torch.float64).numpy() for key, value in given.items()})

        pipe.scheduler.set_timesteps = set_timesteps
    if "cache" in run:
        enable(pipe.transformer, run)
    if "guider" in run:
        pipe.transformer = Guided(pipe.transformer, guider(run), run["guidance"], run["steps"])
    height, width = run["size"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        latents = pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            num_frames=run["frames"],
            height=height,
            width=width,
            num_inference_steps=run["steps"],
            guidance_scale=run["guidance"],
            generator=torch.Generator("cpu").manual_seed(42),
            output_type="latent",
        ).frames
    if latents.dim() == 3:  # tokens, of pipelines that pack their latents
        space, time = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
        frames = (run["frames"] - 1) // time + 1
        latents = pipe._unpack_latents(latents, frames, height // space, width // space)
    measured = re.search(r"\[([\d., e-]+)\]\s*$", said.getvalue())
    ratios = [float(number) for number in measured[1].split(",")] if measured else []
    return {"computed": computed, "latents": latents.flatten().tolist(), "ratios": ratios}


if __name__ == "__main__":
    print(json.dumps([sample(Path(sys.argv[1]), json.loads(run)) for run in sys.argv[2:]]))
