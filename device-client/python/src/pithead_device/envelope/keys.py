"""The data key, what is derived of it for one message, and how it is wrapped: docs/envelope.md, sections 2, 3 and 8."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from typing import Final

from ..errors import SealingFailed
from ..trust.keys import RsaKey

SUITE: Final = b"\x04\x78"
DATA_KEY_LEN: Final = 32
SEED_LEN: Final = 32
PROVIDER: Final = "aws-kms-rsa"
_HASH_LEN: Final = 32


@dataclasses.dataclass(frozen=True)
class Edk:
    """An encrypted data key as the header carries it."""

    provider_id: bytes
    provider_info: bytes
    ciphertext: bytes

    @property
    def is_kms_rsa(self) -> bool:
        """Whether it is made in the way that this format fixes."""
        return self.provider_id == PROVIDER.encode()

    @property
    def hash(self) -> bytes:
        """What caches and budgets file it under."""
        return hashlib.sha256(self.provider_info + b"\0" + self.ciphertext).digest()


def _expand(prk: bytes, info: bytes) -> bytes:
    # HKDF-Expand (RFC 5869) of at most one block of SHA-512.
    return hmac.digest(prk, info + b"\x01", "sha512")[:32]


def derive(message_id: bytes, data_key: bytes | bytearray) -> tuple[bytes, bytes]:
    """The encryption key and the commitment of one message."""
    prk = hmac.digest(message_id, data_key, "sha512")
    return _expand(prk, SUITE + b"DERIVEKEY"), _expand(prk, b"COMMITKEY")


def session_id(data_key: bytes | bytearray) -> bytes:
    """A session's name, which only a holder of its data key can compute."""
    return _expand(hmac.digest(b"pithead-session-v1", data_key, "sha512"), b"sid")


def context_digest(context: bytes) -> bytes:
    """What an EDK binds: SHA-384 of the serialised context."""
    return hashlib.sha384(context).digest()


def _mgf1(seed: bytes, length: int) -> bytes:
    blocks = range(-(-length // _HASH_LEN))
    return b"".join(hashlib.sha256(seed + block.to_bytes(4, "big")).digest() for block in blocks)[:length]


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def wrap(arn: str, key: RsaKey, context: bytes, data_key: bytes | bytearray, seed: bytes) -> Edk:
    """Encrypts the data key: RSAES-OAEP (RFC 8017, 7.1.1), SHA-256, MGF1 with SHA-256, empty label.

    Written out because the seed has to come from the kernel and not from the user-space generator of a library, which a
    restored snapshot would rewind. `pow` does not take the same time for every message; it runs once for each session, on
    a random pad, and nobody but the caller sees it.
    """
    if len(seed) != SEED_LEN or len(data_key) != DATA_KEY_LEN:
        raise SealingFailed("a data key and a seed have 32 bytes each")
    size = (key.bits + 7) // 8
    message = context_digest(context) + data_key
    padding = size - len(message) - 2 * _HASH_LEN - 2
    if padding < 0:
        raise SealingFailed(f"a modulus of {key.bits} bits is too short")
    block = hashlib.sha256(b"").digest() + bytes(padding) + b"\x01" + message
    masked_block = _xor(block, _mgf1(seed, len(block)))
    masked_seed = _xor(seed, _mgf1(masked_block, _HASH_LEN))
    encoded = int.from_bytes(b"\0" + masked_seed + masked_block, "big")
    ciphertext = pow(encoded, 65_537, key.modulus).to_bytes(size, "big")
    return Edk(PROVIDER.encode(), arn.encode(), ciphertext)
