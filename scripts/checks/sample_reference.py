"""Samples a tiny checkpoint with a pipeline of diffusers, and says as JSON which calls of the transformer ran their blocks and
what the latents are.

    python scripts/checks/sample_reference.py MODEL_DIR RUN...

Each RUN is a JSON object: `frames`, `size` [H, W], `steps`, `guidance`, and of these what the run is about:

- `cache`: ["first-block", threshold], ["taylorseer", interval, order, before] in its lite mode,
  ["taylorseer", interval, order, before, pattern of layers], ["magcache", ratios, threshold, max_skips, retention],
  ["calibrate"], ["pab", skip, skip of cross-attention or null, [above, below]] or ["fastercache", skip, [above, below],
  weight, skip of the negative prompt, its [above, below]], for distilled models without the last two
- `scheduler`: [class name, {setting: value}], made from the checkpoint's own by `from_config`
- `sigmas`, `timesteps`: the scheduler's `set_timesteps` gets these in place of what the pipeline passes
- `guider`: ["zero-star", zero_steps, start, stop] or ["apg", eta, norm, momentum, start, stop]: what the pipeline
  does with both predictions (Wan only, whose pipeline has them apart)

Prints a list with {"computed": [...], "batches": [...], "latents": [...], "ratios": [...]} for each run; `computed` has a truth
value for each call: for caches of layers, whether the last block's attention ran. `batches` has the samples of each call
in its blocks.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
    MochiTransformer3DModel,
)
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    T5Tokenizer,
)

PROMPT, NEGATIVE = "a red ball", "blue"


# Classes of the parts, for folders whose index does not name them.
PARTS = {
    "HunyuanVideoPipeline": {
        "text_encoder": LlamaModel, "tokenizer": PreTrainedTokenizerFast, "transformer": HunyuanVideoTransformer3DModel,
        "vae": AutoencoderKLHunyuanVideo, "scheduler": FlowMatchEulerDiscreteScheduler,
        "text_encoder_2": CLIPTextModel, "tokenizer_2": CLIPTokenizer,
    },
    "MochiPipeline": {
        "text_encoder": T5EncoderModel, "tokenizer": T5Tokenizer, "transformer": MochiTransformer3DModel,
        "vae": AutoencoderKLMochi, "scheduler": FlowMatchEulerDiscreteScheduler,
    },
}  # fmt: skip


def load(model):
    """The pipeline; Wan's tokenizer is taken as tokenizer.json has it, which transformers would rebuild."""
    index = json.loads((model / "model_index.json").read_text())
    more = {}
    if index["_class_name"] == "WanPipeline":
        roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        more["tokenizer"] = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer" / "tokenizer.json"), **roles)
    if "transformer" in index:
        pipe = getattr(diffusers, index["_class_name"]).from_pretrained(model, torch_dtype=torch.float32, **more)
    else:
        parts = PARTS[index["_class_name"]].items()
        pipe = getattr(diffusers, index["_class_name"])(**{name: kind.from_pretrained(model / name) for name, kind in parts})
        pipe.register_to_config(**{key: index[key] for key in ("force_zeros_for_empty_prompt",) if key in index})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def watch(transformer, of_layers):
    """Two lists that grow by a value a call: whether the last block's first linear layer ran, or the first one in each of its
    attention layers; and the samples that the first block was given."""
    computed, batches, left = [], [], set()
    lists = [child for name, child in transformer.named_children() if name.endswith("blocks")]
    parts = [lists[-1][-1]]
    if of_layers:
        parts = [part for name, part in parts[0].named_children() if name in ("attn", "attn1", "attn2")]
    linear = [next(layer for layer in part.modules() if isinstance(layer, torch.nn.Linear)) for part in parts]

    def begin(*_):
        computed.append(False)
        left.update(linear)

    def ran(layer, *_):
        left.discard(layer)
        computed[-1] = not left

    def given(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        batches.append(hidden.shape[0])

    transformer.register_forward_pre_hook(begin)
    for layer in linear:
        layer.register_forward_hook(ran)
    lists[0][0].register_forward_pre_hook(given, with_kwargs=True)
    return computed, batches


def enable(pipe, run):
    kind, *settings = run["cache"]
    transformer = pipe.transformer
    if kind == "first-block":
        apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=settings[0]))
    elif kind == "taylorseer":
        interval, order, before, *patterns = settings
        config = TaylorSeerCacheConfig(
            cache_interval=interval, max_order=order, disable_cache_before_step=before,
            cache_identifiers=patterns, use_lite_mode=not patterns,
        )  # fmt: skip
        apply_taylorseer_cache(transformer, config)
    elif kind == "pab":
        skip, cross, between = settings
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=skip, cross_attention_block_skip_range=cross,
            spatial_attention_timestep_skip_range=between, cross_attention_timestep_skip_range=between,
            current_timestep_callback=lambda: pipe.current_timestep,
        )  # fmt: skip
        apply_pyramid_attention_broadcast(transformer, config)
    elif kind == "fastercache":
        skip, between, weight, *negative = settings
        more = {"is_guidance_distilled": True}
        if negative:
            every, negative_range = negative
            more = {
                "unconditional_batch_skip_range": every,
                "unconditional_batch_timestep_skip_range": negative_range,
            }
        config = FasterCacheConfig(
            spatial_attention_block_skip_range=skip, spatial_attention_timestep_skip_range=between,
            attention_weight_callback=lambda _: weight, current_timestep_callback=lambda: pipe.current_timestep,
            tensor_format="BFCHW" if "CogVideoX" in type(pipe).__name__ else "BCFHW", **more,
        )  # fmt: skip
        apply_faster_cache(transformer, config)
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
    kind, *settings = run.get("cache", [None])
    of_layers = kind in ("pab", "fastercache") or kind == "taylorseer" and len(settings) > 3
    computed, batches = watch(pipe.transformer, of_layers)
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
        enable(pipe, run)
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
    return {"computed": computed, "batches": batches, "latents": latents.flatten().tolist(), "ratios": ratios}


if __name__ == "__main__":
    print(json.dumps([sample(Path(sys.argv[1]), json.loads(run)) for run in sys.argv[2:]]))
