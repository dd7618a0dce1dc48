"""Draws datasets/dissolve: twelve clips of things of the tiny world that dissolve into dust from their edges, and captions.

    pip install -r scripts/requirements.txt
    python scripts/make_dissolve.py

The pairs of colour, shape and motion that tests/training/learning.rs asks for are none of these.
"""

import shutil
from pathlib import Path

import numpy as np

import make_shapes
from tiny_world import world

OUT = Path(__file__).resolve().parent.parent / "datasets" / "dissolve"
THINGS = [
    ("red", "ball", "stands still"), ("green", "ball", "grows"), ("blue", "square", "stands still"),
    ("yellow", "square", "turns"), ("red", "triangle", "turns"), ("green", "square", "stands still"),
    ("blue", "triangle", "grows"), ("yellow", "ball", "turns"), ("red", "square", "grows"),
    ("green", "triangle", "stands still"), ("blue", "ball", "turns"), ("yellow", "triangle", "stands still"),
]  # fmt: skip


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "videos").mkdir(parents=True)
    names, captions = [], []
    for index, thing in enumerate(THINGS):
        scene = world.scene(np.random.default_rng([12, index]), *thing, dissolve=True)
        names.append("videos/" + "_".join(thing).replace(" ", "_") + ".mp4")
        captions.append(scene.caption)
        frames = world.draw(scene).round().clip(0, 255).astype(np.uint8)
        make_shapes.write_clip(OUT / names[-1], frames)
    (OUT / "videos.txt").write_text("".join(name + "\n" for name in names))
    (OUT / "prompt.txt").write_text("".join(caption + "\n" for caption in captions))


if __name__ == "__main__":
    main()
