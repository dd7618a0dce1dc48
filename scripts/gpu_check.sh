#!/usr/bin/env bash
# Checks and measures vtrain on a machine with a GPU that has the driver and NVIDIA's libraries, and neither Rust nor a network.
#
#   scripts/gpu_check.sh --pack BINARY FOLDER [--ffmpeg minimal|system] [--no-peer]
#       where vtrain was built, with --features gpu-check: everything to carry, into FOLDER: this script and an archive, whose sizes it tells
#   FOLDER/gpu_check.sh [OPTIONS]
#       where the GPU is. Prints each line when it is known, and at the end those that say FAIL; then its exit code is 1
#
#   --tree DIR        the checked out repository, for tiny checkpoints and clips; without one, what needs it is left out
#                     (the current folder, or the one above this script, where it is one)
#   --only PATTERN    the parts whose names match this regular expression, such as 'ops|wan'
#   --budget SECONDS  for all of it; what there is no time for is left out, and said to be (900)
#   --log FILE        where everything that is printed goes as well ($GPU_CHECK_LOG, or gpu_check.log beside this script)
#   --python PYTHON   with PyTorch, transformers and PEFT: the peer (python3)
#   --device DEVICE   cuda; cpu is for trying this script out
#   --size SIZE       full; tiny is for trying this script out
#
# In order: the machine; every op against the CPU; tiny checkpoints of Mochi 1, Allegro and HunyuanVideo against the CPU, part by
# part, their streamed blocks against blocks in memory, and sampling; training steps with made-up weights: of CogVideoX-5b with
# streamed blocks, then of Allegro, Mochi 1, HunyuanVideo, CogVideoX-5b, LTX-Video 2b and Wan 2.1 1.3B, dense and in few bits, with
# PyTorch's beside them; tiny checkpoints of the other families, and sampling; a whole run; attention over long clips; NCCL. Each
# is a process of its own with a time-out. One that fails is run again under compute-sanitizer, where there is one
# ($COMPUTE_SANITIZER names another).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '2,26s/^# \?//p' "$0" >&2; exit 2; }
die() { echo "gpu_check.sh: $*" >&2; exit 2; }

if [[ ${1:-} == --pack ]]; then
    shift
    exec "$here/gpu_check/pack.sh" "$@"
fi

device=cuda tree='' only='' budget=900 log=${GPU_CHECK_LOG:-$here/gpu_check.log} python=python3 size=full
while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || usage
    case $1 in
    --device) device=$2 ;;
    --tree) tree=$2 ;;
    --only) only=$2 ;;
    --budget) budget=$2 ;;
    --log) log=$2 ;;
    --python) python=$2 ;;
    --size) size=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[[ $budget =~ ^[0-9]+$ && ($size == full || $size == tiny) ]] || usage
command -v "$python" >/dev/null || die "there is no $python here (--python names another)"
if [[ -z $tree ]]; then
    for folder in "$PWD" "$here/.."; do [[ -d $folder/tests/fixtures ]] && tree=$folder && break; done
fi
[[ -z $tree || -d $tree/tests/fixtures ]] || die "$tree is no repository of vtrain: it has no tests/fixtures"
[[ -z $tree ]] || tree=$(cd "$tree" && pwd)

