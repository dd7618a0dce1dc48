"""The other side of benches/t5.rs: transformers' T5EncoderModel.

    bench_t5.py FOLDER    writes a random checkpoint, ids and their embedding there, then times one forward pass
                          for every line on its standard input and answers with the seconds it took

The number of threads is that of $THREADS.
"""

import os
import sys
import time

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

SIZES = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
LENGTH = 226


def main(folder):
    torch.set_num_threads(int(os.environ["THREADS"]))
    torch.manual_seed(0)
    config = T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = T5EncoderModel(config).eval()
    model.save_pretrained(folder)
    ids = torch.randint(0, config.vocab_size, (1, LENGTH))
    with torch.inference_mode():
        out = model(ids)[0]
        save_file({"ids": ids, "out": out}, os.path.join(folder, "answer.bin"))
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            model(ids)
            print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
