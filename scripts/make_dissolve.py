"""Draws datasets/dissolve, twelve clips of things of the tiny world that dissolve into dust from their edges, and
datasets/whole, twelve of things that stay whole: they teach that nothing dissolves unless it is asked for.

    pip install -r scripts/requirements.txt
    python scripts/make_dissolve.py

What tests/training/learning.rs asks for is in neither.
"""

import shutil
from pathlib import Path

import numpy as np

import make_shapes
from tiny_world import world

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
DISSOLVE = [
    ("red", "ball", "stands still"), ("green", "ball", "grows"), ("blue", "square", "stands still"),
    ("yellow", "square", "turns"), ("red", "triangle", "turns"), ("green", "square", "stands still"),
    ("blue", "triangle", "grows"), ("yellow", "ball", "turns"), ("red", "square", "grows"),
    ("green", "triangle", "stands still"), ("blue", "ball", "turns"), ("yellow", "triangle", "stands still"),
]  # fmt: skip
WHOLE = [
    ("red", "ball", "moves right"), ("green", "ball", "turns"), ("blue", "square", "grows"),
    ("yellow", "square", "rises"), ("red", "triangle", "stands still"), ("green", "square", "moves left"),
    ("blue", "triangle", "falls"), ("yellow", "ball", "grows"), ("red", "square", "stands still"),
    ("green", "triangle", "turns"), ("blue", "ball", "stands still"), ("yellow", "triangle", "moves left"),
]  # fmt: skip


def main():
    write("dissolve", DISSOLVE, 12, dissolve=True)
    write("whole", WHOLE, 13, dissolve=False)


def write(name, things, seed, dissolve):
    out = DATASETS / name
    shutil.rmtree(out, ignore_errors=True)
    (out / "videos").mkdir(parents=True)
    names, captions = [], []
    for index, thing in enumerate(things):
        scene = world.scene(np.random.default_rng([seed, index]), *thing, dissolve=dissolve)
        names.append("videos/" + "_".join(thing).replace(" ", "_") + ".mp4")
        captions.append(scene.caption)
        frames = world.draw(scene).round().clip(0, 255).astype(np.uint8)
        make_shapes.write_clip(out / names[-1], frames)
    (out / "videos.txt").write_text("".join(name + "\n" for name in names))
    (out / "prompt.txt").write_text("".join(caption + "\n" for caption in captions))


if __name__ == "__main__":
    main()