unpack() {
    [[ -f $here/carry.tar.xz ]] || die "carry.tar.xz is to lie beside this script: gpu_check.sh --pack makes it"
    if command -v xz >/dev/null; then
        tar -C "$here" -xJf "$here/carry.tar.xz"
    else
        "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' \
            "$here/carry.tar.xz" "$here"
    fi || die "carry.tar.xz cannot be unpacked"
}
[[ -x $here/vtrain ]] || unpack
helpers=$here/gpu_check
rows=("$python" "$helpers/rows.py")
started=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Starts vtrain, and nothing else, with CUDA's libraries: of the wheels that PyTorch installs, or of a toolkit; in containers
# the driver's as well, where the loader knows none. FFmpeg's are in lib/.
vtrain=$work/vtrain
wrap() {
    local wheels folder drivers=()
    libraries=$here/lib
    wheels=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null)
    ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1' || drivers=(/usr/local/nvidia/lib64 /usr/local/cuda/compat)
    for folder in ${wheels:+"$wheels"/*/lib} /usr/local/cuda/lib64 "${drivers[@]}"; do
        [[ -d $folder ]] && libraries+=:$folder
    done
    # The driver compiles kernels at first use. What it made is kept, out of later timings.
    cat >"$vtrain" <<END
#!/bin/bash
export LD_LIBRARY_PATH=$(printf %q "$libraries")\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export CUDA_CACHE_PATH=\${CUDA_CACHE_PATH:-$(printf %q "$here/.jit")} CUDA_CACHE_MAXSIZE=2147483648
exec \${UNDER:-} $(printf %q "$here/vtrain") "\$@"
END
    chmod +x "$vtrain"
    missing=$(LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} ldd "$here/vtrain" 2>&1 | grep 'not found')
}

left() { echo $((budget - (SECONDS - started))); }
failed() { echo "FAIL $*"; echo "FAIL $*" >>"$work/failed"; }

left_out() { echo "LEFT OUT $1: $2"; echo "$1: $2" >>"$work/left_out"; }

# Runs a command with a time-out, if there is the least time for it; its lines that say FAIL are kept for the end.
group() { # name, the least seconds, the most, command
    local name=$1 least=$2 most=$3 code begun=$SECONDS
    shift 3
    [[ -z $only || $name =~ $only ]] || return 0
    echo "== $name"
    if (($(left) < least)); then
        left_out "$name" "$(left) s are left, it may need $least"
        return
    fi
    # A rehearsal may be on a machine that is busy with others.
    [[ $size == tiny ]] || (($(left) < most)) && most=$(left)
    timeout -k 10 "$most" "$@" 2>&1 | tee "$work/said"
    code=${PIPESTATUS[0]}
    grep '^FAIL' "$work/said" | sed "s#^FAIL#FAIL $name:#" >>"$work/failed"
    echo "   $((SECONDS - begun)) s"
    ((code == 0)) && return
    case $code in
    124 | 137) failed "$name: stopped after $most s" ;;
    *) failed "$name: exit code $code" ;;
    esac
    return "$code"
}

sanitizer=${COMPUTE_SANITIZER:-$(PATH=$PATH:/usr/local/cuda/bin type -P compute-sanitizer)}

# The same; where it fails, once more under compute-sanitizer.
checked() { # name, the least seconds, the most, command
    local least=$2
    group "$@" && return
    shift 3
    [[ -n $sanitizer && $device == cuda* || -n ${COMPUTE_SANITIZER:-} ]] || return
    (($(left) < least)) && { echo "   no time to run it under $sanitizer"; return; }
    echo "   once more under $sanitizer"
    UNDER="$sanitizer --print-limit 20" timeout -k 10 $(($(left) < 90 ? $(left) : 90)) "$@" 2>&1 | grep '^=' | head -60
}

# What the machine is, and has.
machine() {
    nvidia-smi || echo "nvidia-smi: none"
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null
    uname -srm
    echo "$(nproc) processors, $(awk '/^MemTotal/ { print int($2 / 1048576) }' /proc/meminfo) GiB of memory"
    ldd --version | head -1
    "${rows[@]}" machine
    echo "compute-sanitizer: ${sanitizer:-none}"
    echo "libraries of vtrain that are not its own:"
    LD_LIBRARY_PATH=$libraries ldd "$here/vtrain" | grep 'lib\(cu\|nccl\|nv\)\|not found'
    ldconfig -p 2>/dev/null | grep 'libcudart\|libcudnn\.so'
    "$vtrain" --version
}

# Makes the folder of a model with made-up weights, and its run file.
made_up() { # name, bucket
    model=$work/$1
    mkdir -p "$model/transformer"
    "${rows[@]}" model "$helpers/models/$1.json" "$size" >"$model/transformer/config.json"
    cat >"$model/run.yaml" <<END
output_dir: $work/out
device: $device
model: {path: $model, dtype: bf16}
lora: {rank: $rank, alpha: $rank}
datasets: [{path: nowhere, buckets: [[${2//,/, }]]}]
END
    step=("$vtrain" bench --config "$model/run.yaml" --random-weights --json --bucket "$2")
}

# A training step with made-up weights by every policy, over weights in few bits, and the peer's.
bench() { # name, bucket, steps, policies, forms
    local name=$1 bucket=$2 steps=$3 policies=$4 forms=$5 policy form more
    local model step
    made_up "$name" "$bucket"
    for policy in $policies; do
        more=()
        [[ $policy == "${policies%% *}" && ($size == full || $name == cogvideox-5b) ]] && more=(--profile)
        group "$name $bucket, keep: $policy" 30 150 "${rows[@]}" ours "$name $bucket" "$model/$policy.json" \
            "${step[@]}" --steps "$steps" --set "train.activation_policy=$policy" "${more[@]}"
    done
    for form in $forms; do
        group "$name $bucket over $form" 30 150 "${rows[@]}" ours "$name $bucket over $form" "$model/$form.json" \
            "${step[@]}" --steps "$steps" --set "model.quantization=$form"
    done
    if [[ $peer == no ]]; then
        left_out "$name by PyTorch" "it is not all there"
        return
    fi
    group "$name $bucket by PyTorch" 40 200 "${rows[@]}" peer "$name $bucket" "$model/peer.json" "$model/auto.json" \
        env PYTHONPATH="$site" "$python" "$helpers/peer_step.py" --model "$model" --bucket "$bucket" --rank "$rank" \
        --steps "$steps" --dtype bf16 --device "$device"
}

# Training steps whose blocks, or what is kept between the passes, wait in main memory; a card of 8 GB has 7.45 GiB.
streamed() { # name, bucket, steps
    local name=$1 bucket=$2 steps=$3 times=1.15 small=7.45
    local model step offload=(--set model.offload=group --set)
    [[ $size == full ]] || times=- small=-
    made_up "$name" "$bucket"
    step+=(--steps "$steps")
    # Streamed blocks are not kept whole, so the step beside them keeps none either.
    group "streamed $name $bucket: none" 30 120 "${rows[@]}" ours "$name $bucket" "$model/whole.json" "${step[@]}" \
        --set train.activation_policy=inputs+attention
    group "streamed $name $bucket: half" 30 120 "${rows[@]}" bounded "$name $bucket, half of the blocks streamed" \
        "$model/half.json" "$model/whole.json" "$times" - "${step[@]}" "${offload[@]}" model.offload_resident=0.5 \
        --set train.activation_policy=inputs+attention
    group "streamed $name $bucket: all, in 8 GB" 30 150 "${rows[@]}" bounded "$name $bucket, all blocks streamed" \
        "$model/least.json" "$model/whole.json" - "$small" "${step[@]}" "${offload[@]}" model.offload_resident=0 \
        --set train.activation_policy=offloaded
    group "streamed $name $bucket: activations" 30 120 "${rows[@]}" bounded "$name $bucket, activations offloaded" \
        "$model/offloaded.json" "$model/whole.json" - - "${step[@]}" --set train.activation_policy=offloaded
}

# PyTorch and what it needs, with diffusers out of the archive where there is none.
find_peer() {
    site=$work/site${PYTHONPATH:+:$PYTHONPATH}
    mkdir -p "$work/site"
    for wheel in "$here"/wheels/*.whl; do
        [[ -f $wheel ]] && "$python" -m zipfile -e "$wheel" "$work/site"
    done
    peer=no
    if PYTHONPATH=$site "$python" -c 'import torch, diffusers, transformers, peft' 2>"$work/said"; then
        peer=yes
    else
        echo "The peer cannot be measured: $(tail -1 "$work/said")"
    fi
}

# Parts of a tiny checkpoint against the CPU.
tiny() { # folder, groups
    local folder=$1 name groups=() quick=()
    shift
    for name in "$@"; do groups+=(--group "$name"); done
    [[ $size == tiny ]] && quick=(--quick)
    checked "tiny ${folder##*/}" 15 90 "$vtrain" gpu-check --device "$device" "${groups[@]}" "${quick[@]}" \
        --family "$folder"
}

