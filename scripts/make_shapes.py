"""Draws datasets/shapes: twelve tiny clips of one simple thing each, and their captions.

    pip install -r scripts/requirements.txt
    python scripts/make_shapes.py

Each scene is a function of time t in [0, 1] that paints one frame, four times too large; the frame is
then averaged down, which smooths every edge. The same libraries give the same bytes again.
"""

import math
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

OUT = Path(__file__).resolve().parent.parent / "datasets" / "shapes"
HEIGHT, WIDTH, FPS = 64, 96, 8
OVERSIZE = 4


class Canvas:
    """Painting in the coordinates of the finished frame, with y growing downwards."""

    def __init__(self, background):
        size = (WIDTH * OVERSIZE, HEIGHT * OVERSIZE)
        self.image = Image.new("RGB", size, background)
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points, colour):
        self.pen.polygon([(x * OVERSIZE, y * OVERSIZE) for x, y in points], fill=colour)

    def box(self, left, top, right, bottom, colour):
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ellipse(self, x, y, rx, ry, colour):
        around = (math.tau * i / 72 for i in range(72))
        self.polygon([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in around], colour)

    def disc(self, x, y, radius, colour):
        self.ellipse(x, y, radius, radius, colour)

    def line(self, x0, y0, x1, y1, width, colour):
        length = math.hypot(x1 - x0, y1 - y0)
        nx, ny = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
        ends = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
        self.polygon(ends, colour)

    def frame(self):
        return np.asarray(self.image.reduce(OVERSIZE))


def star(x, y, outer, inner, points, turn):
    """The corners of a star."""
    radii = [outer, inner] * points
    angles = [turn + math.pi * i / points for i in range(2 * points)]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(radii, angles)]


def blend(first, second, share):
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second))


def ball_rolls(t):
    canvas = Canvas("#cfe8f5")
    canvas.box(0, 48, WIDTH, HEIGHT, "#3c8c3f")
    x, y, radius = 12 + 72 * t, 38, 10
    canvas.disc(x, y, radius, "#d42a24")
    angle = (x - 12) / radius  # rolling, not sliding
    canvas.disc(x + 5 * math.cos(angle), y + 5 * math.sin(angle), 2.5, "#ffe9e0")
    return canvas.frame()


def square_turns(t):
    canvas = Canvas("white")
    corners = [math.pi * (t / 2 + 0.25 + i / 2) for i in range(4)]
    canvas.polygon([(48 + 25 * math.cos(a), 32 + 25 * math.sin(a)) for a in corners], "#2456c8")
    return canvas.frame()


def sun_rises(t):
    canvas = Canvas(blend((38, 32, 74), (250, 196, 138), t))
    canvas.disc(60, 66 - 46 * t, 11, "#ffd21f")
    canvas.ellipse(20, 70, 48, 24, "#1d3b2c")
    canvas.ellipse(80, 72, 44, 20, "#16301f")
    return canvas.frame()


def boat_sails(t):
    canvas = Canvas("#e4f1fa")
    x, y = 80 - 64 * t, 42 + 1.5 * math.sin(6 * math.pi * t)
    canvas.polygon([(x - 14, y - 4), (x + 14, y - 4), (x + 9, y + 5), (x - 9, y + 5)], "#b5472f")
    canvas.line(x, y - 4, x, y - 26, 1.5, "#5a3a22")
    canvas.polygon([(x - 1, y - 25), (x - 1, y - 7), (x - 12, y - 7)], "#fdfdf6")
    shift = math.tau * t
    surface = [(i, 46 + 2 * math.sin(i / 7 + shift)) for i in range(0, WIDTH + 1, 2)]
    canvas.polygon(surface + [(WIDTH, HEIGHT), (0, HEIGHT)], "#1f6fae")
    return canvas.frame()


def ball_bounces(t):
    canvas = Canvas("#f3ead8")
    canvas.box(0, 54, WIDTH, HEIGHT, "#7d7f86")
    phase = (3 * t) % 1.0
    height = 4 * phase * (1 - phase)
    squash = 1 - 0.35 * max(0.0, 1 - 6 * height)
    radius = 9
    canvas.ellipse(48, 54 - radius * squash - 32 * height, radius / squash, radius * squash, "#ee7d12")
    return canvas.frame()


def triangle_grows(t):
    canvas = Canvas("#fbf3c4")
    size = 5 + 27 * t
    canvas.polygon(star(48, 34, size, 1, 3, 0)[::2], "#7a2fa0")
    return canvas.frame()


def circles_pass(t):
    canvas = Canvas("#20242c")
    canvas.disc(12 + 72 * t, 32, 10, "#36c26b")
    canvas.disc(84 - 72 * t, 32, 10, "#f27fb2")  # painted later, so it passes in front
    return canvas.frame()


