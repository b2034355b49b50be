"""Bad input: a sentence, nothing lost, and a run that goes on as if nothing had been."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from jupyter_tinker.wire import tinker_pb2 as pb
from tests.raw import PROTOBUF, RawRun, datum, some_data
from tests.servers import Server

pytestmark = pytest.mark.e2e
ZSTD = {**PROTOBUF, "Content-Encoding": "zstd"}


@pytest.fixture(scope="module")
def small(start) -> Server:
    """A server that takes bodies of up to 1 MB."""
    return start(config={"TinkerExtension": {"max_body_bytes": 1_000_000}})


def _goes_on(run: RawRun, seq_id: int) -> None:
    """The run trains as a new one does."""
    fresh = RawRun(run.server)
    run.error(run.optim_step(seq_id))  # consumes the failed request's mark
    for step in range(2):
        number = seq_id + 1 + 2 * step
        mine = run.loss(run.forward_backward(number, some_data(step)))
        assert mine == fresh.loss(fresh.forward_backward(2 * step + 1, some_data(step)))
        run.optim_step(number + 1)
        fresh.optim_step(2 * step + 2)


def _tensor(dtype: int, shape: list[int], dense: bytes) -> pb.Tensor:
    return pb.Tensor(dtype=dtype, shape=shape, dense=dense)


def _with(name: str, tensor: pb.Tensor) -> pb.Datum:
    made = some_data(0, count=1)[0]
    made.loss_fn_inputs[name].CopyFrom(tensor)
    return made


def _image() -> pb.Datum:
    made = some_data(0, count=1)[0]
    made.model_input.add().image.data = b"png"
    return made


FLOATS, INTS = pb.DTYPE_FLOAT32, pb.DTYPE_INT64
NAN = np.full(12, np.nan, "<f4").tobytes()
BAD_DATA: dict[str, tuple[list[pb.Datum], str]] = {
    "no data": ([], "data"),
    "empty datum": ([datum([], [], [])], "datum 0"),
    "targets too short": ([datum([5, 6, 7], [6, 7], [1, 1, 1])], "target_tokens"),
    "weights too long": ([datum([5, 6], [6, 7], [1, 1, 1])], "weights"),
    "token not in the vocabulary": ([datum([5, 384], [6, 7], [1, 1])], "384"),
    "negative token": ([datum([5, -1], [6, 7], [1, 1])], "-1"),
    "target not in the vocabulary": ([datum([5, 6], [6, 9999], [1, 1])], "9999"),
    "weights not numbers": ([_with("weights", _tensor(FLOATS, [12], NAN))], "weights"),
    "longer than the context": ([datum([5] * 513, [5] * 513, [1] * 513)], "512"),
    "shape and bytes disagree": ([_with("weights", _tensor(FLOATS, [12], b"abc"))], "weights"),
    "a shape of terabytes": ([_with("weights", _tensor(FLOATS, [2**40, 4], b""))], "weights"),
    "no dtype": ([_with("weights", _tensor(0, [12], b"\0" * 48))], "weights"),
    "an image": ([_image()], "image"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_come_back_through_the_future(a_server: Server, case: str) -> None:
    data, hint = BAD_DATA[case]
    run = RawRun(a_server)
    failure = run.error(run.forward_backward(1, data))
    assert failure["category"] == "user"
    assert hint in failure["error"]
    _goes_on(run, 2)


def test_the_second_datum_is_named(a_server: Server) -> None:
    run = RawRun(a_server)
    data = [*some_data(0, count=1), datum([5, 384], [6, 7], [1, 1])]
    assert "datum 1" in run.error(run.forward_backward(1, data))["error"]


def test_a_loss_that_is_not_known_is_refused_by_name(a_server: Server) -> None:
    run = RawRun(a_server)
    failure = run.error(run.forward_backward(1, some_data(0), loss="stable_reinforce"))
    assert "stable_reinforce" in failure["error"]
    assert "cross_entropy" in failure["error"]
    unknown = run.forward_backward(2, some_data(0), loss_fn_config={"smoothing": 0.1})
    assert "smoothing" in run.error(unknown)["error"]
    _goes_on(run, 3)


BAD_ADAM: list[dict[str, Any]] = [
    {"learning_rate": -1.0},
    {"learning_rate": "fast"},
    {"beta1": 1.0},
    {"beta2": -0.1},
    {"eps": -1e-8},
    {"weight_decay": -1},
    {"grad_clip_norm": -2},
]


@pytest.mark.parametrize("field", BAD_ADAM, ids=json.dumps)
def test_bad_adam_fields_are_named_and_leave_the_gradients(
    a_server: Server, field: dict[str, Any]
) -> None:
    run, fresh = RawRun(a_server), RawRun(a_server)
    run.forward_backward(1, some_data(0))
    failure = run.error(run.optim_step(2, **field))
    assert failure["category"] == "user"
    assert next(iter(field)) in failure["error"]
    fresh.forward_backward(1, some_data(0))
    good, alone = run.result(run.optim_step(3)), fresh.result(fresh.optim_step(2))
    assert good == alone


def test_other_optimizers_are_refused_by_name(a_server: Server) -> None:
    run = RawRun(a_server)
    failure = run.error(run.submit("optim_step", 1, optimizer_params={"type": "dimuon"}))
    assert "dimuon" in failure["error"]
    assert "adam_params" in run.error(run.submit("optim_step", 2))["error"]
    body = {"session_id": run.session_id, "model_seq_id": 5, "base_model": "tiny"}
    answer = run.post("create_model", {**body, "optimizer_config": {"type": "dimuon"}})
    assert answer[0] == 400
    assert "dimuon" in answer[1]["detail"]


@pytest.mark.parametrize("rank", [0, -1, 100_000, "many", 2.5])
def test_a_rank_that_cannot_be_is_refused(a_server: Server, rank: Any) -> None:
    run = RawRun(a_server)
    body = {"session_id": run.session_id, "model_seq_id": 1, "base_model": "tiny"}
    status, answer = run.post("create_model", {**body, "lora_config": {"rank": rank}})
    assert status == 400
    assert "rank" in answer["detail"]


def test_a_rank_larger_than_the_layers_fails_the_future(a_server: Server) -> None:
    run = RawRun(a_server)
    body = {"session_id": run.session_id, "model_seq_id": 1, "base_model": "tiny"}
    _, answer = run.post("create_model", {**body, "lora_config": {"rank": 512}})
    failure = run.error(answer["request_id"])
    assert failure["category"] == "user"
    assert "512" in failure["error"]
    nothing = {"rank": 4, "train_attn": False, "train_mlp": False, "train_unembed": False}
    _, answer = run.post("create_model", {**body, "model_seq_id": 2, "lora_config": nothing})
    assert run.error(answer["request_id"])["category"] == "user"
    dead = f"{run.session_id}:train:1"
    request = {"model_id": dead, "seq_id": 1, "adam_params": {}}
    _, answer = run.post("optim_step", request)
    assert "could not be created" in run.error(answer["request_id"])["error"]


UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    ("create_model", {"session_id": "no", "model_seq_id": 0, "base_model": "tiny"}),
    ("session_heartbeat", {"session_id": "no"}),
    ("sessions/no/finish", {"reason": {"type": "success"}}),
    ("get_info", {"model_id": "no:train:0"}),
    ("optim_step", {"model_id": "no:train:0", "seq_id": 1, "adam_params": {}}),
    ("save_weights", {"model_id": "no:train:0", "seq_id": 1, "path": "x"}),
    ("retrieve_future", {"request_id": "no"}),
    ("weights_info", {"tinker_path": "tinker://no/weights/x"}),
]


@pytest.mark.parametrize(("route", "body"), UNKNOWN, ids=[route for route, _ in UNKNOWN])
def test_what_does_not_exist_is_404(a_server: Server, route: str, body: dict[str, Any]) -> None:
    status, answer = a_server.fetch(f"tinker/api/v1/{route}", body)
    assert status == 404
    assert "no" in answer["detail"]


def test_an_unknown_model_lists_what_there_is(a_server: Server) -> None:
    run = RawRun(a_server)
    for name in ("no/such-model", "../../etc", "/etc", "tiny\0", "x" * 5000):
        body = {"session_id": run.session_id, "model_seq_id": 1, "base_model": name}
        status, answer = run.post("create_model", body)
        assert status == 404
        assert "tiny" in answer["detail"]
        assert "jupyter tinker pull" in answer["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model_id": 5}'])
@pytest.mark.parametrize("route", ["optim_step", "create_model", "load_weights", "get_info"])
def test_unreadable_json_is_400_with_a_sentence(a_server: Server, route: str, body: bytes) -> None:
    status, answer = a_server.fetch(f"tinker/api/v1/{route}", body, method="POST")
    assert status == 400
    assert answer["detail"]


def test_unreadable_binary_bodies_are_400(a_server: Server) -> None:
    run = RawRun(a_server)
    whole = run.body(1, some_data(0))
    packed = zstandard.compress(whole)
    for body, headers in [
        (b"", PROTOBUF),
        (whole[:-3], PROTOBUF),
        (b"\xff" * 50, PROTOBUF),
        (packed[:-3], ZSTD),
        (packed[: len(packed) // 2], ZSTD),
        (b"", ZSTD),
        (whole, ZSTD),
    ]:
        status, answer = run.post("forward_backward", body, headers=headers)
        assert status == 400, (body[:20], answer)
        assert answer["detail"]
    status, _ = run.post("forward_backward", whole, headers={"Content-Encoding": "br"})
    assert status == 415
    assert run.loss(run.submit_body(whole)) > 0


def test_a_zstd_body_is_read_with_and_without_its_size(a_server: Server) -> None:
    plain, packed = RawRun(a_server), RawRun(a_server)
    expected = plain.loss(plain.forward_backward(1, some_data(0)))
    stream = zstandard.ZstdCompressor().compressobj()
    sizeless = stream.compress(packed.body(1, some_data(0))) + stream.flush()
    for number, body in [(1, sizeless), (2, zstandard.compress(packed.body(2, some_data(0))))]:
        status, answer = packed.post("forward_backward", body, headers=ZSTD)
        assert status == 200
        assert packed.loss(answer["request_id"]) == expected, number


def _peak_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmHWM")


def test_a_zstd_bomb_takes_no_memory(small: Server) -> None:
    run = RawRun(small)
    before = _peak_mib(small.process.pid)
    zeros = zstandard.ZstdCompressor(level=19).compressobj()
    bomb = b"".join(zeros.compress(b"\0" * 2**24) for _ in range(128)) + zeros.flush()  # 2 GiB
    assert len(bomb) < 1_000_000
    status, answer = run.post("forward_backward", bomb, headers=ZSTD)
    assert status == 413
    assert "max_body_bytes" in answer["detail"]
    assert _peak_mib(small.process.pid) - before < 100


def test_a_body_of_two_gigabytes_is_refused_before_it_is_read(small: Server) -> None:
    before = _peak_mib(small.process.pid)
    with socket.create_connection(("127.0.0.1", small.port)) as wire:
        head = (
            f"POST {small.base_url}tinker/api/v1/forward_backward HTTP/1.1\r\nHost: localhost\r\n"
            f"X-API-Key: {small.key}\r\nContent-Length: {2**31}\r\n\r\n"
        )
        wire.sendall(head.encode() + b"\0" * 65536)
        answer = wire.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "max_body_bytes" in answer
    assert _peak_mib(small.process.pid) - before < 50


def test_a_body_without_a_length_is_bounded_too(small: Server) -> None:
    with socket.create_connection(("127.0.0.1", small.port)) as wire:
        head = (
            f"POST {small.base_url}tinker/api/v1/forward_backward HTTP/1.1\r\nHost: localhost\r\n"
            f"X-API-Key: {small.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"\0" * 0x100000 + b"\r\n"
        wire.sendall(head.encode() + 3 * chunk + b"0\r\n\r\n")
        assert wire.recv(4096).decode().startswith("HTTP/1.1 413")


NAMES = ["a/b", "..", ".hidden", "x" * 300, "a b", "a\0b", "ü", "a\\b", "con:1", "-rf"]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_name_that_leaves_its_folder_is_refused(a_server: Server, name: str) -> None:
    run = RawRun(a_server)
    for number, route in enumerate(("save_weights", "save_weights_external"), start=1):
        failure = run.error(run.submit(route, number, path=name))
        assert failure["category"] == "user"
    saved = list((a_server.home / "data" / "tinker" / "checkpoints").glob(f"*{run.session_id}*"))
    assert saved == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process, as Linux can")
def test_a_full_disk_fails_the_save_and_nothing_else(a_server: Server) -> None:
    import resource

    run = RawRun(a_server)
    kept = run.result(run.submit("save_weights", 1, path="x"))["path"]
    engine = a_server.engine_pid()
    assert engine is not None
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(engine, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        failure = run.error(run.submit("save_weights", 2, path="x", overwrite=True))
    finally:
        resource.prlimit(engine, resource.RLIMIT_FSIZE, unlimited)
    assert failure["category"] == "server"
    assert "could not be written" in failure["error"]
    folder = next((a_server.home / "data/tinker/checkpoints").glob(f"{run.session_id}*/weights"))
    assert [entry.name for entry in folder.iterdir()] == ["x"]
    assert run.result(run.submit("load_weights", 3, path=kept, optimizer=True))["path"] == kept
    run.error(run.forward_backward(4, some_data(0), loss="none"))
    _goes_on(run, 5)


def test_loading_what_cannot_be_loaded(a_server: Server) -> None:
    run = RawRun(a_server)
    ours = run.result(run.submit("save_weights_for_sampler", 1, path="s"))["path"]
    stranger = RawRun(a_server, model="other")
    theirs = stranger.result(stranger.submit("save_weights", 1, path="w"))["path"]
    wider = RawRun(a_server, rank=8)
    wide = wider.result(wider.submit("save_weights", 1, path="w"))["path"]
    hints = {
        "tinker://x": "tinker://RUN",
        "nonsense": "tinker://RUN",
        f"{ours}/more": "tinker://RUN",
        f"tinker://{run.id}/weights/none": "none",
        ours: "optimizer",
        theirs: "other",
        wide: "rank",
    }
    for number, (path, hint) in enumerate(hints.items(), start=2):
        failure = run.error(run.submit("load_weights", number, path=path, optimizer=True))
        assert failure["category"] == "user", path
        assert hint in failure["error"], path
    run.error(run.forward_backward(9, some_data(0), loss="none"))
    _goes_on(run, 10)


def test_making_a_run_of_a_checkpoint_that_is_not_there(a_server: Server) -> None:
    run = RawRun(a_server)
    body = {"session_id": run.session_id, "model_seq_id": 3, "optimizer": False}
    path = f"tinker://{run.id}/weights/none"
    status, answer = run.post("load_weights", {**body, "path": path})
    assert status == 404
    assert "none" in answer["detail"]


def test_making_a_run_of_a_checkpoint_of_another_base(a_server: Server) -> None:
    run = RawRun(a_server)
    saved = run.result(run.submit("save_weights", 1, path="w"))["path"]
    body = {"session_id": run.session_id, "model_seq_id": 3, "optimizer": False, "path": saved}
    status, answer = run.post("load_weights", {**body, "base_model": "other"})
    assert status == 200
    failure = run.error(answer["request_id"])
    assert failure["category"] == "user"
    assert "other" in failure["error"]
