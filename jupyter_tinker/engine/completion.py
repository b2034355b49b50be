"""A request to sample, from its acceptance to its answer: the sequences that it wants, and when
each of them ends. Knows nothing of models or batches.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..wire import sample_response
from ..wire.ops import OpError
from ..wire.sample_request import SampleSpec
from ..wire.sample_response import PromptScores, Sampled, Topk
from .batch import Limits, check_ids
from .draw import Choice

# A tokenizer may join a token's text to that of the one before it.
_CONTEXT_TOKENS = 2


class Completion:
    """One request and its `num_samples` sequences."""

    def __init__(
        self, name: str, spec: SampleSpec, limits: Limits, ends: frozenset[int], *, stream: bool
    ) -> None:
        _check(spec, limits)
        self.name = name
        self.spec = spec
        self.stream = stream
        room = limits.context_length - len(spec.prompt)
        self.limit = room if spec.max_tokens is None else min(spec.max_tokens, room)
        self.choice = Choice(spec.temperature, spec.top_k, spec.top_p)
        self.stops = spec.stop_tokens | (ends if spec.stop_at_eos else frozenset())
        self.stop_text: StopText | None = None  # where the request has stop strings
        self.prompt_scores: PromptScores | None = None
        self.sequences: list[Sequence] = []  # those that were given a place
        self._seed = spec.seed % 2**64 if spec.seed is not None else secrets.randbits(64)

    @property
    def columns(self) -> int:
        """The longest that one of its sequences can get, prompt included."""
        return len(self.spec.prompt) + self.limit

    @property
    def finished(self) -> bool:
        done = len(self.sequences) == self.spec.num_samples
        return done and all(sequence.ended for sequence in self.sequences)

    @property
    def to_start(self) -> int:
        return self.spec.num_samples - len(self.sequences)

    def start(self, count: int) -> list[Sequence]:
        """Its next `count` sequences."""
        first = len(self.sequences)
        new = [Sequence(self, self.generator(number)) for number in range(first, first + count)]
        self.sequences += new
        return new

    def generator(self, stream: int) -> np.random.Generator:
        """The random numbers of a sequence; `-1`: of the draws beside the prompt."""
        key = np.random.SeedSequence([self._seed, stream % 2**32])
        return np.random.Generator(np.random.Philox(key))

    def take_streamed(self) -> list[list[int]]:
        """The tokens since the last time, of each sequence."""
        started = [sequence.take_streamed() for sequence in self.sequences]
        return started + [[] for _ in range(self.spec.num_samples - len(started))]

    def answer(self) -> bytes:
        """The protobuf `SampleResponse`."""
        sampled = [sequence.sampled() for sequence in self.sequences]
        return sample_response.encode(
            sampled, self.prompt_scores or PromptScores(), self.spec.targets
        )


class Sequence:
    """One sequence in the making."""

    def __init__(self, completion: Completion, generator: np.random.Generator) -> None:
        self.completion = completion
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[Topk] = []
        self.ended = False
        self._stopped = False
        self._generator = generator
        self._streamed = 0

    @property
    def position(self) -> int:
        """Where its newest token lies."""
        return len(self.completion.spec.prompt) + len(self.tokens) - 1

    def uniform(self) -> float:
        """The number that its next token is drawn by."""
        return float(self._generator.random())

    def add(self, token: int, logprob: float, topk: Topk | None) -> None:
        """Take its next token, and end if that says so."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if topk is not None:
            self.topk.append(topk)
        text = self.completion.stop_text
        self._stopped = token in self.completion.stops or (
            text is not None and text.ends(self.tokens)
        )
        self.ended = self._stopped or len(self.tokens) >= self.completion.limit

    def take_streamed(self) -> list[int]:
        new = self.tokens[self._streamed :]
        self._streamed = len(self.tokens)
        return new

    def sampled(self) -> Sampled:
        topk = None
        if self.topk:
            ids = np.concatenate([row.ids for row in self.topk])
            topk = Topk(ids, np.concatenate([row.logprobs for row in self.topk]))
        return Sampled(
            tokens=np.asarray(self.tokens, np.int32),
            logprobs=np.asarray(self.logprobs, np.float32),
            stopped=self._stopped,
            topk=topk,
        )


@dataclass
class StopText:
    """Stop strings, looked for in the text of a sequence's last tokens."""

    tokenizer: Tokenizer
    strings: tuple[str, ...]
    _window: int = field(init=False)

    def __post_init__(self) -> None:
        # Every token has a byte at least, so the string cannot begin further back.
        longest = max(len(string.encode()) for string in self.strings)
        self._window = longest + _CONTEXT_TOKENS

    def ends(self, tokens: list[int]) -> bool:
        text = self.tokenizer.decode(tokens[-self._window :], skip_special_tokens=False)
        return any(string in text for string in self.strings)


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a base model's folder."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise OpError(
            "stop strings need the base model's tokenizer.json, which is not in its folder; send "
            "the tokens to stop at instead"
        )
    return Tokenizer.from_file(str(file))


def _check(spec: SampleSpec, limits: Limits) -> None:
    check_ids("the prompt", spec.prompt, limits)
    if len(spec.prompt) >= limits.context_length:
        raise OpError(
            f"the prompt has {len(spec.prompt)} tokens and the model's context holds "
            f"{limits.context_length}, so there is no room for another; shorten it"
        )
    if spec.targets is not None:
        asked = spec.targets.ids[spec.targets.ids != -1]
        check_ids("target_prompt_logprobs", asked, limits)
    stops = np.fromiter(spec.stop_tokens, np.int64)
    check_ids("sampling_params.stop", stops, limits)
    for name in ("topk_prompt", "topk_sample"):
        if getattr(spec, name) > limits.vocab_size:
            raise OpError(
                f"{name}_logprobs is {getattr(spec, name)} and the vocabulary has "
                f"{limits.vocab_size} tokens; ask for fewer"
            )
