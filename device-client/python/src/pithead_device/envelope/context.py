"""The encryption context: clear text that every part of an envelope authenticates (docs/envelope.md, 1 and 6).

[`serialise`] and [`parse`] know the grammar, [`check`] the profile: what a context of ours must say and may not.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from .. import names
from ..errors import EnvelopeRefused, NameRefused, ProfileRefused

PAIRS_MAX: Final = 16
BYTES_MAX: Final = 1_024
BATCH: Final = "application/vnd.pithead.batch+protobuf"

_OURS: Final = "pithead:"
_TOKEN = r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+"
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN} *(;[ -~]*)?", re.ASCII)
_ENCODED_NAME = re.compile(r"([A-Za-z0-9\-._~]|%[0-9A-Fa-f]{2})+", re.ASCII)
_TIME = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})T([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII,
)


def serialise(pairs: Mapping[str, str]) -> bytes:
    """The context as it stands in the header, without its length; no bytes at all if there is no pair."""
    if not pairs:
        return b""
    encoded = sorted((key.encode(), value.encode()) for key, value in pairs.items())
    parts = [struct.pack(">H", len(encoded))]
    for text in (text for pair in encoded for text in pair):
        if len(text) > 0xFFFF:
            raise ProfileRefused("context-too-large", "a key or value does not fit its 16-bit length")
        parts += [struct.pack(">H", len(text)), text]
    wire = b"".join(parts)
    if len(wire) > 0xFFFF:
        raise ProfileRefused("context-too-large", "the context does not fit its 16-bit length")
    return wire


def parse(wire: bytes) -> dict[str, str]:
    """The pairs of a serialised context, which must fill `wire` exactly."""
    if not wire:
        return {}
    at = 2
    if len(wire) < 2 or not (count := int.from_bytes(wire[:2], "big")):
        raise EnvelopeRefused("malformed-header", "a context without pairs that has bytes")

    def take() -> bytes:
        nonlocal at
        length = int.from_bytes(wire[at : at + 2], "big")
        if at + 2 + length > len(wire):
            raise EnvelopeRefused("malformed-header", "the context reaches beyond its length")
        at += 2 + length
        return wire[at - length : at]

    pairs: dict[str, str] = {}
    before: bytes | None = None
    for _ in range(count):
        key, value = take(), take()
        if before is not None and before >= key:
            raise EnvelopeRefused("malformed-header", "the context is unsorted, or holds a key twice")
        before = key
        try:
            pairs[key.decode()] = value.decode()
        except UnicodeDecodeError as error:
            raise EnvelopeRefused("malformed-header", "the context is not UTF-8") from error
    if at != len(wire):
        raise EnvelopeRefused("malformed-header", "the context does not fill its length")
    return pairs


def base64url(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def from_base64url(text: str, size: int) -> bytes:
    """Exactly `size` bytes from their one canonical spelling."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64url") from error
    if len(data) != size or base64url(data) != text:
        raise ValueError("not the one spelling of so many bytes")
    return data


def encode_file_name(name: str) -> str:
    """A file's name, percent-encoded as `pithead:name` has it."""
    if not _is_file_name(name):
        raise ProfileRefused(
            "context-bad-value",
            "a file name is 1 to 255 bytes, holds no '/', '\\' or control character, and is not '.' or '..'",
        )
    return quote(name, safe="-._~")


def _is_file_name(name: str) -> bool:
    # A name sealed by a stranger must not lead a sink out of its folder, on any system.
    control = any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in name)
    return 1 <= len(name.encode()) <= 255 and name not in (".", "..") and not set(name) & set("/\\") and not control


def _file_name(text: str) -> str:
    if not _ENCODED_NAME.fullmatch(text):
        raise ValueError("not percent-encoded")
    name = unquote_to_bytes(text).decode()
    if not _is_file_name(name):
        raise ValueError("not a file name")
    return name


def _content_type(text: str) -> str:
    if len(text) > 64 or not _MEDIA_TYPE.fullmatch(text):
        raise ValueError("not a media type")
    return text


def _created(text: str) -> str:
    found = _TIME.fullmatch(text)
    if len(text) > 35 or not found:
        raise ValueError("not RFC 3339")
    year, month, day = (int(part) for part in found.groups()[:3])
    # 0000 is a leap year that the library does not know.
    datetime.date(year or 4, month, day)
    return text


def _encoding(text: str) -> str:
    if text != "zstd":
        raise ValueError("not an encoding")
    return text


def _seq(text: str) -> tuple[int, int]:
    run, slash, seq = text.partition("/")
    if not slash:
        raise ValueError("not run/seq")
    return names.run_from_text(run), names.seq_from_text(seq)


_VALUES: Final[dict[str, Callable[[str], Any]]] = {
    "pithead:v": str,
    "pithead:site": names.site,
    "pithead:device": names.device,
    "pithead:stream": names.stream,
    "pithead:content-type": _content_type,
    "pithead:statement": lambda text: from_base64url(text, 16),
    "pithead:encoding": _encoding,
    "pithead:created": _created,
    "pithead:name": _file_name,
    "pithead:seq": _seq,
    "pithead:kid": lambda text: from_base64url(text, 16),
    "pithead:run": names.run_from_text,
    "pithead:sid": lambda text: from_base64url(text, 32),
    "pithead:sig": lambda text: from_base64url(text, 64),
}
_REQUIRED: Final = ("pithead:v", "pithead:site", "pithead:device", "pithead:stream", "pithead:content-type")
_SIGNATURE: Final = ("pithead:kid", "pithead:run", "pithead:sid", "pithead:sig")


def check(pairs: Mapping[str, str]) -> dict[str, Any]:
    """What a context says, each value read by its grammar; refuses what no hop would admit, by the rule's name.

    The other keys, which are carried and ignored, are left out.
    """
    wire = serialise(pairs)
    if len(pairs) > PAIRS_MAX or len(wire) > BYTES_MAX:
        raise ProfileRefused("context-too-large", f"{len(pairs)} pairs and {len(wire)} bytes")
    # In the order of the wire, so that every reader names the same fault.
    for key in sorted(pairs, key=str.encode):
        value = pairs[key]
        if not key or not value:
            raise ProfileRefused("context-empty-text", "an empty key or value")
        if not all(" " <= char <= "~" for char in key + value):
            raise ProfileRefused("context-not-printable", "a byte that is not printable ASCII")
        if key.startswith("aws-crypto-"):
            raise ProfileRefused("context-reserved-key", key)
        if key.startswith(_OURS) and key not in _VALUES:
            raise ProfileRefused("context-unknown-key", key)
    found: dict[str, Any] = {}
    for key in _REQUIRED:
        if key not in pairs:
            raise ProfileRefused("context-missing-key", f"{key} is missing")
        if key == "pithead:v" and pairs[key] != "1":
            raise ProfileRefused("context-version", "pithead:v is not 1")
        found[key] = _value(key, pairs[key])
    for key in _VALUES:
        if key in pairs and key not in found:
            found[key] = _value(key, pairs[key])
    signature = [key in pairs for key in _SIGNATURE]
    if any(signature) and not all(signature):
        raise ProfileRefused("signature-incomplete", "some of the session signature's four keys are missing")
    if all(signature) and "pithead:seq" in pairs:
        raise ProfileRefused("signature-seq", "pithead:seq does not go with a session signature")
    return found


def _value(key: str, text: str) -> Any:
    try:
        return _VALUES[key](text)
    except (ValueError, NameRefused) as error:
        raise ProfileRefused("context-bad-value", f"{key} has a value that it cannot have", key) from error
