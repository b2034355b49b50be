"""What the server asks of the engine, and what the engine answers.

An operation travels as a `tinker_request` message: a JSON header and, for the large ones, binary
buffers. The answer is a `tinker_reply`: `{"ok": true, "result": {...}}` or
`{"ok": false, "error": sentence, "category": "user" | "server"}`, both with the `seconds` that the
engine was at it, and again with buffers.
Operations know nothing of HTTP, futures or sequence numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

REQUEST = "tinker_request"
REPLY = "tinker_reply"
# What the engine publishes, on a topic of its own, when a person's cell begins and ends on its
# kernel: `{"runs": bool}`.
CELL = "tinker_cell"
CELL_TOPIC = b"tinker.cell"

Category = Literal["user", "server", "unknown"]
CheckpointKind = Literal["weights", "sampler_weights", "external_weights"]


class OpError(Exception):
    """An operation that could not be done; the run is as it was before.

    `message` says what was wrong and what to change; `category` says whose turn it is.
    """

    def __init__(self, message: str, category: Category = "user") -> None:
        super().__init__(message, category)
        self.message = message
        self.category: Category = category

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class EngineOptions:
    """How the engine computes; "auto" leaves the choice to what the machine has."""

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"  # "auto", "float32", "bfloat16"
    attention: str = "auto"  # "auto", "sdpa", "eager", "flash_attention_2"
    # Most tokens, padding included, in one forward pass of training; 0: what suits the device.
    microbatch_tokens: int = 0
    num_threads: int = 0  # CPU threads of torch; 0 leaves torch's default
    # Memory for the keys and values of what is being sampled; 0: what suits the device.
    sampling_cache_mb: int = 0
    low_memory: bool = False  # rather slow than large


@dataclass(frozen=True)
class LoraSpec:
    """A run's adapter: its shape, its scale and the seed of its first weights."""

    rank: int
    seed: int
    alpha: float = 32.0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    @property
    def scale(self) -> float:
        """Of B A, as it is added to a weight."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdamParams:
    """One step of AdamW (torch semantics: bias-corrected, decoupled decay).

    The defaults are the SDK's. `grad_clip_norm` 0 turns clipping off.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


_OPS: dict[str, type[Op]] = {}


@dataclass(frozen=True)
class Op:
    """Base of all operations; `name` is the tag on the wire, by which `decode` finds the class."""

    name: ClassVar[str]
    waits: ClassVar[bool] = True  # whether later operations wait until this one is answered

    def __init_subclass__(cls) -> None:
        _OPS[cls.name] = cls


@dataclass(frozen=True)
class Start(Op):
    """First operation of an engine's life. Result: `EngineStatus`."""

    name: ClassVar[str] = "start"
    options: EngineOptions


@dataclass(frozen=True)
class Status(Op):
    """Result: `EngineStatus`."""

    name: ClassVar[str] = "status"


@dataclass(frozen=True)
class CreateRun(Op):
    """Put a fresh adapter on a base model, loading the base if need be. Result: `RunInfo`."""

    name: ClassVar[str] = "create_run"
    run: str
    base_model: str
    base_path: str
    lora: LoraSpec


@dataclass(frozen=True)
class LoadRun(Op):
    """A new run that starts from a checkpoint of `base_model`. Result: `RunInfo`."""

    name: ClassVar[str] = "load_run"
    run: str
    base_model: str
    base_path: str
    checkpoint: str  # folder
    optimizer: bool


@dataclass(frozen=True)
class LoadWeights(Op):
    """Replace a living run's weights by a checkpoint's of the same shape. Result: `RunInfo`."""

    name: ClassVar[str] = "load_weights"
    run: str
    checkpoint: str  # folder
    optimizer: bool


@dataclass(frozen=True)
class ForwardBackward(Op):
    """Result: `ForwardBackwardStats`; buffer 0: the protobuf `ForwardBackwardOutput`."""

    name: ClassVar[str] = "forward_backward"
    run: str
    body: bytes = field(metadata={"buffer": True})  # protobuf ForwardBackwardRequest
    custom_loss: str | None = None  # JSON of `wire.tinker.CustomLoss`, for the loss "custom"


@dataclass(frozen=True)
class CheckCustomLoss(Op):
    """Say whether a custom loss can be computed. Result: empty."""

    name: ClassVar[str] = "check_custom_loss"
    definition: str  # JSON of `wire.tinker.CustomLoss`


@dataclass(frozen=True)
class OptimStep(Op):
    """Result: `OptimStepStats`."""

    name: ClassVar[str] = "optim_step"
    run: str
    adam: AdamParams


