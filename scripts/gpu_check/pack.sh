#!/usr/bin/env bash
# Packs all that scripts/gpu_check.sh needs on a machine with a GPU: see there. Called as `scripts/gpu_check.sh --pack`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

# Bytes of the archive, and of all that travels: the tree that git knows, and the folder that is made here.
archive_most=$((45 << 20))
all_most=$((60 << 20))

# What every machine has itself: the loader, the C library and its parts, the compiler's libraries, the driver and libraries
# of NVIDIA.
their_own='^(ld-linux.*|linux-vdso|libc|libm|libmvec|libdl|libpthread|librt|libresolv|libnsl|libutil|libanl'
their_own+='|libgcc_s|libstdc\+\+|libcuda|libcudart|libcublas|libcublasLt|libcurand|libcudnn.*|libnccl|libnvrtc.*)\.so'

usage() { echo "usage: gpu_check.sh --pack BINARY FOLDER [--ffmpeg minimal|system] [--no-peer]" >&2; exit 2; }
fail() { echo "gpu_check.sh --pack: $*" >&2; exit 1; }

[[ $# -ge 2 && $1 != -* && $2 != -* ]] || usage
binary=$1 to=$2 ffmpeg=minimal peer=yes
shift 2
while [[ $# -gt 0 ]]; do
    case $1 in
    --ffmpeg) ffmpeg=${2:-}; shift 2 || usage ;;
    --no-peer) peer=no; shift ;;
    *) usage ;;
    esac
done
[[ $ffmpeg == minimal || $ffmpeg == system ]] || usage
[[ -x $binary ]] || fail "$binary is no program"
grep -aq gpu-check "$binary" || echo "$binary was built without --features gpu-check: nothing can be compared with the CPU" >&2
mkdir -p "$to"
to=$(cd "$to" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/lib" "$folder/wheels"

strip -o "$folder/vtrain" "$binary"
# FFmpeg with what vtrain uses of it takes the place of the one that vtrain was linked with, under the same names.
if [[ $ffmpeg == minimal ]]; then
    made=${VTRAIN_MINIMAL_FFMPEG:-${CARGO_TARGET_DIR:-$root/target}/minimal-ffmpeg}
    "$here/minimal_ffmpeg.sh" "$made"
    cp "$made"/lib/* "$folder/lib/"
fi
needed=$(LD_LIBRARY_PATH=$folder/lib ldd "$folder/vtrain")
while read -r library; do
    name=$(basename "$library")
    [[ $name =~ $their_own || -e $folder/lib/$name ]] && continue
    cp -L "$library" "$folder/lib/"
done < <(awk '$2 == "=>" && $3 ~ /^\// { print $3 }' <<<"$needed")
while read -r name; do
    [[ $name =~ $their_own ]] || fail "$name, which vtrain needs, is not to be found here"
done < <(awk '/not found/ { print $1 }' <<<"$needed")

if [[ $peer == yes ]]; then
    wheel=$(grep -x 'diffusers==.*' "$root/scripts/setup/requirements.txt")
    python3 -m pip download -q --no-deps --only-binary=:all: -d "$folder/wheels" "$wheel" >&2 ||
        fail "$wheel cannot be fetched; --no-peer leaves PyTorch's step out"
fi
cp -r "$here" "$folder/gpu_check"
rm -rf "$folder/gpu_check/pack.sh" "$folder/gpu_check/minimal_ffmpeg.sh" "$folder/gpu_check/__pycache__"

XZ_OPT=${XZ_OPT:--9} tar -C "$folder" -cJf "$to/carry.tar.xz" vtrain lib wheels gpu_check
cp "$root/scripts/gpu_check.sh" "$to/gpu_check.sh"

bytes_of() { find "$@" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'; }
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }
# What git would take along, without the folder itself.
tree_bytes() {
    git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1 || { echo unknown; return; }
    (cd "$root" && git ls-files -z --cached --others --exclude-standard | sort -zu | while IFS= read -r -d '' file; do
        case $root/$file in "$to"/*) continue ;; esac
        [[ -f $file ]] && printf '%s\0' "$file"
    done | xargs -0r stat -c %s) | awk '{ sum += $1 } END { print sum + 0 }'
}
archive=$(bytes_of "$to/carry.tar.xz")
carried=$(bytes_of "$to")
tree=$(tree_bytes)
echo "unpacked: vtrain $(mib "$(bytes_of "$folder/vtrain")")," \
    "$(find "$folder/lib" -type f | wc -l) libraries $(mib "$(bytes_of "$folder/lib")")," \
    "wheels $(mib "$(bytes_of "$folder/wheels")"), scripts $(mib "$(bytes_of "$folder/gpu_check")")"
echo "packed: $(mib "$archive"); to carry: $(mib "$carried") in $to"
if [[ $tree == unknown ]]; then
    echo "beside it: a tree of unknown size, since $root is no git repository"
    tree=0
else
    echo "beside it: the tree $(mib "$tree"), $(mib $((tree + carried))) in all"
fi
# The files that weigh the most.
heaviest() {
    find "$folder/vtrain" "$folder/lib" "$folder/wheels" -type f -printf '%s %f\n' | sort -rn | head -5 |
        while read -r bytes name; do echo "  $(mib "$bytes") $name, unpacked" >&2; done
}
((archive <= archive_most)) || { heaviest; fail "the archive takes $(mib "$archive") of $(mib $archive_most)"; }
((tree + carried <= all_most)) || {
    heaviest
    fail "the tree ($(mib "$tree")) and what is carried ($(mib "$carried")) take more than $(mib $all_most) together"
}
