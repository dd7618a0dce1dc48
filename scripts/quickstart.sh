#!/usr/bin/env bash
# From a fresh checkout to a trained adapter: installs the system packages that are missing, builds, and teaches a tiny
# pretrained CogVideoX an effect with the clips that ship with vtrain. Training takes less than a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup/system.sh
install_system_packages

say "Building (the first time takes some minutes)"
cargo build --release --locked
vtrain=${CARGO_TARGET_DIR:-target}/release/vtrain

say "The clips: vtrain check-dataset --config configs/cogvideox/quickstart.yaml"
"$vtrain" check-dataset --config configs/cogvideox/quickstart.yaml

say "Training: vtrain --config configs/cogvideox/quickstart.yaml"
"$vtrain" --config configs/cogvideox/quickstart.yaml

say "Done. Everything is in runs/quickstart: the adapter, its log, and validation videos before and after"
ls runs/quickstart runs/quickstart/validation/*
echo "Next: your own clips and a real model, starting from configs/cogvideox/lora.yaml."
echo runs/quickstart/index.html
