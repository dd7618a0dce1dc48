#!/usr/bin/env bash
# Samples from a tiny checkpoint on the CPU in f32 and on a device in both types, and compares the latents.
#
#   sample.sh VTRAIN DEVICE CHECKPOINT [IMAGE]
set -uo pipefail
vtrain=$1 device=$2 checkpoint=$3 image=${4:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case ${checkpoint##*/} in
ltx*) size=(--num-frames 9 --height 64 --width 96) ;;
mochi*) size=(--num-frames 7 --height 32 --width 48) ;;
allegro*) size=(--num-frames 8 --height 32 --width 48) ;;
*) size=(--num-frames 9 --height 32 --width 48) ;;
esac

sample() { # device, dtype, name
    "$vtrain" -q sample --model "$checkpoint" --prompt "a dog" --steps 4 --guidance-scale 1 --seed 1 "${size[@]}" \
        ${image:+--image "$image"} --device "$1" --dtype "$2" --output "$work/$3.mp4" --output-latents "$work/$3.safetensors"
}
verdict=0
sample cpu f32 reference || { echo "FAIL $(basename "$checkpoint") on the CPU"; exit 1; }
for dtype in f32 bf16; do
    sample "$device" "$dtype" "$dtype" || { verdict=1; echo "FAIL $(basename "$checkpoint") on $device in $dtype"; continue; }
    [[ -s $work/$dtype.mp4 ]] || { verdict=1; echo "FAIL $(basename "$checkpoint") on $device in $dtype: no clip"; }
    "$vtrain" gpu-check --latents "$work/$dtype.safetensors" "$work/reference.safetensors" |
        sed "s#$work/#$(basename "$checkpoint")${image:+ from an image} #g" || verdict=1
done
exit $verdict
