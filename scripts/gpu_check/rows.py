#!/usr/bin/env python3
"""What `vtrain bench --json` and peer_step.py measured, as lines for people.

    rows.py ours NAME OURS.json COMMAND...           runs the command, whose output goes to OURS.json; one line, and where the
                                                     time goes; exit code 1 where attention was slow without need
    rows.py bounded NAME OURS.json BESIDE.json TIMES GIB COMMAND...
                                                     the same beside another step of ours: FAIL above so many times its
                                                     time, above so much memory (- for no bound), and where blocks that
                                                     should be streamed are not
    rows.py peer NAME PEER.json OURS.json COMMAND... the same for the peer: its line, and the ratios to ours
    rows.py machine                                  what there is: Python, PyTorch and its libraries
    rows.py model MODEL.json full|tiny               the settings of a model; one layer of it with two heads where it is tiny

Needs nothing beyond Python; `machine` tells what else there is.
"""

import json
import subprocess
import sys
from pathlib import Path

GIB = 1 << 30
LINES = 25  # of a profile, of each level


def run(command, path):
    """Its output in a file; its exit code."""
    with open(path, "wb") as file:
        return subprocess.run(command, stdout=file, check=False).returncode


def read(path):
    """The last line that is a JSON object."""
    objects = [line for line in Path(path).read_text().splitlines() if line.startswith("{")]
    if not objects:
        sys.exit(f"FAIL what should print JSON printed none: {path}")
    return json.loads(objects[-1])


def memory(measured):
    peak = measured.get("peak_memory_bytes")
    return "unknown memory" if peak is None else f"{peak / GIB:.2f} GiB at most"


def seconds(measured):
    each = measured["step_seconds"]
    return f"{measured['step_seconds_median']:.3f} s a step ({min(each):.3f} to {max(each):.3f})"


def profile(measured):
    """Where the time of a step goes: what takes longest first."""
    told = measured.get("profile")
    if not told:
        return
    step = max(told["step_seconds"], 1e-12)
    for level in ["op", "kernel"]:
        lines = [line for line in told["lines"] if line["level"] == level]
        if level == "op":
            lines.append({"name": "outside of ops", "calls": 1, "seconds": told["rest_seconds"]})
        for line in sorted(lines, key=lambda line: -line["seconds"])[:LINES]:
            share = 100 * line["seconds"] / step
            print(f"     {level:6} {line['seconds'] * 1e3:10.3f} ms {share:5.1f} %  {line['calls']:7.1f} x {line['name']}")


def ours(name, path, *command):
    if code := run(command, path):
        return code
    measured = read(path)
    slow = measured["device"] == "cuda" and measured["attention_slow"]
    attention = ", ".join(measured["attention"]) or "none"
    flops = measured["model_flops_per_second"] / 1e12
    share = 100 * measured["model_flops_per_second"] / measured["matmul_flops_per_second"]
    print(
        f"{'FAIL' if slow else 'ok  '} {name}, keep: {measured['activation_policy']}: {seconds(measured)}, {memory(measured)}, "
        f"{flops:.1f} TFLOP/s ({share:.0f} % of a square product)  [{attention}{', where cuDNN should' if slow else ''}]"
    )
    profile(measured)
    print(f"json {json.dumps(dict(name=name, **measured))}")
    return int(slow)


def bounded(name, path, beside, times, gib, *command):
    if code := ours(name, path, *command):
        return code
    measured = read(path)
    told = [f"{memory(measured)}{f' (bound {gib})' if gib != '-' else ''}"]
    holds = gib == "-" or 0 < (measured.get("peak_memory_bytes") or 0) <= float(gib) * GIB
    if Path(beside).exists():
        ratio = measured["step_seconds_median"] / read(beside)["step_seconds_median"]
        holds &= times == "-" or ratio <= float(times)
        told.append(f"{ratio:.2f} of the time in memory{f' (bound {times})' if times != '-' else ''}")
    if "model.offload=group" in command:
        blocks = measured.get("block_bytes_peak")
        holds &= bool(blocks)
        told.append(f"blocks {blocks / GIB:.2f} GiB at most" if blocks else "no block was streamed")
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {', '.join(told)}")
    return int(not holds)


def peer(name, path, beside, *command):
    if code := run(command, path):
        return code
    measured = read(path)
    if not measured["loss_finite"]:
        print(f"     {name}, {measured['peer']}: its loss is not finite")
    print(f"     {name}, {measured['peer']}: {seconds(measured)}, {memory(measured)}")
    if Path(beside).exists():
        own = read(beside)
        time = own["step_seconds_median"] / measured["step_seconds_median"]
        room = (own["peak_memory_bytes"] or 0) / measured["peak_memory_bytes"]
        print(f"     {name}, ours over the peer's: {time:.2f} of the time, {room:.2f} of the memory")
    print(f"json {json.dumps(dict(name=name, **measured))}")
    return 0


def machine():
    print(f"Python {sys.version.split()[0]}, {sys.executable}")
    for package in ["torch", "diffusers", "transformers", "peft", "accelerate"]:
        try:
            module = __import__(package)
            print(f"{package} {module.__version__}")
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            print(f"{package}: {type(error).__name__}: {error}")
    try:
        import torch

        print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        if torch.cuda.is_available():
            print(f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}, {torch.cuda.get_device_properties(0)}")
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        print(f"PyTorch's libraries: {type(error).__name__}: {error}")
    return 0


# What a rehearsal makes smaller, as far as a model has it.
TINY = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "pooled_projection_dim": 64,
    "mlp_ratio": 1.0,
    "num_attention_heads": 2,
    "text_embed_dim": 64,
    "caption_channels": 64,
    "text_dim": 64,
    "ffn_dim": 256,
}


def model(path, size):
    config = json.loads(Path(path).read_text())
    if size == "tiny":
        config |= {key: value for key, value in TINY.items() if key in config}
        if "cross_attention_dim" in config:
            config["cross_attention_dim"] = config["num_attention_heads"] * config["attention_head_dim"]
    print(json.dumps(config))
    return 0


if __name__ == "__main__":
    verbs = {"ours": ours, "bounded": bounded, "peer": peer, "machine": machine, "model": model}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    sys.exit(verbs[sys.argv[1]](*sys.argv[2:]))
