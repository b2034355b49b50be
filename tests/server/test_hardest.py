"""Which sequences of a batch are hardest, and what is said of their tokens."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jupyter_tinker.server.hardest import Scored, hardest, part, sequences
from jupyter_tinker.wire import tensors
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.ops import OpError
from tests.server.token_runs import batch, tensor

TEXT = [5, 1, 2, 3, 4]


def scored(
    asked: Any, *logprobs: Any, first: int = 0, **more: np.ndarray
) -> tuple[str, list[Scored]]:
    payload = asked("r", 1)[1]
    outputs = [{"logprobs": np.asarray(one, "<f4"), **more} for one in logprobs]
    loss, found = sequences(payload, tensors.encode_output(outputs, {}), first)
    return loss, list(found)


def one(asked: Any, logprobs: Any, **more: np.ndarray) -> Scored:
    (found,) = scored(asked, logprobs, **more)[1]
    return found


def test_outputs_are_read_as_they_were_written() -> None:
    outputs = [
        {"logprobs": np.arange(n * k, dtype="<f4").reshape(n, k), "n": np.arange(n, dtype="<i8")}
        for n, k in ((3, 2), (1, 2), (2, 5))
    ]
    read = tensors.decode_output(tensors.encode_output(outputs, {"loss:sum": 1.0}))
    for wrote, found in zip(outputs, read, strict=True):
        for name, array in wrote.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert tensors.decode_output(b"") == []
    with pytest.raises(OpError, match="ForwardBackwardOutput"):
        tensors.decode_output(b"\xff\xff")


def test_the_loss_is_the_mean_over_what_has_weight() -> None:
    logprobs = [-1.0, -2.0, -4.0, -8.0]
    found = one(batch(TEXT, weights=[[0, 1, 3, 0]]), logprobs)
    assert found.loss_mean == pytest.approx((2 + 3 * 4) / 4)
    assert found.counts.tolist() == [False, True, True, False]
    assert one(batch(TEXT), logprobs).loss_mean == pytest.approx(15 / 4)
    # As forward_backward_custom sends them: derivatives, of any sign.
    found = one(batch(TEXT, weights=[[0, -1, 3, 0]]), logprobs)
    assert found.loss_mean == pytest.approx((2 + 3 * 4) / 4)
    assert one(batch(TEXT, weights=[[0, 0, 0, 0]]), logprobs).loss_mean is None


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "gspo"])
def test_tokens_with_an_advantage_count_alike(loss: str) -> None:
    inputs = {"advantages": [[0, 0, -2, 0.5]], "logprobs": [[0, 0, -3, -4]]}
    found = one(batch(TEXT, loss=loss, **inputs), [-1, -2, -4, -8])
    assert found.loss_mean == pytest.approx(6)
    assert found.weighted_by == "advantages"
    shown = part(found, 100).json(None, frozenset())
    assert shown["sampled_logprobs"] == [None, 0, 0, -3, -4]
    assert shown["weights"] == [None, 0, 0, -2, 0.5]


def test_every_token_counts_in_dro_and_in_a_loss_without_weights() -> None:
    inputs = {"advantages": [[0, 0, -2, 0.5]], "logprobs": [[0, 0, -3, -4]]}
    assert one(batch(TEXT, loss="dro", **inputs), [-1, -2, -4, -8]).loss_mean == 15 / 4
    assert one(batch(TEXT, loss="custom", scale=[[1.0]]), [-1, -2, -4, -8]).loss_mean == 15 / 4
    masked = batch(TEXT, loss="custom", mask=[[0, 1, 1, 0]])
    assert one(masked, [-1, -2, -4, -8]).loss_mean == 3


def test_of_several_targets_the_heaviest_is_shown() -> None:
    request = pb.ForwardBackwardRequest(loss_fn="cross_entropy")
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = np.asarray([5, 6], "<i4").tobytes()
    datum.loss_fn_inputs["target_tokens"].CopyFrom(tensor([[1, 2], [3, 4]], "<i8"))
    datum.loss_fn_inputs["weights"].CopyFrom(tensor([[0.25, 0.75], [0, 0]], "<f4"))
    output = tensors.encode_output([{"logprobs": np.asarray([[-1, -2], [-3, -4]], "<f4")}], {})
    (found,) = sequences(request.SerializeToString(), output, 0)[1]
    assert found.tokens.tolist()[:2] == [5, 2]
    assert found.logprobs is not None
    assert found.logprobs[0] == pytest.approx(-1.75)
    assert found.weights.tolist() == [1, 0]
    assert found.loss_mean == pytest.approx(1.75)


def test_where_targets_do_not_count_the_text_is_what_was_read() -> None:
    request = pb.ForwardBackwardRequest(loss_fn="cross_entropy")
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = np.asarray([5, 6, 7, 8], "<i4").tobytes()
    datum.loss_fn_inputs["target_tokens"].CopyFrom(tensor([0, 7, 1, 9], "<i8"))
    datum.loss_fn_inputs["weights"].CopyFrom(tensor([0, 0, 1, 1], "<f4"))
    output = tensors.encode_output([{"logprobs": np.asarray([-9, -1, -2, -3], "<f4")}], {})
    (found,) = sequences(request.SerializeToString(), output, 0)[1]
    shown = part(found, 100).json(None, frozenset({7}))
    assert shown["tokens"] == [5, 6, 7, 1, 9]  # 0 was a filler; 1 is what it had to learn
    assert shown["logprobs"] == [None, None, -1, -2, -3]
    assert shown["special"] == [2]
    assert shown["loss_mean"] == 2.5


def test_the_hardest_come_first_and_what_has_no_loss_last() -> None:
    weights = [[1, 1], [0, 0], [1, 1], [1, 1], [1, 0]]
    asked = batch(*[[1, 2, 3]] * 5, weights=weights)
    _, every = scored(asked, [-1, -1], [-9, -9], [-3, -3], [-1, -1], [-5, -9], first=10)
    assert [found.number for found in hardest(every, 9)] == [14, 12, 10, 13, 11]
    assert [found.number for found in hardest(iter(every), 2)] == [14, 12]


def test_a_long_sequence_is_cut_to_where_its_loss_is() -> None:
    logprobs = -np.ones(99, "<f4")
    logprobs[60:65] = -7
    logprobs[20] = -1000  # does not count
    weights = np.ones(99, "<f4")
    weights[20] = 0
    found = one(batch(list(range(100)), weights=[weights]), logprobs)
    shown = part(found, 5).json(None, frozenset())
    assert shown["start"] == 61
    assert shown["tokens"] == [61, 62, 63, 64, 65]
    assert shown["logprobs"] == [-7] * 5
    assert (shown["length"], shown["counted"]) == (100, 98)
    assert part(found, 100).json(None, frozenset())["tokens"] == list(range(100))
    late = one(batch(list(range(100))), [-1] * 98 + [-5])
    assert part(late, 10).json(None, frozenset())["tokens"] == list(range(90, 100))
    early = one(batch(list(range(100))), [-5] + [-1] * 98)
    shown = part(early, 10).json(None, frozenset())
    assert (shown["start"], shown["logprobs"][:2]) == (1, [-5, -1])


def test_numbers_keep_their_digits_and_are_json() -> None:
    logprobs = np.asarray([-0.1, -1e-7, -np.inf, -(2**0.5)], "<f4")
    found = one(batch(TEXT), logprobs, elementwise_loss=-logprobs)
    shown = json.loads(json.dumps(part(found, 9).json(["a"] * 5, frozenset()), allow_nan=False))
    assert shown["logprobs"][3] is None
    read = [np.float32(value) for value in shown["logprobs"][1:] if value is not None]
    assert read == [logprobs[0], logprobs[1], logprobs[3]]
    assert shown["logprobs"][1] == -0.1
    assert shown["losses"][1] == 0.1
    assert shown["loss_mean"] is None


def test_a_loss_without_logprobs() -> None:
    payload = batch(TEXT, loss="custom")("r", 1)[1]
    output = tensors.encode_output([{"other": np.zeros(1, "<f4")}], {})
    (found,) = sequences(payload, output, 0)[1]
    assert (found.logprobs, found.loss_mean) == (None, None)
    assert part(found, 3).json(None, frozenset())["logprobs"] is None


def test_sparse_tensors_are_bounded() -> None:
    request = pb.ForwardBackwardRequest(loss_fn="cross_entropy")
    sparse = request.data.add().loss_fn_inputs["weights"]
    sparse.dtype = pb.DTYPE_FLOAT32
    sparse.shape.extend([2, 1 << 22])
    sparse.sparse_csr.crow_indices = np.zeros(3, "<i8").tobytes()
    with pytest.raises(OpError, match="4194304 in all"):
        sequences(request.SerializeToString(), b"", 0)
