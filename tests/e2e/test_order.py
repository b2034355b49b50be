"""Numbers out of order, numbers twice, numbers that never come; what fails, and what it leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.raw import PROTOBUF, RawRun, some_data
from tests.servers import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def impatient(start) -> Server:
    """A server that waits but a second for a missing number and polls briefly."""
    return start(config={"TinkerExtension": {"seq_gap_seconds": 1.0, "hold_seconds": 0.2}})


def _losses(run: RawRun, first: int = 1, steps: int = 3) -> list[float]:
    futures = []
    for step in range(steps):
        futures.append(run.forward_backward(first + 2 * step, some_data(step)))
        run.optim_step(first + 2 * step + 1)
    return [run.loss(future) for future in futures]


def test_requests_run_in_the_order_of_their_numbers(a_server: Server) -> None:
    in_order = _losses(RawRun(a_server))
    run = RawRun(a_server)
    futures = {}
    for number in (6, 4, 5, 2, 3, 1):
        step = (number - 1) // 2
        if number % 2:
            futures[step] = run.forward_backward(number, some_data(step))
        else:
            run.optim_step(number)
    assert [run.loss(futures[step]) for step in range(3)] == in_order


def test_chunks_that_arrive_first_to_last_add_up_to_the_batch(a_server: Server) -> None:
    whole, cut = RawRun(a_server), RawRun(a_server)
    data = some_data(7, count=6)
    whole.forward_backward(1, data)
    alone = whole.result(whole.optim_step(2))["metrics"]
    for number in (3, 2, 1):
        cut.forward_backward(number, data[2 * number - 2 : 2 * number])
    together = cut.result(cut.optim_step(4))["metrics"]
    assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)


def test_a_number_sent_twice_at_once_is_done_once(a_server: Server) -> None:
    run, alone = RawRun(a_server), RawRun(a_server)
    body = run.body(1, some_data(0))
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(run.post, "forward_backward", body, headers=PROTOBUF) for _ in range(8)]
    assert len({future.result()[1]["request_id"] for future in sent}) == 1
    alone.forward_backward(1, some_data(0))
    steps = [r.result(r.optim_step(2))["metrics"] for r in (run, alone)]
    assert steps[0] == steps[1]  # a second execution would have doubled the gradient
    assert run.submit("optim_step", 2) == run.submit("optim_step", 2)


def test_creating_a_run_twice_is_one_run(a_server: Server) -> None:
    run = RawRun(a_server)
    body = {"session_id": run.session_id, "model_seq_id": 1, "base_model": "tiny"}
    answers = [run.post("create_model", body)[1] for _ in range(2)]
    assert answers[0] == answers[1]


def test_a_number_that_never_comes_fails_what_waits_behind_it(impatient: Server) -> None:
    run = RawRun(impatient)
    waiting = [run.forward_backward(2, some_data(0)), run.optim_step(3)]
    for future in waiting:
        failure = run.error(future)
        assert failure["category"] == "user"
        assert "number 1" in failure["error"]
    assert "given up" in run.error(run.forward_backward(1, some_data(0)))["error"]
    run.error(run.optim_step(4))  # behind the failed forward_backward
    assert _losses(run, first=5) == _losses(RawRun(impatient))


def test_an_optim_step_behind_a_failed_forward_backward_touches_nothing(a_server: Server) -> None:
    run = RawRun(a_server)
    run.forward_backward(1, some_data(8))
    bad = run.forward_backward(2, some_data(0), loss="no_such_loss")
    assert "no_such_loss" in run.error(bad)["error"]
    refused = run.error(run.optim_step(3))
    assert refused["category"] == "user"
    assert "forward_backward number 2" in refused["error"]
    # Neither weights nor moments nor the good half's gradients are there.
    assert _losses(run, first=4) == _losses(RawRun(a_server))
    assert run.result(run.optim_step(10))["metrics"]["optimizer_step"] == 4


def test_a_failed_forward_only_spoils_no_gradients(a_server: Server) -> None:
    run, plain = RawRun(a_server), RawRun(a_server)
    run.forward_backward(1, some_data(0))
    run.error(run.forward_backward(2, some_data(1), loss="no_such_loss", forward_only=True))
    run.forward_backward(3, some_data(1), forward_only=True)
    plain.forward_backward(1, some_data(0))
    assert run.result(run.optim_step(4)) == plain.result(plain.optim_step(2))


def test_results_can_be_fetched_again(a_server: Server) -> None:
    run = RawRun(a_server)
    future = run.forward_backward(1, some_data(0))
    assert run.loss(future) == run.loss(future)


def test_two_runs_do_not_feel_one_another(a_server: Server) -> None:
    shapes = [{"rank": 4, "seed": 1}, {"rank": 8, "seed": 2, "train_mlp": False}]
    alone = [_losses(RawRun(a_server, **shape)) for shape in shapes]
    pair = [RawRun(a_server, **shape) for shape in shapes]
    futures: list[list[str]] = [[], []]
    for step in range(3):
        for run, mine in zip(pair, futures, strict=True):
            mine.append(run.forward_backward(2 * step + 1, some_data(step)))
        for run in pair:
            run.optim_step(2 * step + 2)
    mixed = [[r.loss(f) for f in mine] for r, mine in zip(pair, futures, strict=True)]
    assert mixed == alone


def test_many_runs_at_once_lose_no_answer(a_server: Server) -> None:
    """Replies that arrive while the next operation is being sent are seen too."""
    runs = [RawRun(a_server) for _ in range(8)]

    def steps(run: RawRun) -> list[float]:
        futures = [run.optim_step(number) for number in range(1, 41)]
        return [run.result(future)["metrics"]["optimizer_step"] for future in futures]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(steps, runs)) == [list(range(1, 41))] * 8
