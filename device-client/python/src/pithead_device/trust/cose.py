"""COSE_Sign (RFC 9052, tag 98) in the one form that trust objects have: docs/trust.md, section 1.

The type in the signed body keeps a root from being taken for a statement; the external data keeps the signature from
being one over anything else that the same key may sign elsewhere.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from .. import cbor
from ..errors import TrustRefused

ROOT: Final = "application/vnd.pithead.root"
STATEMENT: Final = "application/vnd.pithead.statement"

MAX_OBJECT: Final = 16_384
MAX_PAYLOAD: Final = 3_072
MAX_SIGNATURES: Final = 8

_COSE_SIGN: Final = 98
_EXTERNAL: Final = b"pithead/v1"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature, not looked at yet."""

    header: bytes
    algorithm: int
    kid: bytes
    signature: bytes


@dataclasses.dataclass(frozen=True)
class Signed:
    """An object whose form is right. Nothing in it is believed."""

    body: bytes
    object_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def to_be_signed(self, signature: Signature) -> bytes:
        """The bytes that a signature has to be over: those that came, nothing is spelled anew."""
        parts = [self.body, signature.header, _EXTERNAL, self.payload]
        return cbor.array([cbor.text("Signature"), *map(cbor.byte_string, parts)])


def read(signed_object: bytes, expected: str) -> Signed:
    """Reads an object: SIZE if it is too long, PARSE if it is not strictly of the form, TYPE if it is another thing."""
    if len(signed_object) > MAX_OBJECT:
        raise TrustRefused("SIZE", f"an object of {len(signed_object)} bytes, above {MAX_OBJECT}")
    try:
        signed = _parse(signed_object)
    except cbor.CborError as error:
        raise TrustRefused("PARSE", f"not a strict COSE_Sign object: {error}") from error
    if signed.object_type != expected:
        raise TrustRefused("TYPE", f"an object of another type than {expected}")
    return signed


def _parse(signed_object: bytes) -> Signed:
    reader = cbor.Reader(signed_object)
    reader.tag(_COSE_SIGN)
    reader.array(4, 4)
    body = reader.bytes()
    reader.empty_map()
    payload = reader.bytes()
    if len(payload) > MAX_PAYLOAD:
        raise cbor.CborError(f"a payload above {MAX_PAYLOAD} bytes")
    signatures = reader.list_of(1, MAX_SIGNATURES, lambda: _signature(reader))
    reader.finish()
    return Signed(body, _object_type(body), payload, tuple(signatures))


def _signature(reader: cbor.Reader) -> Signature:
    reader.array(3, 3)
    header = reader.bytes()
    reader.empty_map()
    signature = reader.bytes()
    inner = cbor.Reader(header)
    fields = inner.map()
    algorithm = fields.required(1).int()
    kid = fields.required(4).bytes(16)
    fields.finish()
    inner.finish()
    return Signature(header, algorithm, kid, signature)


def _object_type(body: bytes) -> str:
    reader = cbor.Reader(body)
    fields = reader.map()
    object_type = fields.required(16).text()
    fields.finish()
    reader.finish()
    return object_type
