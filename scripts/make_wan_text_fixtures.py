"""Writes what Wan's text encoder is tested with: a tiny UMT5 and its tokenizer, and what WanPipeline makes of prompts.

    python scripts/make_wan_text_fixtures.py

`tests/fixtures/wan/wan-2.1-t2v/text_encoder` and `tokenizer` are folders of a checkpoint. `text.json` holds prompts, what
`prompt_clean` makes of them, and their ids: by tokenizer.json as the `tokenizers` library reads it (transformers 5 would
rebuild it), and by sentencepiece. `text.safetensors` holds ids, mask, UMT5's output, and the embeddings of the pipeline.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import sentencepiece
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from fixtures import text
from fixtures.weights import randomise
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "wan"
PIECES = 640
EXTRA_IDS = 300
LENGTH = 40
PROMPTS = [
    "A red ball rolls over a green floor, cinematic lighting.",
    "The  old lighthouse glows above\nZürich… 🎬",
    "",
]


def train():
    """Unigram pieces with a byte for what is unknown, digits one by one, and UMT5's four special pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.corpus()),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        byte_fallback=True,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder, model):
    """spiece.model, tokenizer.json as transformers 4 converts it, and the files beside them."""
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(EXTRA_IDS))]
    fast = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    fast.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    fast.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    names = ["<pad>", "</s>", "<s>", "<unk>"]
    names += [f"<extra_id_{i}>" for i in reversed(range(EXTRA_IDS))]
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(fast.token_to_id(name)): {"content": name} | flags for name in names}
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    config = {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": extra,
        **roles,
        "clean_up_tokenization_spaces": True,
        "extra_ids": EXTRA_IDS,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
    }
    # Compact: the extra ids are many.
    (folder / "tokenizer.json").write_text(fast.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(roles | {"additional_special_tokens": extra}) + "\n")
    return pieces, PreTrainedTokenizerFast(tokenizer_object=fast, **roles, model_max_length=512)


def write_encoder(folder):
    config = UMT5Config(
        vocab_size=PIECES + EXTRA_IDS + 4,  # padded up, as the published one
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=3,
        num_heads=5,
        relative_attention_num_buckets=20,
        relative_attention_max_distance=60,
        feed_forward_proj="gated-gelu",
        # As published, and read by no code.
        scalable_attention=True,
    )
    model = randomise(UMT5EncoderModel(config), 40)
    model.save_pretrained(folder)
    return model


def dirty():
    """Prompts that `prompt_clean` has something to do with."""
    broken = [line.encode().decode(code) for line in text.HARD for code in ("latin-1", "windows-1252") if misread(line, code)]
    return [*text.HARD, *broken, *DIRTY]


def misread(line, code):
    try:
        return line.encode().decode(code) != line
    except UnicodeDecodeError:
        return False


DIRTY = [
    "a &amp;amp; b &lt;i&gt; &eacute;&EACUTE;&Eacute; &copy 2020 &notit; &#233; &#x1F3AC; &#128; &semi; & &; &x;",
    "a <b>bold</b> &amp;amp; claim &hellip;",
    "first line with a tag <br>\nthen &amp;amp;amp; that",
    "AT&T and R&D, this&not that, a&b;",
    "\x1b[36;44mI'm blue\x1b[0m and \x1b[ not",
    "carriage\rreturn, next\x85line, C1 \x93quotes\x94",
    "ＬＯＵＤ　ＮＯＩＳＥＳ ｶﾞｷﾞｸﾞ ￥１００",
    "quotes ‘single’ ‚low‛ “double” „low‟ ʼn",
    "CAFÉ… VOILÀ — «É» SÖ–NORD “É” AMANHÃ… Ã la",
    "voilÃ\xa0 le café, doublÃƒÂ© et â€œquotedâ€\x9d",
    "digits 1234567 and 3.14",
    "tokens </s> and <extra_id_7> in <pad> the text",
]


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = OUT / "wan-2.1-t2v"
    for part in ("tokenizer", "text_encoder"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pieces, tokenizer = write_tokenizer(folder / "tokenizer", train())
    model = write_encoder(folder / "text_encoder")
    inputs = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=model, vae=None, scheduler=None, transformer=None, transformer_2=None
    )
    tensors = {
        "ids": inputs.input_ids,
        "mask": inputs.attention_mask,
        "masked": model(inputs.input_ids, inputs.attention_mask)[0],
        "unmasked": model(inputs.input_ids)[0],
        "pipeline": pipe._get_t5_prompt_embeds(PROMPTS, max_sequence_length=LENGTH, device="cpu"),
    }
    save_file(tensors, OUT / "text.safetensors")
    rows = []
    for line in dirty():
        clean = prompt_clean(line)
        ids = tokenizer(clean).input_ids
        rows.append({"text": line, "clean": clean, "ids": ids, "pieces": pieces.encode(clean)})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (OUT / "text.json").write_text(f'{{"prompts": {json.dumps(PROMPTS)}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    sys.exit(main())
