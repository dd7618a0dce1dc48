"""What `benches/vae.rs` compares with: diffusers' CogVideoX VAE on the CPU.

    bench_vae.py make DIR             a VAE of half the published widths, random weights
    bench_vae.py encode|decode DIR    17 frames of 128 x 192; prints {"seconds": [first, second], "peak_bytes": n}
"""

import json
import os
import sys
import time

import torch
from diffusers import AutoencoderKLCogVideoX


def status(key):
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main():
    what, folder = sys.argv[1:]
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    if what == "make":
        vae = AutoencoderKLCogVideoX(block_out_channels=(64, 128, 128, 256), layers_per_block=3, latent_channels=16)
        vae.save_pretrained(folder)
        return
    torch.set_num_threads(int(os.environ["THREADS"]))
    vae = AutoencoderKLCogVideoX.from_pretrained(folder).eval()
    if what == "encode":
        clip = torch.rand(1, 3, 17, 128, 192) * 2 - 1
        run = lambda: vae.encode(clip).latent_dist.mean
    else:
        latents = torch.randn(1, 16, 5, 16, 24)
        run = lambda: vae.decode(latents).sample
    baseline, seconds = status("VmRSS"), []
    for _ in range(2):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "peak_bytes": status("VmHWM") - baseline}))


if __name__ == "__main__":
    main()
