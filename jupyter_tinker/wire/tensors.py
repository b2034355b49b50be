"""The large binary messages of training: their bytes to numpy arrays and back.

Reads a `ForwardBackwardRequest`, writes a `ForwardBackwardOutput` and reads it again. Knows nothing
of models, losses or torch: whether token ids and shapes make sense for a model is `engine.batch`'s
question.
Whatever the bytes hold, the only error that leaves this module is `OpError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from google.protobuf.message import DecodeError

from . import tinker_pb2 as pb
from .ops import OpError

Arrays = dict[str, np.ndarray]

# A sparse tensor names its own dense size; a request may ask for this many cells in all.
MAX_DENSIFIED_CELLS = 1 << 26

OUTPUT_TYPE = "ArrayRecord"  # the name that the SDK itself falls back to

_DTYPES: dict[int, np.dtype] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}
_DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_INT32 = np.dtype("<i4")
_INT64 = np.dtype("<i8")


@dataclass(frozen=True)
class Datum:
    """One sequence: its tokens, and per-token arrays for the loss."""

    tokens: np.ndarray  # (N,) integers, all chunks in a row
    loss_fn_inputs: Arrays


@dataclass(frozen=True)
class Batch:
    """A decoded `ForwardBackwardRequest`."""

    model_id: str
    seq_id: int
    loss_fn: str
    loss_fn_config: dict[str, float | str]
    forward_only: bool
    data: list[Datum]


def decode_request(body: bytes, *, cells: int | None = None) -> Batch:
    """The batch in the bytes of a `ForwardBackwardRequest`, whose sparse tensors may take so many
    `cells` once they are dense; None: `MAX_DENSIFIED_CELLS`."""
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(bytes(body))
    except DecodeError:
        raise OpError("the body is not a protobuf ForwardBackwardRequest") from None
    budget = _CellBudget(MAX_DENSIFIED_CELLS if cells is None else cells)
    return Batch(
        model_id=message.model_id,
        seq_id=message.seq_id,
        loss_fn=message.loss_fn,
        loss_fn_config=_config(message),
        forward_only=message.forward_only,
        data=[_datum(index, datum, budget) for index, datum in enumerate(message.data)],
    )


def encode_output(
    outputs: Sequence[Mapping[str, np.ndarray]], metrics: Mapping[str, float]
) -> bytes:
    """The bytes of a `ForwardBackwardOutput`; `outputs` holds each datum's named arrays."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type=OUTPUT_TYPE, metrics=metrics)
    # A record is rectangular beyond its first axis, so datums of another K start another record.
    for _, alike in groupby(outputs, key=_trailing_shapes):
        message.loss_fn_outputs.append(_record(list(alike)))
    return message.SerializeToString()


def decode_output(body: bytes) -> list[Arrays]:
    """Each datum's named arrays in the bytes of a `ForwardBackwardOutput`."""
    message = pb.ForwardBackwardOutput()
    try:
        message.ParseFromString(bytes(body))
    except DecodeError:
        raise OpError("the body is not a protobuf ForwardBackwardOutput", "server") from None
    outputs: list[Arrays] = []
    for record in message.loss_fn_outputs:
        columns = {name: _unbatched(field) for name, field in record.fields.items()}
        outputs += [
            {name: arrays[datum] for name, arrays in columns.items()}
            for datum in range(record.num_datums)
        ]
    return outputs


class _CellBudget:
    """Cells that sparse tensors of one request may still take up once they are dense."""

    def __init__(self, cells: int) -> None:
        self.most = self.cells = cells

    def take(self, cells: int, where: str) -> None:
        if cells > self.cells:
            raise OpError(
                f"{where} asks for {cells} cells once it is dense, and a request may have "
                f"{self.most} in all; send smaller batches"
            )
        self.cells -= cells


