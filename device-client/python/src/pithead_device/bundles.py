"""Key bundles as they travel: an answer, a file, a line of text (docs/trust.md, section 1). Nothing in them is believed."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from google.protobuf.message import DecodeError
from pithead.keys.v1 import keys_pb2

from .errors import TrustRefused
from .trust import Bundle
from .trust.cose import MAX_OBJECT
from .trust.device import MAX_ROOTS
from .trust.keys import MAX_SPKI

BYTES_MAX: Final = 2**20
SPKIS_MAX: Final = 8
TEXT_PREFIX: Final = b"pithead-keys-1:"


def from_message(message: keys_pb2.KeyBundle) -> Bundle:
    """The bundle of an answer."""
    objects = [*message.roots, message.statement]
    if len(message.roots) > MAX_ROOTS or len(message.spkis) > SPKIS_MAX:
        raise TrustRefused("PARSE", "more roots or public keys than a bundle may have")
    if any(len(item) > MAX_OBJECT for item in objects) or any(len(spki) > MAX_SPKI for spki in message.spkis):
        raise TrustRefused("SIZE", "a root, a statement or a public key that is too long")
    return Bundle(list(message.roots), message.statement or None, list(message.spkis))


def from_bytes(data: bytes) -> Bundle:
    """The bundle of a file: the message, or its text."""
    if data.lstrip()[: len(TEXT_PREFIX)] == TEXT_PREFIX:
        try:
            spelled = b"".join(data.split())[len(TEXT_PREFIX) :]
            data = base64.b64decode(spelled + b"=" * (-len(spelled) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise TrustRefused("PARSE", "the text of the bundle was not copied whole") from error
    if len(data) > BYTES_MAX:
        raise TrustRefused("SIZE", f"a bundle of {len(data)} bytes, above {BYTES_MAX}")
    try:
        message = keys_pb2.KeyBundle.FromString(data)
    except DecodeError as error:
        raise TrustRefused("PARSE", "not a key bundle") from error
    return from_message(message)
