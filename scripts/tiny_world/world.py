"""The tiny world: one coloured thing on a pale ground, nine frames of 64 x 96, and the sentence that says what it does.

Things are drawn from signed distances, so their edges are smooth at any size. Everything is a function of a numpy generator.
"""

from dataclasses import dataclass

import numpy as np

HEIGHT, WIDTH, FRAMES = 64, 96, 9

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 200),
    "yellow": (240, 190, 20),
}
SHAPES = ("ball", "square", "triangle")
MOTIONS = ("moves left", "moves right", "rises", "falls", "turns", "grows", "stands still")
SKY, FLOOR = (236, 234, 228), (205, 199, 188)
HORIZON = 50

Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) + 0.5


@dataclass
class Scene:
    """Where a thing is, how large and how turned, frame by frame; `gone` is how much of it dissolved."""

    colour: str
    shape: str
    motion: str
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    turn: np.ndarray
    gone: np.ndarray
    grain: np.ndarray  # (HEIGHT, WIDTH), 0 to 1: where dust appears first

    @property
    def caption(self):
        return f"a {self.colour} {self.shape} {self.motion}"


def scene(rng, colour=None, shape=None, motion=None, dissolve=False):
    """A scene of the world; what is not given is drawn."""
    colour = colour or rng.choice(list(COLOURS))
    shape = shape or rng.choice(SHAPES)
    motion = motion or rng.choice(MOTIONS)
    t = np.linspace(0, 1, FRAMES, dtype=np.float32)
    x, y = rng.uniform(40, 56), rng.uniform(28, 36)
    radius, turn = rng.uniform(13, 17), rng.uniform(-0.3, 0.3)
    still = np.zeros(FRAMES, np.float32)
    far = rng.uniform(24, 32)
    dx = {"moves left": far * (0.5 - t), "moves right": far * (t - 0.5)}.get(motion, still)
    high = rng.uniform(18, 24)
    dy = {"rises": high * (0.5 - t), "falls": high * (t - 0.5)}.get(motion, still)
    spin = rng.uniform(1.2, 1.6) * t if motion == "turns" else still
    grow = 0.6 + 0.7 * t if motion == "grows" else 1 + still
    gone = np.clip((t - 0.1) / 0.75, 0, 1) if dissolve else still
    return Scene(colour, shape, motion, x + dx, y + dy, radius * grow, turn + spin, gone, grain(rng))


def grain(rng):
    """Smooth noise with sharp grains in it, evened out to 0 to 1."""
    coarse = rng.random((HEIGHT // 4, WIDTH // 4), dtype=np.float32).repeat(4, 0).repeat(4, 1)
    fine = rng.random((HEIGHT // 2, WIDTH // 2), dtype=np.float32).repeat(2, 0).repeat(2, 1)
    return 0.5 * coarse + 0.5 * fine


def distance(shape, x, y, radius):
    """Signed distance to the edge of a shape around (0, 0), below 0 inside."""
    if shape == "ball":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius * 0.88
    lower = y - radius * 0.6
    sides = np.abs(x) * 0.866 - y * 0.5 - radius * 0.55
    return np.maximum(lower, sides)


def ground():
    """(HEIGHT, WIDTH, 3), 0 to 255."""
    floor = np.clip((Y - HORIZON) / 2 + 0.5, 0, 1)[..., None]
    return (1 - floor) * np.array(SKY, np.float32) + floor * np.array(FLOOR, np.float32)


def draw(scene):
    """(FRAMES, HEIGHT, WIDTH, 3), 0 to 255, f32."""
    back = ground()
    frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.float32)
    colour = np.array(COLOURS[scene.colour], np.float32)
    for f in range(FRAMES):
        dx, dy, turn = X - scene.x[f], Y - scene.y[f], scene.turn[f]
        c, s = np.cos(turn), np.sin(turn)
        edge = distance(scene.shape, c * dx + s * dy, c * dy - s * dx, scene.radius[f])
        cover = np.clip(0.5 - edge, 0, 1)
        light = 1.0 + 0.18 * np.clip((-dx - dy) / scene.radius[f] / 1.4, -1, 1)
        if scene.gone[f] > 0:
            # From the edges inwards: what lies deep goes last, and grains go at random around that.
            depth = np.clip(-edge / scene.radius[f], 0, 1)
            order = 0.55 * depth + 0.45 * scene.grain
            cover = cover * np.clip((order - scene.gone[f] * 1.02) / 0.06, 0, 1)
        frames[f] = back + cover[..., None] * (np.clip(colour * light[..., None], 0, 255) - back)
    return frames
