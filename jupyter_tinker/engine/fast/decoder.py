"""A decoder's layers over a stream of tokens: all sequences of a microbatch, one behind the other.

Knows nothing of losses, of the output layer, or of where the layers came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .. import memory
from .attention import Spans
from .layer import Kept, Layer, Stream
from .lora import Lora
from .pointwise import RmsNorm, Rotary

# Of more tokens only what goes into each layer is kept, and the rest computed again in the backward
# pass: a token of SmolLM2 keeps 0.7 MB otherwise. Only sequences longer than a microbatch are.
_MOST_KEPT_TOKENS = 2048
_KEPT_SHARE = 0.15  # of a GPU's memory


@dataclass(frozen=True)
class Decoder:
    """The frozen parts of a model between tokens and output layer."""

    embed: Callable[[torch.Tensor], torch.Tensor]  # (N,) tokens -> (N, H)
    angles: Callable[[torch.Tensor], Rotary]  # (N,) positions -> their rotations
    layers: Sequence[Layer]
    norm: RmsNorm
    longest: int | None  # the longest sequence that is computed here; None: any

    def serves(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of these lengths can be computed here."""
        return self.longest is None or max(lengths) <= self.longest

    def forward(
        self, tokens: torch.Tensor, lengths: Sequence[int], lora: Lora, *, keep: bool
    ) -> Pass:
        """(N,) tokens of sequences one behind the other; `keep` them for a backward pass."""
        spans = Spans.of(lengths, tokens.device)
        with torch.no_grad():
            return Pass(self, tokens, spans, lora, keep=keep)

    def most_kept(self, device: torch.device) -> int:
        """Of how many tokens a pass keeps all that its way back asks for."""
        if device.type != "cuda":
            return _MOST_KEPT_TOKENS
        room = _KEPT_SHARE * (memory.total(device) or 0)
        numbers = sum(layer.kept_numbers for layer in self.layers)
        return int(room / (numbers * self.layers[0].q.weight.itemsize))


class Pass:
    """A stream that has gone through the layers, and the way back."""

    def __init__(
        self, decoder: Decoder, tokens: torch.Tensor, spans: Spans, lora: Lora, *, keep: bool
    ) -> None:
        self._decoder = decoder
        self._lora = lora
        self._stream = Stream(decoder.angles(spans.positions), spans)
        self._first = self._lowest_adapted() if keep else len(decoder.layers)
        self._kept: list[Kept | torch.Tensor] = []  # of the layers from `first` on
        thrifty = len(tokens) > decoder.most_kept(tokens.device)
        h = decoder.embed(tokens)
        for number, layer in enumerate(decoder.layers):
            before = h
            wanted = number >= self._first
            h, kept = layer.forward(h, self._stream, lora, keep=wanted and not thrifty)
            if wanted:
                self._kept.append(before if kept is None else kept)
        self._last = h
        self.hidden, self._inverse = decoder.norm.forward(h)  # (N, H), what the output layer reads

    def backward(self, gradient: torch.Tensor) -> None:
        """dL/dhidden (N, H) -> adds to the adapter's gradients. Once; overwrites `gradient`."""
        with torch.no_grad():
            d = self._decoder.norm.add_backward_(
                torch.zeros_like(gradient), gradient, self._last, self._inverse
            )
            for number in range(len(self._decoder.layers) - 1, self._first - 1, -1):
                d = self._layer_backward(number, d)

    def _layer_backward(self, number: int, d: torch.Tensor) -> torch.Tensor:
        layer, kept = self._decoder.layers[number], self._kept.pop()
        if isinstance(kept, torch.Tensor):
            _, again = layer.forward(kept, self._stream, self._lora, keep=True)
            assert again is not None
            kept = again
        return layer.backward(d, kept, self._stream, self._lora)

    def _lowest_adapted(self) -> int:
        """The lowest layer with an adapter; below it there is nothing to train."""
        adapted = self._lora.pairs.keys()
        layers = self._decoder.layers
        return next((i for i, own in enumerate(layers) if own.paths & adapted), len(layers))
