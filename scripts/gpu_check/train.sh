#!/usr/bin/env bash
# A whole run of a tiny pretrained model: encodes clips, trains, is killed, continues from its last checkpoint, and samples with
# what it learned.
#
#   train.sh VTRAIN DEVICE TREE STEPS
set -uo pipefail
vtrain=$1 device=$2 tree=$3 steps=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
every=$((steps / 4))
model=$tree/datasets/tiny-world dtype=bf16 batch=4 height=64 width=96
# For a rehearsal, what a CPU is quicker with.
[[ $device == cpu ]] && model=$tree/tests/fixtures/cogvideox/cogvideox-5b dtype=f32 batch=1 height=32 width=48
cat >"$work/run.yaml" <<END
output_dir: $work/out
device: $device
model: {path: $model, dtype: $dtype}
datasets: [{path: $tree/datasets/dissolve, id_token: DISSOLVE_FX, buckets: [[9, $height, $width]]}]
lora: {rank: 16, alpha: 16, dropout: 0.1}
train: {steps: $steps, batch_size: $batch}
optimizer: {lr: 2e-3}
checkpoint: {every: $every, limit: 2}
END
fail() { echo "FAIL $*"; exit 1; }
last_step() { grep -o '"step":[0-9]*' "$work/out/metrics.jsonl" | tail -1 | cut -d: -f2; }

"$vtrain" -q precompute --config "$work/run.yaml" || fail "precompute: exit code $?"
echo "ok   clips and captions are encoded"
"$vtrain" -q train --config "$work/run.yaml" &
run=$!
until compgen -G "$work/out/checkpoints/step-*" >/dev/null; do
    kill -0 $run 2>/dev/null || fail "training ended before its first checkpoint"
    sleep 0.02
done
kill -KILL $run
wait $run 2>/dev/null
[[ $? == 137 ]] || fail "training was over before it could be killed: it has too few steps"
echo "ok   killed behind step $(last_step)"
"$vtrain" train --config "$work/run.yaml" 2>"$work/said" || { cat "$work/said"; fail "the resumed run: exit code $?"; }
grep -q 'continuing from' "$work/said" || { cat "$work/said"; fail "the second run did not continue from a checkpoint"; }
end=$(last_step)
[[ $end == "$steps" ]] || fail "the resumed run ended at step $end of $steps"
echo "ok   continued from a checkpoint to step $end"
if grep -q '"loss":\(null\|NaN\)' "$work/out/metrics.jsonl"; then fail "a loss is no number"; fi
"$vtrain" -q sample --model "$model" --lora "$work/out/pytorch_lora_weights.safetensors" \
    --prompt "DISSOLVE_FX a red square turns" --steps 4 --num-frames 9 --height $height --width $width --device "$device" --dtype "$dtype" \
    --output "$work/clip.mp4" || fail "sampling with the adapter: exit code $?"
echo "ok   a clip with the adapter, $(stat -c %s "$work/clip.mp4") bytes"
