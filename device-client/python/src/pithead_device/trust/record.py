"""A device's trust as stored bytes, about 3 kB, nothing secret: docs/trust.md, section 4.

The hash in the record is against a damaged disk, not against somebody who writes to it: who can write there can provision
another root as well. What is read back is written again and compared, so a record has one spelling.
"""

from __future__ import annotations

import hashlib
from typing import Final

from .. import cbor, names
from ..errors import NameRefused, TrustRefused
from . import verify
from .device import Announced, Clock, Floor, Stored, Trust, prove
from .root import Root
from .statement import MAX_KEYS, KeyStatus, Statement

MAX_RECORD: Final = 40_960
_FORMAT: Final = 1


def encode(trust: Trust, clock: Clock) -> bytes:
    """The record, with the operating seconds up to `clock`."""
    body = {
        1: cbor.text(trust.root.authority), 2: cbor.text(trust.site), 3: cbor.uint(trust.operated_s(clock)),
        4: cbor.byte_string(trust.root.object), 5: _floor(trust.root_floor), 6: cbor.uint(trust.cosignature_needed),
    }
    if trust.stored is not None:
        body[7] = cbor.mapping({
            1: cbor.byte_string(trust.stored.statement.object), 2: cbor.byte_string(trust.stored.key.key.spki),
            3: _floor(trust.stored.floor),
            4: cbor.array([
                cbor.array([cbor.byte_string(known.fingerprint), cbor.uint(known.since), cbor.uint(known.in_use)])
                for known in trust.stored.announced
            ]),
        })
    encoded = cbor.mapping(body)
    digest = hashlib.sha256(encoded).digest()
    return cbor.array([cbor.uint(_FORMAT), cbor.byte_string(encoded), cbor.byte_string(digest)])


def _floor(floor: Floor) -> bytes:
    return cbor.array([cbor.uint(floor.time), cbor.uint(floor.operated)])


def restore(record: bytes) -> Trust:
    """Reads a record back; operating seconds of the new value's clock begin at 0. STATE if it does not hold together."""
    try:
        trust = _read(record)
    except (cbor.CborError, NameRefused, TrustRefused) as error:
        raise TrustRefused("STATE", f"the trust record does not read back: {error}") from error
    if encode(trust, Clock()) != record:
        raise TrustRefused("STATE", "the trust record is not in its one spelling")
    return trust


def _holds(condition: bool) -> None:
    if not condition:
        raise cbor.CborError("it contradicts itself")


def _read(record: bytes) -> Trust:
    _holds(len(record) <= MAX_RECORD)
    outer = cbor.Reader(record)
    outer.array(3, 3)
    _holds(outer.uint() == _FORMAT)
    body, digest = outer.bytes(), outer.bytes(32)
    outer.finish()
    _holds(hashlib.sha256(body).digest() == digest)

    reader = cbor.Reader(body)
    fields = reader.map()
    authority, site = fields.required(1).text(), names.site(fields.required(2).text())
    operated = fields.required(3).uint()
    root = verify.first_root(authority, fields.required(4).bytes())
    root_floor = _read_floor(fields.required(5), operated)
    cosignature_needed = fields.required(6).flag()
    at = fields.optional(7)
    stored = _read_stored(at, root, site, operated) if at is not None else None
    fields.finish()
    reader.finish()
    _holds(not (cosignature_needed and stored is not None))
    return Trust(site, root, root_floor, operated, cosignature_needed, stored)


def _read_floor(reader: cbor.Reader, operated: int) -> Floor:
    reader.array(2, 2)
    floor = Floor(reader.uint(), reader.uint())
    _holds(floor.operated <= operated)
    return floor


def _read_stored(reader: cbor.Reader, root: Root, site: str, operated: int) -> Stored:
    fields = reader.map()
    statement = verify.statement_unverified(fields.required(1).bytes())
    _holds(statement.authority == root.authority and statement.epoch == root.epoch)
    _holds(statement.root_version <= root.version and site in statement.sites)
    spki = fields.required(2).bytes()
    floor = _read_floor(fields.required(3), operated)
    announced_at = fields.required(4)
    announced = announced_at.list_of(1, MAX_KEYS, lambda: _read_announced(announced_at, statement, operated))
    fields.finish()
    listed = [key.fingerprint for key in statement.keys if key.status.is_listed]
    _holds(sorted(known.fingerprint for known in announced) == sorted(listed))
    chosen = statement.key(hashlib.sha256(spki).digest())
    _holds(chosen is not None and any(known.in_use and known.fingerprint == chosen.fingerprint for known in announced))
    return Stored(statement, prove(chosen, statement, [spki]), tuple(announced), floor)


def _read_announced(reader: cbor.Reader, statement: Statement, operated: int) -> Announced:
    reader.array(3, 3)
    known = Announced(reader.bytes(32), reader.uint(), reader.flag())
    key = statement.key(known.fingerprint)
    _holds(known.since <= operated and key is not None and (key.status is KeyStatus.ACTIVE or not known.in_use))
    return known
