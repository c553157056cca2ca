"""The key statement: all keys of a site in one signed object, so that nobody can mix and match (docs/trust.md, 1)."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import Final

from .. import cbor, names
from ..errors import NameRefused, TrustRefused
from . import cose

MAX_SITES: Final = 16
MAX_KEYS: Final = 8


class KeyStatus(enum.IntEnum):
    """Where a key stands in its life. It never goes back."""

    NEXT = 0
    ACTIVE = 1
    RETIRED = 2
    REVOKED = 3

    @property
    def is_listed(self) -> bool:
        """Next or active: the time in this state counts as announcement."""
        return self in (KeyStatus.NEXT, KeyStatus.ACTIVE)


@dataclasses.dataclass(frozen=True)
class StatementKey:
    """One key of a statement."""

    arn: str
    suite: int
    fingerprint: bytes
    bits: int
    status: KeyStatus
    not_before: int
    seal_until: int


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement whose signatures were verified. It says what the authority stated, not that a device may act on it."""

    authority: str
    sites: tuple[str, ...]
    root_version: int
    epoch: int
    sequence: int
    issued_at: int
    refresh_by: int
    expires_at: int
    previous: bytes
    keys: tuple[StatementKey, ...]
    digest: bytes
    object: bytes = dataclasses.field(repr=False)

    def key(self, fingerprint: bytes) -> StatementKey | None:
        """The key with this fingerprint."""
        return next((key for key in self.keys if key.fingerprint == fingerprint), None)

    def key_by_arn(self, arn: str) -> StatementKey | None:
        """The key with this ARN."""
        return next((key for key in self.keys if key.arn == arn), None)


def read(signed: cose.Signed, signed_object: bytes) -> Statement:
    """Reads a payload; PARSE unless it is strictly a statement."""
    try:
        return _parse(signed.payload, signed_object)
    except (cbor.CborError, NameRefused) as error:
        raise TrustRefused("PARSE", f"not a statement: {error}") from error


def _parse(payload: bytes, signed_object: bytes) -> Statement:
    reader = cbor.Reader(payload)
    fields = reader.map()
    if fields.required(1).uint() != 1:
        raise cbor.CborError("another format")
    authority = fields.required(2).text()
    sites_at = fields.required(3)
    sites = sites_at.list_of(1, MAX_SITES, lambda: names.site(sites_at.text()))
    root_version, epoch, sequence = (fields.required(label).uint() for label in (4, 5, 6))
    if sequence == 0:
        raise cbor.CborError("a sequence of 0")
    issued_at, refresh_by, expires_at = (fields.required(label).uint() for label in (7, 8, 9))
    previous = fields.required(10).bytes(32)
    keys_at = fields.required(11)
    keys = keys_at.list_of(1, MAX_KEYS, lambda: _key(keys_at))
    if (ticket := fields.optional(13)) is not None:
        ticket.text()
    fields.finish()
    reader.finish()
    # A key that stands there twice could be active in one place and revoked in the other.
    if len({key.arn for key in keys}) != len(keys) or len({key.fingerprint for key in keys}) != len(keys):
        raise cbor.CborError("a key stands twice")
    return Statement(
        authority, tuple(sites), root_version, epoch, sequence, issued_at, refresh_by, expires_at, previous, tuple(keys),
        hashlib.sha256(payload).digest(), signed_object,
    )


def _key(reader: cbor.Reader) -> StatementKey:
    fields = reader.map()
    arn = fields.required(1).text()
    if not names.is_key_arn(arn):
        raise cbor.CborError("not a full key ARN")
    suite = fields.required(2).int()
    fingerprint = fields.required(3).bytes(32)
    bits, status = fields.required(4).uint(), fields.required(5).uint()
    if status > KeyStatus.REVOKED:
        raise cbor.CborError("an unknown status")
    not_before, seal_until = fields.required(6).uint(), fields.required(7).uint()
    if (at := fields.optional(8)) is not None:
        at.uint()
    if (at := fields.optional(9)) is not None:
        at.text()
    fields.finish()
    return StatementKey(arn, suite, fingerprint, bits, KeyStatus(status), not_before, seal_until)
