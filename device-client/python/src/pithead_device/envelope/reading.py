"""Reading without a key: grammar, order, truncation and trailing bytes, as a gateway sees them (docs/envelope.md, 10).

A fault is refused by the class of the first one in the order of the wire. Nothing here is authentic: whether anything was
changed only the cloud can see ([`pithead_device.envelope.opening`]).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from .. import names
from ..errors import EnvelopeRefused, NameRefused, ProfileRefused
from . import context as contexts, keys
from .keys import Edk
from .message import FINAL_MARK, TAG_LEN, frame_iv

EDKS_MAX: Final = 3
FRAME_LENGTHS: Final = range(128, 2**20 + 1)
_CIPHERTEXTS: Final = (256, 384, 512)


@dataclasses.dataclass(frozen=True)
class Header:
    """A header that follows the grammar. Its fields are claims until its tag has been seen to hold."""

    body: bytes
    tag: bytes
    message_id: bytes
    context_bytes: bytes
    context: dict[str, str]
    edks: tuple[Edk, ...]
    frame_length: int
    commitment: bytes

    @property
    def size(self) -> int:
        """Bytes of header body and tag: where the first frame begins."""
        return len(self.body) + len(self.tag)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame whose number, nonce and length are right."""

    number: int
    final: bool
    sealed: bytes
    """Ciphertext and tag."""


class _Bytes:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            raise EnvelopeRefused("truncated", "it ends before its final frame does")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def counted(self) -> bytes:
        return self.take(self.number(2))


def header(envelope: bytes) -> Header:
    """The header at the front of an envelope."""
    data = _Bytes(envelope)
    if (version := data.take(1)) != b"\x02":
        raise EnvelopeRefused("unsupported-version", f"version {version.hex()}")
    if (suite := data.take(2)) != keys.SUITE:
        raise EnvelopeRefused("unsupported-suite", f"suite {suite.hex()}")
    message_id, context_bytes = data.take(32), data.counted()
    context = contexts.parse(context_bytes)
    count = data.number(2)
    if not 1 <= count <= EDKS_MAX:
        raise EnvelopeRefused("malformed-header", f"{count} encrypted data keys")
    edks = tuple(Edk(data.counted(), data.counted(), data.counted()) for _ in range(count))
    if data.take(1) != b"\x02":
        raise EnvelopeRefused("malformed-header", "the content is not framed")
    if (frame_length := data.number(4)) not in FRAME_LENGTHS:
        raise EnvelopeRefused("malformed-header", f"a frame length of {frame_length}")
    commitment = data.take(32)
    body, tag = envelope[: data.at], data.take(TAG_LEN)
    ours = [edk for edk in edks if edk.is_kms_rsa]
    if not ours:
        raise EnvelopeRefused("edk", "no encrypted data key is of provider aws-kms-rsa")
    if any(len(edk.ciphertext) not in _CIPHERTEXTS for edk in ours):
        raise EnvelopeRefused("edk", "an encrypted data key has an impossible length")
    return Header(body, tag, message_id, context_bytes, context, edks, frame_length, commitment)


def frames(envelope: bytes, head: Header) -> Iterator[Frame]:
    """The frames behind the header, up to the end of the input."""
    data = _Bytes(envelope, head.size)
    due, final = 1, False
    while not final:
        number = data.take(4)
        final = number == FINAL_MARK
        found = data.number(4) if final else int.from_bytes(number, "big")
        if found != due:
            raise EnvelopeRefused("sequence", f"frame {found} where {due} is due")
        if data.take(12) != frame_iv(due):
            raise EnvelopeRefused("iv", f"frame {due} has an IV that is not its number")
        length = data.number(4) if final else head.frame_length
        if length > head.frame_length:
            raise EnvelopeRefused("final-too-long", f"a final frame of {length} bytes")
        yield Frame(due, final, data.take(length + TAG_LEN))
        due += 1
    if data.at != len(envelope):
        raise EnvelopeRefused("trailing", "there are bytes behind the final frame")


def check(envelope: bytes) -> Header:
    """Refuses what is no envelope by its structure; gives the header."""
    head = header(envelope)
    for _ in frames(envelope, head):
        pass
    return head


def identity(head: Header) -> names.Identity:
    """What an envelope is filed under, by the profile: docs/envelope.md, sections 5 and 6."""
    facts = contexts.check(head.context)
    for edk in head.edks:
        if not edk.is_kms_rsa:
            raise ProfileRefused("edk-provider", "an encrypted data key is of another provider")
        if not names.is_key_arn(edk.provider_info.decode("utf-8", "replace")):
            raise ProfileRefused("edk-key-arn", "an encrypted data key does not name its key by a full ARN")
    if "pithead:sig" in facts and len(head.edks) != 1:
        raise ProfileRefused("signature-edks", "a signed session has exactly one encrypted data key")
    in_id = int.from_bytes(head.message_id[16:24], "big"), int.from_bytes(head.message_id[24:], "big")
    run, seq = facts.get("pithead:seq", in_id)
    try:
        return names.Identity(facts["pithead:site"], facts["pithead:device"], facts["pithead:stream"], run, seq)
    except NameRefused as error:
        raise ProfileRefused("no-identity", "the message id carries no run or no number") from error
