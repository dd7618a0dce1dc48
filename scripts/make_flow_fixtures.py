"""Writes tests/fixtures/flow: what diffusers' schedulers of flow matching answer.

    python scripts/make_flow_fixtures.py

`schedulers.json` lists cases: a scheduler's config, how many steps, the length of the sequence where a pipeline tells it
(as LTXPipeline does), and the strength of video-to-video. `schedulers.safetensors` holds, for each, `timesteps` and
`sigmas`, the first sample (`start`), random predictions (`model_output`) and the sample behind each step (`sample`).
`noisy` is `clean` with the noise `start` at the first timestep.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "flow"
SHAPE = (1, 2, 3, 2, 3)
KINDS = {
    "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
}
# As the published checkpoints of LTX-Video and Wan have them.
LTX = {
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}
WAN = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
}


def euler(name, steps, seq_len=5 * 7 * 9, strength=None, **config):
    return case(f"euler.{name}", "FlowMatchEulerDiscreteScheduler", config, steps, seq_len, strength)


def unipc(name, steps, strength=None, **config):
    return case(f"unipc.{name}", "UniPCMultistepScheduler", WAN | config, steps, None, strength)


def case(name, kind, config, steps, seq_len, strength):
    config = {"_class_name": kind, **config}
    return {"name": name, "config": config, "steps": steps, "seq_len": seq_len, "strength": strength}


CASES = [
    *(euler(f"plain.{n}", n) for n in (1, 2, 7)),
    *(euler(f"ltx.{n}", n, 16 * 16 * 22, **LTX) for n in (2, 3, 8, 30, 50)),
    euler("ltx.short", 5, 7, **LTX),
    euler("ltx.from-clip", 10, 1234, strength=0.65, **LTX),
    euler("linear", 6, 2000, **(LTX | {"time_shift_type": "linear"})),
    euler("shifted", 7, shift=3.1),
    euler("shifted.terminal", 7, shift=5.0, shift_terminal=0.02),
    euler("unasked", 9, None, shift=3.0),
    euler("unasked.one", 1, None),
    euler("unasked.short", 4, None, shift=0.7, num_train_timesteps=500),
    euler("karras", 6, use_karras_sigmas=True),
    euler("exponential", 6, shift=2.0, use_exponential_sigmas=True),
    euler("inverted", 5, invert_sigmas=True),
    euler("stochastic", 5, stochastic_sampling=True),
    *(unipc(f"wan.{n}", n) for n in (1, 2, 3, 4, 10, 50)),
    unipc("wan.720p", 20, flow_shift=5.0),
    unipc("wan.i2v", 7, flow_shift=16.0),
    unipc("unshifted", 5, flow_shift=1.0),
    unipc("from-clip", 10, strength=0.5),
    unipc("order1", 5, solver_order=1),
    unipc("order3", 8, solver_order=3),
    unipc("bh1", 6, solver_type="bh1", final_sigmas_type="sigma_min"),  # down to 0, it is not a number in diffusers
    unipc("uncorrected", 6, disable_corrector=[0, 2]),
    unipc("sigma-min", 4, final_sigmas_type="sigma_min"),
    unipc("terminal", 5, shift_terminal=0.1),
    unipc("short", 5, num_train_timesteps=300),
]


def set_timesteps(scheduler, steps, seq_len):
    """As the pipelines do: LTX's give sigmas and mu, Wan's the number of steps."""
    if seq_len is None:
        scheduler.set_timesteps(steps)
        return
    get = scheduler.config.get
    mu = calculate_shift(
        seq_len,
        get("base_image_seq_len", 256),
        get("max_image_seq_len", 4096),
        get("base_shift", 0.5),
        get("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def trajectory(case, draw):
    config = dict(case["config"])
    scheduler = KINDS[config.pop("_class_name")](**config)
    set_timesteps(scheduler, case["steps"], case["seq_len"])
    skipped = 0
    if case["strength"] is not None:
        skipped = max(case["steps"] - min(int(case["steps"] * case["strength"]), case["steps"]), 0)
    timesteps = scheduler.timesteps[skipped:]
    start = sample = torch.randn(SHAPE, generator=draw)
    clean = torch.randn(SHAPE, generator=draw)
    outputs = torch.randn((len(timesteps), *SHAPE), generator=draw)
    add = getattr(scheduler, "add_noise", None)
    noisy = add(clean, start, timesteps[:1]) if add else scheduler.scale_noise(clean, timesteps[:1], start)
    noise, samples = torch.Generator().manual_seed(42), []
    for output, t in zip(outputs, timesteps):
        extra = {"generator": noise} if config.get("stochastic_sampling") else {}
        sample = scheduler.step(output, t, sample, return_dict=False, **extra)[0]
        samples.append(sample)
    return {
        "timesteps": timesteps.double(),
        "sigmas": scheduler.sigmas[skipped:],
        "start": start,
        "clean": clean,
        "noisy": noisy,
        "model_output": outputs,
        "sample": torch.stack(samples),
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for i, case in enumerate(CASES):
        for key, value in trajectory(case, torch.Generator().manual_seed(700 + i)).items():
            assert torch.isfinite(value).all(), (case["name"], key)
            tensors[f"{case['name']}.{key}"] = value.contiguous()
    save_file(tensors, OUT / "schedulers.safetensors")
    lines = ",\n".join(" " + json.dumps(case) for case in CASES)
    (OUT / "schedulers.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
