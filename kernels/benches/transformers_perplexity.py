#!/usr/bin/env python3
"""Tokens/s of a forward pass with log-likelihoods by Transformers, to hold against `evaluate MODEL --perplexity FILE`.

    target/peers/bin/pip install torch transformers gguf accelerate
    target/peers/bin/python kernels/benches/transformers_perplexity.py MODEL.gguf FILE TOKENS float32|bfloat16

Windows of 2,048 tokens as by `gptq-2048`, one at a time, two threads, logits reduced in float32. Prints perplexity, the
median tokens/s of the windows and the best.
"""

import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 2048


def main():
    model_path, text, count, dtype = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), getattr(torch, sys.argv[4])
    torch.set_num_threads(2)
    folder, file = model_path.parent, model_path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype).eval()
    ids = tokenizer(Path(text).read_text(), return_tensors="pt").input_ids[:, :count]
    total, rates = 0.0, []
    with torch.inference_mode():
        for begin in range(0, ids.shape[1] - WINDOW + 1, WINDOW):
            started = time.perf_counter()
            window = ids[:, begin : begin + WINDOW]
            logits = model(window).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits.float(), window[0, 1:], reduction="sum").item()
            rates.append(WINDOW / (time.perf_counter() - started))
    rates.sort()
    scored = len(rates) * (WINDOW - 1)
    perplexity = torch.tensor(total / scored).exp()
    print(f"{file} {dtype}: perplexity {perplexity:.4f}, {rates[len(rates) // 2]:.0f} tokens/s, best {rates[-1]:.0f}")


if __name__ == "__main__":
    main()
