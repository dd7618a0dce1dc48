#!/usr/bin/env bash
# Builds the FFmpeg that scripts/gpu_check.sh carries: the libraries that vtrain is linked to, under the same names, with the
# formats that vtrain reads and writes and nothing else. Debian's own needs 127 further libraries of 157 MB, and all of them to
# start; this one needs x264, dav1d, zlib and the C library.
#
#   scripts/gpu_check/minimal_ffmpeg.sh FOLDER   the libraries, into FOLDER/lib; at once where they are there already
#
# For Debian and Ubuntu: the source is that of the very FFmpeg that is installed here, from the same archive by apt-get, and so
# are the headers. Nothing is installed and no right is needed beyond writing to FOLDER. x264 makes the result GPL:
# what is carried to a machine of one's own may be, what is given to others comes under its terms.
#
# Its exit code is 3 where there is no apt-get, or no source to be had.
set -euo pipefail

[[ $# == 1 && $1 != -* ]] || { sed -n '2,12s/^# \?//p' "$0" >&2; exit 2; }
mkdir -p "$1"
to=$(cd "$1" && pwd)

unavailable() { echo "minimal_ffmpeg.sh: $*" >&2; exit 3; }

{ command -v apt-get && command -v dpkg; } >/dev/null || unavailable "there is no apt-get here to ask for FFmpeg's source"
version=$(dpkg-query -W -f '${source:Version}' libavcodec-dev 2>/dev/null) || unavailable "libavcodec-dev is not installed here"
# Of two that are asked for the same, one waits.
exec 9>"$to/lock"
flock 9
# What is made follows from the source and from this script.
wanted="$version $(sha256sum <"$0" | cut -c1-16)"
if [[ -f $to/made && $(cat "$to/made") == "$wanted" ]]; then
    exit 0
fi
work=$(mktemp -d "$to/making.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The archives that are asked already, for their sources, in lists of our own.
fetch() {
    mkdir -p "$work/lists/partial" "$work/debs" "$work/root" "$work/source"
    local options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root -qq)
    local release
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt-get's own variables
    apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' 2>/dev/null |
        awk -v release="$release" 'index($2, release) == 1 { print "deb-src", $1, $2, $3 }' |
        sort -u >"$work/sources.list"
    [[ -s $work/sources.list ]] || unavailable "apt-get knows no archive (apt-get update)"
    apt-get "${options[@]}" update >&2 || unavailable "the archive has no sources, or cannot be reached"
    (cd "$work/source" && apt-get "${options[@]}" source --download-only "ffmpeg=$version" >&2) ||
        unavailable "the archive has no source of FFmpeg $version"
    (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User=root download libx264-dev libdav1d-dev zlib1g-dev \
        "$(needed libx264-dev libx264)" "$(needed libdav1d-dev libdav1d)" zlib1g >&2) ||
        unavailable "x264 or dav1d cannot be fetched"
    local deb
    for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done
    tar -C "$work/source" --strip-components=1 -xf "$work"/source/ffmpeg_*.orig.tar.*z
    tar -C "$work/source" -xf "$work"/source/ffmpeg_*.debian.tar.xz debian/patches
    (cd "$work/source" && grep -v '^ *\(#\|$\)' debian/patches/series | while read -r patch; do
        patch -sp1 <"debian/patches/$patch"
    done)
}

# The library's package that a package of headers is for.
needed() { # package, the beginning of the library's name
    apt-cache depends "$1" | awk -v name="$2" '$1 == "Depends:" && $2 ~ "^" name "[0-9-]" { print $2; exit }'
}

build() {
    local libraries
    libraries=$work/root/usr/lib/$(gcc -print-multiarch)
    cd "$work/source"
    export PKG_CONFIG_LIBDIR=$libraries/pkgconfig PKG_CONFIG_SYSROOT_DIR=$work/root
    # Without assembly of its own, which takes most of the build's time: clips are small where this is carried to.
    # The folder of the libraries is named for the linker as well: their .pc files leave it out, as one that it knows.
    ./configure --disable-everything --disable-autodetect --disable-x86asm --optflags=-O1 --disable-programs --disable-doc --disable-debug \
        --disable-network --disable-avdevice --disable-avfilter --disable-postproc \
        --enable-shared --disable-static --enable-gpl --enable-libx264 --enable-libdav1d --enable-zlib \
        --extra-cflags="-I$work/root/usr/include" --extra-ldflags="-L$libraries" \
        --enable-protocol=file \
        --enable-decoder=h264,hevc,vp8,vp9,libdav1d,mpeg4,mpeg2video,mjpeg,png,gif,webp,ffv1,rawvideo,prores \
        --enable-encoder=libx264,mpeg4,gif,png,mjpeg \
        --enable-parser=h264,hevc,vp8,vp9,av1,mpeg4video,mpegvideo,mjpeg,png,gif,webp \
        --enable-demuxer=mov,matroska,avi,gif,mpegts,ogg,flv,yuv4mpegpipe,image2,image_png_pipe,image_jpeg_pipe \
        --enable-demuxer=image_webp_pipe \
        --enable-muxer=mp4,mov,matroska,webm,gif,image2 \
        --enable-bsf=extract_extradata,vp9_superframe,vp9_superframe_split,av1_frame_split,h264_mp4toannexb \
        >"$work/configure.log" 2>&1 || { tail -20 "$work/configure.log" >&2; return 1; }
    make -j"$(nproc)" >"$work/make.log" 2>&1 || { grep -m 20 -i error "$work/make.log" >&2; return 1; }
    mkdir -p "$work/lib"
    cp -L lib*/lib*.so.[0-9]* "$work/lib/" 2>/dev/null
    # Of the names of one library only that which programs are linked to.
    find "$work/lib" -name '*.so.*.*' -delete
    local library
    for library in libx264 libdav1d; do
        cp -L "$libraries/$library".so.[0-9]* "$work/lib/"
    done
    find "$work/lib" -name '*.so.*.*' -delete
    cp -L "$work"/root/lib/*/libz.so.1 "$work/lib/"
    strip --strip-unneeded "$work"/lib/*
}

echo "Building FFmpeg $version with what vtrain uses of it, into $to" >&2
fetch
(build)
rm -rf "${to:?}/lib"
mv "$work/lib" "$to/lib"
echo "$wanted" >"$to/made"
