"""Public keys, each in the one encoding that names it: docs/trust.md, section 1 and the last rows of section 2.

A key's name is the hash of its SubjectPublicKeyInfo, so a second spelling would be a second name for it. Role keys, which
sign, are P-256 (uncompressed, 91 bytes) or Ed25519 (44 bytes). Data keys, which are sealed to, are RSA with exponent 65537.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

ESP256: Final = -9
ED25519: Final = -19
MAX_SPKI: Final = 1_024

# The y coordinates of the points of small order (RFC 7748's twist apart), and those of their spellings above the prime.
# Signatures under such a key, or with such an R, hold for more than the message that was signed.
_P = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = {0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8}


class NotAKey(ValueError):
    """Bytes that are not the one encoding of a key that is supported."""


def kid(spki: bytes) -> bytes:
    """A key's short name: the first 16 bytes of SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(spki).digest()[:16]


def _is_small_order(point: bytes) -> bool:
    return int.from_bytes(point, "little") & (2**255 - 1) in _SMALL_ORDER


def _load(spki: bytes) -> object:
    if len(spki) > MAX_SPKI:
        raise NotAKey(f"above {MAX_SPKI} bytes")
    try:
        key = load_der_public_key(spki)
        canonical = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotAKey("not a public key in DER") from error
    if canonical != spki:
        raise NotAKey("not in its one encoding")
    return key


@dataclasses.dataclass(frozen=True)
class RoleKey:
    """A key that signs roots or statements."""

    spki: bytes
    algorithm: int
    _key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey = dataclasses.field(repr=False, compare=False)

    @staticmethod
    def from_spki(spki: bytes) -> RoleKey:
        """Reads the one encoding of a P-256 or Ed25519 key."""
        key = _load(spki)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return RoleKey(spki, ESP256, key)
        if isinstance(key, ed25519.Ed25519PublicKey) and not _is_small_order(key.public_bytes_raw()):
            return RoleKey(spki, ED25519, key)
        raise NotAKey("neither a P-256 nor a sound Ed25519 key")

    @property
    def kid(self) -> bytes:
        """The key's short name."""
        return kid(self.spki)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over `message`."""
        if len(signature) != 64:
            return False
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                if _is_small_order(signature[:32]):
                    return False
                self._key.verify(signature, message)
            else:
                numbers = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
                self._key.verify(utils.encode_dss_signature(*numbers), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class RsaKey:
    """A key that envelopes are sealed to. The exponent is always 65537."""

    spki: bytes
    modulus: int

    @staticmethod
    def from_spki(spki: bytes) -> RsaKey:
        """Reads strict DER of an rsaEncryption key."""
        key = _load(spki)
        if not isinstance(key, rsa.RSAPublicKey):
            raise NotAKey("not an RSA key")
        numbers = key.public_numbers()
        if numbers.e != 65_537:
            raise NotAKey("an exponent other than 65537")
        if numbers.n % 2 == 0:
            raise NotAKey("an even modulus")
        return RsaKey(spki, numbers.n)

    @property
    def bits(self) -> int:
        """Length of the modulus."""
        return self.modulus.bit_length()

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the encoding."""
        return hashlib.sha256(self.spki).digest()
