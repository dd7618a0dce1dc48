"""What `benches/vae.rs` compares with: diffusers' VAEs on the CPU.

bench_vae.py make DIR FAMILY      random weights: cogvideox of half the published widths, wan of the published ones
bench_vae.py encode|decode DIR    17 frames of 128 x 192; prints {"seconds": [first, second], "peak_bytes": n}
"""

import json
import os
import sys
import time

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan


def status(key):
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main():
    what, folder = sys.argv[1:3]
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    if what == "make":
        if sys.argv[3] == "wan":
            vae = AutoencoderKLWan()
        else:
            vae = AutoencoderKLCogVideoX(block_out_channels=(64, 128, 128, 256), layers_per_block=3, latent_channels=16)
        vae.save_pretrained(folder)
        return
    torch.set_num_threads(int(os.environ["THREADS"]))
    with open(os.path.join(folder, "config.json")) as config:
        kind = {"AutoencoderKLWan": AutoencoderKLWan}.get(json.load(config)["_class_name"], AutoencoderKLCogVideoX)
    vae = kind.from_pretrained(folder).eval()
    if what == "encode":
        clip = torch.rand(1, 3, 17, 128, 192) * 2 - 1
        run = lambda: vae.encode(clip).latent_dist.mean
    else:
        latents = torch.randn(1, 16, 5, 16, 24)
        run = lambda: vae.decode(latents).sample
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # forget the peak of loading
    baseline, seconds = status("VmRSS"), []
    for _ in range(2):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "peak_bytes": status("VmHWM") - baseline}))


if __name__ == "__main__":
    main()
