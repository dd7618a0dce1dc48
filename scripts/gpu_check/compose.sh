#!/usr/bin/env bash
# Puts tiny checkpoints together whose parts lie apart in the repository's fixtures, where checkpoints share them.
#
#   compose.sh FIXTURES FOLDER    makes FOLDER/{hunyuan-t2v,hunyuan-i2v-concat,hunyuan-i2v-replace,mochi-1,allegro-t2v}
set -euo pipefail
fixtures=$1 folder=$2

together() { # name, folders whose content it has
    local name=$1
    shift
    mkdir -p "$folder/$name"
    for part in "$@"; do cp -r "$fixtures/$part/." "$folder/$name/"; done
}
part() { # name, folders that it has as they are called
    local name=$1
    shift
    for part in "$@"; do cp -r "$fixtures/$part" "$folder/$name/"; done
}

together hunyuan-t2v hunyuan_video/checkpoints/t2v
for kind in concat replace; do
    name=hunyuan-i2v-$kind
    together "$name" hunyuan_video/checkpoints/{i2v,"i2v-$kind"}
    part "$name" hunyuan_video/checkpoints/t2v/{scheduler,text_encoder_2,tokenizer_2,vae}
    echo '{"_class_name": "HunyuanVideoImageToVideoPipeline"}' >"$folder/$name/model_index.json"
done
together mochi-1 mochi/mochi-1
part mochi-1 mochi/tiny/vae ltx_video/ltx-0.9.0/{text_encoder,tokenizer}
together allegro-t2v allegro/allegro-t2v
part allegro-t2v cogvideox/cogvideox-2b/{text_encoder,tokenizer}