def clock_runs(t):
    canvas = Canvas("#8a5a34")
    canvas.disc(48, 32, 27, "#2b2320")
    canvas.disc(48, 32, 25, "#fbfaf5")
    for hour in range(12):
        a = math.tau * hour / 12
        canvas.disc(48 + 21 * math.sin(a), 32 - 21 * math.cos(a), 1.4, "#2b2320")
    a = math.tau * t
    canvas.line(48, 32, 48 + 18 * math.sin(a), 32 - 18 * math.cos(a), 2.4, "#c3241d")
    canvas.disc(48, 32, 2.4, "#2b2320")
    return canvas.frame()


def snow_falls(t):
    canvas = Canvas("#131a33")
    canvas.box(0, 54, WIDTH, HEIGHT, "#e9eef7")
    canvas.box(34, 34, 62, 55, "#a8322a")
    canvas.polygon([(30, 35), (48, 19), (66, 35)], "#4b2a20")
    canvas.box(44, 40, 52, 48, "#ffd873")
    for x, y, speed, size in np.random.RandomState(9).rand(36, 4):
        fallen = (y + (1 + round(speed)) * t) % 1.0  # whole rounds, so that the clip loops
        canvas.disc(x * WIDTH, fallen * HEIGHT, 0.7 + 0.7 * size, "#ffffff")
    return canvas.frame()


def pendulum_swings(t):
    canvas = Canvas("#dfe3e6")
    a = 0.8 * math.cos(2 * math.tau * t)
    x, y = 48 + 44 * math.sin(a), 6 + 44 * math.cos(a)
    canvas.line(48, 6, x, y, 1.5, "#303236")
    canvas.box(38, 2, 58, 6, "#6b4a2b")
    canvas.disc(x, y, 8, "#17181a")
    return canvas.frame()


def light_changes(t):
    canvas = Canvas("#9fc3dd")
    canvas.box(45, 50, 51, HEIGHT, "#4b4d50")
    canvas.box(36, 3, 60, 52, "#26282b")
    lit = min(2, int(3 * t))
    lamps = [("#35d15b", "#143d20"), ("#ffd034", "#4d4113"), ("#f5382f", "#4a1613")]
    for i, (bright, dark) in enumerate(lamps):
        canvas.disc(48, 43 - 15.5 * i, 6.5, bright if i == lit else dark)
    return canvas.frame()


def star_shrinks(t):
    canvas = Canvas("#0c4a55")
    size = 30 - 24 * t
    canvas.polygon(star(48, 33, size, size * 0.4, 5, 0), "#ffe14d")
    return canvas.frame()


# (scene, frames, caption); the lengths are mixed on purpose, and not all are 4n + 1.
CLIPS = [
    (ball_rolls, 25, "A red ball rolls from left to right over a green floor"),
    (square_turns, 33, "A blue square turns slowly on a white background"),
    (sun_rises, 33, "A yellow sun rises behind dark hills while the sky grows light"),
    (boat_sails, 25, "A red boat with a white sail crosses a blue sea from right to left"),
    (ball_bounces, 25, "An orange ball bounces three times on a grey floor"),
    (triangle_grows, 17, "A purple triangle grows on a pale yellow background"),
    (circles_pass, 21, "A green circle and a pink circle pass each other in the dark"),
    (clock_runs, 33, "The red hand of a round clock goes once around its white face"),
    (snow_falls, 24, "Snow falls at night on a small red house with a lit window"),
    (pendulum_swings, 29, "A black pendulum swings to and fro in front of a grey wall"),
    (light_changes, 18, "A traffic light changes from green over yellow to red"),
    (star_shrinks, 17, "A yellow star shrinks in the middle of a dark teal background"),
]


def write_clip(path, frames):
    """H.264 in yuv420p, without anything that differs from run to run."""
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "16", "preset": "veryslow", "flags": "+bitexact"}
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def main():
    shutil.rmtree(OUT / "videos", ignore_errors=True)
    (OUT / "videos").mkdir(parents=True)
    for scene, length, _ in CLIPS:
        frames = (scene(i / (length - 1)) for i in range(length))
        write_clip(OUT / "videos" / f"{scene.__name__}.mp4", frames)
    videos = "".join(f"videos/{scene.__name__}.mp4\n" for scene, _, _ in CLIPS)
    prompts = "".join(f"{caption}.\n" for _, _, caption in CLIPS)
    (OUT / "videos.txt").write_text(videos)
    (OUT / "prompt.txt").write_text(prompts)


if __name__ == "__main__":
    main()
