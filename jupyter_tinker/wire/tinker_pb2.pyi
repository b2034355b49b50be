from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import (
    ClassVar as _ClassVar,
    Iterable as _Iterable,
    Mapping as _Mapping,
    Optional as _Optional,
    Union as _Union,
)

DESCRIPTOR: _descriptor.FileDescriptor
DTYPE_BFLOAT16: DType
DTYPE_FLOAT32: DType
DTYPE_INT32: DType
DTYPE_INT64: DType
DTYPE_UNSPECIFIED: DType
STOP_REASON_LENGTH: StopReason
STOP_REASON_STOP: StopReason

class ArrayRecord(_message.Message):
    __slots__ = ["fields", "num_datums", "type_tag"]
    class FieldsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: BatchedTensor
        def __init__(
            self, key: _Optional[str] = ..., value: _Optional[_Union[BatchedTensor, _Mapping]] = ...
        ) -> None: ...

    FIELDS_FIELD_NUMBER: _ClassVar[int]
    NUM_DATUMS_FIELD_NUMBER: _ClassVar[int]
    TYPE_TAG_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.MessageMap[str, BatchedTensor]
    num_datums: int
    type_tag: str
    def __init__(
        self,
        type_tag: _Optional[str] = ...,
        fields: _Optional[_Mapping[str, BatchedTensor]] = ...,
        num_datums: _Optional[int] = ...,
    ) -> None: ...