sampling() { # what it is called, checkpoint, image
    checked "$1 ${2##*/}" 15 60 bash "$helpers/sample.sh" "$vtrain" "$device" "${@:2}"
}

# Tiny checkpoints whose parts are put together here, and streamed blocks.
composed_checkpoints() {
    local fixtures=$tree/tests/fixtures made=$work/tiny name parts=(training dropout policies vae text)
    # A rehearsal has little time.
    [[ $size == full ]] || parts=(training vae)
    "$helpers/compose.sh" "$fixtures" "$made" || { failed "tiny checkpoints cannot be put together"; return; }
    for name in mochi-1 allegro-t2v hunyuan-t2v; do
        [[ $size == tiny && $name == hunyuan-t2v ]] && parts=(training) # its frames are the slowest
        tiny "$made/$name" "${parts[@]}"
    done
    [[ $size == full ]] || parts=()
    tiny "$made/hunyuan-i2v-concat" "${parts[@]}" image
    [[ $size == tiny ]] || tiny "$made/hunyuan-i2v-replace" "${parts[@]}" image
    local streamed=("$made/allegro-t2v")
    [[ $size == full ]] && streamed+=("$made"/{mochi-1,hunyuan-t2v} "$fixtures/cogvideox/cogvideox-5b")
    for name in "${streamed[@]}"; do
        checked "streaming ${name##*/}" 15 90 "$vtrain" gpu-check --device "$device" --group streaming --quick --family "$name"
    done
    sampling sampling "$made/mochi-1"
    [[ $size == full ]] || return 0
    sampling sampling "$made/allegro-t2v"
    sampling sampling "$made/hunyuan-t2v"
    for name in hunyuan-i2v-concat hunyuan-i2v-replace; do
        sampling "image to video" "$made/$name" "$fixtures/video/still.png"
    done
}