def _config(message: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise OpError(f"loss_fn_config has no value for {_short(key)}; give a number or a text")
        config[key] = value.number if kind == "number" else value.text
    return config


def _datum(index: int, message: pb.Datum, budget: _CellBudget) -> Datum:
    chunks = [_chunk_tokens(index, n, chunk) for n, chunk in enumerate(message.model_input)]
    inputs: Arrays = {}
    for key, tensor in message.loss_fn_inputs.items():
        where = f"datum {index}: loss_fn_inputs[{_short(key)}]"
        inputs[key] = _tensor(tensor, where, budget)
    return Datum(np.concatenate(chunks) if chunks else np.empty(0, _INT32), inputs)


def _chunk_tokens(index: int, number: int, chunk: pb.Chunk) -> np.ndarray:
    where = f"datum {index}: model_input chunk {number}"
    kind = chunk.WhichOneof("chunk")
    if kind != "encoded_text":
        what = f"a {kind} chunk" if kind else "of a kind unknown here"
        raise OpError(f"{where} is {what}; this engine trains on text: send encoded_text chunks")
    return _array(chunk.encoded_text.tokens, _INT32, where)


def _tensor(message: pb.Tensor, where: str, budget: _CellBudget) -> np.ndarray:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise OpError(f"{where} has dtype number {message.dtype}; send float32 or int64")
    shape = tuple(message.shape)
    if len(shape) > 2 or any(size < 0 for size in shape):
        raise OpError(f"{where} has shape {_short(list(shape))}; send one or two dimensions")
    kind = message.WhichOneof("encoding")
    if kind == "sparse_csr":
        return _densify(message.sparse_csr, dtype, shape, where, budget)
    # A tensor without elements has empty bytes, which some writers leave out altogether.
    values = _array(message.dense, dtype, where)
    if not shape:
        return values
    if math.prod(shape) != values.size:
        raise OpError(
            f"{where} has {values.size} values, and its shape {list(shape)} asks for "
            f"{math.prod(shape)}; make them agree"
        )
    return values.reshape(shape)


def _densify(
    csr: pb.SparseCsr,
    dtype: np.dtype,
    shape: tuple[int, ...],
    where: str,
    budget: _CellBudget,
) -> np.ndarray:
    if len(shape) != 2:
        raise OpError(
            f"{where} is sparse with shape {list(shape)}; a CSR tensor has two dimensions"
        )
    rows, columns = shape
    values = _array(csr.values, dtype, where)
    starts = _array(csr.crow_indices, _INT64, where)
    cols = _array(csr.col_indices, _INT64, where)
    if not _is_csr(rows, columns, values.size, starts, cols):
        raise OpError(
            f"{where} is not a CSR tensor of shape {list(shape)}: crow_indices must rise from 0 to "
            f"the number of values, and col_indices within each row, below the number of columns"
        )
    budget.take(rows * columns, where)
    dense = np.zeros(shape, dtype)
    dense[np.repeat(np.arange(rows), np.diff(starts)), cols] = values
    return dense


def _is_csr(rows: int, columns: int, values: int, starts: np.ndarray, cols: np.ndarray) -> bool:
    if starts.size != rows + 1 or cols.size != values:
        return False
    if starts[0] != 0 or starts[-1] != values or (starts[1:] < starts[:-1]).any():
        return False
    if values == 0:
        return True
    if cols.min() < 0 or cols.max() >= columns:
        return False
    # Columns rise, except from the last value of a row to the first of a later one.
    first_of_row = np.zeros(values + 1, bool)
    first_of_row[starts] = True
    return bool(((cols[1:] > cols[:-1]) | first_of_row[1:values]).all())


def _array(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise OpError(
            f"{where} has {len(data)} bytes, which is no whole number of {dtype.name} values"
        )
    return np.frombuffer(data, dtype)


def _trailing_shapes(output: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((name, array.shape[1:]) for name, array in output.items())


def _record(outputs: list[Mapping[str, np.ndarray]]) -> pb.ArrayRecord:
    fields = {name: _batched([output[name] for output in outputs]) for name in outputs[0]}
    return pb.ArrayRecord(type_tag=OUTPUT_TYPE, fields=fields, num_datums=len(outputs))


def _batched(arrays: list[np.ndarray]) -> pb.BatchedTensor:
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=_INT64)
    return pb.BatchedTensor(
        data=b"".join(_little_endian_bytes(arrays)),
        offsets=offsets.tobytes(),
        dtype=_DTYPE_CODES[arrays[0].dtype.newbyteorder("<")],  # type: ignore[arg-type]
        trailing_shape=arrays[0].shape[1:],
    )


def _unbatched(field: pb.BatchedTensor) -> list[np.ndarray]:
    dtype, shape = _DTYPES[field.dtype], (-1, *field.trailing_shape)
    offsets = np.frombuffer(field.offsets, _INT64)
    data = field.data
    return [
        np.frombuffer(data[start:end], dtype).reshape(shape)
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]


def _little_endian_bytes(arrays: list[np.ndarray]) -> Iterator[bytes]:
    for array in arrays:
        yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
