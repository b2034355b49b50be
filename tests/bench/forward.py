"""The base model's forward pass alone, by transformers: what a prompt's first token cannot beat.

Reads "TOKENS COUNT" lines and answers each with a JSON line, as `tests.bench.plain` does.

    python -m tests.bench.forward MODEL
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from tests.bench import device


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=device.dtype())
    model = model.to(device.DEVICE).eval()
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        length, count = map(int, line.split())
        seconds = []
        for _ in range(count):
            tokens = torch.randint(model.config.vocab_size, (1, length))
            started = time.perf_counter()
            with torch.inference_mode():
                model(tokens.to(device.DEVICE), logits_to_keep=1)
            device.wait()
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "peak_mib": device.peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