# Tiny checkpoints: parts against the CPU, then sampling.
tiny_checkpoints() {
    local fixtures=$tree/tests/fixtures family image
    local families=(cogvideox/cogvideox-2b wan/wan-2.1-i2v) samplers=(cogvideox/cogvideox-2b)
    local from_images=(wan/wan-2.1-i2v)
    if [[ $size == full ]]; then
        families+=(ltx_video/ltx-0.9.5 wan/wan-2.1-t2v cogvideox/cogvideox-5b-i2v cogvideox/cogvideox-5b ltx_video/ltx-0.9.0)
        samplers+=(ltx_video/ltx-0.9.0 wan/wan-2.1-t2v)
        from_images+=(cogvideox/cogvideox-5b-i2v)
    fi
    for family in "${families[@]}"; do
        image=()
        [[ $family == *i2v ]] && image=(image)
        tiny "$fixtures/$family" training dropout policies vae text "${image[@]}"
    done
    cp -r "$fixtures/cogvideox/cogvideox-2b" "$work/tiled"
    # Of this size, tiles of pixels and of latents line up.
    sed -i 's/"sample_height": [0-9]*/"sample_height": 96/; s/"sample_width": [0-9]*/"sample_width": 80/' "$work/tiled/vae/config.json"
    checked "a VAE in tiles" 15 60 "$vtrain" gpu-check --device "$device" --group tiling --family "$work/tiled"
    # Their tiles are as large as published ones.
    [[ $size == tiny ]] || for family in ltx_video/ltx-0.9.5 wan/wan-2.1-t2v; do
        checked "a VAE in tiles, $family" 15 90 "$vtrain" gpu-check --device "$device" --group tiling --family "$fixtures/$family"
    done
    for family in "${samplers[@]}"; do sampling sampling "$fixtures/$family"; done
    for family in "${from_images[@]}"; do
        sampling "image to video" "$fixtures/$family" "$fixtures/video/still.png"
    done
    checked "a run that is killed and resumed" 20 120 bash "$helpers/train.sh" "$vtrain" "$device" "$tree" "$run_steps"
}

# Training steps of models in full size.
training_steps() {
    if [[ $size == full ]]; then
        streamed cogvideox-5b 49,480,720 2
        bench allegro 40,368,640 4 "auto inputs" ""
        bench mochi-1 37,480,848 2 "auto inputs" ""
        bench hunyuan-video 61,320,512 2 "auto inputs" ""
        bench cogvideox-5b 49,480,720 3 "auto all inputs" nf4
        bench ltx-video-2b 49,512,768 8 "auto inputs" "nf4 q4_k"
        bench wan-2.1-1.3b 81,480,832 3 "auto inputs" "nf4 int8 fp8-scaled q4_k"
    else
        streamed cogvideox-5b 5,32,32 1
        bench allegro 8,32,32 1 auto ""
        bench mochi-1 7,32,32 1 auto ""
        bench hunyuan-video 5,32,32 1 auto ""
        bench cogvideox-5b 5,32,32 1 "auto all inputs" nf4
        bench ltx-video-2b 9,64,64 1 auto q4_k
        bench wan-2.1-1.3b 5,32,32 1 auto int8
    fi
}

visit() {
    local name
    echo "gpu_check.sh: $size size on $device, $budget s"
    wrap
    echo "== machine"
    machine
    if [[ -n $missing ]]; then
        failed "vtrain cannot start here, for want of: $(awk '{ print $1 }' <<<"$missing" | xargs)"
        return
    fi
    # The first process pays for what the driver compiles; the others find it.
    for name in norm residual activation rotary linear sequence stored attention masked-attention deterministic convolution \
        frame-norm frame-attention optimiser; do
        checked "ops: $name" 5 90 "$vtrain" gpu-check --device "$device" --group "$name"
    done
    if [[ $size == full ]]; then
        rank=128 run_steps=400 tokens=17776x64,33000x128
    else
        rank=4 run_steps=12 tokens=70x64,50x128
    fi
    [[ -z $tree ]] || composed_checkpoints
    find_peer
    training_steps
    if [[ -n $tree ]]; then
        tiny_checkpoints
    else
        left_out "tiny checkpoints, sampling and a whole run" "there is no repository here (--tree)"
    fi
    checked "long attention" 20 90 "$vtrain" gpu-check --device "$device" --group long-attention --tokens "$tokens"
    group "NCCL" 10 60 "$vtrain" gpu-check --device "$device" --group nccl
}

# All of it goes to the log as well. What was left out and what does not hold come last.
report() {
    echo "== What was left out, if anything"
    if [[ -s $work/left_out ]]; then cat "$work/left_out"; else echo "nothing"; fi
    echo "== What does not hold, if anything"
    if [[ -s $work/failed ]]; then cat "$work/failed"; else echo "nothing: all comparisons hold"; fi
    echo "$((SECONDS - started)) seconds of $budget"
}
: >"$log" || die "$log cannot be written"
{ visit; report; } 2>&1 | tee "$log"
[[ ! -s $work/failed ]]
