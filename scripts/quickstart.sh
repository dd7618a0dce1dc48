#!/usr/bin/env bash
# From a fresh checkout to a trained adapter: installs the system packages that are missing, builds, and trains a tiny
# CogVideoX on the clips that ship with vtrain. Training takes some seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/system.sh
install_system_packages

say "Building (the first time takes some minutes)"
cargo build --release --locked
vtrain=${CARGO_TARGET_DIR:-target}/release/vtrain

say "The clips: vtrain check-dataset --config configs/cogvideox/tiny.yaml"
"$vtrain" check-dataset --config configs/cogvideox/tiny.yaml

say "Training: vtrain --config configs/cogvideox/tiny.yaml"
"$vtrain" --config configs/cogvideox/tiny.yaml

say "Done. Everything is in runs/tiny: the adapter, its log, and validation videos before and after"
ls runs/tiny runs/tiny/validation/*
echo "The tiny model has random weights, so its videos show noise. Next: your own clips and a real model,"
echo "starting from configs/cogvideox/lora.yaml."
