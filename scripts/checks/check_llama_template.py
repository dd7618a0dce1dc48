"""Counts the tokens that HunyuanVideo's templates have before the prompt, with LLaMA 3's real vocabulary: as many as the
pipelines cut off, and as `src/models/hunyuan_video/family.rs` cuts off. Stops if they differ.

    pip download --no-deps llama-models && unzip llama_models*.whl
    pip install tiktoken
    python scripts/checks/check_llama_template.py llama_models/llama3/tokenizer.model
"""

import sys

import tiktoken
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as text
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as image
from tiktoken.load import load_tiktoken_bpe

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Behind the vocabulary, by their places.
SPECIAL = {
    "<|begin_of_text|>": 0, "<|start_header_id|>": 6, "<|end_header_id|>": 7, "<|eot_id|>": 9, "<image>": 257,
}  # fmt: skip


def main():
    ranks = load_tiktoken_bpe(sys.argv[1])
    special = {token: len(ranks) + place for token, place in SPECIAL.items()}
    tokenizer = tiktoken.Encoding("llama3", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special)
    for module in (text, image):
        template = module.DEFAULT_PROMPT_TEMPLATE
        before, _ = template["template"].split("{}")
        ids = tokenizer.encode("<|begin_of_text|>" + before, allowed_special="all")
        assert len(ids) == template["crop_start"], (len(ids), template["crop_start"])
        pictures = [place for place, token in enumerate(ids) if token == special["<image>"]]
        assert pictures == ([template["image_emb_start"]] if "image_emb_start" in template else []), pictures
        print(f"{len(ids)} tokens before the prompt; the picture's at {pictures}")


if __name__ == "__main__":
    main()
