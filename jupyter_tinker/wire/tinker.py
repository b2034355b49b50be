"""The SDK's request bodies, read tolerantly: unknown fields are ignored, known ones are exact.

JSON bodies are pydantic models; of the one binary body only the address is read here
(`wire.tensors` reads the rest, in the engine). Nothing here knows of HTTP.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from google.protobuf.message import DecodeError
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from . import ops, protobuf
from .tinker_pb2 import ForwardBackwardEnvelope, ForwardBackwardRequest

_DATA = ForwardBackwardRequest.DATA_FIELD_NUMBER


class BadRequest(ValueError):
    """A body that cannot be read; the message says why."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)


SeqId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ttl = Annotated[int, Field(ge=3600, le=315_360_000)]  # an hour to ten years, as the service has it


# Every run of a session tells them, in listings of many runs.
_Tags = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)]


class CreateSession(_Request):
    tags: _Tags = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class FinishReason(_Request):
    type: Literal["success", "errored", "interrupted"]


class Finish(_Request):
    reason: FinishReason
    detail: str | None = None


class SessionHeartbeat(_Request):
    session_id: str


class ProjectUpdate(_Request):
    project_id: Annotated[str, Field(min_length=1, max_length=200)]


class SearchOwner(_Request):
    """Whose sessions: on a server with one owner, "own" and "accessible" are everybody's."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Annotated[list[str], Field(min_length=1, max_length=10)] | None = None

    @model_validator(mode="after")
    def _users_are_named(self) -> Self:
        if (self.type == "user") != (self.owner_urns is not None):
            raise ValueError("owner_urns belong to an owner of the type user, which needs them")
        return self


class SessionStatus(_Request):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: (
        Annotated[list[Literal["success", "errored", "interrupted"]], Field(min_length=1)] | None
    ) = None


class SearchCursor(_Request):
    last_created_at: AwareDatetime
    last_session_id: str


class SessionSearch(_Request):
    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = {}
    display_name: Annotated[str, Field(min_length=1)] | None = None
    owner: SearchOwner = SearchOwner()
    statuses: Annotated[list[SessionStatus], Field(min_length=1)] | None = None
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SearchCursor | None = None


class LoraConfig(_Request):
    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(_Request):
    type: str = "adamw"


class CreateModel(_Request):
    session_id: str
    model_seq_id: SeqId
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()


class ModelId(_Request):
    """Any body that addresses a run; `get_info` holds nothing else."""

    model_id: str


class Sequenced(ModelId):
    """The address of a run's operation."""

    seq_id: SeqId


class AdamFields(_Request):
    learning_rate: float = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    eps: float = Field(ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip_norm: float = Field(default=0.0, ge=0)

    def params(self) -> ops.AdamParams:
        return ops.AdamParams(**self.model_dump())


class OptimStep(Sequenced):
    adam_params: AdamFields | None = None
    optimizer_params: dict[str, Any] | None = None


class SaveWeights(Sequenced):
    path: str | None = None
    ttl_seconds: Ttl | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class SaveWeightsForSampler(SaveWeights):
    kind: Literal["snapshot", "inflight"] = "snapshot"
    sampling_session_seq_id: SeqId | None = None


class SaveWeightsExternal(Sequenced):
    path: str
    ttl_seconds: Ttl | None = None
    age_encryption_recipients: list[str] | None = None


class LoadWeights(Sequenced):
    """The legacy form: weights into a run that exists."""

    path: str
    optimizer: bool


class CreateViaLoad(_Request):
    """A new run from a checkpoint."""

    session_id: str
    model_seq_id: SeqId
    path: str
    optimizer: bool
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None


class CustomLossInput(_Request):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_]{0,63}$")
    rank: Literal[0, 1, 2]


class CustomLossNode(_Request):
    """One node of a torch.fx trace; arguments are encoded as `tinker.types.CustomLossNode` says."""

    op: str
    name: str = Field(max_length=200)
    target: str = Field(max_length=200)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class CustomLossGraph(_Request):
    format: Literal[1]
    nodes: list[CustomLossNode]


