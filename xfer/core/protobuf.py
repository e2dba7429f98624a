"""The protobuf wire format, written: each function gives the bytes of one field.

The format is that of the encoding page of the Protocol Buffers documentation; its reader is
:mod:`xfer.protobuf`. A message is the fields behind each other.
"""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    """``value`` in seven bits a byte, the low ones first; a negative one as its
    complement of 64 bits."""
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def number(field: int, value: int) -> bytes:
    """An int64, an enum or a bool."""
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes) -> bytes:
    """Bytes, or a message inside a message."""
    return b"".join((varint(field << 3 | 2), varint(len(content)), content))


def text(field: int, value: str) -> bytes:
    """A string, as UTF-8."""
    return chunk(field, value.encode())


def real(field: int, value: float) -> bytes:
    """A float, in four bytes."""
    return varint(field << 3 | 5) + struct.pack("<f", value)
