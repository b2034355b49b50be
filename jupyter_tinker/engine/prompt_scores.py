"""What a request asks about its prompt: log-probabilities, the likeliest tokens, given ones, draws.

All come from the logits of the prefill, of which only a chunk of rows exists at a time. The hidden
state at position i speaks of the token at position i + 1. Knows nothing of generation.
"""

from __future__ import annotations

import numpy as np
import torch

from ..wire.sample_request import SampleSpec, Targets
from ..wire.sample_response import PAD_LOGPROB, PAD_TOKEN, PromptScores, Topk
from . import draw
from .logprobs import OutputLayer, chunk_rows


def wanted(spec: SampleSpec) -> bool:
    return bool(spec.prompt_logprobs or spec.topk_prompt or spec.alt_tokens or spec.targets)


def score(
    spec: SampleSpec, hidden: torch.Tensor, layer: OutputLayer, generator: np.random.Generator
) -> PromptScores:
    """`hidden` is (N, H), of the prompt's N tokens."""
    return _Scoring(spec, generator).run(hidden[:-1], layer)


class _Scoring:
    def __init__(self, spec: SampleSpec, generator: np.random.Generator) -> None:
        self.spec = spec
        self.generator = generator
        length = len(spec.prompt)
        self.first = max(1, length - spec.last_n)  # the first position that is scored
        self.logprobs = np.full(length, np.nan, np.float32) if spec.prompt_logprobs else None
        self.topk = padding(length, spec.topk_prompt)
        self.alt = padding(length - 1, spec.alt_tokens)
        self.targets = None if spec.targets is None else np.zeros(len(spec.targets.ids), np.float32)

    def run(self, hidden: torch.Tensor, layer: OutputLayer) -> PromptScores:
        """`hidden` is (N - 1, H): row i speaks of position i + 1."""
        start = 0 if self.targets is not None or self.alt is not None else self.first - 1
        step = chunk_rows(layer, hidden.device)
        for first in range(start, len(hidden), step):
            rows = slice(first, min(first + step, len(hidden)))
            self._score(rows, layer.logits(hidden[rows]))
        return PromptScores(self.logprobs, self.topk, self.targets, self.alt)

    def _score(self, rows: slice, logits: torch.Tensor) -> None:
        if self.alt is not None:
            self._draw(self.alt, rows, logits)
        logprobs = torch.log_softmax(logits, dim=-1)
        if self.targets is not None and self.spec.targets is not None:
            self._score_targets(self.targets, self.spec.targets, rows, logprobs)
        skipped = max(0, self.first - 1 - rows.start)
        logprobs, positions = logprobs[skipped:], slice(rows.start + skipped + 1, rows.stop + 1)
        if positions.start >= positions.stop:
            return
        if self.logprobs is not None:
            following = torch.from_numpy(self.spec.prompt[positions]).to(logits.device)
            at = logprobs.gather(1, following[:, None])[:, 0]
            self.logprobs[positions] = at.cpu().numpy()
        if self.topk is not None:
            best = topk(logprobs, self.topk.ids.shape[1])
            self.topk.ids[positions] = best.ids
            self.topk.logprobs[positions] = best.logprobs

    def _score_targets(
        self, out: np.ndarray, targets: Targets, rows: slice, logprobs: torch.Tensor
    ) -> None:
        inside = (targets.rows >= rows.start) & (targets.rows < rows.stop) & (targets.ids >= 0)
        cells = inside.nonzero()[0]
        if len(cells):
            row = torch.from_numpy(targets.rows[cells] - rows.start).to(logprobs.device)
            column = torch.from_numpy(targets.ids[cells]).to(logprobs.device)
            out[cells] = logprobs[row, column].cpu().numpy()

    def _draw(self, alt: Topk, rows: slice, logits: torch.Tensor) -> None:
        """Independent draws at the request's temperature, with their log-probabilities at it."""
        choice = draw.Choice(self.spec.temperature)
        choices = [choice] * len(logits)
        logprobs = draw.logprobs(logits, choices)
        for column in range(alt.ids.shape[1]):
            uniforms = self.generator.random(len(logits))
            drawn = draw.tokens(logprobs, choices, uniforms)
            alt.ids[rows, column] = drawn.cpu().numpy()
            alt.logprobs[rows, column] = logprobs.gather(1, drawn[:, None])[:, 0].cpu().numpy()


def topk(logprobs: torch.Tensor, k: int) -> Topk:
    """(B, V) -> the k likeliest of each row, with padding where the vocabulary has fewer."""
    best = logprobs.topk(min(k, logprobs.shape[1]), dim=-1)
    out = padding(len(logprobs), k)
    assert out is not None
    out.ids[:, : best.indices.shape[1]] = best.indices.cpu().numpy()
    out.logprobs[:, : best.values.shape[1]] = best.values.cpu().numpy()
    return out


def padding(length: int, k: int) -> Topk | None:
    """Rows that say "nothing", to be written over; None if none are wanted."""
    if not k:
        return None
    ids = np.full((length, k), PAD_TOKEN, np.int32)
    return Topk(ids, np.full((length, k), PAD_LOGPROB, np.float32))
