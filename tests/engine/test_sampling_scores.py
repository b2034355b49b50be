"""What is scored of prompts and samples is what a plain model gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jupyter_tinker.engine.engine import Engine

from .reference import VOCAB
from .sampling import Asker, floats, plain, plain_logprobs, prompt, tokens


def test_prompt_scores(engine: Engine, base: Path) -> None:
    ids = prompt(6, 12)
    rows = plain_logprobs(plain(base), ids)
    asker = Asker(engine, base)
    answer = asker.ask(
        ids, max_tokens=1, prompt_logprobs=True, topk_prompt_logprobs=4, temperature=0.3
    )
    expected = rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    got = floats(answer.prompt_logprobs)
    assert np.isnan(got[0])
    np.testing.assert_allclose(got[1:], expected, atol=2e-5)
    best = answer.topk_prompt_logprobs
    assert (best.k, best.length) == (4, 12)
    values = floats(best.logprobs).reshape(12, 4)
    assert values[0].tolist() == [-99999.0] * 4
    np.testing.assert_allclose(values[1:], rows[:-1].topk(4).values, atol=2e-5)
    chosen = np.frombuffer(best.token_ids, "<i4").reshape(12, 4)[1:]
    assert chosen.tolist() == rows[:-1].topk(4).indices.tolist()

    last = asker.ask(ids, max_tokens=1, prompt_logprobs=True, prompt_logprobs_last_n=3)
    got = floats(last.prompt_logprobs)
    assert np.isnan(got[:-3]).all()
    np.testing.assert_allclose(got[-3:], expected[-3:], atol=2e-5)


def test_target_prompt_logprobs_dense_and_sparse(engine: Engine, base: Path) -> None:
    ids = prompt(7, 5)
    rows = plain_logprobs(plain(base), ids)
    asker = Asker(engine, base)
    dense = [[3, -1], [-1, 9], [200, 7], [0, 0]]
    target = {
        "data": [token for cells in dense for token in cells],
        "dtype": "int64",
        "shape": [4, 2],
    }
    answer = asker.ask(ids, max_tokens=1, target_prompt_logprobs=target)
    got = floats(answer.target_prompt_logprobs.dense).reshape(4, 2)
    assert list(answer.target_prompt_logprobs.shape) == [4, 2]
    for row, cells in enumerate(dense):
        for column, token in enumerate(cells):
            expected = 0.0 if token < 0 else rows[row, token].item()
            assert got[row, column] == pytest.approx(expected, abs=2e-5)
    sparse = {
        "data": [3, 200, 7],
        "dtype": "int64",
        "shape": [4, 2],
        "sparse_crow_indices": [0, 1, 1, 3, 3],
        "sparse_col_indices": [0, 0, 1],
    }
    csr = asker.ask(ids, max_tokens=1, target_prompt_logprobs=sparse).target_prompt_logprobs
    expected = [rows[0, 3].item(), rows[2, 200].item(), rows[2, 7].item()]
    np.testing.assert_allclose(floats(csr.sparse_csr.values), expected, atol=2e-5)
    assert np.frombuffer(csr.sparse_csr.crow_indices, "<i8").tolist() == [0, 1, 1, 3, 3]
    assert np.frombuffer(csr.sparse_csr.col_indices, "<i8").tolist() == [0, 0, 1]


def test_alternative_tokens_are_drawn_at_every_position(engine: Engine, base: Path) -> None:
    ids, k, temperature = prompt(8, 4), 3000, 1.5
    answer = Asker(engine, base).ask(
        ids, max_tokens=1, prompt_alt_tokens_k=k, temperature=temperature, seed=2
    )
    drawn = np.frombuffer(answer.prompt_alt_tokens.tokens.dense, "<i8").reshape(3, k).copy()
    scores = floats(answer.prompt_alt_tokens.logprobs.dense).reshape(3, k)
    rows = plain_logprobs(plain(base), ids, temperature)
    for position in range(3):
        np.testing.assert_allclose(scores[position], rows[position][drawn[position]], atol=2e-5)
        counts = np.bincount(drawn[position], minlength=VOCAB)
        expected = k * rows[position].exp().numpy()
        assert (np.abs(counts - expected) < 6 * np.sqrt(expected) + 6).all()


def test_top_k_of_sampled_tokens(engine: Engine, base: Path) -> None:
    ids = prompt(9)
    answer = Asker(engine, base).ask(ids, max_tokens=4, topk_sample_logprobs=5, seed=0, stop=[])
    (sequence,) = answer.sequences
    rows = plain_logprobs(plain(base), ids + tokens(sequence))[len(ids) - 1 : -1]
    best = sequence.topk_sampled_logprobs
    assert (best.k, best.length) == (5, 4)
    np.testing.assert_allclose(floats(best.logprobs).reshape(4, 5), rows.topk(5).values, atol=2e-5)