class CustomLoss(_Request):
    """A loss that the client has traced: what it reads and how it is computed."""

    name: str = Field(max_length=200)
    inputs: list[CustomLossInput] = Field(min_length=1, max_length=16)
    graph: CustomLossGraph


class CustomLossAddress(_Request):
    """Whose loss it is; the rest of the body is read when it is checked."""

    session_id: str
    custom_loss_seq_id: SeqId


class RetrieveFuture(_Request):
    request_id: str
    allow_metadata_only: bool = False


class CreateSamplingSession(_Request):
    session_id: str
    sampling_session_seq_id: SeqId
    base_model: str | None = None
    model_path: str | None = None


class JoinSamplingSession(_Request):
    sampling_session_id: str


class SamplingTarget(_Request):
    """One client of a sampling session: the first is number 0."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int = Field(default=0, ge=0, le=2**33)


class RetrieveFutures(_Request):
    target: SamplingTarget
    prev_cursor: int = Field(default=0, ge=0, le=2**53)
    retrieved_request_ids: list[str] = []
    timeout: float | None = Field(default=None, ge=0)


class CancelFuture(_Request):
    request_id: str


class TinkerPath(_Request):
    tinker_path: str


class CopyWeights(_Request):
    """A checkpoint into a new run, of a session or of a project. There is one owner, so that a
    token for other accounts' weights has no meaning and is ignored."""

    source_path: str
    session_id: str | None = None
    model_seq_id: SeqId | None = None
    destination_project_id: str | None = None
    ttl_seconds: Ttl | None = None


class TtlUpdate(_Request):
    ttl_seconds: Ttl | None


class Telemetry(_Request):
    session_id: str = ""
    events: list[Any] = []


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], body: bytes) -> M:
    """Read a JSON body. Raises `BadRequest` naming the fields at fault."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise BadRequest(_sentence(error)) from None


def string_values(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    """Metadata as the SDK reads it back: it takes any JSON in, and only strings out."""
    if metadata is None:
        return None
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


def _sentence(error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(str(part) for part in fault["loc"])
        faults.append(f"{where}: {fault['msg']}" if where else fault["msg"])
    more = error.error_count() - len(faults)
    return "The request is not valid: " + "; ".join(faults) + (f"; and {more} more" if more else "")


class Address(NamedTuple):
    """Where a binary `forward_backward` body wants to go, and how."""

    model_id: str
    seq_id: int
    forward_only: bool


def custom_loss_id(body: bytes) -> str | None:
    """The `loss_id` of a binary `forward_backward` body whose loss is `custom`, else None.

    Raises `BadRequest` if it names none.
    """
    envelope = _envelope(body)
    if envelope.loss_fn != "custom":
        return None
    loss_id = envelope.loss_fn_config_v2["loss_id"].text
    if not loss_id:
        raise BadRequest(
            "The loss 'custom' needs loss_fn_config['loss_id'], which create_custom_loss gives."
        )
    return loss_id


def forward_backward_address(body: bytes) -> Address:
    """Read the address of a protobuf body without its data. Raises `BadRequest`."""
    envelope = _envelope(body)
    if not envelope.model_id:
        raise BadRequest("The ForwardBackwardRequest names no model_id.")
    if envelope.seq_id < 0:
        raise BadRequest(f"seq_id must not be negative, and is {envelope.seq_id}.")
    return Address(envelope.model_id, envelope.seq_id, envelope.forward_only)


def _envelope(body: bytes) -> ForwardBackwardEnvelope:
    try:
        return ForwardBackwardEnvelope.FromString(protobuf.without(body, _DATA))
    except (DecodeError, ValueError):
        raise BadRequest(
            "The body is not a complete protobuf ForwardBackwardRequest; was it cut short?"
        ) from None


def without_backward(body: bytes) -> bytes:
    """A binary `forward_backward` body that asks for the loss alone.

    Of a protobuf message that is followed by another, a field counts that is set in the latter.
    """
    asked: bytes = ForwardBackwardEnvelope(forward_only=True).SerializeToString()
    return body + asked
