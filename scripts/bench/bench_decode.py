"""Decodes and resizes clips as benches/decode.rs does, with av and torchvision: prints seconds, one run a line.

python scripts/bench/bench_decode.py RUNS THREADS FRAMES HEIGHT WIDTH CLIP...
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import av
import torch
from torchvision.transforms.v2 import functional as F


def load(path, count, height, width):
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the clips are spread over the threads
        frames = []
        for frame in container.decode(stream):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            scale = max(height / picture.shape[1], width / picture.shape[2])
            size = [max(round(side * scale), least) for side, least in zip(picture.shape[1:], (height, width), strict=True)]
            picture = F.resize(picture, size, F.InterpolationMode.BICUBIC, antialias=True)
            frames.append(F.center_crop(picture, [height, width]))
            if len(frames) == count:
                break
    return torch.stack(frames)


def main():
    runs, threads, count, height, width = map(int, sys.argv[1:6])
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(runs):
            start = time.perf_counter()
            clips = list(pool.map(lambda path: load(path, count, height, width), sys.argv[6:]))
            print(time.perf_counter() - start, flush=True)
            assert all(clip.shape == (count, 3, height, width) for clip in clips)


if __name__ == "__main__":
    main()
