"""The tables of the database. Times are Unix seconds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The revision that `migrations/versions` ends in; a test holds the two together.
HEAD = "0007"

StrDict = dict[str, Any]

# SQLite's INTEGER has 64 bits already.
_Long = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    type_annotation_map = {StrDict: JSON, list[str]: JSON, bytes: LargeBinary}  # noqa: RUF012


class SessionRow(Base):
    """A client's session: what `create_session` said, and how it ended."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[float]
    owner: Mapped[str]
    sdk_version: Mapped[str]
    tags: Mapped[list[str]]
    user_metadata: Mapped[StrDict | None]
    project_id: Mapped[str | None]
    display_name: Mapped[str | None]
    idempotency_key: Mapped[str | None] = mapped_column(index=True)
    finished_at: Mapped[float | None]
    finish_reason: Mapped[str | None]
    finish_detail: Mapped[str | None]


class RunRow(Base):
    """A training run: one adapter on one base model."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), index=True)
    owner: Mapped[str]
    base_model: Mapped[str]  # as the client named it
    base_path: Mapped[str]
    hub_id: Mapped[str | None]  # of the base model, where it came from the hub
    architecture: Mapped[str]
    lora: Mapped[StrDict]
    user_metadata: Mapped[StrDict | None]
    created_at: Mapped[float] = mapped_column(index=True)
    last_request_at: Mapped[float]
    copied_from: Mapped[str | None]  # the checkpoint that this run only holds a copy of
    started_from: Mapped[str | None]  # the checkpoint that its first weights were
    ended: Mapped[str | None]  # why it computes no more
    controls: Mapped[StrDict | None]  # of `wire.controls`, once a person has changed them


class SamplerRow(Base):
    """A sampling session: a base model, a checkpoint or a copy of a run's weights."""

    __tablename__ = "samplers"

    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), index=True)
    owner: Mapped[str]
    base_model: Mapped[str]  # as the client named it
    base_path: Mapped[str]
    model_path: Mapped[str | None]  # of the checkpoint, where it is one
    run_id: Mapped[str | None]  # whose weights were copied, where they were
    position: Mapped[int | None]  # in that run's history, that they were copied at
    target: Mapped[str]  # its name in the engine, which several may share
    clients: Mapped[int] = mapped_column(default=0)  # that joined beside the first
    created_at: Mapped[float]
    ended: Mapped[str | None]  # why it samples no more


class RequestRow(Base):
    """A request of a run or a sampling session, accepted before its future's id is returned, and
    its result."""

    __tablename__ = "requests"
    __table_args__ = (UniqueConstraint("run_id", "seq_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str]  # or the sampling session's id
    seq_id: Mapped[int] = mapped_column(
        _Long
    )  # a joined client counts from a billion times its own
    kind: Mapped[str]
    server: Mapped[str]  # the life of the server that accepted it
    accepted_at: Mapped[float]
    done_at: Mapped[float | None] = mapped_column(index=True)
    failed: Mapped[bool] = mapped_column(default=False)
    result: Mapped[bytes | None]  # until an hour after it was fetched
    content_type: Mapped[str | None]
    retrieved_at: Mapped[float | None]
    # Of lives of the server after the one that accepted it, which ended while they were at it.
    deaths: Mapped[int] = mapped_column(default=0)


class PayloadRow(Base):
    """What a request asked: until it is done and, if it changed its run, for as long as the run's
    history reaches back to it. A table of its own: a request's row changes often."""

    __tablename__ = "payloads"

    request_id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(index=True)
    body: Mapped[bytes]


class OperationRow(Base):
    """One change of a run's state, so that it can be made again.

    Positions count a run's changes from 1, over all its branches.
    """

    __tablename__ = "operations"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]  # of `history.Kind`
    step: Mapped[int]  # the optimizer's, after it
    request_id: Mapped[str | None]  # whose payload it was made of
    data: Mapped[StrDict]  # what the kind says
    time: Mapped[float]


class BranchRow(Base):
    """Where a run was rewound: positions from `first_position` on follow `parent_position`.

    What lies between the two was abandoned. A run's first branch, 0, has no row.
    """

    __tablename__ = "branches"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_position: Mapped[int]
    parent_position: Mapped[int]
    step: Mapped[int]  # that it was rewound to
    created_at: Mapped[float]
    actor: Mapped[str]


class SnapshotRow(Base):
    """A run's whole state behind a position, in a file of the snapshots' directory."""

    __tablename__ = "snapshots"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int]
    file: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[float]


class EventRow(Base):
    """Something other than a step that watchers are told; `id` rises over these and all steps."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_run_id_id", "run_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[str | None]  # None: of the server or the engine
    time: Mapped[float]
    kind: Mapped[str]  # of `wire.events.Kind`
    actor: Mapped[str | None]
    step: Mapped[int | None]
    data: Mapped[StrDict]


class StepRow(Base):
    """One `optim_step` of a run; `id` rises over all runs, and over events."""

    __tablename__ = "steps"
    __table_args__ = (Index("ix_steps_run_id_id", "run_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str]
    branch: Mapped[int] = mapped_column(default=0)
    step: Mapped[int]
    time: Mapped[float]
    skipped: Mapped[str | None]  # why the weights were left as they were
    loss_sum: Mapped[float | None]  # None: no forward_backward since the step before
    loss_mean: Mapped[float | None]  # per unit of weight
    weight_sum: Mapped[float]
    tokens: Mapped[int]
    datums: Mapped[int]
    grad_norm: Mapped[float | None]  # None: not finite, or not looked at
    update_norm: Mapped[float | None]  # None: the step was skipped
    # What was used, and what the client asked for; None in steps of earlier versions.
    learning_rate: Mapped[float]
    learning_rate_requested: Mapped[float | None]
    grad_clip_norm: Mapped[float | None]
    grad_clip_norm_requested: Mapped[float | None]
    weight_decay: Mapped[float | None]
    weight_decay_requested: Mapped[float | None]
    compute_seconds: Mapped[float]
    wait_seconds: Mapped[float]
    memory_bytes: Mapped[int]


class PreviewRow(Base):
    """What a run is asked while it trains. The answers are events."""

    __tablename__ = "previews"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    setting: Mapped[StrDict]  # of `wire.previews`
    changed_at: Mapped[float]
    changed_by: Mapped[str]


class CheckpointRow(Base):
    """A saved adapter; its files lie in `folder`, relative to the checkpoints' directory."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("run_id", "kind", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str]
    folder: Mapped[str]
    base_model: Mapped[str]
    base_path: Mapped[str]
    lora: Mapped[StrDict]
    step: Mapped[int]
    created_at: Mapped[float] = mapped_column(index=True)
    size_bytes: Mapped[int]
    public: Mapped[bool] = mapped_column(default=False)
    user_metadata: Mapped[StrDict | None]
    expires_at: Mapped[float | None]
    request_id: Mapped[str | None]  # that asked for it, or "position N" of a run's step


class CustomLossRow(Base):
    """A loss that a client defined, for the runs of its session."""

    __tablename__ = "custom_losses"

    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    definition: Mapped[bytes]  # JSON of `wire.tinker.CustomLoss`
    created_at: Mapped[float]


class KeyRow(Base):
    """An API key; only its SHA-256 is kept."""

    __tablename__ = "keys"

    digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class AuditRow(Base):
    """One thing that was done to what is kept, and by whom."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str]
    event: Mapped[str]  # resource_action
    details: Mapped[StrDict]
