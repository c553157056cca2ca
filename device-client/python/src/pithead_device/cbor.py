"""The part of deterministic CBOR (RFC 8949, 4.2.1) that trust objects are made of, read strictly.

Unsigned and negative integers, byte and text strings, arrays, maps with unsigned labels, one tag. Definite lengths, every
integer and length in its shortest form, labels strictly ascending, nothing left over: each value has exactly one spelling,
so nobody who carries a signed object can respell it. General CBOR readers are laxer than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

_UINT: Final = 0
_NEGATIVE: Final = 1
_BYTES: Final = 2
_TEXT: Final = 3
_ARRAY: Final = 4
_MAP: Final = 5
_TAG: Final = 6

# Deepest nesting of a well-formed payload; ours reach 4. Bounds the recursion.
MAX_DEPTH: Final = 8

T = TypeVar("T")


class CborError(ValueError):
    """Bytes that are not what was expected, or not in their one form."""


class Reader:
    """Reads items one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise CborError("ends early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def _any_head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        major, info = first >> 5, first & 0x1F
        if info < 24:
            return major, info
        if info > 27:
            raise CborError("an indefinite or reserved length")
        width = 1 << (info - 24)
        argument = int.from_bytes(self._take(width), "big")
        if argument < (24 if width == 1 else 1 << (4 * width)):
            raise CborError("not in its shortest form")
        return major, argument

    def _head(self, expected: int) -> int:
        if self._at >= len(self._data):
            raise CborError("ends early")
        if self._data[self._at] >> 5 != expected:
            raise CborError("an item of another kind")
        return self._any_head()[1]

    def uint(self) -> int:
        """An unsigned integer of at most 64 bits."""
        return self._head(_UINT)

    def int(self) -> int:
        """An integer from -2^63 to 2^63 - 1."""
        major, argument = self._any_head()
        if major not in (_UINT, _NEGATIVE) or argument >= 2**63:
            raise CborError("not an integer of 64 bits")
        return argument if major == _UINT else -1 - argument

    def flag(self) -> bool:
        """0 or 1."""
        value = self.uint()
        if value > 1:
            raise CborError("neither 0 nor 1")
        return value == 1

    def bytes(self, size: int | None = None) -> bytes:
        """A byte string, of exactly `size` bytes if that is given."""
        value = self._take(self._head(_BYTES))
        if size is not None and len(value) != size:
            raise CborError(f"not {size} bytes")
        return value

    def text(self) -> str:
        """A text string."""
        try:
            return self._take(self._head(_TEXT)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CborError("not UTF-8") from error

    def array(self, least: int, most: int) -> int:
        """An array's head: the count of its items."""
        count = self._head(_ARRAY)
        if not least <= count <= most:
            raise CborError("a count out of its bounds")
        return count

    def list_of(self, least: int, most: int, item: Callable[[], T]) -> list[T]:
        """A whole array of one kind of item."""
        return [item() for _ in range(self.array(least, most))]

    def tag(self, expected: int) -> None:
        """A tag."""
        if self._head(_TAG) != expected:
            raise CborError("another tag")

    def map(self) -> Fields:
        """A map's head; its fields are then asked for in ascending order."""
        return Fields(self, self._head(_MAP))

    def empty_map(self) -> None:
        """A map without fields."""
        if self._head(_MAP) != 0:
            raise CborError("a map that is not empty")

    def finish(self) -> None:
        """The end; refuses what is left over."""
        if self._at != len(self._data):
            raise CborError("bytes behind the end")

    def skip(self, depth: int = MAX_DEPTH) -> None:
        """Passes over one item of any kind and checks its form."""
        if depth == 0:
            raise CborError("nested too deep")
        major, argument = self._any_head()
        if major in (_UINT, _NEGATIVE):
            return
        if major == _BYTES:
            self._take(argument)
        elif major == _TEXT:
            try:
                self._take(argument).decode("utf-8")
            except UnicodeDecodeError as error:
                raise CborError("not UTF-8") from error
        elif major == _ARRAY:
            for _ in range(argument):
                self.skip(depth - 1)
        elif major == _MAP:
            before: bytes | None = None
            for _ in range(argument):
                at = self._at
                self.skip(depth - 1)
                label = self._data[at : self._at]
                if before is not None and before >= label:
                    raise CborError("labels out of order")
                before = label
                self.skip(depth - 1)
        else:
            raise CborError("an item of another kind")


class Fields:
    """The fields of a map, asked for by ascending label. One that nobody asks for is an error at the next question."""

    def __init__(self, reader: Reader, left: int) -> None:
        self._reader, self._left = reader, left
        self._peeked: int | None = None

    def optional(self, label: int) -> Reader | None:
        """The reader at this field's value, or nothing if the map has no such field."""
        if self._peeked is None and self._left > 0:
            self._peeked = self._reader.uint()
            self._left -= 1
        if self._peeked != label:
            return None
        self._peeked = None
        return self._reader

    def required(self, label: int) -> Reader:
        """The reader at this field's value."""
        reader = self.optional(label)
        if reader is None:
            raise CborError(f"label {label} is missing, or stands out of order")
        return reader

    def finish(self) -> None:
        """The end of the map; refuses what nobody asked for."""
        if self._left or self._peeked is not None:
            raise CborError("an unknown label")


def well_formed(data: bytes) -> None:
    """Refuses what is not one item of deterministic CBOR, of whatever meaning."""
    reader = Reader(data)
    reader.skip()
    reader.finish()


def _lead(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * width):
            return bytes([major << 5 | info]) + argument.to_bytes(width, "big")
    raise CborError("more than 64 bits")


def uint(value: int) -> bytes:
    """An unsigned integer, in its one form."""
    return _lead(_UINT, value)


def byte_string(value: bytes) -> bytes:
    """A byte string, in its one form."""
    return _lead(_BYTES, len(value)) + value


def text(value: str) -> bytes:
    """A text string, in its one form."""
    encoded = value.encode("utf-8")
    return _lead(_TEXT, len(encoded)) + encoded


def array(items: list[bytes]) -> bytes:
    """An array of encoded items."""
    return _lead(_ARRAY, len(items)) + b"".join(items)


def mapping(fields: dict[int, bytes]) -> bytes:
    """A map of encoded values, labels ascending."""
    return _lead(_MAP, len(fields)) + b"".join(uint(label) + fields[label] for label in sorted(fields))
