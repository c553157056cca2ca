"""The trust root: who may sign, with what threshold, under which policy, and which keys are dead (docs/trust.md, 1)."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from .. import cbor
from ..errors import TrustRefused
from . import cose
from .keys import ED25519, ESP256, NotAKey, RoleKey

MAX_KEYS: Final = 16
_KEY_FILE: Final = 3
_MANY: Final = cose.MAX_PAYLOAD


@dataclasses.dataclass(frozen=True)
class Role:
    """The keys of one role, and how many distinct ones must sign."""

    threshold: int
    kids: frozenset[bytes]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What statements under this root may say."""

    hold_down_s: int
    min_rsa_bits: int
    suites: tuple[int, ...]
    max_statement_validity_s: int
    custody: int | None


@dataclasses.dataclass(frozen=True)
class Root:
    """A root whose signatures were verified. [`verify`](pithead_device.trust.verify) makes it."""

    authority: str
    version: int
    epoch: int
    issued_at: int
    expires_at: int
    root_role: Role
    statement_role: Role
    keys: dict[bytes, RoleKey]
    denylist: frozenset[bytes]
    policy: Policy
    previous: bytes
    digest: bytes
    object: bytes = dataclasses.field(repr=False)


def read(signed: cose.Signed, signed_object: bytes) -> Root:
    """Reads a payload: PARSE if it is not deterministic CBOR, ROOT_KEYS if it is not a root."""
    try:
        cbor.well_formed(signed.payload)
    except cbor.CborError as error:
        raise TrustRefused("PARSE", f"the root is not deterministic CBOR: {error}") from error
    try:
        root = _parse(signed.payload, signed_object)
    except (cbor.CborError, NotAKey) as error:
        raise TrustRefused("ROOT_KEYS", f"not a root: {error}") from error
    _check_roles(root)
    return root


def _parse(payload: bytes, signed_object: bytes) -> Root:
    reader = cbor.Reader(payload)
    fields = reader.map()
    if fields.required(1).uint() != 1:
        raise cbor.CborError("another format")
    authority = fields.required(2).text()
    version, epoch, issued_at, expires_at = (fields.required(label).uint() for label in (3, 4, 5, 6))
    roles = fields.required(7).map()
    root_role, statement_role = (_role(roles.required(label)) for label in (1, 2))
    roles.finish()
    keys_at = fields.required(8)
    keys = keys_at.list_of(1, MAX_KEYS, lambda: _key(keys_at))
    denied = fields.required(9)
    denylist = denied.list_of(0, _MANY, lambda: denied.bytes(32))
    policy = _policy(fields.required(10))
    pins = fields.optional(11)
    if pins is not None:
        _pins(pins)
    previous = fields.required(12).bytes(32)
    fields.finish()
    reader.finish()
    if len({key.kid for key in keys}) != len(keys):
        raise cbor.CborError("a key stands twice")
    return Root(
        authority, version, epoch, issued_at, expires_at, root_role, statement_role, {key.kid: key for key in keys},
        frozenset(denylist), policy, previous, hashlib.sha256(payload).digest(), signed_object,
    )


def _role(reader: cbor.Reader) -> Role:
    reader.array(2, 2)
    threshold = reader.uint()
    return Role(threshold, frozenset(reader.list_of(1, _MANY, lambda: reader.bytes(16))))


def _key(reader: cbor.Reader) -> RoleKey:
    reader.array(4, 4)
    kid, algorithm = reader.bytes(16), reader.int()
    if algorithm not in (ESP256, ED25519):
        raise cbor.CborError("an algorithm that is not supported")
    key = RoleKey.from_spki(reader.bytes())
    reader.text()
    if key.kid != kid or key.algorithm != algorithm:
        raise cbor.CborError("a kid or an algorithm that is not its key's")
    return key


def _policy(reader: cbor.Reader) -> Policy:
    fields = reader.map()
    hold_down_s, min_rsa_bits = fields.required(1).uint(), fields.required(2).uint()
    at = fields.required(3)
    suites = at.list_of(1, _MANY, at.int)
    validity = fields.required(4).uint()
    custody_at = fields.optional(5)
    custody = custody_at.uint() if custody_at is not None else None
    if custody not in (None, 1, 2, 3):
        raise cbor.CborError("an unknown custody")
    fields.finish()
    return Policy(hold_down_s, min_rsa_bits, tuple(suites), validity, custody)


def _pins(reader: cbor.Reader) -> None:
    fields = reader.map()
    if (at := fields.optional(1)) is not None:
        at.list_of(1, _MANY, at.bytes)
    if (at := fields.optional(2)) is not None:
        at.list_of(1, _MANY, lambda: reader.bytes(32))
    fields.finish()


def _check_roles(root: Root) -> None:
    for role in (root.root_role, root.statement_role):
        # A threshold of 0 would be met by nobody's signature; one above the keys by no one ever.
        if not 1 <= role.threshold <= len(role.kids) or not role.kids <= root.keys.keys():
            raise TrustRefused("ROOT_KEYS", "a role's threshold or keys cannot be met")
    # One stolen key must not be two. Key files are one theft anyway, and say so.
    if root.policy.custody != _KEY_FILE and root.root_role.kids & root.statement_role.kids:
        raise TrustRefused("ROOT_KEYS", "a key is in both roles")
