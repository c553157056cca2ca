"""FOR THE CLOUD SIDE AND FOR TESTS: opening an envelope with whatever can unwrap its data key (docs/envelope.md, 11).

A device never opens anything: it holds no key that does. Nothing else in this package imports this module.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .. import names
from ..errors import EnvelopeRefused
from . import keys, reading
from .message import frame_aad
from .reading import Header

Unwrap = Callable[[str, bytes], bytes | None]
"""Gives the 80 bytes of a ciphertext under the key with that ARN, or nothing if it cannot."""


def choose(head: Header, allowed: Callable[[str], bool]) -> keys.Edk:
    """The first EDK whose key is allowed. There is no second try with another."""
    for edk in head.edks:
        arn = edk.provider_info.decode("utf-8", "replace")
        if edk.is_kms_rsa and names.is_key_arn(arn) and allowed(arn):
            return edk
    raise EnvelopeRefused("edk", "no encrypted data key names an allowed key")


def unwrap_data_key(head: Header, edk: keys.Edk, unwrap: Unwrap) -> bytes:
    """The data key, once it is known to belong to the context of this very message."""
    plain = unwrap(edk.provider_info.decode(), edk.ciphertext)
    if plain is None or len(plain) != 48 + keys.DATA_KEY_LEN:
        raise EnvelopeRefused("edk", "the data key cannot be unwrapped, or is no data key")
    if not hmac.compare_digest(plain[:48], keys.context_digest(head.context_bytes)):
        raise EnvelopeRefused("edk", "the data key is bound to another context")
    return plain[48:]


def open_envelope(envelope: bytes, allowed: Callable[[str], bool], unwrap: Unwrap) -> tuple[Header, bytes]:
    """Header and plaintext. Nothing of the plaintext is given before the final frame and the end of the input."""
    head = reading.header(envelope)
    data_key = unwrap_data_key(head, choose(head, allowed), unwrap)
    return head, b"".join(open_frames(envelope, head, data_key))


def open_frames(envelope: bytes, head: Header, data_key: bytes) -> Iterator[bytes]:
    """The content frame by frame. It is whole only when this has come to its end."""
    encryption_key, commitment = keys.derive(head.message_id, data_key)
    if not hmac.compare_digest(commitment, head.commitment):
        raise EnvelopeRefused("commitment", "the data key is not the one committed to")
    cipher = AESGCM(encryption_key)
    try:
        cipher.decrypt(bytes(12), head.tag, head.body)
    except InvalidTag as error:
        raise EnvelopeRefused("header-tag", "the header was changed") from error
    for frame in reading.frames(envelope, head):
        length = len(frame.sealed) - 16
        aad = frame_aad(head.message_id, frame.final, frame.number, length)
        try:
            yield cipher.decrypt(reading.frame_iv(frame.number), frame.sealed, aad)
        except InvalidTag as error:
            raise EnvelopeRefused("frame-tag", f"frame {frame.number} was changed") from error
