"""A message is read without its large parts, and what is no message is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_tinker.wire import protobuf
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.tinker import BadRequest, forward_backward_address

DATA = pb.ForwardBackwardRequest.DATA_FIELD_NUMBER
chunks = st.builds(
    lambda tokens: pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=tokens)),
    st.binary(max_size=300),
)
requests = st.builds(
    pb.ForwardBackwardRequest,
    model_id=st.text(max_size=300),
    seq_id=st.integers(-(2**31), 2**31 - 1),
    loss_fn=st.text(max_size=5),
    loss_fn_config=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
    forward_only=st.booleans(),
    data=st.lists(st.builds(pb.Datum, model_input=st.lists(chunks, max_size=2)), max_size=4),
)


@given(requests, requests)
def test_all_but_the_field_is_as_protobuf_reads_it(
    request: pb.ForwardBackwardRequest, more: pb.ForwardBackwardRequest
) -> None:
    both = request.SerializeToString() + more.SerializeToString()  # which is one message, too
    expected = pb.ForwardBackwardRequest.FromString(both)
    expected.ClearField("data")
    assert pb.ForwardBackwardRequest.FromString(protobuf.without(both, DATA)) == expected


@given(st.binary(max_size=60))
def test_it_takes_a_message_whole_or_refuses_it(body: bytes) -> None:
    try:
        rest = protobuf.without(body, 2**29)  # a number that no field can have
    except ValueError:
        with pytest.raises(BadRequest):
            forward_backward_address(body)
    else:
        assert rest == body


@pytest.mark.parametrize(
    "body",
    [
        b"\x1a\x05ab",  # shorter than it says
        b"\x1a",  # says nothing
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of more than 64 bits
        b"\x1b\x1c",  # a group
        b"\x19\x00",  # eight bytes, of which there is one
        b"\x1d\x00",  # four
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|64 bits|wire type"):
        protobuf.without(body, DATA)
    with pytest.raises(BadRequest, match="complete protobuf"):
        forward_backward_address(body)
