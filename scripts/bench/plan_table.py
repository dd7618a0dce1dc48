"""What fits into how much memory: `vtrain plan` for published models, from their configurations alone.

    python scripts/bench/plan_table.py target/release/vtrain [RANK]

Prints the table of docs/hardware.md. Nothing is downloaded. A cell is the planned peak of training on a GPU, and the
smallest of the usual cards that it fits into.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "gpu_check" / "models"
CARDS = (8, 12, 16, 24, 48, 80)
DRIVER = 640 * 2**20
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
# Name, configuration, changes, bucket.
CASES = [
    ("CogVideoX-5b, 49x480x720", "cogvideox-5b", {}, [49, 480, 720]),
    ("LTX-Video 2B, 49x512x768", "ltx-video-2b", {}, [49, 512, 768]),
    ("Wan 2.1 1.3B, 81x480x832", "wan-2.1-1.3b", {}, [81, 480, 832]),
    ("Wan 2.1 14B, 81x480x832", "wan-2.1-1.3b", WAN_14B, [81, 480, 832]),
    ("HunyuanVideo, 49x512x768", "hunyuan-video", {}, [49, 512, 768]),
    ("Mochi 1, 37x480x848", "mochi-1", {}, [37, 480, 848]),
    ("Allegro, 88x720x1280", "allegro", {}, [88, 720, 1280]),
]
INPUTS = ["train.activation_policy=inputs"]
NF4 = [*INPUTS, "model.quantization=nf4"]
GROUP = [*NF4, "model.offload=group", "optimizer.name=adamw8bit"]
# Heading, settings.
LADDER = [
    ("`all`", ["train.activation_policy=all"]),
    ("`inputs+attention`", ["train.activation_policy=inputs+attention"]),
    ("`inputs`", INPUTS),
    ("`inputs`, nf4", NF4),
    ("`inputs`, nf4, group, adamw8bit", GROUP),
]


def peak(vtrain, folder, sets):
    command = [vtrain, "plan", "--config", folder / "run.yaml", "--configs-only", "--no-calibration", "--json"]
    command += ["--device-memory", "1000GB"]
    for value in sets:
        command += ["--set", value]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["training"]["peak_bytes"]


def card(bytes_needed):
    fitting = (card for card in CARDS if bytes_needed + DRIVER <= card * 2**30)
    smallest = next(fitting, None)
    return f"{smallest} GB" if smallest else "more"


def main():
    vtrain, rank = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128
    print("| model, clip | " + " | ".join(heading for heading, _ in LADDER) + " |")
    print("| --- " * (len(LADDER) + 1) + "|")
    for name, config, changes, bucket in CASES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "model/transformer").mkdir(parents=True)
            published = {**json.loads((MODELS / f"{config}.json").read_text()), **changes}
            (folder / "model/transformer/config.json").write_text(json.dumps(published))
            (folder / "run.yaml").write_text(
                f"model: {{path: ./model}}\ndatasets: [{{path: ., buckets: [{bucket}]}}]\nlora: {{rank: {rank}, alpha: {rank}}}\n"
            )
            peaks = [peak(vtrain, folder, sets) for _, sets in LADDER]
        cells = [f"{bytes_needed / 2**30:.1f} GiB: {card(bytes_needed)}" for bytes_needed in peaks]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