@dataclass(frozen=True)
class ZeroGrad(Op):
    """Drop the gradients accumulated since the last step. Result: empty."""

    name: ClassVar[str] = "zero_grad"
    run: str


@dataclass(frozen=True)
class SaveCheckpoint(Op):
    """Write a run's adapter (and for kind "weights" its optimizer) to `folder`. Result: `SaveInfo`.

    The folder is written under a temporary name beside it and renamed; an existing one is replaced.
    """

    name: ClassVar[str] = "save_checkpoint"
    run: str
    kind: CheckpointKind
    folder: str
    base_model_name: str  # what `adapter_config.json` says the base is
    # Whom every file is encrypted to (age, or ssh public keys); None leaves them readable.
    recipients: list[str] | None = None


@dataclass(frozen=True)
class SnapshotRun(Op):
    """Copy a run's whole state (weights, moments, accumulated gradients, step) and write it to
    `file`. Result: `SnapshotInfo`.

    The copy is made in the order of operations; the reply comes once the file is written, beside
    what the engine does meanwhile.
    """

    name: ClassVar[str] = "snapshot_run"
    waits: ClassVar[bool] = False
    run: str
    file: str


@dataclass(frozen=True)
class RestoreRun(Op):
    """Make a run of a snapshot, or put its state into a living run of that name. Result: `RunInfo`.

    Refused, with the category "server", if the file is missing, damaged or of another base model.
    """

    name: ClassVar[str] = "restore_run"
    run: str
    base_model: str
    base_path: str
    file: str
    sha256: str


@dataclass(frozen=True)
class UnloadRun(Op):
    """Free a run's memory. Unknown runs are not an error. Result: empty."""

    name: ClassVar[str] = "unload_run"
    run: str


@dataclass(frozen=True)
class EngineStatus:
    device: str
    dtype: str
    attention: str
    reason: str  # why this device, dtype and attention kernel
    torch_version: str
    memory_bytes: int  # resident set on the CPU, allocated memory on an accelerator
    base_models: list[str]  # names of those loaded
    runs: list[str]
    memory_total_bytes: int | None = None  # of the device; None: not known


@dataclass(frozen=True)
class RunInfo:
    lora: LoraSpec
    trainable_parameters: int
    step: int  # of the optimizer that goes with these weights


@dataclass(frozen=True)
class ForwardBackwardStats:
    loss_sum: float | None  # None: not finite
    weight_sum: float
    num_tokens: int
    num_datums: int
    seconds: float
    # Why the gradients were left as they were: a loss or a gradient is not finite. None where only
    # the loss was asked for.
    not_finite: str | None = None


@dataclass(frozen=True)
class OptimStepStats:
    step: int  # 1 after the first
    grad_norm: float | None  # global, before clipping; None: not finite
    update_norm: float | None  # global norm of the change of the weights; None: skipped
    learning_rate: float
    seconds: float
    memory_bytes: int
    # Why weights and optimizer were left as they were, and the gradients dropped.
    skipped: str | None = None


@dataclass(frozen=True)
class SnapshotInfo:
    size_bytes: int
    sha256: str  # of the file
    step: int
    blocked_seconds: float  # for which the engine did nothing else
    write_seconds: float  # in a thread beside it


@dataclass(frozen=True)
class SaveInfo:
    size_bytes: int
    step: int


_NESTED: dict[str, type[Any]] = {"options": EngineOptions, "lora": LoraSpec, "adam": AdamParams}


def encode(op: Op) -> tuple[dict[str, Any], list[bytes]]:
    """The message content and buffers of an operation."""
    content: dict[str, Any] = {"op": op.name}
    buffers: list[bytes] = []
    for f in fields(op):
        value = getattr(op, f.name)
        if f.metadata.get("buffer"):
            buffers.append(value)
        else:
            content[f.name] = asdict(value) if f.name in _NESTED else value
    return content, buffers


def decode(content: dict[str, Any], buffers: Sequence[Any]) -> Op:
    """The operation of a message. Raises `OpError` for one this engine does not know."""
    cls = _OPS.get(content.get("op", ""))
    if cls is None:
        raise OpError(
            f"this engine knows no operation {content.get('op')!r}; "
            f"server and engine must be of the same version",
            "server",
        )
    remaining = iter(buffers)
    values: dict[str, Any] = {}
    for f in fields(cls):
        if f.metadata.get("buffer"):
            values[f.name] = next(remaining)
        elif f.name in _NESTED:
            values[f.name] = _NESTED[f.name](**content[f.name])
        else:
            values[f.name] = content[f.name]
    return cls(**values)


def run_info(result: dict[str, Any]) -> RunInfo:
    """`RunInfo` from a reply's result."""
    return RunInfo(**{**result, "lora": LoraSpec(**result["lora"])})
