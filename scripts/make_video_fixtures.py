#!/usr/bin/env python3
"""Makes the small clips of tests/fixtures/video and what the `av` package reads from them.

    pip install -r scripts/requirements.txt
    python scripts/make_video_fixtures.py                       # writes tests/fixtures/video
    python scripts/make_video_fixtures.py --clips FOLDER OUT    # only reads the clips of a folder

`expected.safetensors` holds, for each clip, three frames as `frame.to_ndarray(format="rgb24")` gives them
(swscale, its bilinear setting, the matrix and range of the stream's tags) and all timestamps in seconds;
`resized.*` what Pillow and torchvision make of a picture. The tests compare to these.
"""
import argparse
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms.v2 import functional as F

HEIGHT, WIDTH, FRAMES = 48, 64, 12


def picture(n, height=HEIGHT, width=WIDTH):
    """A smooth coloured ground with a moving disc: every frame differs, chroma has edges."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    ground = np.stack([255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 7 + n / 3)], -1)
    disc = (x - 10 - 4 * n) ** 2 + (y - height / 2) ** 2 < 64
    ground[disc] = (230, 40, 20)
    return ground.clip(0, 255).round().astype(np.uint8)


def film(path, codec, pix_fmt, *, size=(HEIGHT, WIDTH), rate=8, times=None, tags=(), options=None, frames=FRAMES):
    height, width = size
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.thread_count = 1
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for key, value in dict(tags).items():
            setattr(stream.codec_context, key, value)
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(n, height, width), format="rgb24")
            frame = frame.reformat(format=pix_fmt, **COLOURS.get(path.stem, {}))
            frame.pts = times[n] if times else n
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


COLOURS = {
    "bt709": dict(dst_colorspace="ITU709"),
    "full_range": dict(dst_color_range=2),
}


def make(out):
    x264 = {"crf": "20", "g": "5", "bf": "2"}
    film(out / "bt601.mp4", "libx264", "yuv420p", tags={"colorspace": 6, "color_range": 1}, options=x264)
    film(out / "untagged.mp4", "libx264", "yuv420p", options=x264)
    film(out / "bt709.mp4", "libx264", "yuv420p", tags={"colorspace": 1, "color_range": 1}, options=x264)
    film(out / "full_range.mp4", "libx264", "yuv420p", tags={"colorspace": 6, "color_range": 2}, options=x264)
    film(out / "ten_bit.mkv", "libx264", "yuv420p10le", options=x264)
    times = [0, 40, 100, 400, 420, 460, 900, 1000, 1010, 1500, 1600, 2000]
    film(out / "variable_rate.mkv", "libx264", "yuv420p", rate=25, times=times, options=x264)
    film(out / "odd_size.webm", "libvpx-vp9", "yuv420p", size=(35, 51), options={"crf": "20", "b": "0"})
    film(out / "vp8.webm", "libvpx", "yuv420p", options={"crf": "10", "b": "400k", "auto-alt-ref": "1"}, frames=30)
    film(out / "mpeg4.avi", "mpeg4", "yuv420p", options={"qscale": "3"})
    film(out / "lossless.mkv", "ffv1", "bgr0")
    film(out / "long_gop.mp4", "libx264", "yuv420p", options={"crf": "26", "g": "20", "bf": "3"}, frames=60)
    rotate(out / "untagged.mp4", out / "rotated.mp4")
    shown(out / "shown")
    images(out)
    sound(out / "sound_only.mp4")


def shown(out):
    """Films whose pictures are not shown as they are stored. In `shown/`, since `av` reads them as they are stored."""
    out.mkdir(parents=True, exist_ok=True)
    x264 = {"crf": "28", "g": "3", "bf": "0"}
    wide = {"sample_aspect_ratio": Fraction(4, 3)}
    film(out / "anamorphic.mp4", "libx264", "yuv420p", size=(64, 72), tags=wide, options=x264, frames=3)
    film(out / "dvd.mpg", "mpeg2video", "yuv420p", size=(64, 72), rate=25, tags={"sample_aspect_ratio": Fraction(32, 27)},
         options={"qscale": "20"}, frames=3)
    rec2100 = {"color_primaries": 9, "colorspace": 9, "color_range": 1}
    film(out / "pq.mp4", "libx264", "yuv420p10le", tags={**rec2100, "color_trc": 16}, options=x264, frames=3)
    film(out / "hlg.mkv", "libx264", "yuv420p10le", tags={**rec2100, "color_trc": 18}, options=x264, frames=3)
    film(out / "upright.mp4", "libx264", "yuv420p", options=x264, frames=3)
    # rotate is anticlockwise, in degrees
    bitstream(out / "upright.mp4", out / "turned_by_sei.mp4", "h264_metadata=display_orientation=insert:rotate=270")
    bitstream(out / "upright.mp4", out / "mirrored_by_sei.mp4", "h264_metadata=display_orientation=insert:flip=horizontal")


def bitstream(source, target, filters):
    """The same film with its packets passed through libav's bitstream filters."""
    with av.open(str(source)) as film, av.open(str(target), "w", options={"fflags": "+bitexact"}) as out:
        stream = film.streams.video[0]
        copy = out.add_stream_from_template(stream)
        chain = av.bitstream.BitStreamFilterContext(filters, stream, copy)
        for packet in film.demux(stream):
            if packet.dts is None:
                continue
            for passed in chain.filter(packet):
                passed.stream = copy
                out.mux(passed)


