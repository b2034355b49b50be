"""The core story of a Tinker client, for any release of the SDK; prints what it saw as JSON.

python story.py    # with TINKER_BASE_URL and TINKER_API_KEY, in the release's environment
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import tinker
from tinker import types

warnings.simplefilter("ignore")  # old names, which releases deprecate one after another
TOKENS = [17, 230, 5, 99, 310, 42, 42, 7, 128, 64, 201, 377]
LEARNING_RATE = 1e-2


def now(value: Any) -> Any:
    """What a call gives: a future of it in new releases, the thing itself in old ones."""
    return value.result() if hasattr(value, "result") else value


def datum() -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(
                data=TOKENS[1:], dtype="int64", shape=[len(TOKENS) - 1]
            ),
            "weights": types.TensorData(
                data=[1.0] * (len(TOKENS) - 1), dtype="float32", shape=[len(TOKENS) - 1]
            ),
        },
    )


def step(client: Any) -> float:
    loss = now(client.forward_backward([datum()], "cross_entropy"))
    adam = types.AdamParams(learning_rate=LEARNING_RATE, beta1=0.9, beta2=0.95, eps=1e-8)
    now(client.optim_step(adam))
    return float(loss.metrics["loss:sum"])


def logprobs(client: Any) -> list[float]:
    output = now(client.forward([datum()], "cross_entropy")).loss_fn_outputs[0]
    return [float(value) for value in output["logprobs"].data]


def sample(client: Any) -> list[Any]:
    """Tokens and log-probabilities of three samples, and those of their prompt."""
    params = types.SamplingParams(max_tokens=6, seed=3, temperature=0.7)
    response = now(
        client.sample(
            prompt=types.ModelInput.from_ints(TOKENS),
            num_samples=3,
            sampling_params=params,
            include_prompt_logprobs=True,
        )
    )
    scores = now(client.compute_logprobs(types.ModelInput.from_ints(TOKENS)))
    assert scores == response.prompt_logprobs
    made = [[list(one.tokens), list(one.logprobs), one.stop_reason] for one in response.sequences]
    return [made, scores]


def refusal(client: Any) -> str:
    try:
        now(client.forward_backward([datum()], "no_such_loss"))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main() -> None:
    service = tinker.ServiceClient()
    models = [m.model_name for m in now(service.get_server_capabilities()).supported_models]
    client = now(service.create_lora_training_client(base_model="tiny", rank=4, seed=1))
    info = now(client.get_info())
    seen: dict[str, Any] = {
        "version": tinker.__version__,
        "models": models,
        "rank": info.lora_rank,
        "losses": [step(client) for _ in range(3)],
        "logprobs": logprobs(client),
    }
    path = now(client.save_state("half")).path
    seen["path"] = path
    loaded = now(service.create_training_client_from_state(path))
    seen["loaded"] = logprobs(loaded)
    resumed = now(service.create_training_client_from_state_with_optimizer(path))
    seen["resumed"] = [step(resumed), *logprobs(resumed)]
    seen["went on"] = [step(client), *logprobs(client)]
    now(client.load_state(path))
    seen["back"] = logprobs(client)
    seen["sampler"] = now(client.save_weights_for_sampler("half")).path
    seen["sampled"] = sample(now(service.create_sampling_client(model_path=seen["sampler"])))
    seen["sampled now"] = sample(now(client.save_weights_and_get_sampling_client()))
    seen["refusal"] = refusal(client)
    rest = service.create_rest_client()
    listed = now(rest.list_checkpoints(info.model_id)).checkpoints
    seen["listed"] = [item.tinker_path for item in listed]
    seen["run"] = now(rest.get_training_run(info.model_id)).base_model
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
