"""The protobuf wire format: fields written, and messages read within bounds.

The format is that of the encoding page of the Protocol Buffers documentation. A length is believed
only once its bytes are there. Messages lie inside each other, so no byte is read twice; nothing
here recurses, and a caller goes as deep as its own format and no deeper.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from mmap import mmap
from typing import NamedTuple


def varint(value: int) -> bytes:
    """``value``, seven bits a byte, the low ones first; a negative one as its 64-bit complement."""
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


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTH = {FIXED64: 8, FIXED32: 4}
_KINDS = {VARINT: "number", FIXED64: "8-byte value", BYTES: "bytes", FIXED32: "4-byte value"}

MOST_FIELDS = 100_000
"""Fields that are read from one file, some ten an entry. More are a bomb, not weights."""
LONGEST_TEXT = 4096
"""Bytes of a name."""


class Malformed(Exception):
    """Bytes that are not what they must be; says what is wrong, in one line."""


class Field(NamedTuple):
    """One field of a message. ``value`` is the number of a varint; bytes lie at ``start:stop``."""

    number: int
    wire: int
    value: int
    start: int
    stop: int

    def expect(self, wire: int) -> Field:
        """Itself; raises Malformed when it is written in another way than ``wire``."""
        if self.wire != wire:
            what = f"field {self.number} is a {_KINDS[self.wire]}, not a {_KINDS[wire]}"
            raise Malformed(f"{what} (at byte {self.start})")
        return self

    def signed(self) -> int:
        """The value of an int64."""
        value = self.expect(VARINT).value
        return value - (1 << 64) if value >> 63 else value


class Wire:
    """Messages in ``data``. All that is read from it together has at most MOST_FIELDS fields."""

    def __init__(self, data: bytes | mmap) -> None:
        self.data = data
        self.left = MOST_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message at ``start:stop``, in the order of the file.

        Raises Malformed at the first one that does not lie within the message.
        """
        if not 0 <= start <= stop <= len(self.data):
            raise Malformed(f"ends at byte {len(self.data)} instead of {stop}")
        at = start
        while at < stop:
            field = self._field(at, stop)
            self.left -= 1
            if self.left < 0:
                raise Malformed(f"has more than {MOST_FIELDS} fields")
            yield field
            at = field.stop

    def message(
        self, whole: Field, schema: Mapping[int, tuple[int, int]], strict: bool
    ) -> dict[int, list[Field]]:
        """The fields of the message in ``whole`` that ``schema`` knows, by number.

        ``schema`` gives, a number, the wire type and how often the field may come. Raises
        Malformed for what contradicts it and, when ``strict``, for unknown fields.
        """
        known: dict[int, list[Field]] = {}
        for field in self.fields(whole.expect(BYTES).start, whole.stop):
            if field.number in schema:
                wire, most = schema[field.number]
                known.setdefault(field.number, []).append(field.expect(wire))
                if len(known[field.number]) > most:
                    what = f"field {field.number} comes more than {most} times"
                    raise Malformed(f"{what} (at byte {whole.start})")
            elif strict:
                raise Malformed(f"unknown field {field.number} (at byte {field.start})")
        return known

    def text(self, field: Field) -> str:
        """A field's UTF-8 text."""
        field.expect(BYTES)
        if field.stop - field.start > LONGEST_TEXT:
            raise Malformed(f"a name of {field.stop - field.start} bytes (at byte {field.start})")
        try:
            return self.data[field.start : field.stop].decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"a name that is not text (at byte {field.start})") from error

    def _field(self, at: int, stop: int) -> Field:
        key, start = self.varint(at, stop)
        number, wire = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise Malformed(f"field number {number} (at byte {at})")
        if wire == VARINT:
            value, end = self.varint(start, stop)
            return Field(number, wire, value, start, end)
        if wire == BYTES:
            size, start = self.varint(start, stop)
        elif wire in _WIDTH:
            size = _WIDTH[wire]
        else:
            raise Malformed(f"wire type {wire} (at byte {at})")
        if size > stop - start:
            raise Malformed(f"a field of {size} bytes where {stop - start} are left (at byte {at})")
        return Field(number, wire, 0, start, start + size)

    def varint(self, at: int, stop: int) -> tuple[int, int]:
        """An unsigned number below 2**64 in at most ten bytes, and where it ends."""
        value = 0
        for place in range(10):
            if at + place >= stop:
                raise Malformed(f"ends within a number (at byte {at})")
            byte = self.data[at + place]
            value |= (byte & 127) << 7 * place
            if byte < 128:
                if value >> 64:
                    break
                return value, at + place + 1
        raise Malformed(f"a number of more than 64 bits (at byte {at})")
