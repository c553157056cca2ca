"""The session signature: who sealed, said once per session by a P-256 key of the device (docs/envelope.md, section 8)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ..errors import PitheadError
from ..trust.keys import kid
from . import context as contexts, keys


def signed_bytes(arn: str, pairs: Mapping[str, str]) -> bytes:
    """What a session's signature is over. `pithead:sig` is left out of the context, pair count included."""
    provider = keys.PROVIDER.encode()
    context = contexts.serialise({key: value for key, value in pairs.items() if key != "pithead:sig"})
    counted = b"".join(struct.pack(">H", len(part)) + part for part in (provider, arn.encode()))
    return b"pithead-session-v1\0" + counted + keys.context_digest(context)


class SigningKey:
    """The device's identity key; mostly the key of its certificate. Never shown, not even its representation."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise PitheadError("CONFIG_INVALID", "sessions are signed with a P-256 key, and this is none")
        self._key = key

    @staticmethod
    def from_pem(pem: bytes) -> SigningKey:
        """Reads an unencrypted private key in PEM."""
        try:
            return SigningKey(load_pem_private_key(pem, None))  # type: ignore[arg-type]
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise PitheadError("CONFIG_INVALID", "the signing key is not an unencrypted private key in PEM") from error

    @property
    def public_pem(self) -> bytes:
        """The public half, which the cloud registers: `pithead-decryptor device add`."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def kid(self) -> bytes:
        """The key's name: the first 16 bytes of SHA-256 of its SubjectPublicKeyInfo."""
        return kid(self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def sign(self, arn: str, pairs: Mapping[str, str]) -> bytes:
        """r || s, 64 bytes. The nonce is RFC 6979's: no generator that a snapshot could rewind has a hand in it."""
        der = self._key.sign(signed_bytes(arn, pairs), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        return b"".join(number.to_bytes(32, "big") for number in utils.decode_dss_signature(der))
