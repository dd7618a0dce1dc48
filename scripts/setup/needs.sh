#!/usr/bin/env bash
# Finds out which tests cannot run here, and why. Such a test is ignored, for a reason that begins with a word from below:
# `#[ignore = "needs python: ..."]`. Sourced by test.sh behind system.sh, in the root of the tree, with `features` set.

absent=()     # the full names of tests that cannot run here
absent_told=() # the same for people, under what each needs

# The full names of the tests that need something.
tests_that_need() {
    # shellcheck disable=SC2016 # awk's own variables
    find tests -name '*.rs' | LC_ALL=C sort | xargs awk -v need="ignore = \"needs $1: " '
        FNR == 1 {
            module = substr(FILENAME, 7, length(FILENAME) - 9)
            gsub("/", "::", module)
            wanted = 0
        }
        index($0, need) { wanted = 1 }
        wanted && match($0, /fn [a-z0-9_]+/) { print module "::" substr($0, RSTART + 3, RLENGTH - 3); wanted = 0 }'
}

# need WORD WHY COMMAND...: unless the command succeeds, the tests that need this are left out.
need() {
    local word=$1 why=$2 name
    shift 2
    if "$@" >/dev/null 2>&1; then return; fi
    absent_told+=("$word: $why")
    while read -r name; do
        absent+=("$name")
        absent_told+=("    $name")
    done < <(tests_that_need "$word")
}

python_has() {
    "${VTRAIN_PYTHON:-false}" -c 'import sys; from importlib.util import find_spec
sys.exit(any(find_spec(name) is None for name in sys.argv[1:]))' "$@"
}
has_browser() {
    python_has playwright && { [ -n "${CHROMIUM:-}" ] || command -v chromium || command -v google-chrome; }
}
has_programs_of_visit() { python3 -c '' && command -v xz && command -v git; }
# As root; else as the root of a user namespace, where those are allowed.
may_mount() {
    local folder how mounted=1
    folder=$(mktemp -d)
    for how in -m -rm; do
        # shellcheck disable=SC2016
        unshare "$how" sh -c 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" "$0" &&
            mount -t tmpfs -o size=40k none "$0" && mount -o remount,size=1m none "$0"' "$folder" && mounted=0
    done
    rmdir "$folder"
    return $mounted
}
has_nvcc() {
    local home=${CUDA_HOME:-${CUDA_PATH:-}}
    "${NVCC:-${home:+$home/bin/}nvcc}" --version
}
# shellcheck disable=SC2154 # test.sh sets the features
has_mpi() { [ "${#features[@]}" -gt 0 ]; }
has_glibc() { [ "$(uname)" = Linux ] && getconf GNU_LIBC_VERSION; }
has_clips() { [ -n "${VTRAIN_CLIPS:-}" ] && [ -n "${VTRAIN_CLIPS_EXPECTED:-}" ]; }
has_time() { [ -n "${VTRAIN_SLOW:-}" ]; }
is_in_git() { git ls-files --error-unmatch Cargo.toml; }
# Of the machine, and in a container also of its control group.
has_6_gib() {
    local limit own
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    for limit in "/sys/fs/cgroup$own/memory.max" /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        [ ! -f "$limit" ] || awk '{ exit $1 != "max" && $1 < 6 * 2^30 }' "$limit" || return
    done
    awk '/^MemAvailable:/ { found = $2 > 6 * 2^20 } END { exit !found }' /proc/meminfo
}
# One that fails otherwise than for want of a source fails its test, too.
has_source_of_ffmpeg() {
    local code=0
    scripts/gpu_check/minimal_ffmpeg.sh "$VTRAIN_MINIMAL_FFMPEG" || code=$?
    [ "$code" != 3 ]
}

has_amx() { grep -qw amx_bf16 /proc/cpuinfo; }

find_needs() {
    need python "VTRAIN_PYTHON names no Python with what scripts/setup/requirements.txt lists" \
        python_has torch diffusers transformers peft tensorboard huggingface_hub PIL
    need browser "VTRAIN_PYTHON names no Python with playwright, or there is no chromium" has_browser
    need visit "there is no python3, xz or git" has_programs_of_visit
    need mounts "nothing can be mounted in a namespace of its own (unshare -m)" may_mount
    need nvcc "there is no CUDA toolkit" has_nvcc
    need mpi "there is no mpicc and mpirun" has_mpi
    need glibc "this is no Linux with glibc" has_glibc
    need clips "VTRAIN_CLIPS and VTRAIN_CLIPS_EXPECTED name none" has_clips
    need time "VTRAIN_SLOW is not set: a quarter of an hour of training and sampling" has_time
    need amx "the processor has no tiles for bf16" has_amx
    need git "git does not know this tree" is_in_git
    need memory "there are no 6 GiB of memory" has_6_gib
    export VTRAIN_MINIMAL_FFMPEG=${VTRAIN_MINIMAL_FFMPEG:-${CARGO_TARGET_DIR:-$PWD/target}/minimal-ffmpeg}
    [ -f "$VTRAIN_MINIMAL_FFMPEG/made" ] || say "Building the FFmpeg that scripts/gpu_check.sh carries, once"
    need ffmpeg "the source of the FFmpeg that is installed cannot be had from apt-get" has_source_of_ffmpeg
}

# For nextest: every test but these.
without_absent() {
    local name filter="all()"
    for name in ${absent[@]+"${absent[@]}"}; do filter+=" - test(=$name)"; done
    echo "$filter"
}

tell_absent() {
    [ "${#absent[@]}" -gt 0 ] || return 0
    say "Left out: ${#absent[@]} tests that cannot run here"
    printf '%s\n' "${absent_told[@]}" >&2
}
