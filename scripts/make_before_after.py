"""Draws docs/quickstart.png from the validation videos of scripts/quickstart.sh: frames before training, and after.

    scripts/quickstart.sh && python scripts/make_before_after.py
"""

from pathlib import Path

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FRAMES = (0, 2, 4, 6, 8)


def strip(path):
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return np.concatenate([np.pad(frames[i], ((2, 2), (2, 2), (0, 0)), constant_values=255) for i in FRAMES], 1)


def main():
    steps = sorted((ROOT / "runs/quickstart/validation").iterdir())
    before, after = steps[0], steps[-1]
    rows = [strip(next(folder.glob(f"0{i}-*.mp4"))) for i in (0, 1) for folder in (before, after)]
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((picture.width * 2, picture.height * 2), Image.LANCZOS).save(ROOT / "docs/quickstart.png", optimize=True)


if __name__ == "__main__":
    main()
