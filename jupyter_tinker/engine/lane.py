"""What one sampler is generating: its requests join and leave between any two steps.

A step is either the prompts of some requests, each read once however many samples of it are wanted,
or one more token of every sequence. Knows nothing of other samplers, training or messages.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from ..wire.ops import OpError
from . import draw, prompt_scores
from .completion import Completion, Sequence
from .fast.recorded_step import PROMPT_TOKENS
from .inference import InferenceModel, Weights
from .kv_cache import Prefill, Step, blocks

# Sequences that are generated at once, and prompt tokens of one step: beyond these a larger batch
# brings little more, and others would wait for it.
_ROWS = {"cpu": 64, "cuda": 256}
_ROWS_STEP = 8
_PREFILL_TOKENS = {"cpu": 512, "cuda": PROMPT_TOKENS}


@dataclass(eq=False)
class Sampler:
    """A base model, with an adapter on it or none, to sample from."""

    name: str
    model: InferenceModel
    weights: Weights | None


class Lane:
    """The requests of one sampler, and a row of keys and values for each sequence in the making."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.waiting: deque[Completion] = deque()
        self.rows: list[Sequence] = []
        self.prompt_tokens = 0
        self.sampled_tokens = 0
        self._model = sampler.model
        self._store = self._model.new_store()
        device = self._model.base.device.type
        self._most_rows = _ROWS.get(device, _ROWS["cuda"])
        self._most_prefill = _PREFILL_TOKENS.get(device, _PREFILL_TOKENS["cuda"])
        self._touched: list[Completion] = []  # by the step that is being made

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.rows)

    @property
    def completions(self) -> list[Completion]:
        """All that are not finished."""
        return list(dict.fromkeys([*(row.completion for row in self.rows), *self.waiting]))

    @property
    def reserved_bytes(self) -> int:
        """Of the keys and values that its rows may come to."""
        return self._bytes(len(self.rows), self._longest())

    def step(self, room: int) -> list[Completion]:
        """One step, in `room` bytes of keys and values; returns the requests it brought to an end.

        If it raises, `abandon` gives up those that took part.
        """
        self._touched = []
        admitted = self._admit(room)
        with torch.no_grad(), self._model.using(self.sampler.weights):
            if admitted:
                self._touched = [completion for completion, _ in admitted]
                self._prefill(admitted)
            else:
                self._touched = list(dict.fromkeys(row.completion for row in self.rows))
                self._decode()
        self._compact()
        return [completion for completion in self._touched if completion.finished]

    def abandon(self) -> list[Completion]:
        """Give up the requests of a step that has failed, and return them."""
        given_up = self._touched or self.completions  # all, if it did not come to choose some
        for completion in given_up:
            self.remove(completion)
        return given_up

    def remove(self, completion: Completion) -> None:
        """Give up a request."""
        if completion in self.waiting:
            self.waiting.remove(completion)
        for sequence in completion.sequences:
            sequence.ended = True
        self._compact()

    def _admit(self, room: int) -> list[tuple[Completion, int]]:
        """Requests whose prompts are read next, in the order of their arrival, and how many of
        their samples are begun. If nothing is being generated, one always is."""
        admitted: list[tuple[Completion, int]] = []
        rows, columns, length = len(self.rows), self._longest(), 0
        for completion in self.waiting:
            padded = self._blocked(len(completion.spec.prompt))
            if admitted and padded != length:
                continue
            length = padded
            columns = max(columns, completion.columns)
            free = min(self._most_rows, room // self._bytes(1, columns)) - rows
            full = (len(admitted) + 1) * length > self._most_prefill
            if (free < 1 and rows) or (admitted and full):
                break
            count = min(completion.to_start, max(free, 1))
            admitted.append((completion, count))
            rows += count
        return admitted

    def _prefill(self, admitted: list[tuple[Completion, int]]) -> None:
        prompts = [completion.spec.prompt for completion, _ in admitted]
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._device)
        sources = torch.tensor(
            [i for i, (_, count) in enumerate(admitted) for _ in range(count)], device=self._device
        )
        into = None
        if any(completion.limit > 1 for completion, _ in admitted):
            length = self._blocked(int(ends.max()) + 1)
            longest = max(completion.columns for completion, _ in admitted)
            self._reserve(len(self.rows) + len(sources), length, longest)
            into = Prefill(self._store, len(self.rows), sources)
        hidden = self._model.prefill(self._padded(prompts), into)  # (B, T, H)
        for (completion, _), states in zip(admitted, hidden, strict=True):
            self._score_prompt(completion, states)
        new = [sequence for c, count in admitted for sequence in c.start(count)]
        self.rows += new
        self.waiting = deque(c for c in self.waiting if c.to_start)
        last = hidden[torch.arange(len(prompts), device=self._device), ends]  # (B, H)
        self._choose(new, self._model.logits(last)[sources])
        self.prompt_tokens += sum(map(len, prompts))

    def _decode(self) -> None:
        positions = [sequence.position for sequence in self.rows]
        columns = max(positions) + 1
        self._reserve(len(self.rows), columns, 0)
        tokens = torch.tensor([sequence.tokens[-1] for sequence in self.rows], device=self._device)
        access = Step(self._store, torch.tensor(positions, device=self._device), blocks(columns))
        hidden = self._model.step(tokens, access)  # (B, H)
        self._choose(self.rows, self._model.logits(hidden))

    def _reserve(self, rows: int, columns: int, longest: int) -> None:
        """On a GPU for some rows more, and for all that they may come to: a step is recorded for
        just so much room."""
        if self._device.type == "cuda":
            step = min(_ROWS_STEP, 1 << (rows - 1).bit_length())
            rows = -(-rows // step) * step
            columns = max(columns, longest, self._longest())
        self._store.reserve(rows, columns)

    def _choose(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        """The next token of each sequence from its row of (B, V) logits."""
        choices = [sequence.completion.choice for sequence in sequences]
        logprobs = draw.logprobs(logits, choices)
        uniforms = np.array([sequence.uniform() for sequence in sequences])
        chosen = draw.tokens(logprobs, choices, uniforms)
        scores = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        if not all(map(math.isfinite, scores)):
            raise OpError(
                "the model's predictions are not finite, so its weights have diverged; sample from "
                "an earlier checkpoint"
            )
        for row, (sequence, token) in enumerate(zip(sequences, chosen.tolist(), strict=True)):
            k = sequence.completion.spec.topk_sample
            topk = prompt_scores.topk(logprobs[row : row + 1], k) if k else None
            sequence.add(token, scores[row], topk)
        self.sampled_tokens += len(sequences)

    def _score_prompt(self, completion: Completion, hidden: torch.Tensor) -> None:
        spec = completion.spec
        if completion.prompt_scores is None and prompt_scores.wanted(spec):
            completion.prompt_scores = prompt_scores.score(
                spec,
                hidden[: len(spec.prompt)],
                self._model.output_layer,
                completion.generator(-1),
            )

    def _compact(self) -> None:
        """Fill the places of ended sequences with the last ones."""
        for row in range(len(self.rows) - 1, -1, -1):
            if self.rows[row].ended:
                last = self.rows.pop()
                if row < len(self.rows):
                    self.rows[row] = last
                    self._store.move(len(self.rows), row)
        if not self.rows:
            self._store = self._model.new_store()

    @property
    def _device(self) -> torch.device:
        return self._model.base.device

    def _longest(self) -> int:
        return max((row.completion.columns for row in self.rows), default=0)

    def _bytes(self, rows: int, columns: int) -> int:
        return rows * blocks(columns) * self._model.bytes_per_token

    def _padded(self, prompts: list[np.ndarray]) -> torch.Tensor:
        tokens = np.zeros((len(prompts), self._blocked(max(map(len, prompts)))), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        return torch.from_numpy(tokens).to(self._device)

    def _blocked(self, length: int) -> int:
        """The length that a prompt is padded to."""
        return min(self._model.prompt_length(length), self._model.base.limits.context_length)
