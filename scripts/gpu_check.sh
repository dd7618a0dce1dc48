#!/usr/bin/env bash
# Checks vtrain on a machine with a GPU that has the driver and NVIDIA's libraries, and neither Rust nor a network.
#
#   scripts/gpu_check.sh --pack BINARY FOLDER   where vtrain was built: everything to carry, into FOLDER
#   FOLDER/gpu_check.sh                         where the GPU is: one table, in less than ten minutes
#
# The folder holds this script and an archive, which it unpacks there (with tar and xz): the stripped binary, FFmpeg's
# libraries and what they need, and the tiny checkpoints of the tests. CUDA's own libraries are looked for where wheels and
# toolkits put them. Its exit code is 1 where a line of the table says FAIL.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# What every machine has itself: the loader, the C library, and the driver and libraries of NVIDIA.
their_own='^(ld-linux.*|libc|libm|libdl|libpthread|librt|libgcc_s|libstdc\+\+|libcuda|libcudart|libcublas|libcublasLt|libcurand|libcudnn.*|libnccl|libnvrtc.*|linux-vdso)\.so'

pack() {
    local binary=$1 to=$2 folder family
    folder=$(mktemp -d)
    mkdir -p "$folder/lib" "$folder/tiny" "$to"
    strip -o "$folder/vtrain" "$binary"
    ldd "$binary" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | while read -r library; do
        [[ $(basename "$library") =~ $their_own ]] && continue
        cp -L "$library" "$folder/lib/"
    done
    for family in cogvideox/cogvideox-2b cogvideox/cogvideox-5b ltx_video/ltx-0.9.0 wan/wan-2.1-t2v; do
        cp -r "$here/../tests/fixtures/$family" "$folder/tiny/"
    done
    XZ_OPT=-9 tar -C "$folder" -cJf "$to/vtrain.tar.xz" vtrain lib tiny
    cp "$0" "$to/gpu_check.sh"
    echo "To carry: $(du -sm "$to" | cut -f1) MB in $to; unpacked $(du -sm "$folder" | cut -f1) MB," \
        "of which vtrain is $(du -m "$folder/vtrain" | cut -f1)"
    rm -rf "$folder"
}

if [[ ${1:-} == --pack ]]; then
    [[ $# == 3 ]] || { sed -n '2,9s/^# \?//p' "$0"; exit 2; }
    pack "$2" "$3"
    exit
fi

[[ -x $here/vtrain ]] || tar -C "$here" -xJf "$here/vtrain.tar.xz"

# CUDA's libraries: of the wheels that PyTorch installs, of a toolkit; the driver's in containers, where the loader knows none.
wheels=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
drivers=(/usr/local/nvidia/lib64 /usr/local/cuda/compat)
if ldconfig -p | grep -q 'libcuda\.so\.1'; then drivers=(); fi
for folder in ${wheels:+"$wheels"/*/lib} /usr/local/cuda/lib64 "${drivers[@]}"; do
    [[ -d $folder ]] && LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
done
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/lib"
# The driver compiles kernels at first use. What it made is kept here, out of later timings.
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$here/.jit} CUDA_CACHE_MAXSIZE=2147483648
vtrain=$here/vtrain
if missing=$(ldd "$vtrain" | grep 'not found'); then
    echo "vtrain cannot start here, for want of:" >&2
    echo "$missing" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
verdict=0
started=$SECONDS

echo "== The machine"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
"$vtrain" --version

echo "== Ops and tiny transformers: errors against the CPU in f32"
families=()
for family in "$here"/tiny/*/; do families+=(--family "$family"); done
"$vtrain" gpu-check "${families[@]}" | tee "$work/ops.txt" || verdict=1

echo "== Sampling with tiny checkpoints: text encoder, transformer, VAE"
sample() { # model, device, dtype
    local size=(--num-frames 9 --height 32 --width 48)
    [[ $1 == *ltx* ]] && size=(--num-frames 9 --height 64 --width 96)
    "$vtrain" -q sample --model "$1" --prompt "a dog" --steps 4 --guidance-scale 1 --seed 1 "${size[@]}" \
        --device "$2" --dtype "$3" --output "$work/$2-$3/" --output-latents "$work/$2-$3.safetensors"
}
for family in "$here"/tiny/*/; do
    rm -rf "$work"/c*
    echo "$(basename "$family")"
    for run in "cpu f32" "cuda f32" "cuda bf16"; do
        # shellcheck disable=SC2086
        sample "$family" $run || { verdict=1; echo "FAIL $run"; continue 2; }
    done
    for dtype in f32 bf16; do
        "$vtrain" gpu-check --latents "$work/cuda-$dtype.safetensors" "$work/cpu-f32.safetensors" || verdict=1
    done
done | tee "$work/samples.txt"
grep -q FAIL "$work/samples.txt" && verdict=1

echo "== Training steps with made-up weights, bf16, rank 128, gradient checkpointing"
bench() { # name, frames,height,width, config.json
    local model=$work/$1
    mkdir -p "$model/transformer"
    echo "$3" >"$model/transformer/config.json"
    printf '%s\n' "output_dir: $work/out" "device: cuda" "model: {path: $model, dtype: bf16}" \
        "lora: {rank: 128, alpha: 128}" "datasets: [{path: nowhere, buckets: [[$(echo "$2" | sed 's/,/, /g')]]}]" \
        >"$model/run.yaml"
    echo "-- $1 $2"
    "$vtrain" bench --config "$model/run.yaml" --random-weights --steps 5 --bucket "$2" || verdict=1
}
bench ltx-video-2b 49,512,768 '{"_class_name": "LTXVideoTransformer3DModel", "in_channels": 128, "out_channels": 128,
    "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 32, "attention_head_dim": 64, "cross_attention_dim": 2048,
    "num_layers": 28, "caption_channels": 4096, "qk_norm": "rms_norm_across_heads", "norm_eps": 1e-6,
    "norm_elementwise_affine": false, "attention_bias": true, "attention_out_bias": true,
    "activation_fn": "gelu-approximate"}'
bench wan-2.1-1.3b 81,480,832 '{"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "num_attention_heads": 12,
    "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960,
    "num_layers": 30, "cross_attn_norm": true, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": null,
    "added_kv_proj_dim": null, "rope_max_seq_len": 1024}'
bench cogvideox-5b 49,480,720 '{"_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 48,
    "attention_head_dim": 64, "in_channels": 16, "out_channels": 16, "flip_sin_to_cos": true, "freq_shift": 0,
    "time_embed_dim": 512, "text_embed_dim": 4096, "num_layers": 42, "dropout": 0.0, "attention_bias": true,
    "sample_width": 90, "sample_height": 60, "sample_frames": 49, "patch_size": 2, "temporal_compression_ratio": 4,
    "max_text_seq_length": 226, "activation_fn": "gelu-approximate", "timestep_activation_fn": "silu",
    "norm_elementwise_affine": true, "norm_eps": 1e-5, "spatial_interpolation_scale": 1.875,
    "temporal_interpolation_scale": 1.0, "use_rotary_positional_embeddings": true,
    "use_learned_positional_embeddings": false}'

echo "== What does not hold, if anything"
grep -h FAIL "$work/ops.txt" "$work/samples.txt" || echo "nothing: all comparisons hold"
echo "$((SECONDS - started)) seconds in all"
exit $verdict
