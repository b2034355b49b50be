"""The parts of the benchmark that are about much: runs at once, long sequences, large bodies, and
servers that have many steps and runs behind them."""

from __future__ import annotations

import json
import shutil
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sqlalchemy.orm import Session
from tinker import types

from jupyter_tinker.server.database import Database, default_url
from tests.bench import ours
from tests.bench.data import batches, tokens
from tests.bench.loops import child, loop
from tests.bench.noise import Noise
from tests.bench.report import Report
from tests.bench.run_source import add_run, add_steps
from tests.raw import RawRun, datum
from tests.servers import Server

_MOST_RUNS = 16
_STEPS, _STORED_RUNS = 10_000, 10_000
_BODY = 64 * 2**20
_LONG, _PROMPT = 4096, 512


def together(model: Path, report: Report) -> None:
    """Runs that step at the same time, against one run that does all their work."""
    sequences = batches(model)["4x128"]
    data, count_of_tokens = ours.datums(sequences), sum(map(len, sequences))
    with ours.server(model) as server:
        clients = [ours.Client(server)]
        clients[0].steps(data, 2)
        memory = [ours.engine_mib(server)]
        for count in (4, _MOST_RUNS):
            while len(clients) < count:
                clients.append(ours.Client(server))
            _at_once(clients, data)
            report.patience.wait()
            ratios, rates = [], []
            with Noise() as noise:
                for _ in range(3 if count < _MOST_RUNS else 2):
                    alone = sum(clients[0].steps(data, count)[0])
                    many = _at_once(clients, data)
                    ratios.append(alone / many)
                    rates.append(count * count_of_tokens / many)
            memory.append(ours.engine_mib(server))
            what = f"{count} runs, each a step of 4x128"
            report.add("together", what, rates, "tok/s", others=noise.cores)
            report.add("together", "  of one run's throughput", ratios, "x", goal=">= 0.95")
        more = (memory[-1] - memory[0]) / (_MOST_RUNS - 1)
        report.add("together", "engine's memory for one more run", [more], "MiB")
        for client in clients:
            client.close()


def _at_once(clients: Sequence[ours.Client], data: list[types.Datum]) -> float:
    """Seconds until each of them has made a step."""
    threads = [threading.Thread(target=client.steps, args=(data, 1)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def long(model: Path, report: Report) -> None:
    """One sequence of many tokens, trained on."""
    ids = tokens(model)
    run = {"target_tokens": np.array(ids[1 : _LONG + 1], np.int64)}
    run["weights"] = np.ones(_LONG, np.float32)
    inputs = {name: types.TensorData.from_numpy(array) for name, array in run.items()}
    data = [types.Datum(model_input=types.ModelInput.from_ints(ids[:_LONG]), loss_fn_inputs=inputs)]
    with ours.server(model) as server:
        client = ours.Client(server)
        with Noise() as noise:
            seconds, _ = client.steps(data, 2)
        rate = [_LONG / each for each in seconds]
        report.add("long", f"1x{_LONG}", rate, "tok/s", others=noise.cores)
        peak = [ours.engine_peak_mib(server)]
        report.add("long", "  engine, peak", peak, "MiB", goal="< 4096")
        client.close()


def first_token(model: Path, report: Report) -> None:
    """A prompt's first sampled token, against the prompt's forward pass alone."""
    ids = tokens(model)
    prompts = [ids[n * _PROMPT : (n + 1) * _PROMPT] for n in range(8)]
    params = types.SamplingParams(max_tokens=1, stop=[], seed=0)
    seconds: dict[str, list[float]] = {"ours": [], "forward": []}
    with (
        ours.server(model) as server,
        loop("tests.bench.forward", model, 0, unembed=False) as plain,
    ):
        client = ours.Client(server)
        sampler = client.service.create_sampling_client(base_model=ours.MODEL).result()
        report.patience.wait()
        with Noise() as noise:
            for prompt in prompts:
                began = time.perf_counter()
                sampler.sample(types.ModelInput.from_ints(prompt), 1, params).result()
                seconds["ours"].append(time.perf_counter() - began)
                seconds["forward"] += plain.steps(str(_PROMPT), 1)
        client.close()
    pairs = list(zip(seconds["ours"], seconds["forward"], strict=True))[2:]
    what = f"a prompt of {_PROMPT} tokens: first token"
    report.add("first", what, [1e3 * a for a, _ in pairs], "ms", others=noise.cores)
    report.add("first", "  forward pass alone", [1e3 * b for _, b in pairs], "ms")
    report.add("first", "  ratio", [a / b for a, b in pairs], "x", goal="< 1.2")


def bodies(model: Path, report: Report) -> None:
    """How long the notebook server lets others wait while it takes in large bodies."""
    count = _BODY // 16  # 4 bytes of a token, 8 of its target, 4 of its weight
    body = datum([5] * count, [5] * count, [1.0] * count)
    with ours.server(model) as server:
        run = RawRun(server, model=ours.MODEL)
        with child("tests.bench.poller", str(server.port), server.token) as poller:
            time.sleep(0.5)
            with Noise() as noise:
                for seq_id in range(1, 4):
                    run.result(run.forward_backward(seq_id, [body]))
            output, _ = poller.communicate(timeout=60)
    times = sorted(1e3 * each for each in json.loads(output))
    what = f"/api/status while bodies of {_BODY >> 20} MB come in"
    report.add("bodies", f"{what}, p99", [times[int(0.99 * len(times))]], "ms", others=noise.cores)
    report.add("bodies", f"{what}, max", [times[-1]], "ms", goal="< 50")


def growth(model: Path, report: Report) -> None:
    """A step's seconds early and late in a long run, with few stored runs and with many."""
    with TemporaryDirectory() as folder:
        small = _small(model, Path(folder))
        report.patience.wait()
        with ours.server(small) as server, Noise() as noise:
            steps = _steps(server, _STEPS)
        early, late = steps[100:600], steps[-500:]
        with ours.server(small, prepare=_with_runs) as server:
            stored = _steps(server, 600)[100:]
    for what, seconds in (
        ("a step, 100 to 600 steps behind it", early),
        (f"a step, {_STEPS} behind it", late),
        (f"a step, {_STORED_RUNS} runs stored", stored),
    ):
        report.add("growth", what, [1e3 * each for each in seconds], "ms", others=noise.cores)
    for what, seconds in (("late / early", late), ("many runs / none", stored)):
        ratio = statistics.median(seconds) / statistics.median(early)
        report.add("growth", f"  {what}", [ratio], "x", goal="about 1")


def _steps(server: Server, count: int) -> list[float]:
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(list(range(5, 21))),
            loss_fn_inputs={"target_tokens": list(range(6, 22)), "weights": [1.0] * 16},
        )
    ]
    client = ours.Client(server)
    seconds, _ = client.steps(data, count)
    client.close()
    return seconds


def _small(model: Path, folder: Path) -> Path:
    """A model that takes next to no time, with the tokenizer of another."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=json.loads((model / "config.json").read_text())["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in model.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _with_runs(home: Path) -> None:
    state = home / "data" / "tinker"
    state.mkdir(parents=True)

    def fill(db: Session) -> None:
        for number in range(_STORED_RUNS):
            session = f"stored-{number}"
            add_run(db, session, f"{session}:train:0")
            add_steps(db, f"{session}:train:0", range(1, 11))

    Database(default_url(state)).run(fill)
