"""A base model as sampling uses it: any adapter, no gradients, keys and values kept.

While it computes, every layer that can carry an adapter is a part of a `Joined` and not PEFT's, so
that an adapter takes part without being put into the model, and the adapters in training do not.
Knows nothing of requests, or of how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface

from ..wire.ops import OpError
from . import kv_cache
from .base_model import BaseModel
from .fast import recording
from .fast.attention import suited_type
from .fast.decoder import Decoder
from .fast.recorded_step import RecordedPrompts, RecordedStep, prompt_length
from .fast.step import Steps, attention, filled
from .joined import Joined, LowRank
from .wrappers import plain

# Where they need no more, prompts are filled up to a multiple of this.
_PROMPT_BLOCK = 16
_ATTENTION = {"full_attention", "sliding_attention"}
# Of the check that a model's steps agree with its forward pass.
_CHECK_TOKENS = 6


@dataclass(eq=False)
class Weights:
    """An adapter, laid out, or none; and what is recorded with it."""

    parts: Mapping[str, LowRank]  # by the first path of what they add to
    prompts: dict[int, RecordedPrompts] = field(default_factory=dict)  # by their length


class InferenceModel:
    """A base model with the layout and the masks for generating. Raises `OpError` for an
    architecture that cannot be generated from in this way."""

    def __init__(self, base: BaseModel, *, pack: bool = True) -> None:
        """`pack`: whether the weights are kept once more, in a faster layout."""
        self.base = base
        self._config = base.model.config.get_text_config()
        _check_attention(base)
        decoder = base.decoder if pack else None
        # As training multiplies by them.
        adapters = torch.float32 if base.decoder is None else None
        unembed = next(p.path for p in base.projections if p.part == "unembed")
        self._joined = [
            Joined(
                {path: plain(base.model.get_submodule(path)) for path in paths},
                pack=pack,
                wide=paths == [unembed],
                adapters=adapters,
            )
            for paths in _groups(base, decoder)
        ]
        self._of = {path: joined for joined in self._joined for path in joined.paths}
        self._steps = None if decoder is None else Steps(decoder, self._of.__getitem__)
        # Every logit is the layer's: its adapter comes with `using`.
        self.output_layer = replace(base.output_layer, product=self._of[unembed])
        self._no_adapter = self._weights = Weights({})  # `_weights` are those in use
        self._recordings: WeakKeyDictionary[
            kv_cache.KeyValueStore, tuple[Weights, RecordedStep]
        ] = WeakKeyDictionary()
        self._room = recording.Room()
        with torch.no_grad():
            self._check_steps()

    @property
    def num_layers(self) -> int:
        return int(self._config.num_hidden_layers)

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values."""
        config = self._config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * self.num_layers * heads * size * self._cache_type.itemsize

    def new_store(self) -> kv_cache.KeyValueStore:
        """For sequences of this model."""
        return kv_cache.KeyValueStore(self.num_layers, self._cache_type)

    def lay_out(self, views: Mapping[str, torch.Tensor], scale: float) -> Weights:
        """A copy of an adapter's parameters, which are `views` by PEFT's names."""
        parts = {joined.paths[0]: joined.low_rank(views, scale) for joined in self._joined}
        return Weights({path: part for path, part in parts.items() if part is not None})

    @contextmanager
    def using(self, weights: Weights | None) -> Iterator[None]:
        """Inside, the base model computes with these weights and no others."""
        self._weights = weights or self._no_adapter
        try:
            for joined in self._joined:
                joined.adapter = self._weights.parts.get(joined.paths[0])
            yield
        finally:
            self._weights = self._no_adapter
            for joined in self._joined:
                joined.adapter = None

    def prefill(self, tokens: torch.Tensor, into: kv_cache.Prefill | None) -> torch.Tensor:
        """(B, T) prompts, padded on the right -> (B, T, H) hidden states."""
        steps = self._recordable_steps
        if steps is not None and steps.serves(tokens.shape[1]):
            return self._read(steps, tokens, into)
        with self._in_place():
            if into is None:
                return self.base.hidden_states(tokens)
            return self._decoder(tokens, past_key_values=kv_cache.cache(self.base.model, into))

    def step(self, tokens: torch.Tensor, access: kv_cache.Step) -> torch.Tensor:
        """(B,) tokens, one for each of the first B rows -> (B, H) hidden states."""
        if self._steps is not None and self._steps.serves(access.columns):
            if (steps := self._recordable_steps) is not None:
                return self._recorded(steps, access.store).forward(tokens, access.positions)
            return self._steps.forward(tokens, access)
        attention = self._config._attn_implementation
        if attention != "eager":  # which knows more than the others, such as soft caps
            self._config._attn_implementation = _STEP_ATTENTION
        try:
            with self._in_place():
                hidden = self._decoder(
                    tokens[:, None],
                    position_ids=access.positions[:, None],
                    attention_mask=self._masks(access),
                    past_key_values=kv_cache.cache(self.base.model, access),
                )
        finally:
            self._config._attn_implementation = attention
        return hidden[:, 0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, H) -> (B, V) in float32."""
        return self.output_layer.logits(filled(hidden))[: len(hidden)]

    def prompt_length(self, length: int) -> int:
        """What a prompt is filled up to: prompts that come to one length are read together, and
        none's numbers depend on the others beside it."""
        if self._recordable_steps is not None:
            return prompt_length(length)
        return -(-length // _PROMPT_BLOCK) * _PROMPT_BLOCK

    @property
    def _cache_type(self) -> torch.dtype:
        """That attention reads keys and values in; transformers' modules take their own."""
        dtype = self.base.placement.torch_dtype
        return dtype if self._steps is None else suited_type(self.base.device, dtype)

    @property
    def _recordable_steps(self) -> Steps | None:
        return self._steps if recording.possible(self.base.device) else None

    def _read(
        self, steps: Steps, tokens: torch.Tensor, into: kv_cache.Prefill | None
    ) -> torch.Tensor:
        length, prompts = tokens.shape[1], self._weights.prompts
        if length not in prompts:
            prompts[length] = RecordedPrompts(steps, length, self.base.device, self._room)
        hidden, kept = prompts[length].read(tokens)
        if into is not None:
            for number, (keys, values) in enumerate(kept):
                into.put(number, keys, values)
        return hidden

    def _recorded(self, steps: Steps, store: kv_cache.KeyValueStore) -> RecordedStep:
        weights, step = self._recordings.get(store, (None, None))
        if step is None or weights is not self._weights or step.size != (store.rows, store.columns):
            step = RecordedStep(steps, store, self.base.device)
            self._recordings[store] = self._weights, step
        return step

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Inside, the model's own layers are the ones here."""
        modules = {path: self.base.model.get_submodule(path) for path in self._of}
        try:
            for path, module in modules.items():
                # On the instance, where it hides the method of its class.
                module.__dict__["forward"] = self._of[path].part(path)
            yield
        finally:
            for module in modules.values():
                module.__dict__.pop("forward", None)
            for joined in self._joined:
                joined.forget()

    def _decoder(self, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
        decoder = self.base.model.get_decoder()
        return decoder(input_ids=tokens, use_cache=True, **more).last_hidden_state

    def _masks(self, access: kv_cache.Step) -> torch.Tensor | dict[str, torch.Tensor]:
        """(B, 1, 1, columns): which columns each row may see."""
        columns = torch.arange(access.columns, device=access.positions.device)
        behind = access.positions[:, None] - columns[None]  # (B, columns)
        full = behind >= 0
        window = _window(self._config)
        sliding = full if window is None else full & (behind < window)
        if "sliding_attention" in _layer_types(self._config):
            return {
                "full_attention": self._as_mask(full),
                "sliding_attention": self._as_mask(sliding),
            }
        return self._as_mask(sliding)

    def _as_mask(self, visible: torch.Tensor) -> torch.Tensor:
        visible = visible[:, None, None]
        if self._config._attn_implementation != "eager":
            return visible
        dtype = self.base.placement.torch_dtype
        hidden = torch.zeros_like(visible, dtype=dtype)
        return hidden.masked_fill_(~visible, torch.finfo(dtype).min)

    def _check_steps(self) -> None:
        """Refuses an architecture whose steps are not its forward pass."""
        count = min(_CHECK_TOKENS, self.base.limits.context_length)
        tokens = torch.arange(count, device=self.base.device) % self.base.limits.vocab_size
        store = self.new_store()
        store.reserve(1, count)
        try:
            with self.using(None):
                expected = self.prefill(tokens[None], None)[0]
                start = kv_cache.Prefill(store, 0, tokens.new_zeros(1))
                got = [self.prefill(tokens[None, :1], start)[0]]
                for position in range(1, count):
                    access = kv_cache.Step(store, tokens.new_tensor([position]), count)
                    got.append(self.step(tokens[position : position + 1], access))
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise OpError(f"{_name(self.base)} cannot be sampled from here: {error}") from error
        tolerance = 1e-3 if self.base.placement.dtype == "float32" else 5e-2
        difference = (torch.cat(got).float() - expected.float()).abs().max()
        if not difference <= tolerance * expected.float().abs().max():
            raise OpError(
                f"{_name(self.base)} generates in a way this engine does not know; choose another "
                f"base model to sample from"
            )


def _step_attention(
    module: nn.Module,
    query: torch.Tensor,  # (B, heads, 1, D)
    key: torch.Tensor,  # (B, key heads, columns, D)
    value: torch.Tensor,
    attention_mask: torch.Tensor,  # (B, 1, 1, columns), True where to look
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one token a row -> (B, 1, heads, D)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query[:, :, 0], key, value, ~attention_mask, scale)[:, None], None


_STEP_ATTENTION = "tinker_step"
AttentionInterface.register(_STEP_ATTENTION, _step_attention)


def _groups(base: BaseModel, decoder: Decoder | None) -> list[list[str]]:
    """The paths of all layers that can carry an adapter, in groups that read the same input."""
    groups: list[list[str]] = []
    for layer in decoder.layers if decoder is not None else ():
        attention, mlp = (layer.q, layer.k, layer.v), (layer.gate, layer.up)
        for members in (attention, (layer.o,), mlp, (layer.down,)):
            groups.append([linear.path for linear in members])
    known = {path for group in groups for path in group}
    return groups + [[p.path] for p in base.projections if p.path not in known]


def _check_attention(base: BaseModel) -> None:
    config = base.model.config.get_text_config()
    odd = _layer_types(config) - _ATTENTION
    if odd or getattr(base.model, "_is_stateful", False):
        kinds = ", ".join(sorted(odd)) or "state"
        raise OpError(f"{_name(base)} has layers of {kinds}, which cannot be sampled from here")


def _layer_types(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


def _window(config: Any) -> int | None:
    if not getattr(config, "use_sliding_window", True):
        return None
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)


def _name(base: BaseModel) -> str:
    return type(base.model).__name__
