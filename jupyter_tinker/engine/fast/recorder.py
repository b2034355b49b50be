"""Passes through a decoder on a GPU, recorded for the shapes that come again.

A recording is for so many tokens, sequences and adapters of one shape; a batch is filled up to the
next shape there is with a sequence that nothing is learnt from. Knows nothing of losses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..adapter import Adapter
from .attention import Spans
from .decoder import Decoder, Pass
from .lora import Lora
from .recording import Recording, Room, possible, recorded

# Tokens times a layer's parameters: of more, kernels take longer than their launches.
_MOST_WORK = 1e11
_MOST_RECORDINGS = 24
_FINEST = 64  # tokens
_SHORTEST = 256  # tokens that the longest sequence is taken to have, for fewer shapes


@dataclass(frozen=True)
class Shape:
    """What a recording serves."""

    tokens: int
    sequences: int
    longest: int
    keep: bool

    @classmethod
    def holding(cls, lengths: Sequence[int], *, keep: bool) -> Shape:
        """With one more sequence for what is filled up: at most an eighth of the tokens."""
        count = sum(lengths)
        step = max(_FINEST, 1 << max(0, count.bit_length() - 4))
        tokens = -(-count // step) * step
        longest = max(*lengths, tokens - count, _SHORTEST)
        return cls(tokens, _power_of_two(len(lengths) + 1), _power_of_two(longest), keep)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Stage:
    """Where adapters of one kind take their turns: recordings know of no other place."""

    def __init__(self, adapter: Adapter) -> None:
        self._numbers, views = adapter.laid_out(adapter.base.placement.torch_dtype)
        self.gradients, gradient_views = adapter.laid_out(torch.float32)
        self.lora = Lora.over(adapter, views, gradient_views)

    def take(self, adapter: Adapter) -> None:
        self._numbers.copy_(adapter.weights)
        self.gradients.zero_()


class RecordedPass:
    """Of one shape. Done as it is the first time, and recorded the second."""

    def __init__(
        self, decoder: Decoder, stage: _Stage, shape: Shape, device: torch.device, room: Room
    ) -> None:
        self._decoder, self._stage, self._shape = decoder, stage, shape
        self._device, self._room = device, room
        self._tokens = torch.zeros(shape.tokens, dtype=torch.long, device=device)
        self._spans = Spans(
            groups=[],
            longest=shape.longest,
            ends=torch.zeros(shape.sequences + 1, dtype=torch.int32, device=device),
            positions=torch.zeros_like(self._tokens),
        )
        layer = decoder.layers[0]
        width = layer.q.weight.shape[1]
        self._gradient = layer.q.weight.new_zeros(shape.tokens if shape.keep else 0, width)
        self._pass: Pass | None = None
        self._forward: Recording[torch.Tensor] | None = None
        self._backward: Recording[None] | None = None
        self._uses = 0
        self._recordable = True
        self._adapter: Adapter | None = None

    def forward(
        self, tokens: torch.Tensor, lengths: Sequence[int], adapter: Adapter
    ) -> RecordedPass:
        self._adapter = adapter
        self._fill(tokens, lengths)
        self._stage.take(adapter)
        if self._forward is None and self._uses and self._recordable:
            self._forward = recorded(self._compute, self._device, self._room)
            self._recordable = self._forward is not None
        hidden = self._compute() if self._forward is None else self._forward.again()
        self.hidden = hidden[: len(tokens)]
        self._uses += not self._shape.keep
        return self

    def backward(self, gradient: torch.Tensor) -> None:
        assert self._adapter is not None
        self._gradient[: len(gradient)] = gradient
        self._gradient[len(gradient) :] = 0
        if self._forward is not None and self._backward is None:
            self._backward = recorded(self._compute_back, self._device, self._room)
            if self._backward is None:
                self._forward, self._recordable = None, False
                self._compute()
        if self._backward is None:
            self._compute_back()
        else:
            self._backward.again()
        self._adapter.gradients.add_(self._stage.gradients)
        self._uses += 1

    @torch.no_grad()
    def _compute(self) -> torch.Tensor:
        self._pass = Pass(
            self._decoder, self._tokens, self._spans, self._stage.lora, keep=self._shape.keep
        )
        return self._pass.hidden

    def _compute_back(self) -> None:
        assert self._pass is not None
        # What it has kept is of use no more: in a recording, its memory is free for the next one.
        computed, self._pass = self._pass, None
        computed.backward(self._gradient)

    def _fill(self, tokens: torch.Tensor, lengths: Sequence[int]) -> None:
        every = [*lengths, self._shape.tokens - sum(lengths)]
        new = Spans.of([n for n in every if n], tokens.device)
        self._tokens[: len(tokens)] = tokens
        self._tokens[len(tokens) :] = 0
        self._spans.positions.copy_(new.positions)
        self._spans.ends[: len(new.ends)] = new.ends
        self._spans.ends[len(new.ends) :] = self._shape.tokens


class Recorder:
    """Of one decoder."""

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self._decoder, self._device = decoder, device
        self._widest = max(layer.parameters for layer in decoder.layers)
        self._stages: dict[object, _Stage] = {}  # by the kind of their adapters
        self._passes: OrderedDict[tuple[object, Shape], RecordedPass] = OrderedDict()
        self._room = Room()

    @classmethod
    def of(cls, decoder: Decoder, device: torch.device) -> Recorder | None:
        """None where nothing can be recorded. On a GPU a decoder's attention takes any lengths."""
        return cls(decoder, device) if possible(device) else None

    def forward(
        self, tokens: torch.Tensor, lengths: Sequence[int], adapter: Adapter, *, keep: bool
    ) -> Pass | RecordedPass:
        """(N,) tokens of sequences one behind the other. What it returns is good until the next
        call, and its way back adds to the adapter's gradients."""
        shape = Shape.holding(lengths, keep=keep)
        if not self._worth_it(shape):
            lora = Lora.of(adapter, adapter.gradient_views)
            return self._decoder.forward(tokens, lengths, lora, keep=keep)
        if adapter.kind not in self._stages:
            self._stages[adapter.kind] = _Stage(adapter)
        key = (adapter.kind, shape)
        found = self._passes.pop(key, None)
        if found is None:
            stage = self._stages[adapter.kind]
            found = RecordedPass(self._decoder, stage, shape, self._device, self._room)
        self._passes[key] = found
        if len(self._passes) > _MOST_RECORDINGS:
            self._passes.popitem(last=False)
        return found.forward(tokens, lengths, adapter)

    def forget(self) -> None:
        """Give back the memory."""
        self._passes.clear()
        self._stages.clear()

    def _worth_it(self, shape: Shape) -> bool:
        small = shape.tokens * self._widest <= _MOST_WORK
        return small and shape.tokens <= self._decoder.most_kept(self._device)
