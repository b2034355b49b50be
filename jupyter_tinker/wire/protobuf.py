"""Protobuf's wire format, as far as parts of a large message are read without the rest.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


def without(message: bytes, number: int) -> bytes:
    """The message without its fields of a number, whose content is passed over and not copied.

    Raises `ValueError` where the message is malformed or cut short.
    """
    kept = []
    view, at, end = memoryview(message), 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(view, at)
        elif kind == _LEN:
            size, at = _varint(view, at)
            at += size
        elif kind in (_I64, _I32):
            at += 8 if kind == _I64 else 4
        else:
            raise ValueError(f"there is no field of wire type {kind}")
        if at > end:
            raise ValueError("the message is cut short")
        if tag >> 3 != number:
            kept.append(view[start:at])
    return b"".join(kept)


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number and the place behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if at == len(view):
            raise ValueError("the message is cut short")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number is longer than 64 bits")
