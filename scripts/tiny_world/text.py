"""The words of the tiny world: a sentencepiece model of its sentences, and captions as ids."""

import io
import itertools
import json

import numpy as np
import sentencepiece
import torch

from . import world

CAPITALS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ_"))


def sentences():
    for colour, shape, motion in itertools.product(world.COLOURS, world.SHAPES, world.MOTIONS):
        yield f"a {colour} {shape} {motion}"


def token(rng):
    """A word that means nothing, as an id token does before it is learned."""
    return "".join(rng.choice(CAPITALS, size=rng.integers(4, 12))).strip("_") or "X"


def disturb(caption, rng):
    """One caption in ten is empty, for guidance; one in ten has a meaningless word before it."""
    draw = rng.random()
    if draw < 0.1:
        return ""
    return f"{token(rng)} {caption}" if draw < 0.2 else caption


def babble(rng):
    """Words of the world in its order or in none, and meaningless ones among them."""
    words = f"a {rng.choice(list(world.COLOURS))} {rng.choice(world.SHAPES)} {rng.choice(world.MOTIONS)}".split()
    if rng.random() < 0.3:
        rng.shuffle(words)
    for _ in range(rng.integers(3)):
        words.insert(rng.integers(len(words) + 1), token(rng))
    return " ".join(words)


def write_folder(folder, max_length):
    """`tokenizer/` as CogVideoX's repositories have it: sentencepiece's own file, and no tokenizer.json."""
    if (folder / "spiece.model").exists():
        return
    rng = np.random.default_rng(7)
    lines = list(sentences()) * 4 + [token(rng) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="unigram", vocab_size=120, hard_vocab_limit=False,
        character_coverage=1.0, normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1,
        shuffle_input_sentence=False, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = names | {"extra_ids": 0, "model_max_length": max_length, "tokenizer_class": "T5Tokenizer", "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    (folder / "spiece.model").write_bytes(model.getvalue())


class Pieces:
    """Captions as (B, max_length) ids: the end, then padding."""

    def __init__(self, path, max_length):
        self.pieces, self.max_length = sentencepiece.SentencePieceProcessor(model_file=str(path)), max_length
        self.count = self.pieces.vocab_size()

    def ids(self, captions):
        rows = torch.zeros(len(captions), self.max_length, dtype=torch.long)
        for row, caption in zip(rows, captions):
            ids = [*self.pieces.encode(caption)[: self.max_length - 1], self.pieces.eos_id()]
            row[: len(ids)] = torch.tensor(ids)
        return rows