def rotate(source, target):
    """The same film, to be shown turned clockwise by 90 degrees: the matrix of the track's header says so."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    assert data[at : at + 4] == struct.pack(">i", 1 << 16)
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    target.write_bytes(data)


def images(out):
    Image.fromarray(picture(3)).save(out / "still.png")
    Image.fromarray(picture(3)).save(out / "still.jpg", quality=90)
    Image.fromarray(picture(3)).save(out / "still.webp", lossless=True)
    frames = [Image.fromarray(picture(n)).convert("P", palette=Image.Palette.ADAPTIVE, colors=64) for n in range(6)]
    frames[0].save(out / "moving.gif", save_all=True, append_images=frames[1:], duration=120, loop=0)


def sound(path):
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream("aac", rate=44100)
        for n in range(10):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate, frame.pts = 44100, n * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def read(path):
    """-> (frames shown, seconds from the first) as av decodes them."""
    frames, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
            times.append(float((frame.pts or 0) * frame.time_base))
    return frames, [t - times[0] for t in times]


def expected(folder):
    tensors = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".mp4", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".webp"} or "sound" in path.name:
            continue
        frames, times = read(path)
        if path.stem == "rotated":
            frames = [np.rot90(frame, -1) for frame in frames]
        chosen = [0, len(frames) // 2, len(frames) - 1]
        tensors[f"{path.name}/frames"] = np.ascontiguousarray(np.stack([frames[i] for i in chosen]))
        tensors[f"{path.name}/indices"] = np.array(chosen, np.int64)
        tensors[f"{path.name}/seconds"] = np.array(times, np.float64)
    return tensors


def resized():
    source = picture(5, 90, 160)
    tensors = {"resized/source": source}
    for height, width in [(45, 80), (48, 64), (135, 240), (37, 101)]:
        small = Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC)
        tensors[f"resized/pillow/{height}x{width}"] = np.asarray(small)
        chw = torch.from_numpy(source).permute(2, 0, 1)
        small = F.resize(chw, [height, width], F.InterpolationMode.BICUBIC, antialias=True)
        tensors[f"resized/torchvision/{height}x{width}"] = np.ascontiguousarray(small.permute(1, 2, 0).numpy())
    return tensors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", nargs=2, type=Path, metavar=("FOLDER", "OUT"))
    args = parser.parse_args()
    if args.clips:
        args.clips[1].mkdir(parents=True, exist_ok=True)
        save_file(expected(args.clips[0]), str(args.clips[1] / "expected.safetensors"))
        return
    out = Path(__file__).resolve().parent.parent / "tests/fixtures/video"
    out.mkdir(parents=True, exist_ok=True)
    make(out)
    save_file({**expected(out), **resized()}, str(out / "expected.safetensors"))
    print(sum(path.stat().st_size for path in out.iterdir()), "bytes in", out)


if __name__ == "__main__":
    main()
