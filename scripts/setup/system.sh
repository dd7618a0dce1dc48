#!/usr/bin/env bash
# Installs the system packages that vtrain is built with, where they are missing: FFmpeg's libraries and headers, clang
# (for the bindings), pkg-config and a C compiler; for the tests also MPI. Sourced by quickstart.sh and test.sh; does nothing
# when all is there.

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

# What the build will look for, asked the way the build asks.
missing() {
    command -v cc >/dev/null || { echo "a C compiler"; return; }
    command -v c++ >/dev/null || { echo "a C++ compiler"; return; }
    command -v pkg-config >/dev/null || { echo "pkg-config"; return; }
    pkg-config --exists libavcodec libavformat libavutil libswscale || { echo "FFmpeg's headers"; return; }
    # The bindings generator loads libclang and reads clang's own headers.
    command -v clang >/dev/null || { echo "clang"; return; }
    # ldconfig is not where ordinary users look for programs.
    [ "$(uname)" = Darwin ] || PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q libclang ||
        ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1 ||
        { echo "libclang"; return; }
}

# apt-get as root. Another one may be at work just now, as on a machine that has just started and brings itself up to date:
# it waits for its lock, ten minutes at most. The lock of the package lists knows no timeout, so that one is tried again.
apt_get() {
    local sudo='' said tries
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { say "Only root may install packages, and there is no sudo here."; return 1; }
        sudo=sudo
    fi
    said=$(mktemp)
    for tries in {1..60}; do
        if $sudo env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 "$@" 2>&1 |
            tee "$said" >&2; then
            rm -f "$said"
            return
        fi
        grep -qE 'Could not get lock|Unable to (acquire|lock)' "$said" || break
        [ "$tries" != 1 ] || say "apt is at work for somebody else; waiting for it"
        sleep "${APT_PAUSE:-10}"
    done
    rm -f "$said"
    return 1
}

install_system_packages() {
    local what
    what=$(missing)
    if [ -z "$what" ]; then
        say "System packages: all there."
    elif command -v apt-get >/dev/null; then
        say "Installing FFmpeg's libraries, clang and pkg-config with apt ($what not found)"
        apt_get update
        apt_get install -y --no-install-recommends \
            gcc g++ libc6-dev pkg-config clang libclang-dev \
            libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
    elif command -v brew >/dev/null; then
        say "Installing FFmpeg, clang and pkg-config with brew ($what not found)"
        brew install ffmpeg llvm pkgconf >&2
    else
        say "$what is missing, and there is neither apt-get nor brew here to install it with."
        say "Install FFmpeg's development files (5.1 or newer), clang and pkg-config, and run this again."
        exit 1
    fi
    if [ "$(uname)" = Darwin ] && command -v brew >/dev/null; then
        export LIBCLANG_PATH="${LIBCLANG_PATH:-$(brew --prefix llvm)/lib}"
    fi
    if ! command -v cargo >/dev/null; then
        [ -x "$HOME/.cargo/bin/cargo" ] && export PATH="$HOME/.cargo/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null; then
        say "Rust is missing: install it from https://rustup.rs (1.89 or newer) and run this again."
        exit 1
    fi
}

# For runs on several processes, which are tested too: an MPI with headers, mpicc and mpirun. Says whether it is there.
install_mpi() {
    command -v mpicc >/dev/null && command -v mpirun >/dev/null && return
    if command -v apt-get >/dev/null; then
        say "Installing Open MPI with apt"
        apt_get update && apt_get install -y --no-install-recommends libopenmpi-dev openmpi-bin openssh-client
    elif command -v brew >/dev/null; then
        say "Installing Open MPI with brew"
        brew install open-mpi >&2
    fi
    command -v mpicc >/dev/null && command -v mpirun >/dev/null
}
