"""What a person sees of the engine from a notebook on its kernel: `engine` in the namespace.

Tensors that are given out are copies on the CPU, so nothing that is done with them reaches a run.
Names that begin with an underscore lead to the engine itself. Knows nothing of kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from ..wire.ops import OpError
from . import completion, tracing
from .base_model import BaseModel
from .delta_figure import heat_map
from .inside_run import RunView, on_the_main_thread
from .memory_view import Memory
from .tracing import Trace, Tracer

if TYPE_CHECKING:
    from .engine import Engine


class EngineView:
    """The engine, to be looked at: `runs`, `trace`, `delta_norms` and `memory`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tracer = Tracer()
        self._tokenizers: dict[BaseModel, Tokenizer] = {}

    @property
    def runs(self) -> Runs:
        """The runs that the engine holds, by their ids."""
        return Runs(self._engine)

    def trace(
        self,
        prompt: str | Sequence[int],
        run: RunView | str | None = None,
        layer: int = -1,
        *,
        attention: bool = True,
    ) -> Trace:
        """What a decoder layer makes of a prompt: its hidden states and its attention.

        `prompt` is text or token ids; `run`, a run or its id, says whose adapter takes part, and
        without it the base model computes alone; `layer` counts from 0, or from the last one with
        -1. Raises `ValueError` and `LookupError` with a sentence.
        """
        on_the_main_thread()
        adapter = None if run is None else self._run(run)._run.adapter
        base = self._only_base() if adapter is None else adapter.base
        tokens, texts = self._read(base, prompt)
        count = len(tracing.layers(base))
        if not -count <= layer < count:
            raise ValueError(f"layer is {layer}; {base.name} has layers 0 to {count - 1}")
        layer %= count
        try:
            hidden = self._tracer.hidden(base, adapter, tokens, layer)
            shares = self._tracer.attention(base, adapter, tokens, layer) if attention else None
        finally:
            self._tracer.tidy()
        name = None if run is None else self._run(run).id
        return Trace(tokens, texts, layer, hidden, shares, name)

    def delta_norms(self, run: RunView | str | None = None, *, relative: bool = False) -> Any:
        """How far a run has moved each layer, as a plotly heat map by layer and module: the
        Frobenius norm of the change of the weights, or with `relative` its share in theirs. The
        newest run, if none is named. Raises `LookupError`."""
        view = self.runs.latest if run is None else self._run(run)
        values = {
            path: layer.delta_norm / layer.weight_norm if relative else layer.delta_norm
            for path, layer in view.adapter.items()
        }
        what = "||BA * scale|| / ||W||" if relative else "||BA * scale||"
        return heat_map(values, f"Change by run {view.id} at step {view.step}", what)

    def memory(self) -> Memory:
        """What takes how much memory."""
        on_the_main_thread()
        return Memory.of(self._engine)

    def __repr__(self) -> str:
        return (
            f"The Tinker engine, {self._engine.placement.reason}\n\n{self.runs!r}\n\n"
            "engine.runs[ID], engine.trace(PROMPT, RUN, LAYER), engine.delta_norms(RUN), "
            "engine.memory()"
        )

    def _run(self, run: RunView | str) -> RunView:
        return run if isinstance(run, RunView) else self.runs[run]

    def _only_base(self) -> BaseModel:
        bases = list(self._engine.bases.values())
        if len(bases) == 1:
            return bases[0]
        if not bases:
            raise LookupError("no base model is loaded yet; it is with the first run")
        names = ", ".join(base.name for base in bases)
        raise LookupError(f"there are several base models ({names}); say which run")

    def _read(self, base: BaseModel, prompt: str | Sequence[int]) -> tuple[list[int], list[str]]:
        """Token ids and their texts. Raises `ValueError`."""
        tokenizer = self._tokenizer(base)
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"{base.name} has no tokenizer.json; give token ids")
            tokens = tokenizer.encode(prompt).ids
        else:
            tokens = [int(token) for token in prompt]
        limits = base.limits
        if not 1 <= len(tokens) <= limits.context_length:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; {base.name} takes 1 to "
                f"{limits.context_length}"
            )
        if not 0 <= min(tokens) <= max(tokens) < limits.vocab_size:
            raise ValueError(f"tokens of {base.name} go from 0 to {limits.vocab_size - 1}")
        if tokenizer is None:
            return tokens, [str(token) for token in tokens]
        return tokens, [tokenizer.decode([t], skip_special_tokens=False) for t in tokens]

    def _tokenizer(self, base: BaseModel) -> Tokenizer | None:
        if base not in self._tokenizers:
            try:
                self._tokenizers[base] = completion.tokenizer(base.path)
            except OpError:  # it has none
                return None
        return self._tokenizers[base]


class Runs(Mapping[str, RunView]):
    """The runs in the engine's memory; a beginning of an id that no other has will do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def latest(self) -> RunView:
        """The run that came into the engine last. Raises `LookupError`."""
        for name in reversed(list(self)):
            return self[name]
        raise LookupError("the engine holds no run; a run comes with its client's next request")

    def __getitem__(self, name: str) -> RunView:
        found = [own for own in self if own.startswith(name)]
        if name in found or len(found) == 1:
            return RunView(self._engine, name if name in found else found[0])
        if found:
            raise KeyError(f"{len(found)} runs begin with {name!r}")
        raise KeyError(
            f"the engine holds no run {name!r}; one that is idle comes back with its client's "
            f"next request"
        )

    def __iter__(self) -> Iterator[str]:
        # With an @: states that are made beside a run, for a moment.
        return iter([name for name in self._engine.runs if "@" not in name])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        if not len(self):
            return "The engine holds no runs."
        return "\n".join(repr(run) for run in self.values())

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)
