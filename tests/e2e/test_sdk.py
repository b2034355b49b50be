"""The official SDK, unmodified, against a real server on the tiny model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tests.servers import Server

pytestmark = pytest.mark.e2e
ADAM = types.AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)


def make(service: tinker.ServiceClient, **options: object) -> tinker.TrainingClient:
    options = {"base_model": "tiny", "rank": 4, "seed": 1, **options}
    return service.create_lora_training_client(**options).result()


def batch(seed: int, count: int = 3) -> list[types.Datum]:
    draw = np.random.default_rng(seed)
    data = []
    for length in draw.integers(6, 30, count):
        ids = draw.integers(5, 384, length + 1)
        data.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(ids[:-1].tolist()),
                loss_fn_inputs={
                    "target_tokens": types.TensorData.from_numpy(ids[1:].astype(np.int64)),
                    "weights": types.TensorData.from_numpy(np.ones(length, np.float32)),
                },
            )
        )
    return data


def step(client: tinker.TrainingClient, data: list[types.Datum]) -> tuple[float, dict[str, float]]:
    forward = client.forward_backward(data, "cross_entropy")
    optim = client.optim_step(ADAM)
    return forward.result().metrics["loss:sum"], optim.result().metrics


def test_a_run_learns_and_reports_what_it_did(
    service: tinker.ServiceClient, a_server: Server
) -> None:
    client = make(service, user_metadata={"purpose": "tests"})
    data = batch(0)
    seen = [step(client, data) for _ in range(6)]
    losses = [loss for loss, _ in seen]
    assert losses[-1] < 0.9 * losses[0]
    for number, (_, metrics) in enumerate(seen, start=1):
        assert metrics["optimizer_step"] == number
        assert metrics["learning_rate"] == ADAM.learning_rate
        assert metrics["grad_norm"] > 0
        assert metrics["update_norm"] > 0
    run_id = client.get_info().model_id
    _, history = a_server.fetch(f"tinker/runs/{run_id}/steps")
    assert [row["loss_sum"] for row in history["steps"]] == losses
    tokens = sum(datum.model_input.length for datum in data)
    for row, (loss, metrics) in zip(history["steps"], seen, strict=True):
        assert row["loss_mean"] == pytest.approx(loss / tokens)
        assert (row["tokens"], row["datums"], row["weight_sum"]) == (tokens, 3, tokens)
        assert row["grad_norm"] == metrics["grad_norm"]
        assert row["learning_rate"] == ADAM.learning_rate
        assert row["compute_seconds"] > 0
        assert row["wait_seconds"] >= 0
        assert row["memory_bytes"] > 0
    after = history["steps"][3]["id"]
    _, rest = a_server.fetch(f"tinker/runs/{run_id}/steps?after={after}")
    assert rest["steps"] == history["steps"][4:]


def test_logprobs_come_for_every_target(service: tinker.ServiceClient) -> None:
    client = make(service)
    data = batch(1)
    result = client.forward(data, "cross_entropy").result()
    for datum, output in zip(data, result.loss_fn_outputs, strict=True):
        logprobs = output["logprobs"].to_numpy()
        assert logprobs.shape == (datum.model_input.length,)
        assert (logprobs < 0).all()
    total = -sum(float(o["logprobs"].to_numpy().sum()) for o in result.loss_fn_outputs)
    assert result.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)
    assert client.forward_backward(data, "cross_entropy").result().metrics == result.metrics


def test_top_k_targets_dense_and_sparse(service: tinker.ServiceClient) -> None:
    client = make(service)
    length, k = 40, 3
    draw = np.random.default_rng(0)
    tokens = types.ModelInput.from_ints(draw.integers(5, 384, length).tolist())
    weights = torch.zeros(length, k)
    weights[-2:] = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, -0.2]])
    targets = torch.zeros(length, k, dtype=torch.int64)
    targets[-2:] = torch.from_numpy(draw.integers(5, 384, (2, k)))
    losses, logprobs = [], []
    for tensor in (lambda t: t, lambda t: types.TensorData.from_numpy(t.numpy())):
        datum = types.Datum(
            model_input=tokens,
            loss_fn_inputs={"target_tokens": tensor(targets), "weights": tensor(weights)},
        )
        result = client.forward([datum], "cross_entropy").result()
        losses.append(result.metrics["loss:sum"])
        logprobs.append(result.loss_fn_outputs[0]["logprobs"].to_numpy())
    assert logprobs[0].shape == (length, k)
    assert (logprobs[0] == logprobs[1]).all()
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(-float((logprobs[0] * weights.numpy()).sum()), rel=1e-5)


def test_a_custom_loss_of_the_client(service: tinker.ServiceClient) -> None:
    """`forward_backward_custom` sends weights of either sign, and wants `loss:sum` back."""
    plain, custom = make(service), make(service)
    data = batch(2)

    def negative_log_likelihood(data, logprobs):
        loss = -sum(part.sum() for part in logprobs)
        return loss, {"twice": 2 * loss.item()}

    one = plain.forward_backward(data, "cross_entropy").result()
    two = custom.forward_backward_custom(data, negative_log_likelihood).result()
    assert two.metrics["loss:sum"] == pytest.approx(one.metrics["loss:sum"], rel=1e-6)
    norms = [c.optim_step(ADAM).result().metrics["grad_norm"] for c in (plain, custom)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_the_tokenizer_comes_from_the_server(service: tinker.ServiceClient) -> None:
    tokenizer = make(service).get_tokenizer()
    text = "Redistribution and use"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_seed_gives_the_same_numbers(service: tinker.ServiceClient) -> None:
    runs = [[step(make(service, seed=s), batch(0)) for _ in range(1)] for s in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0][0][1]["grad_norm"] != runs[2][0][1]["grad_norm"]


def test_a_new_run_equals_its_base(service: tinker.ServiceClient) -> None:
    losses = {
        make(service, seed=s, rank=r)
        .forward(batch(0), "cross_entropy")
        .result()
        .metrics["loss:sum"]
        for s, r in ((1, 4), (2, 8))
    }
    assert len(losses) == 1


@pytest.mark.parametrize("form", ["with optimizer", "without optimizer", "legacy"])
def test_a_checkpoint_goes_on_where_it_was_saved(service: tinker.ServiceClient, form: str) -> None:
    client = make(service)
    for seed in range(3):
        step(client, batch(seed))
    path = client.save_state("half").result().path
    expected = [step(client, batch(seed)) for seed in range(3, 6)]
    if form == "with optimizer":
        loaded = service.create_training_client_from_state_with_optimizer(path).result()
    elif form == "without optimizer":
        loaded = service.create_training_client_from_state(path).result()
    else:
        loaded = make(service, seed=99)
        with pytest.warns(FutureWarning, match="DEPRECATED"):
            loaded.load_state_with_optimizer(path).result()
    seen = [step(loaded, batch(seed)) for seed in range(3, 6)]
    if form == "without optimizer":
        assert seen[0][0] == expected[0][0]  # the same weights
        assert seen[0][1]["optimizer_step"] == 1
        assert seen[1][0] != expected[1][0]  # but moments of its own
    else:
        assert seen == expected
        assert loaded.get_info().model_data.model_name == "tiny"


def test_saving_twice_needs_overwrite(service: tinker.ServiceClient, a_server: Server) -> None:
    client = make(service)
    client.save_state("x").result()
    with pytest.raises(tinker.RequestFailedError, match="overwrite"):
        client.save_state("x").result()
    step(client, batch(0))
    path = client.save_state("x", overwrite=True, user_metadata={"step": "1"}).result().path
    expected = client.forward(batch(0), "cross_entropy").result().metrics
    loaded = service.create_training_client_from_state(path).result()
    assert loaded.forward(batch(0), "cross_entropy").result().metrics == expected
    run = client.get_info().model_id
    saved = (
        tinker.RestClient(base_url=a_server.url, api_key=a_server.key)
        .list_checkpoints(run)
        .result()
        .checkpoints
    )
    assert [(c.checkpoint_id, c.user_metadata) for c in saved] == [("weights/x", {"step": "1"})]


def test_checkpoints_are_listed_kept_for_a_while_and_deleted(
    service: tinker.ServiceClient, a_server: Server
) -> None:
    client = make(service)
    training = client.save_state("a", ttl_seconds=7200).result().path
    sampler = client.save_weights_for_sampler("a").result().path
    run = client.get_info().model_id
    rest = tinker.RestClient(base_url=a_server.url, api_key=a_server.key)
    listed = {c.tinker_path: c for c in rest.list_checkpoints(run).result().checkpoints}
    assert set(listed) == {training, sampler}
    assert listed[training].expires_at is not None
    assert listed[sampler].expires_at is None
    assert listed[sampler].size_bytes > 1000
    info = rest.get_training_run(run).result()
    assert info.last_checkpoint.tinker_path == training
    assert info.last_sampler_checkpoint.tinker_path == sampler
    assert (info.base_model, info.lora_rank) == ("tiny", 4)
    weights = rest.get_weights_info_by_tinker_path(training).result()
    assert (weights.base_model, weights.lora_rank, weights.train_mlp) == ("tiny", 4, True)
    folders = list((a_server.home / "data/tinker/checkpoints").glob("*/weights/a"))
    rest.delete_checkpoint_from_tinker_path(training).result()
    assert [c.tinker_path for c in rest.list_checkpoints(run).result().checkpoints] == [sampler]
    assert len(list((a_server.home / "data/tinker/checkpoints").glob("*/weights/a"))) == (
        len(folders) - 1
    )
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(training).result()


def test_finishing_a_session_frees_its_runs(a_server: Server) -> None:
    with tinker.ServiceClient(base_url=a_server.url, api_key=a_server.key) as service:
        client = make(service)
        step(client, batch(0))
        path = client.save_state("end").result().path
        run = client.get_info().model_id
    for _ in range(100):
        runs = a_server.fetch("tinker/status")[1]["status"]["runs"]
        if run not in runs:
            break
    assert run not in runs
    request = {"model_id": run, "seq_id": 9, "adam_params": {}}
    late = a_server.fetch("tinker/api/v1/optim_step", request)[1]["request_id"]
    answer = a_server.fetch("tinker/api/v1/retrieve_future", {"request_id": late})[1]
    assert "ended" in answer["error"]
    later = tinker.ServiceClient(base_url=a_server.url, api_key=a_server.key)
    assert later.create_training_client_from_state(path).result() is not None


def test_two_hundred_clients_poll_at_once(a_server: Server, service: tinker.ServiceClient) -> None:
    client = make(service)
    futures = [client.forward(batch(0), "cross_entropy") for _ in range(200)]
    with ThreadPoolExecutor(200) as pool:
        results = list(pool.map(lambda future: future.result().metrics["loss:sum"], futures))
    assert len(results) == 200
    assert len(set(results)) == 1
