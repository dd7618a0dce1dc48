"""The numbers that tests/flow_objective.rs holds the training objective of flow matching against, by torch and diffusers.

    python scripts/make_flow_objective_fixtures.py

Each case draws its positions u and then its noise from one generator, as a micro-batch does, and stores what the network
is shown, what it should answer, and the loss and its gradient for a made-up answer.
"""

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent.parent / "tests/fixtures/flow"
SHAPE = (3, 2, 3, 2, 3)  # B, C, F, h, w
SEED = 42

# What LTX-Video's scheduler says of its shift.
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05,
           "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
UNIPC = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}

# diffusion: of the run file, the scheduler's config, tokens, and samples whose first frame is given.
CASES = {
    "uniform": ({}, EULER, None, None),
    "fixed": ({"shift": 2.5}, {**EULER, "shift": 7.0}, None, None),
    "static": ({}, {**EULER, "shift": 7.0}, None, None),
    "unipc": ({}, {**UNIPC, "flow_shift": 3.0}, None, None),
    "dynamic": ({}, {**EULER, **DYNAMIC}, 1560, None),
    "linear": ({}, {**EULER, **DYNAMIC, "time_shift_type": "linear"}, 1560, None),
    "logit_normal": ({"timesteps": "logit_normal", "logit_mean": 0.5, "logit_std": 1.5}, EULER, None, None),
    "mode": ({"timesteps": "mode", "mode_scale": 0.81}, EULER, None, None),
    "sigma_sqrt": ({"weighting": "sigma_sqrt", "shift": 3.0}, EULER, None, None),
    "cosmap": ({"weighting": "cosmap"}, EULER, None, None),
    "given": ({}, EULER, None, [True, False, True]),
    "given_cosmap": ({"weighting": "cosmap"}, EULER, None, [False, True, False]),
}


def draw(config, generator):
    """u, and whether it is what diffusers would draw."""
    scheme = config.get("timesteps", "uniform")
    mean, std = config.get("logit_mean", 0.0), config.get("logit_std", 1.0)
    again = generator.clone_state()
    theirs = compute_density_for_timestep_sampling(
        scheme, SHAPE[0], logit_mean=mean, logit_std=std, mode_scale=config.get("mode_scale", 1.29), generator=again)
    if scheme != "logit_normal":
        generator.set_state(again.get_state())
        return theirs
    ours = torch.sigmoid(mean + std * torch.randn(SHAPE[0], generator=generator))
    torch.testing.assert_close(ours, theirs)
    return ours


def shift(u, config, scheduler, tokens):
    if scheduler.get("use_dynamic_shifting") and "shift" not in config:
        settings = {key: value for key, value in scheduler.items() if not key.startswith("_")}
        euler = FlowMatchEulerDiscreteScheduler(**settings)
        mu = calculate_shift(tokens, scheduler["base_image_seq_len"], scheduler["max_image_seq_len"],
                             scheduler["base_shift"], scheduler["max_shift"])
        return euler.time_shift(mu, 1.0, u)
    k = config.get("shift", scheduler.get("shift", scheduler.get("flow_shift", 1.0)))
    return k * u / (1 + (k - 1) * u)


def main():
    tensors, cases = {}, []
    maker = torch.Generator().manual_seed(7)
    clean = torch.randn(SHAPE, generator=maker)
    answer = torch.randn(SHAPE, generator=maker)
    tensors |= {"clean": clean, "answer": answer}
    for name, (config, scheduler, tokens, given) in CASES.items():
        generator = torch.Generator().manual_seed(SEED)
        sigmas = shift(draw(config, generator), config, scheduler, tokens)
        noise = torch.randn(SHAPE, generator=generator)
        each = sigmas[:, None, None, None, None].repeat(1, 1, SHAPE[2], 1, 1)
        counts = torch.ones_like(each)
        if given is not None:
            each[torch.tensor(given), :, 0] = 0.0
            counts[torch.tensor(given), :, 0] = 0.0
        noisy = (1.0 - each) * clean + each * noise
        target = noise - clean
        weighting = compute_loss_weighting_for_sd3(config.get("weighting", "none"), sigmas)[:, None, None, None, None]
        prediction = answer.clone().requires_grad_()
        squares = (counts * weighting).expand(SHAPE) * (prediction - target) ** 2
        loss = squares.sum() / counts.expand(SHAPE).sum()
        loss.backward()
        timesteps = sigmas * 1000
        if given is not None:
            timesteps = each[:, 0, :, 0, 0] * 1000
        stored = {"noisy": noisy, "target": target, "timestep": timesteps, "loss": loss.detach()[None],
                  "gradient": prediction.grad}
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in stored.items()}
        cases.append({"name": name, "diffusion": config, "scheduler": scheduler, "tokens": tokens, "given": given})
    save_file(tensors, FIXTURES / "objective.safetensors")
    (FIXTURES / "objective.json").write_text(json.dumps({"seed": SEED, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
