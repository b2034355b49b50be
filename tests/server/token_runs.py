"""Runs that answer a batch with log-probabilities which tell where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np

from jupyter_tinker.wire import tensors
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.server.fake_runs import FakeRuns
from tests.server.one_service import Asked


class TokenRuns(FakeRuns):
    """`hard` says how improbable a token is: -logprob is this times its id, plus its place."""

    hard = 0.25

    def logprobs(self, targets: np.ndarray) -> np.ndarray:
        places = np.arange(len(targets), dtype="<f4").reshape(-1, *[1] * (targets.ndim - 1))
        return -(self.hard * targets + places / 1000).astype("<f4")

    def _forward_backward(self, op: Any) -> Any:
        stats, _ = super()._forward_backward(op)
        data = tensors.decode_request(op.body).data
        outputs = []
        for datum in data:
            logprobs = self.logprobs(datum.loss_fn_inputs["target_tokens"])
            outputs.append({"logprobs": logprobs, "elementwise_loss": -2 * logprobs})
        loss = {"loss:sum": stats["loss_sum"]}
        return stats, [tensors.encode_output(outputs, loss)]


def tensor(values: Any, dtype: str) -> pb.Tensor:
    array = np.asarray(values, dtype)
    code = pb.DTYPE_FLOAT32 if array.dtype.kind == "f" else pb.DTYPE_INT64
    return pb.Tensor(dtype=code, shape=array.shape, dense=array.tobytes())


def batch(
    *texts: list[int], loss: str = "cross_entropy", only: bool = False, **inputs: list[Any]
) -> Asked:
    """A batch of sequences, of which each token is to be predicted from those before; `inputs` are
    one list for each sequence."""

    def asked(run: str, seq_id: int) -> tuple[str, bytes, bool]:
        request = pb.ForwardBackwardRequest(
            model_id=run, seq_id=seq_id, loss_fn=loss, forward_only=only
        )
        for number, tokens in enumerate(texts):
            datum = request.data.add()
            packed = np.asarray(tokens[:-1], "<i4").tobytes()
            datum.model_input.add().encoded_text.tokens = packed
            datum.loss_fn_inputs["target_tokens"].CopyFrom(tensor(tokens[1:], "<i8"))
            for name, values in inputs.items():
                datum.loss_fn_inputs[name].CopyFrom(tensor(values[number], "<f4"))
        return "forward_backward", request.SerializeToString(), only

    return asked
