"""A batch that does not fit the device's memory is computed in smaller passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jupyter_tinker.engine import evaluation, memory
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import EngineOptions, OpError
from jupyter_tinker.wire.sampling import LoadSampler, SnapshotSampler

from .reference import Client, samples
from .scarce import failures

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
LENGTHS = (9, 17, 5, 12, 8, 30, 11, 10)


class SmallDevice:
    """Lets no pass of more than so many tokens, padding included where there is any, get through
    its backward half."""

    def __init__(self, patch: pytest.MonkeyPatch, tokens: int, error: BaseException) -> None:
        self.passes: list[tuple[int, int]] = []  # sequences and tokens
        real = evaluation.Evaluation.run

        def run(own: evaluation.Evaluation, *, backward: bool) -> object:
            padded = own.packed.tokens if own.decoder is None else own.packed.rows
            self.passes.append((len(own.examples), padded.numel()))
            result = real(own, backward=backward)  # its gradient is there before it fails
            if padded.numel() > tokens:
                raise error
            return result

        patch.setattr(evaluation.Evaluation, "run", run)


@pytest.mark.parametrize("error", [CUDA, CPU, CUBLAS, MemoryError()], ids=repr)
@pytest.mark.parametrize("accumulated", [False, True])
def test_the_gradient_is_that_of_smaller_passes(
    base: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, accumulated: bool
) -> None:
    expected = Client(Engine(EngineOptions(microbatch_tokens=64)), base)
    client = Client(Engine(), base)
    for one in (expected, client):
        one.create()
        if accumulated:
            one.engine.options = EngineOptions(microbatch_tokens=64)
            one.backward(samples(1))
    # Half of that, and half again, make no other passes: they are not tried.
    client.engine.options = EngineOptions(microbatch_tokens=512)
    wanted = expected.backward(samples(0, LENGTHS))
    with monkeypatch.context() as patch:
        device = SmallDevice(patch, 64, error)
        answer = client.backward(samples(0, LENGTHS))
    assert torch.equal(client.gradients, expected.gradients)
    assert client.gradients.any()
    assert answer.metrics == wanted.metrics
    for own, theirs in zip(answer.logprobs, wanted.logprobs, strict=True):
        assert own.tobytes() == theirs.tobytes()
    failed = [done for done in device.passes if done[1] > 64]
    assert failed
    assert len(failed) == len(set(failed))


def test_forward_alone_is_computed_in_smaller_passes_too(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    wanted = client.forward(samples(0, LENGTHS))
    SmallDevice(monkeypatch, 64, CUDA)
    answer = client.forward(samples(0, LENGTHS))
    assert answer.metrics["loss:sum"] == pytest.approx(wanted.metrics["loss:sum"], rel=1e-5)
    assert not client.gradients.any()


def test_one_sequence_that_does_not_fit_is_an_error(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    client.backward(samples(1))
    before = client.gradients.clone()
    device = SmallDevice(monkeypatch, 29, CUDA)
    with pytest.raises(OpError, match=r"ran out of memory in forward_backward \(CUDA") as caught:
        client.backward(samples(0, LENGTHS))
    assert caught.value.category == "server"
    assert device.passes[-1] == (1, 30)
    assert torch.equal(client.gradients, before)


def test_other_errors_are_not_tried_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.create()
    device = SmallDevice(monkeypatch, 64, RuntimeError("an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal"):
        client.backward(samples(0, LENGTHS))
    assert sum(rows for rows, _ in device.passes) <= len(LENGTHS)
    assert not client.gradients.any()


@pytest.mark.skipif(memory._malloc_trim() is None, reason="only glibc's allocator has to be told")
def test_what_is_free_is_given_back() -> None:
    """A block that is in use above those that are free has the allocator keep them."""
    blocks = [torch.ones(100_000 // 4) for _ in range(2_000)]  # of a size that gets no own mapping
    last = blocks.pop()
    del blocks
    before = memory.used(torch.device("cpu"))
    memory.give_back()
    assert before - memory.used(torch.device("cpu")) > 100 << 20
    assert last.all()


def test_runs_that_come_and_go_have_the_free_memory_given_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(list(client.engine.runs)))
    client.create()
    client.unload()
    assert given == [[], []]


def test_sampling_has_the_memory_that_training_leaves_free(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    client.create()
    monkeypatch.setattr(
        memory, "give_back", lambda: given.append(list(client.engine.sampling.lanes))
    )
    client.engine.handle(LoadSampler("base", "tiny", client.base, None))
    client.engine.handle(SnapshotSampler("copy", "run"))
    assert given == [[], ["base"]]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another run"])
def test_layers_for_which_memory_runs_out_are_made_with_the_next_pass(
    models: Callable[[str], Path], beside: bool
) -> None:
    base = models("gpt_neox")  # which transformers and PEFT compute
    undisturbed, client = Client(Engine(), base), Client(Engine(), base)
    if beside:
        other = Client(client.engine, base, "other")
        other.create()
        other.backward(samples(1))
    for one in (undisturbed, client):
        one.create()
    wanted = undisturbed.backward(samples(0))
    adapter = client.engine.runs["run"].adapter
    wrappers = client.engine.runs["run"].base.wrappers
    times = 0
    for _ in failures(lambda: wrappers.activate(adapter)):
        times += 1
        if beside:
            other.backward(samples(1))
    assert times > 4, "it never ran out amid the layers"
    assert client.backward(samples(0)).metrics == wanted.metrics
    assert torch.equal(client.gradients, undisturbed.gradients)
