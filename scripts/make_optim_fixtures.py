"""Writes tests/fixtures/optim: what torch and diffusers make of a few variables and schedules, for tests/optim.rs.

    pip install -r scripts/requirements.txt
    python scripts/make_optim_fixtures.py

Variables and gradients are not written down: both sides draw them from the same generator (see `draws`).
Everything runs on the CPU in one thread; a second run writes the same bytes.
"""

import itertools
import json
import logging
from pathlib import Path

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "optim"
SHAPES = [(3, 5), (7,), (1, 1), (17, 33), (130, 127)]  # the last is longer than one thread's chunk
STEPS, MAX_NORM = 20, 1.0
RUNS = {
    "plain": {"weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8},
    "decay": {"weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-6},
}


def draws(dtype):
    """All variables, then the gradients step by step: each a `randn` of one stream, the latter on a growing scale."""
    generator = torch.Generator("cpu").manual_seed(11)
    variables = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    scales = [0.001 * 2**step for step in range(STEPS)]  # the early gradients are below the norm
    gradients = [[(scale * torch.randn(s, generator=generator)).to(dtype) for s in SHAPES] for scale in scales]
    return variables, gradients


def trajectory(settings, dtype):
    """AdamW under a moving rate and clipping: the norms, the variables on the way, the moments at the end."""
    variables, gradients = draws(dtype)
    optimizer = torch.optim.AdamW(variables, lr=0.0, **settings)
    average = EMAModel(variables, decay=0.5)
    norms, out = [], {}
    for step in range(STEPS):
        for variable, gradient in zip(variables, gradients[step]):
            variable.grad = gradient
        norms.append(torch.nn.utils.clip_grad_norm_(variables, MAX_NORM))
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
        optimizer.step()
        average.step(variables)
        if step in (0, 9, STEPS - 1):
            shown = variables if step == STEPS - 1 else variables[:-1]
            out |= {f"step{step}.{i}": v.detach().clone() for i, v in enumerate(shown)}
    out["norms"] = torch.stack(norms).double()
    for i, variable in enumerate(variables[:-1]):
        out |= {f"{name}.{i}": optimizer.state[variable][name] for name in ("exp_avg", "exp_avg_sq")}
        out[f"ema.{i}"] = average.shadow_params[i]
    return out


def schedules():
    """Every schedule at 60 steps of which 50 are the run's, with a first step of 0."""
    kinds = {
        "constant": [{}],
        "constant_with_warmup": [{}],
        "linear": [{}],
        "cosine": [{}],
        "cosine_with_restarts": [{"num_cycles": n} for n in (1, 3)],
        "polynomial": [{"power": p} for p in (1.0, 0.5, 2.3)],
    }
    for (name, options), warmup in itertools.product(kinds.items(), (0, 1, 7)):
        for option in options:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
            counts = {"num_warmup_steps": warmup, "num_training_steps": 50}
            scheduler = get_scheduler(name, optimizer, **counts, **option)
            rates = []
            for _ in range(60):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
            yield {"config": {"name": name, "warmup_steps": warmup, **option}, "rates": rates}


def main():
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for name, settings in RUNS.items():
        save_file(trajectory(settings, torch.float32), OUT / f"{name}.safetensors")
    f64 = trajectory(RUNS["decay"], torch.float64)
    save_file({k: v for k, v in f64.items() if not k.endswith(".4")}, OUT / "f64.safetensors")
    lines = ",\n".join(json.dumps(schedule) for schedule in schedules())
    head = f'"base_lr": 3e-4, "total_steps": 50, "torch": "{torch.__version__.split("+")[0]}"'
    (OUT / "schedules.json").write_text(f'{{{head}, "schedules": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