class BatchedTensor(_message.Message):
    __slots__ = ["data", "dtype", "offsets", "trailing_shape"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    TRAILING_SHAPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dtype: DType
    offsets: bytes
    trailing_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(
        self,
        data: _Optional[bytes] = ...,
        offsets: _Optional[bytes] = ...,
        dtype: _Optional[_Union[DType, str]] = ...,
        trailing_shape: _Optional[_Iterable[int]] = ...,
    ) -> None: ...

class Chunk(_message.Message):
    __slots__ = ["dmel", "encoded_text", "image"]
    DMEL_FIELD_NUMBER: _ClassVar[int]
    ENCODED_TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    dmel: DmelChunk
    encoded_text: EncodedTextChunk
    image: ImageChunk
    def __init__(
        self,
        encoded_text: _Optional[_Union[EncodedTextChunk, _Mapping]] = ...,
        image: _Optional[_Union[ImageChunk, _Mapping]] = ...,
        dmel: _Optional[_Union[DmelChunk, _Mapping]] = ...,
    ) -> None: ...

class Datum(_message.Message):
    __slots__ = ["loss_fn_input_spans", "loss_fn_inputs", "model_input", "model_input_spans"]
    class LossFnInputsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(
            self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...
        ) -> None: ...

    LOSS_FN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_INPUT_SPANS_FIELD_NUMBER: _ClassVar[int]
    MODEL_INPUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_INPUT_SPANS_FIELD_NUMBER: _ClassVar[int]
    loss_fn_input_spans: _containers.RepeatedCompositeFieldContainer[ProvenanceSpan]
    loss_fn_inputs: _containers.MessageMap[str, Tensor]
    model_input: _containers.RepeatedCompositeFieldContainer[Chunk]
    model_input_spans: _containers.RepeatedCompositeFieldContainer[ProvenanceSpan]
    def __init__(
        self,
        model_input: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...,
        loss_fn_inputs: _Optional[_Mapping[str, Tensor]] = ...,
        model_input_spans: _Optional[_Iterable[_Union[ProvenanceSpan, _Mapping]]] = ...,
        loss_fn_input_spans: _Optional[_Iterable[_Union[ProvenanceSpan, _Mapping]]] = ...,
    ) -> None: ...

class DmelChunk(_message.Message):
    __slots__ = ["dmel"]
    DMEL_FIELD_NUMBER: _ClassVar[int]
    dmel: bytes
    def __init__(self, dmel: _Optional[bytes] = ...) -> None: ...

class EncodedTextChunk(_message.Message):
    __slots__ = ["tokens"]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: bytes
    def __init__(self, tokens: _Optional[bytes] = ...) -> None: ...

class ForwardBackwardEnvelope(_message.Message):
    __slots__ = ["forward_only", "loss_fn", "loss_fn_config_v2", "model_id", "seq_id"]
    class LossFnConfigV2Entry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LossConfigValue
        def __init__(
            self,
            key: _Optional[str] = ...,
            value: _Optional[_Union[LossConfigValue, _Mapping]] = ...,
        ) -> None: ...

    FORWARD_ONLY_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_V2_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    forward_only: bool
    loss_fn: str
    loss_fn_config_v2: _containers.MessageMap[str, LossConfigValue]
    model_id: str
    seq_id: int
    def __init__(
        self,
        model_id: _Optional[str] = ...,
        seq_id: _Optional[int] = ...,
        loss_fn: _Optional[str] = ...,
        forward_only: bool = ...,
        loss_fn_config_v2: _Optional[_Mapping[str, LossConfigValue]] = ...,
    ) -> None: ...

class ForwardBackwardOutput(_message.Message):
    __slots__ = ["loss_fn_output_type", "loss_fn_outputs", "metrics"]
    class MetricsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

    LOSS_FN_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_OUTPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    loss_fn_output_type: str
    loss_fn_outputs: _containers.RepeatedCompositeFieldContainer[ArrayRecord]
    metrics: _containers.ScalarMap[str, float]
    def __init__(
        self,
        loss_fn_output_type: _Optional[str] = ...,
        loss_fn_outputs: _Optional[_Iterable[_Union[ArrayRecord, _Mapping]]] = ...,
        metrics: _Optional[_Mapping[str, float]] = ...,
    ) -> None: ...

class ForwardBackwardRequest(_message.Message):
    __slots__ = [
        "data",
        "forward_only",
        "loss_fn",
        "loss_fn_config",
        "loss_fn_config_v2",
        "model_id",
        "seq_id",
    ]
    class LossFnConfigEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

    class LossFnConfigV2Entry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LossConfigValue
        def __init__(
            self,
            key: _Optional[str] = ...,
            value: _Optional[_Union[LossConfigValue, _Mapping]] = ...,
        ) -> None: ...

    DATA_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ONLY_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_V2_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedCompositeFieldContainer[Datum]
    forward_only: bool
    loss_fn: str
    loss_fn_config: _containers.ScalarMap[str, float]
    loss_fn_config_v2: _containers.MessageMap[str, LossConfigValue]
    model_id: str
    seq_id: int
    def __init__(
        self,
        model_id: _Optional[str] = ...,
        seq_id: _Optional[int] = ...,
        data: _Optional[_Iterable[_Union[Datum, _Mapping]]] = ...,
        loss_fn: _Optional[str] = ...,
        loss_fn_config: _Optional[_Mapping[str, float]] = ...,
        forward_only: bool = ...,
        loss_fn_config_v2: _Optional[_Mapping[str, LossConfigValue]] = ...,
    ) -> None: ...

class ImageChunk(_message.Message):
    __slots__ = ["data", "expected_tokens", "format", "override_dimensions"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    expected_tokens: int
    format: str
    override_dimensions: ImageDimensions
    def __init__(
        self,
        data: _Optional[bytes] = ...,
        format: _Optional[str] = ...,
        expected_tokens: _Optional[int] = ...,
        override_dimensions: _Optional[_Union[ImageDimensions, _Mapping]] = ...,
    ) -> None: ...

class ImageDimensions(_message.Message):
    __slots__ = ["height", "width"]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class LossConfigValue(_message.Message):
    __slots__ = ["number", "text"]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: float
    text: str
    def __init__(self, number: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class PromptAltTokens(_message.Message):
    __slots__ = ["logprobs", "tokens"]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    logprobs: Tensor
    tokens: Tensor
    def __init__(
        self,
        tokens: _Optional[_Union[Tensor, _Mapping]] = ...,
        logprobs: _Optional[_Union[Tensor, _Mapping]] = ...,
    ) -> None: ...

class PromptProvenanceSpan(_message.Message):
    __slots__ = ["length", "offset", "sequence_id"]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    length: int
    offset: int
    sequence_id: str
    def __init__(
        self,
        sequence_id: _Optional[str] = ...,
        offset: _Optional[int] = ...,
        length: _Optional[int] = ...,
    ) -> None: ...

class ProvenanceSpan(_message.Message):
    __slots__ = ["prompt_tokens", "sampled_tokens"]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: PromptProvenanceSpan
    sampled_tokens: SampledProvenanceSpan
    def __init__(
        self,
        prompt_tokens: _Optional[_Union[PromptProvenanceSpan, _Mapping]] = ...,
        sampled_tokens: _Optional[_Union[SampledProvenanceSpan, _Mapping]] = ...,
    ) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = [
        "prompt_alt_tokens",
        "prompt_cache_hit_tokens",
        "prompt_logprobs",
        "sequences",
        "target_prompt_logprobs",
        "topk_prompt_logprobs",
    ]
    PROMPT_ALT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CACHE_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TARGET_PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOPK_PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    prompt_alt_tokens: PromptAltTokens
    prompt_cache_hit_tokens: int
    prompt_logprobs: bytes
    sequences: _containers.RepeatedCompositeFieldContainer[SampledSequence]
    target_prompt_logprobs: Tensor
    topk_prompt_logprobs: TopkLogprobs
    def __init__(
        self,
        sequences: _Optional[_Iterable[_Union[SampledSequence, _Mapping]]] = ...,
        prompt_logprobs: _Optional[bytes] = ...,
        topk_prompt_logprobs: _Optional[_Union[TopkLogprobs, _Mapping]] = ...,
        prompt_cache_hit_tokens: _Optional[int] = ...,
        target_prompt_logprobs: _Optional[_Union[Tensor, _Mapping]] = ...,
        prompt_alt_tokens: _Optional[_Union[PromptAltTokens, _Mapping]] = ...,
    ) -> None: ...

class SampledProvenanceSpan(_message.Message):
    __slots__ = ["length", "offset", "sequence_id"]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    length: int
    offset: int
    sequence_id: str
    def __init__(
        self,
        sequence_id: _Optional[str] = ...,
        offset: _Optional[int] = ...,
        length: _Optional[int] = ...,
    ) -> None: ...

class SampledSequence(_message.Message):
    __slots__ = ["logprobs", "stop_reason", "tokens", "topk_sampled_logprobs"]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOPK_SAMPLED_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprobs: bytes
    stop_reason: StopReason
    tokens: bytes
    topk_sampled_logprobs: TopkLogprobs
    def __init__(
        self,
        stop_reason: _Optional[_Union[StopReason, str]] = ...,
        tokens: _Optional[bytes] = ...,
        logprobs: _Optional[bytes] = ...,
        topk_sampled_logprobs: _Optional[_Union[TopkLogprobs, _Mapping]] = ...,
    ) -> None: ...

class SparseCsr(_message.Message):
    __slots__ = ["col_indices", "crow_indices", "values"]
    COL_INDICES_FIELD_NUMBER: _ClassVar[int]
    CROW_INDICES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    col_indices: bytes
    crow_indices: bytes
    values: bytes
    def __init__(
        self,
        values: _Optional[bytes] = ...,
        crow_indices: _Optional[bytes] = ...,
        col_indices: _Optional[bytes] = ...,
    ) -> None: ...

class Tensor(_message.Message):
    __slots__ = ["dense", "dtype", "shape", "sparse_csr"]
    DENSE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_CSR_FIELD_NUMBER: _ClassVar[int]
    dense: bytes
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    sparse_csr: SparseCsr
    def __init__(
        self,
        dense: _Optional[bytes] = ...,
        sparse_csr: _Optional[_Union[SparseCsr, _Mapping]] = ...,
        dtype: _Optional[_Union[DType, str]] = ...,
        shape: _Optional[_Iterable[int]] = ...,
    ) -> None: ...

class TopkLogprobs(_message.Message):
    __slots__ = ["k", "length", "logprobs", "token_ids"]
    K_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    k: int
    length: int
    logprobs: bytes
    token_ids: bytes
    def __init__(
        self,
        token_ids: _Optional[bytes] = ...,
        logprobs: _Optional[bytes] = ...,
        k: _Optional[int] = ...,
        length: _Optional[int] = ...,
    ) -> None: ...

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
