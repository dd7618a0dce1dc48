"""The other side of benches/attention.rs: torch's scaled_dot_product_attention and its gradients.

    bench_attention.py FOLDER TOKENS...    draws inputs for each number of tokens and writes them there with the results;
                                           then, for every number of tokens on its standard input, goes there and back
                                           once and answers with the seconds that each of both took

Heads are those of benches/attention.rs: 8 of 64 features. The number of threads is that of $THREADS.
"""

import os
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HEADS, WIDTH = 8, 64


def there_and_back(q, k, v, weights):
    start = time.perf_counter()
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    there = time.perf_counter() - start
    loss = (out * weights).sum()
    start = time.perf_counter()
    grads = torch.autograd.grad(loss, (q, k, v))
    return there, time.perf_counter() - start, out, grads


def main(folder, *lengths):
    torch.set_num_threads(int(os.environ["THREADS"]))
    torch.manual_seed(0)
    inputs = {}
    for tokens in lengths:
        q, k, v, weights = (torch.randn(1, int(tokens), HEADS, WIDTH) for _ in range(4))
        written = {"q": q, "k": k, "v": v, "weights": weights}
        inputs[tokens] = [x.clone().requires_grad_() for x in (q, k, v)] + [weights]
        _, _, out, (dq, dk, dv) = there_and_back(*inputs[tokens])
        written |= {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}
        save_file({name: x.contiguous() for name, x in written.items()}, os.path.join(folder, tokens))
    print("ready", flush=True)
    for line in sys.stdin:
        there, back, *_ = there_and_back(*inputs[line.strip()])
        print(there, back, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
