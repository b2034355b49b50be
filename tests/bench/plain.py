"""The loop we are held against: transformers + PEFT + torch's AdamW, one padded batch a step.

A process of its own, so that it can stand still while ours is timed. It reads "BATCH STEPS" lines
and answers each with a JSON line: seconds and losses of the steps, and the peak of its memory.

    python -m tests.bench.plain MODEL RANK UNEMBED(0|1) [DTYPE]
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.bench import device
from tests.bench.data import Sequence, batches

_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Padded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class PlainLoop:
    """Rank `rank` and alpha 32 on every linear layer; `unembed` adds the output layer."""

    def __init__(self, model: Path, rank: int, *, unembed: bool) -> None:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=device.dtype()).to(device.DEVICE)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules=[*_LAYERS, "lm_head"] if unembed else _LAYERS,
        )
        self.model = get_peft_model(base, config).train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0
        )

    def step(self, batch: list[Sequence]) -> float:
        tokens, targets, weights, mask = _padded(batch)
        logits = self.model(input_ids=tokens, attention_mask=mask).logits  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def _padded(batch: list[Sequence]) -> Padded:
    longest = max(map(len, batch))
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    targets, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
    weights = torch.zeros(len(batch), longest)
    for row, sequence in enumerate(batch):
        length = len(sequence)
        tokens[row, :length] = torch.tensor(sequence.tokens)
        targets[row, :length] = torch.tensor(sequence.targets)
        weights[row, :length] = torch.from_numpy(sequence.weights)
        mask[row, :length] = 1
    tokens, targets, weights, mask = (x.to(device.DEVICE) for x in (tokens, targets, weights, mask))
    return tokens, targets, weights, mask


def _timed(loop: PlainLoop, batch: list[Sequence], steps: int) -> dict[str, object]:
    seconds, losses = [], []
    for _ in range(steps):
        started = time.perf_counter()
        losses.append(loop.step(batch))
        device.wait()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "losses": losses, "peak_mib": device.peak_mib()}


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # PEFT's advice about merging tied output layers
    model = Path(sys.argv[1])
    if len(sys.argv) > 4:
        device.ask_for(sys.argv[4])
    every = batches(model)
    loop = PlainLoop(model, int(sys.argv[2]), unembed=sys.argv[3] == "1")
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        batch, steps = line.split()
        print(json.dumps(_timed(loop, every[batch], int(steps))), flush=True)


if __name__ == "__main__":
    main()
