"""A client of the official SDK that goes through a schedule and writes down all that it is told.

It knows nothing of faults: it never catches an error and never tries anything twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import numpy as np
import tinker
import torch
from tinker import types

from tests.servers import Server

from .schedule import Turn

_POLICY_LOSSES = ("importance_sampling", "ppo", "cispo", "dro", "gspo")
Hook = Callable[[Turn], None]


@dataclass
class Recording:
    """All results in their order, as plain Python values that compare bit for bit."""

    results: list[tuple[int, str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # that each turn took
    runs: list[str] = field(default_factory=list)  # ids, in the order they were made
    last_checkpoint: str = ""

    def add(self, turn: Turn, what: str, value: Any) -> None:
        for number, run in enumerate(self.runs):  # ids differ from one recording to another
            if isinstance(value, str):
                value = value.replace(run, f"run-{number}")
        self.results.append((turn.number, f"{turn.kind}: {what}", value))


class Client:
    """Goes through turns; `before` and `after` are called around each of them."""

    def __init__(self, server: Server, *, before: Hook | None = None, after: Hook | None = None):
        self.recording = Recording()
        self.finished = False
        self._server = server
        self._before, self._after = before, after
        self._service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
        self.training: tinker.TrainingClient
        self._use(self._service.create_lora_training_client(base_model="tiny", rank=4, seed=1))
        self._checkpoint = self.training.save_state("start").result().path
        self._copy: tinker.SamplingClient | None = None  # of the last rollouts' weights
        self._turn = Turn(-1, "supervised")
        self._draw = np.random.default_rng(0)

    def go(self, turns: list[Turn]) -> Recording:
        """All turns, a checkpoint at the end, and the end of the session."""
        try:
            recording = self._go(turns)
            self._service.close("success").result()
            return recording
        finally:
            self.finished = True

    def _go(self, turns: list[Turn]) -> Recording:
        for turn in turns:
            if self._before is not None:
                self._before(turn)
            started = time.monotonic()
            self._turn, self._draw = turn, np.random.default_rng(turn.number)
            getattr(self, f"_{turn.kind}")()
            self.recording.seconds.append(time.monotonic() - started)
            if self._after is not None:
                self._after(turn)
        self.recording.last_checkpoint = self.training.save_state("end").result().path
        return self.recording

    # Turns

    def _supervised(self) -> None:
        forward = self.training.forward_backward(self._data(), "cross_entropy")
        step = self.training.optim_step(self._adam())
        self._trained(forward, step)

    def _accumulated(self) -> None:
        first = self.training.forward_backward(self._data(), "cross_entropy")
        loss = str(self._draw.choice(_POLICY_LOSSES))
        second = self.training.forward_backward(self._policy_data(), loss)
        step = self.training.optim_step(self._adam())
        self._looked(first)
        self._trained(second, step)

    def _looked_at(self) -> None:
        forward = self.training.forward_backward(self._data(), "cross_entropy")
        look = self.training.forward(self._policy_data(), "ppo")
        step = self.training.optim_step(self._adam())
        self._looked(look)
        self._trained(forward, step)

    def _custom(self) -> None:
        forward = self.training.forward_backward_custom(self._data(), _contrast)
        step = self.training.optim_step(self._adam())
        self._trained(forward, step)

    def _traced(self) -> None:
        inputs = {"logprobs": 1, "weights": 1}
        squares = _squares(1 + self._turn.number / 100)
        loss = self._service.create_custom_loss(squares, inputs).result()
        assert loss.loss_id is not None, "the client is to compute it, which tests nothing here"
        forward = self.training.forward_backward_custom(self._data(), loss)
        step = self.training.optim_step(self._adam())
        self._trained(forward, step)

    def _rollouts(self) -> None:
        self._copy = self.training.save_weights_and_get_sampling_client().result()
        prompts = [self._ids(6), self._ids(9)]
        samples = [self._sample(self._copy, prompt, seed) for seed, prompt in enumerate(prompts)]
        data = []
        for prompt, future in zip(prompts, samples, strict=True):
            data += [self._rollout(prompt, tokens, lp) for tokens, lp, _ in self._sampled(future)]
        loss = str(self._draw.choice(_POLICY_LOSSES))
        forward = self.training.forward_backward(data, loss)
        step = self.training.optim_step(self._adam())
        self._trained(forward, step)

    def _sampled_again(self) -> None:
        assert self._copy is not None, "the schedule samples before it has a copy"
        forward = self.training.forward_backward(self._data(), "cross_entropy")
        greedy = self._sample(self._copy, self._ids(8), seed=0, temperature=0.0)
        seeded = self._sample(self._copy, self._ids(5), seed=self._turn.number)
        self._sampled(greedy)
        self._sampled(seeded)
        self._trained(forward, self.training.optim_step(self._adam()))

    def _saved(self) -> None:
        forward = self.training.forward_backward(self._data(), "cross_entropy")
        step = self.training.optim_step(self._adam())
        saved = self.training.save_state(f"turn-{self._turn.number}")
        self._trained(forward, step)
        self._checkpoint = saved.result().path
        self._note("path", self._checkpoint)

    def _saved_for_sampling(self) -> None:
        path = self.training.save_weights_for_sampler(f"turn-{self._turn.number}").result().path
        self._note("path", path)
        sampler = self._service.create_sampling_client(model_path=path).result()
        self._sampled(self._sample(sampler, self._ids(7), seed=3))

    def _went_back(self) -> None:
        # Gradients that are pending then are dropped by it.
        dropped = self.training.forward_backward(self._data(), "cross_entropy")
        loaded = self.training.load_state_with_optimizer(self._checkpoint)
        look = self.training.forward(self._data(), "cross_entropy")
        self._looked(dropped)
        loaded.result()
        self._looked(look)

    def _moved(self) -> None:
        optimizer = bool(self._draw.integers(2))
        path = self.training.save_state(f"turn-{self._turn.number}").result().path
        if optimizer:
            future = self._service.create_training_client_from_state_with_optimizer(path)
        else:
            future = self._service.create_training_client_from_state(path)
        self._use(future)
        self._checkpoint = path
        self._supervised()

    def _forked(self) -> None:
        step = max(1, self._steps() - int(self._draw.integers(1, 4)))
        path = f"tinker://{self._run}/weights/step={step}"
        future = self._service.create_training_client_from_state_with_optimizer(path)
        fork = future.result()
        self.recording.runs.append(fork.get_info().model_id)
        self._looked(fork.forward(self._data(), "cross_entropy"))

    def _controlled(self) -> None:
        slower = {"learning_rate_scale": 0.25, "ramp_steps": 4, "grad_clip_norm": 0.3}
        change = slower if self._draw.integers(2) else {"reset": True}
        self._ask(f"tinker/runs/{self._run}/controls", change)
        self._supervised()

    def _rewound(self) -> None:
        """Whoever gets no answer looks whether it was done."""
        step = max(1, self._steps() - int(self._draw.integers(1, 4)))
        place = f"tinker/runs/{self._run}"
        branch = self._ask(place)["branch"]
        while self._ask(place)["branch"] == branch:
            with suppress(OSError, HTTPException):
                status, answer = self._server.fetch(f"{place}/rewind", {"step": step})
                assert status in (200, 503), answer
        self._supervised()

    # Parts of turns

    @property
    def _run(self) -> str:
        return str(self.training.get_info().model_id)

    def _steps(self) -> int:
        """The number of the optimizer's last step."""
        return int(self._ask(f"tinker/runs/{self._run}/steps")["steps"][-1]["step"])

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer of a route of ours, once the server is there to give it."""
        while True:
            with suppress(OSError, HTTPException):
                status, answer = self._server.fetch(path, body)
                if status != 503:
                    assert status == 200, answer
                    return answer
            time.sleep(0.2)

    def _use(self, future: Any) -> None:
        self.training = future.result()
        self.recording.runs.append(self.training.get_info().model_id)

    def _note(self, what: str, value: Any) -> None:
        self.recording.add(self._turn, what, value)

    def _looked(self, future: Any) -> None:
        result = future.result()
        outputs = [
            {name: tensor.to_numpy().tolist() for name, tensor in output.items()}
            for output in result.loss_fn_outputs
        ]
        self._note("metrics", dict(result.metrics))
        self._note("outputs", outputs)

    def _trained(self, forward: Any, step: Any) -> None:
        self._looked(forward)
        self._note("step", dict(step.result().metrics))

    def _sample(
        self, sampler: tinker.SamplingClient, prompt: list[int], seed: int, temperature: float = 0.9
    ) -> Any:
        params = types.SamplingParams(max_tokens=8, seed=seed, temperature=temperature)
        return sampler.sample(types.ModelInput.from_ints(prompt), 2, params)

    def _sampled(self, future: Any) -> list[tuple[list[int], list[float], str]]:
        sequences = [
            (list(one.tokens), list(one.logprobs), str(one.stop_reason))
            for one in future.result().sequences
        ]
        self._note("samples", sequences)
        return sequences

    # What is sent

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = self._draw.integers(5, 384, count).tolist()
        return ids

    def _adam(self) -> types.AdamParams:
        draw = self._draw
        return types.AdamParams(
            learning_rate=float(draw.choice([1e-3, 5e-3, 1e-2])),
            beta1=float(draw.choice([0.8, 0.9])),
            beta2=float(draw.choice([0.95, 0.99])),
            eps=1e-8,
            weight_decay=float(draw.choice([0.0, 0.01])),
            grad_clip_norm=float(draw.choice([0.0, 0.5, 2.0])),
        )

    def _data(self) -> list[types.Datum]:
        data = []
        for length in self._draw.integers(6, 30, 4):
            ids = self._ids(int(length) + 1)
            weights = self._draw.random(int(length)).astype(np.float32)
            inputs = {"target_tokens": ids[1:], "weights": weights.tolist()}
            data.append(_datum(ids[:-1], inputs))
        return data

    def _policy_data(self) -> list[types.Datum]:
        data = []
        for length in self._draw.integers(6, 30, 3):
            prompt, sampled = self._ids(4), self._ids(int(length))
            logprobs = -6 + 0.3 * self._draw.normal(size=len(sampled))
            data.append(self._rollout(prompt, sampled, logprobs.tolist()))
        return data

    def _rollout(self, prompt: list[int], sampled: list[int], logprobs: list[float]) -> types.Datum:
        """A prompt and what was sampled for it, with an advantage, for any of the policy losses."""
        ids, outside = prompt + sampled, [0.0] * (len(prompt) - 1)
        advantage = float(self._draw.normal())
        floats = {
            "logprobs": outside + logprobs,
            "advantages": outside + [advantage] * len(sampled),
            "sequence_ratio_mask": outside + [1.0] * len(sampled),
        }
        floats = {key: np.float32(values).tolist() for key, values in floats.items()}
        return _datum(ids[:-1], {"target_tokens": ids[1:], **floats})


def _datum(tokens: list[int], inputs: dict[str, Any]) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def _contrast(
    data: list[types.Datum], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Pairs of datums, of which the first is to become the likelier one."""
    margins = torch.stack(
        [logprobs[i].mean() - logprobs[i + 1].mean() for i in range(0, len(data), 2)]
    )
    return -torch.nn.functional.logsigmoid(margins).sum(), {"margin": margins.mean().item()}


def _squares(scale: float) -> Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """A loss that a session has not defined yet, which the SDK would refuse."""

    def squares(logprobs, weights):
        return scale * (weights * logprobs**2).sum(), {"custom/mean:mean": logprobs.mean()}

    return squares
