"""Runs whose weights are a digest of all that was done to them, so that no replay can be a little
wrong: it is the same, or it is not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jupyter_tinker.wire import ops, staging
from jupyter_tinker.wire import tinker_pb2 as pb

# Losses that tell the engine what is to become of a batch.
BAD = "bad"  # refused, as of bad input
INFINITE = "infinite"  # its gradient is not finite


@dataclass(frozen=True)
class State:
    """All that an engine knows of a run."""

    lora: dict[str, Any]
    weights: str
    moments: str = ""
    gradients: str = ""
    step: int = 0


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class FakeRuns:
    """Does the operations of training."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    def do(self, op: ops.Op) -> tuple[dict[str, Any], list[Any]] | None:
        """Result and buffers; None if the operation is not one of training. Raises `OpError`."""
        handler = getattr(self, f"_{op.name}", None)
        return None if handler is None else handler(op)

    def written(self, op: ops.SnapshotRun, state: State) -> dict[str, Any]:
        """Write a snapshot of what a run was when it was asked for."""
        body = json.dumps(asdict(state)).encode()
        file = Path(op.file)
        staging.make_folder(file.parent)
        fresh = file.with_suffix(".fresh")
        fresh.write_bytes(body)
        fresh.rename(file)
        sha256 = hashlib.sha256(body).hexdigest()
        # With an overhead of 3 percent: due after two seconds of computing.
        return asdict(ops.SnapshotInfo(len(body), sha256, state.step, 0.03, 0.03))

    def _state(self, run: str) -> State:
        if run not in self.states:
            raise ops.OpError(f"the engine has no run {run!r}")
        return self.states[run]

    def _info(self, run: str) -> tuple[dict[str, Any], list[Any]]:
        state = self.states[run]
        return asdict(ops.RunInfo(ops.LoraSpec(**state.lora), 1000, state.step)), []

    def _new(self, run: str, state: State) -> tuple[dict[str, Any], list[Any]]:
        if run in self.states:
            raise ops.OpError(f"the engine already has a run {run!r}", "server")
        self.states[run] = state
        return self._info(run)

    def _create_run(self, op: ops.CreateRun) -> Any:
        lora = asdict(op.lora)
        return self._new(op.run, State(lora, digest(op.base_path, lora)))

    def _load_run(self, op: ops.LoadRun) -> Any:
        return self._new(op.run, _saved(op.checkpoint, op.optimizer))

    def _load_weights(self, op: ops.LoadWeights) -> Any:
        self._state(op.run)
        self.states[op.run] = _saved(op.checkpoint, op.optimizer)
        return self._info(op.run)

    def _forward_backward(self, op: ops.ForwardBackward) -> Any:
        state = self._state(op.run)
        request = pb.ForwardBackwardRequest.FromString(op.body)
        if request.loss_fn == BAD:
            raise ops.OpError("this batch is bad")
        # Not the address: what is computed does not depend on the run's name.
        what = digest(request.loss_fn, [d.SerializeToString().hex() for d in request.data])
        fault = "the gradient is not finite" if request.loss_fn == INFINITE else None
        if not request.forward_only and fault is None:
            gradients = digest(state.weights, state.gradients, what)
            self.states[op.run] = replace(state, gradients=gradients)
        output = pb.ForwardBackwardOutput()
        loss = _number(digest(state.weights, what))
        output.metrics["loss:sum"] = loss
        stats = ops.ForwardBackwardStats(
            None if fault else loss, 1.0, 10, max(len(request.data), 1), 1.0, fault
        )
        return asdict(stats), [output.SerializeToString()]

    def _optim_step(self, op: ops.OptimStep) -> Any:
        state = self._state(op.run)
        moments = digest(state.moments, state.gradients, asdict(op.adam))
        new = replace(
            state,
            weights=digest(state.weights, moments),
            moments=moments,
            gradients="",
            step=state.step + 1,
        )
        self.states[op.run] = new
        norm, change = _number(state.gradients), _number(moments)
        stats = ops.OptimStepStats(new.step, norm, change, op.adam.learning_rate, 1.0, 1)
        return asdict(stats), []

    def _zero_grad(self, op: ops.ZeroGrad) -> Any:
        self.states[op.run] = replace(self._state(op.run), gradients="")
        return {}, []

    def _save_checkpoint(self, op: ops.SaveCheckpoint) -> Any:
        state = replace(self._state(op.run), gradients="")
        folder = Path(op.folder)
        staging.make_folder(folder)
        (folder / "state.json").write_text(json.dumps(asdict(state)))
        return asdict(ops.SaveInfo(100, state.step)), []

    def _snapshot_run(self, op: ops.SnapshotRun) -> Any:
        self._state(op.run)
        return {}, []  # it is written later

    def _restore_run(self, op: ops.RestoreRun) -> Any:
        try:
            body = Path(op.file).read_bytes()
        except OSError:
            body = b""
        if hashlib.sha256(body).hexdigest() != op.sha256:
            raise ops.OpError("the snapshot is damaged", "server")
        self.states[op.run] = State(**json.loads(body))
        return self._info(op.run)

    def _unload_run(self, op: ops.UnloadRun) -> Any:
        self.states.pop(op.run, None)
        return {}, []


def _saved(folder: str, optimizer: bool) -> State:
    try:
        state = State(**json.loads((Path(folder) / "state.json").read_text()))
    except FileNotFoundError:
        raise ops.OpError("there is no such checkpoint") from None
    return state if optimizer else replace(state, moments="", step=0)


def _number(text: str) -> float:
    """A number that stands for a digest."""
    return int(text, 16) % 10_000 / 100 if text else 0.0
