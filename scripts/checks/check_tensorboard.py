"""Reads a run's event files with TensorBoard's own reader and holds them against metrics.jsonl.

    python scripts/checks/check_tensorboard.py OUTPUT_DIR

Every step of the log must be there once under each tag, with the log's value; pictures must be what they say. Ends with
an error that says what is not so. Needs tensorboard and pillow.
"""

import io
import json
import struct
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def as_f32(value):
    return float("nan") if value is None else struct.unpack("f", struct.pack("f", value))[0]


def main(output_dir):
    log = [json.loads(line) for line in (output_dir / "metrics.jsonl").open()]
    steps = [line["step"] for line in log]
    assert steps == list(range(1, len(steps) + 1)), f"metrics.jsonl tells steps {steps}"
    events = EventAccumulator(str(output_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"loss", "lr", "grad_norm", "step_seconds", "samples_per_second"}, tags["scalars"]
    for tag in tags["scalars"]:
        told = events.Scalars(tag)
        assert [event.step for event in told] == steps, f"{tag}: steps {[event.step for event in told]}"
        if tag in log[0]:
            for event, line in zip(told, log, strict=True):
                value = as_f32(line[tag])
                same = event.value == value or (event.value != event.value and value != value)
                assert same, f"{tag}: {event.value} at step {event.step}, {line[tag]} in metrics.jsonl"
        print(f"{tag}: steps {steps[0]} to {steps[-1]}, each once")
    for tag in tags["images"]:
        seen = [image.step for image in events.Images(tag)]
        assert len(set(seen)) == len(seen), f"{tag}: steps {seen}"
        for image in events.Images(tag):
            size = Image.open(io.BytesIO(image.encoded_image_string)).size
            assert size == (image.width, image.height), f"{tag}: {size}, not {image.width, image.height}"
        print(f"{tag}: pictures at steps {seen}, {size[0]}x{size[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
