"""The body of `asample`: what a client may ask of a sampler, read and checked as far as it can be
without a model. Protocol: the SDK's `SampleRequest` and `SamplingParams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .tinker import BadRequest, parse

MAX_SAMPLES = 4096  # of one request
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1000  # of one stop string
# Log-probabilities, or draws, beside the prompt's tokens that one request may ask for.
MAX_PROMPT_CELLS = 1 << 24

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
# A client that joined a sampling session counts from a billion times its own number.
SeqId = Annotated[int, Field(ge=0, le=2**63 - 1)]
Width = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)


class PromptChunk(_Part):
    type: str = "encoded_text"
    tokens: list[TokenId] | None = None


class Prompt(_Part):
    chunks: list[PromptChunk]


class SamplingParams(_Part):
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    # Text is not taken for numbers, nor numbers for text.
    stop: str | list[Annotated[str, Field(strict=True)]] | list[TokenId] | None = None
    temperature: float = Field(default=1.0, ge=0, le=1e6)
    top_k: int = Field(default=-1, ge=-1, le=2**31 - 1)
    top_p: float = Field(default=1.0, gt=0, le=1)


class TargetLogprobs(_Part):
    """Token ids to be scored, (prompt length - 1, K), dense or CSR."""

    data: list[int]
    dtype: str = "int64"
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class SampleRequest(_Part):
    """The JSON body of `asample`."""

    sampling_session_id: str
    seq_id: SeqId
    num_samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    prompt: Prompt
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool | None = None
    prompt_logprobs_last_n: int | None = Field(default=None, ge=1)
    topk_prompt_logprobs: Width = 0
    topk_sample_logprobs: Width = 0
    target_prompt_logprobs: TargetLogprobs | None = None
    prompt_alt_tokens_k: Width = 0
    record_stability_info: bool | None = None


@dataclass(frozen=True)
class Targets:
    """Cells of token ids to be scored, row by row; row i is about prompt position i + 1."""

    rows: np.ndarray  # (C,) int64
    ids: np.ndarray  # (C,) int64; -1 asks for nothing
    shape: tuple[int, int]
    crow_indices: np.ndarray | None = None  # of CSR, as they were sent
    col_indices: np.ndarray | None = None


@dataclass(frozen=True)
class SampleSpec:
    """What one request wants."""

    prompt: np.ndarray  # (N,) int64
    num_samples: int
    max_tokens: int | None  # None: up to the end of the context
    seed: int | None
    temperature: float  # 0: the likeliest token
    top_k: int | None
    top_p: float
    stop_strings: tuple[str, ...]
    stop_tokens: frozenset[int]
    stop_at_eos: bool
    prompt_logprobs: bool
    last_n: int  # of the prompt's tokens that are scored for prompt_logprobs and top-k
    topk_prompt: int
    topk_sample: int
    alt_tokens: int
    targets: Targets | None


def read(body: bytes | memoryview) -> SampleSpec:
    """The request in a body. Raises `BadRequest` with a sentence."""
    return spec(parse(SampleRequest, bytes(body)))


def spec(request: SampleRequest) -> SampleSpec:
    """What a parsed request wants. Raises `BadRequest` with a sentence."""
    if request.record_stability_info:
        raise BadRequest(
            "record_stability_info is not supported: it serves the loss stable_reinforce, which "
            "this server does not have."
        )
    prompt = _prompt(request.prompt)
    params = request.sampling_params
    strings, tokens, at_eos = _stops(params.stop)
    widest = max(request.topk_prompt_logprobs, request.prompt_alt_tokens_k)
    if len(prompt) * widest > MAX_PROMPT_CELLS:
        raise BadRequest(
            f"topk_prompt_logprobs and prompt_alt_tokens_k may ask for {MAX_PROMPT_CELLS} cells in "
            f"all, and {widest} for each of {len(prompt)} tokens are more; ask for fewer."
        )
    if params.top_k == 0:
        raise BadRequest("sampling_params.top_k must be at least 1, or -1 for no limit.")
    return SampleSpec(
        prompt=prompt,
        num_samples=request.num_samples,
        max_tokens=params.max_tokens,
        seed=params.seed,
        temperature=params.temperature,
        top_k=None if params.top_k < 0 else params.top_k,
        top_p=params.top_p,
        stop_strings=strings,
        stop_tokens=tokens,
        stop_at_eos=at_eos,
        prompt_logprobs=bool(request.prompt_logprobs),
        last_n=_last_n(request, len(prompt)),
        topk_prompt=request.topk_prompt_logprobs,
        topk_sample=request.topk_sample_logprobs,
        alt_tokens=request.prompt_alt_tokens_k,
        targets=_targets(request.target_prompt_logprobs, len(prompt) - 1),
    )


def _prompt(prompt: Prompt) -> np.ndarray:
    for number, chunk in enumerate(prompt.chunks):
        if chunk.type != "encoded_text" or chunk.tokens is None:
            raise BadRequest(
                f"prompt chunk {number} is of type {chunk.type[:60]!r}; this server samples from "
                "text: send encoded_text chunks with tokens."
            )
    tokens = [token for chunk in prompt.chunks for token in chunk.tokens or ()]
    if not tokens:
        raise BadRequest("The prompt is empty; send at least one token.")
    return np.asarray(tokens, np.int64)


def _stops(stop: Any) -> tuple[tuple[str, ...], frozenset[int], bool]:
    """Strings, tokens, and whether the model's own end of text stops, too.

    It does beside strings, whose callers take it for a clean end; a list of tokens names them all.
    """
    if stop is None:
        return (), frozenset(), True
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"sampling_params.stop may hold {MAX_STOPS} entries, not {len(stops)}.")
    if not all(isinstance(entry, str) for entry in stops):
        return (), frozenset(stops), False
    if any(not 1 <= len(entry) <= MAX_STOP_CHARACTERS for entry in stops):
        raise BadRequest(
            f"A stop string must have 1 to {MAX_STOP_CHARACTERS} characters; shorten it, or send "
            "the tokens to stop at."
        )
    return tuple(stops), frozenset(), bool(stops)


def _last_n(request: SampleRequest, length: int) -> int:
    last_n = request.prompt_logprobs_last_n
    if last_n is None:
        return length
    if not request.prompt_logprobs and not request.topk_prompt_logprobs:
        raise BadRequest("prompt_logprobs_last_n needs prompt_logprobs.")
    if last_n > length - 1:
        raise BadRequest(
            f"prompt_logprobs_last_n must lie between 1 and {length - 1}, one less than the "
            f"prompt's tokens, and is {last_n}."
        )
    return last_n


def _targets(targets: TargetLogprobs | None, rows: int) -> Targets | None:
    if targets is None:
        return None
    where = "target_prompt_logprobs"
    if targets.dtype != "int64":
        raise BadRequest(f"{where} has dtype {targets.dtype[:60]!r}; send int64.")
    shape = targets.shape
    if shape is None or len(shape) != 2 or shape[0] != rows or shape[1] < 1:
        raise BadRequest(
            f"{where} has shape {str(shape)[:60]}; it must be [{rows}, K], a row for every token "
            "of the prompt but the first, with K at least 1."
        )
    if len(targets.data) > MAX_PROMPT_CELLS or rows * shape[1] > MAX_PROMPT_CELLS:
        raise BadRequest(f"{where} may have {MAX_PROMPT_CELLS} cells; send fewer.")
    try:
        ids = np.asarray(targets.data, np.int64)
        if targets.sparse_crow_indices is None:
            return _dense(ids, (rows, shape[1]), where)
        return _sparse(targets, ids, (rows, shape[1]), where)
    except OverflowError:
        raise BadRequest(f"{where} holds numbers that are no 64-bit integers.") from None


def _dense(ids: np.ndarray, shape: tuple[int, int], where: str) -> Targets:
    if ids.size != shape[0] * shape[1]:
        raise BadRequest(
            f"{where} has {ids.size} values, and its shape {list(shape)} asks for "
            f"{shape[0] * shape[1]}; make them agree."
        )
    return Targets(np.repeat(np.arange(shape[0]), shape[1]), ids, shape)


def _sparse(
    targets: TargetLogprobs, ids: np.ndarray, shape: tuple[int, int], where: str
) -> Targets:
    starts = np.asarray(targets.sparse_crow_indices, np.int64)
    columns = np.asarray(targets.sparse_col_indices or [], np.int64)
    whole = starts.size == shape[0] + 1 and columns.size == ids.size
    whole = (
        whole and starts[0] == 0 and starts[-1] == ids.size and bool((np.diff(starts) >= 0).all())
    )
    if not whole or ((columns < 0) | (columns >= shape[1])).any():
        raise BadRequest(
            f"{where} is not a CSR tensor of shape {list(shape)}: its row pointers must rise from "
            "0 to the number of values, and its columns lie below K."
        )
    rows = np.repeat(np.arange(shape[0]), np.diff(starts))
    return Targets(rows, ids, shape, starts, columns)
