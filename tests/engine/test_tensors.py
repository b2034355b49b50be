"""The binary messages, held against the SDK's own and against arbitrary bytes."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
from hypothesis import given, settings
from hypothesis import strategies as st
from tinker.proto import request_conv, response_conv
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from jupyter_tinker.wire import tensors
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.ops import OpError
from jupyter_tinker.wire.tensors import decode_request, encode_output

from .reference import Client, datum, request, samples


def sdk_bytes(data: list[tinker.Datum], **fields: object) -> bytes:
    message = request_conv.forward_backward_request_to_proto(
        ForwardBackwardRequest(
            forward_backward_input=ForwardBackwardInput(
                data=data, loss_fn="cross_entropy", **fields
            ),
            model_id="model",
            seq_id=3,
        )
    )
    return message.SerializeToString()


def test_what_the_sdk_writes() -> None:
    chunks = [tinker.EncodedTextChunk(tokens=[5, 6]), tinker.EncodedTextChunk(tokens=[7])]
    body = sdk_bytes(
        [
            tinker.Datum(
                model_input=tinker.ModelInput(chunks=chunks),
                loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, -2.0]},
            )
        ],
        loss_fn_config={"beta": 0.5, "loss_id": "x"},
    )
    batch = decode_request(body)
    assert (batch.model_id, batch.seq_id, batch.loss_fn) == ("model", 3, "cross_entropy")
    assert batch.loss_fn_config == {"beta": 0.5, "loss_id": "x"}
    assert not batch.forward_only
    assert batch.data[0].tokens.tolist() == [5, 6, 7]
    assert batch.data[0].loss_fn_inputs["target_tokens"].tolist() == [6, 7, 8]
    assert batch.data[0].loss_fn_inputs["weights"].tolist() == [0.0, 1.0, -2.0]


def test_sparse_tensors_of_the_sdk() -> None:
    import torch

    weights = torch.zeros(40, 6)
    weights[3, 2], weights[3, 5], weights[39, 0] = 1.0, -2.0, 0.5
    body = sdk_bytes(
        [
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(list(range(40))),
                loss_fn_inputs={
                    "target_tokens": tinker.TensorData.from_torch_sparse((weights != 0).long() * 9),
                    "weights": tinker.TensorData.from_torch_sparse(weights),
                },
            )
        ]
    )
    sent = pb.ForwardBackwardRequest.FromString(body).data[0].loss_fn_inputs["weights"]
    assert sent.HasField("sparse_csr")
    inputs = decode_request(body).data[0].loss_fn_inputs
    assert np.array_equal(inputs["weights"], weights.numpy())
    assert np.array_equal(inputs["target_tokens"], (weights != 0).numpy() * 9)


def test_sparse_targets_train_like_dense_ones(client: Client) -> None:
    sample = samples(0, lengths=(12,), k=5)[0]
    targets = np.where(sample.weights != 0, sample.targets, 0)
    dense = datum(type(sample)(sample.tokens, targets, sample.weights))
    sparse = datum(sample)
    for key, array in (("target_tokens", targets), ("weights", sample.weights)):
        sparse.loss_fn_inputs[key].CopyFrom(csr(array))
    client.create()
    one = client.backward([dense])
    first = client.gradients.clone()
    client.zero_grad()
    other = client.backward([sparse])
    assert np.array_equal(one.logprobs[0], other.logprobs[0])
    assert np.array_equal(first, client.gradients)


def csr(array: np.ndarray, **changes: list[int]) -> pb.Tensor:
    rows, columns = np.nonzero(array)
    integer = np.issubdtype(array.dtype, np.integer)
    starts = changes.get("starts", [0, *np.cumsum(np.bincount(rows, minlength=len(array)))])
    sparse = pb.SparseCsr(
        values=array[rows, columns].astype("<i8" if integer else "<f4").tobytes(),
        crow_indices=np.array(starts, "<i8").tobytes(),
        col_indices=np.array(changes.get("columns", columns), "<i8").tobytes(),
    )
    return pb.Tensor(
        sparse_csr=sparse,
        dtype=pb.DTYPE_INT64 if integer else pb.DTYPE_FLOAT32,
        shape=changes.get("shape", list(array.shape)),
    )


ARRAY = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (csr(ARRAY, shape=[4]), "two dimensions"),
        (csr(ARRAY, shape=[3, 2]), "not a CSR tensor"),
        (csr(ARRAY, shape=[2, 1]), "not a CSR tensor"),
        (csr(ARRAY, columns=[1, 0, 0]), "not a CSR tensor"),
        (csr(ARRAY, columns=[1, 1, 0]), "not a CSR tensor"),
        (csr(ARRAY, columns=[1, 0, -1]), "not a CSR tensor"),
        (csr(ARRAY, columns=[0, 1]), "not a CSR tensor"),
        (csr(ARRAY, starts=[0, 1, 2]), "not a CSR tensor"),
        (csr(ARRAY, starts=[1, 1, 3]), "not a CSR tensor"),
        (csr(ARRAY, starts=[0, 9, 3]), "not a CSR tensor"),
        (csr(ARRAY, starts=[0, -1, 3]), "not a CSR tensor"),
        (csr(ARRAY, shape=[2, 1 << 40]), "asks for 2199023255552 cells"),
        (csr(ARRAY, shape=[2, 1 << 62]), "smaller batches"),
    ],
)
def test_sparse_tensors_that_are_not(tensor: pb.Tensor, sentence: str) -> None:
    bad = pb.Datum(loss_fn_inputs={"weights": tensor})
    with pytest.raises(OpError, match=sentence) as caught:
        decode_request(request([datum(samples(0)[0]), bad]))
    assert caught.value.message.startswith("datum 1: loss_fn_inputs['weights']")


def test_the_size_of_sparse_tensors_counts_over_the_whole_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensors, "MAX_DENSIFIED_CELLS", 7)
    one = pb.Datum(loss_fn_inputs={"weights": csr(ARRAY)})
    decode_request(request([one]))
    with pytest.raises(OpError, match="datum 1"):
        decode_request(request([one, one]))


def test_the_newer_map_of_settings_wins() -> None:
    message = pb.ForwardBackwardRequest(loss_fn_config={"a": 1.0, "b": 2.0})
    message.loss_fn_config_v2["b"].number = 3.0
    assert decode_request(message.SerializeToString()).loss_fn_config == {"a": 1.0, "b": 3.0}


def test_provenance_is_tolerated() -> None:
    message = datum(samples(0)[0])
    message.model_input_spans.add().prompt_tokens.sequence_id = "s"
    message.loss_fn_input_spans.add().sampled_tokens.length = 3
    assert len(decode_request(request([message])).data) == 1


def test_what_the_sdk_reads() -> None:
    shapes = [(3,), (2,), (4, 2), (1, 2), (2, 3), (5,)]
    rng = np.random.default_rng(0)
    outputs = [
        {
            "logprobs": rng.normal(size=shape).astype(np.float32),
            "elementwise_loss": rng.normal(size=shape[0]).astype(np.float32),
        }
        for shape in shapes
    ]
    body = encode_output(outputs, {"loss:sum": 1.5})
    assert [r.num_datums for r in pb.ForwardBackwardOutput.FromString(body).loss_fn_outputs] == [
        2,
        2,
        1,
        1,
    ]
    parsed = response_conv.deserialize_forward_backward_output(body)
    assert parsed.metrics == {"loss:sum": 1.5}
    assert len(parsed.loss_fn_outputs) == len(outputs)
    for own, theirs in zip(outputs, parsed.loss_fn_outputs, strict=True):
        for name, array in own.items():
            assert theirs[name].shape == list(array.shape)
            assert np.array_equal(theirs[name].to_numpy().reshape(array.shape), array)


def test_metric_names_survive_the_sdk(client: Client) -> None:
    client.create()
    for key in client.forward(samples(0)).metrics:
        name, colon, reduction = key.partition(":")
        assert name
        assert colon
        assert reduction in ("sum", "mean", "min", "max")


VALID = request(
    [datum(samples(0)[0]), pb.Datum(loss_fn_inputs={"weights": csr(ARRAY)})],
    loss_fn_config={"beta": 1.0},
    loss_fn_config_v2={"beta": pb.LossConfigValue(text="x")},
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    body = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(body) - 1))
        action = draw(st.sampled_from(["set", "cut", "insert"]))
        if action == "set":
            body[position] = draw(st.integers(0, 255))
        elif action == "cut":
            del body[position : position + draw(st.integers(1, 8))]
        else:
            body[position:position] = draw(st.binary(min_size=1, max_size=8))
    return bytes(body)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=200), damaged()))
def test_no_bytes_raise_anything_but_a_sentence(body: bytes) -> None:
    try:
        batch = decode_request(body)
    except OpError as caught:
        error = caught
    else:
        for entry in batch.data:
            assert entry.tokens.ndim == 1
            assert all(array.ndim in (1, 2) for array in entry.loss_fn_inputs.values())
        return
    assert error.category == "user"
    assert len(error.message) < 400


INTS = st.integers(-(1 << 63), (1 << 63) - 1)
SMALL = st.integers(-2, 6)
WIRE_TENSORS = st.builds(
    lambda values, starts, columns, shape, dtype, sparse: pb.Tensor(
        dtype=dtype,
        shape=shape,
        **(
            {
                "sparse_csr": pb.SparseCsr(
                    values=np.array(values, "<f4").tobytes(),
                    crow_indices=np.array(starts, "<i8").tobytes(),
                    col_indices=np.array(columns, "<i8").tobytes(),
                )
            }
            if sparse
            else {"dense": np.array(values, "<f4").tobytes()}
        ),
    ),
    values=st.lists(st.floats(width=32), max_size=6),
    starts=st.lists(st.one_of(SMALL, INTS), max_size=5),
    columns=st.lists(st.one_of(SMALL, INTS), max_size=6),
    shape=st.lists(st.one_of(SMALL, INTS), max_size=3),
    dtype=st.integers(0, 9),
    sparse=st.booleans(),
)


@settings(max_examples=600, deadline=None)
@given(WIRE_TENSORS)
def test_no_tensor_raises_anything_but_a_sentence(tensor: pb.Tensor) -> None:
    try:
        batch = decode_request(request([pb.Datum(loss_fn_inputs={"x": tensor})]))
    except OpError as caught:
        message = caught.message
    else:
        assert batch.data[0].loss_fn_inputs["x"].size <= 1 << 10
        return
    assert message.startswith("datum 0: loss_fn_inputs['x']")
