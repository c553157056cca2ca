"""What a device believes, and how that moves: docs/trust.md, sections 2 and 3. Pure: no disk, no network, no clock.

A [`Trust`] is a value. Taking in a bundle gives another; what was accepted before a refusal stands, since a root that
verified may be the very one that takes a stolen statement key away. Whoever holds a [`VerifiedKey`] holds a key that an
accepted statement named, whose announcement was waited for, and whose bytes hash to the signed fingerprint.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Sequence
from typing import Final

from .. import names
from ..errors import TrustRefused
from . import meaning, verify
from .keys import NotAKey, RsaKey
from .root import Root
from .statement import KeyStatus, Statement, StatementKey

MAX_ROOTS: Final = 32
_TIME_MAX: Final = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class Clock:
    """What the caller knows of time at the moment of a call."""

    uptime_s: int = 0
    """Seconds operated since the [`Trust`] was provisioned or restored in this process, by a clock that nobody can set."""
    trusted_now: int | None = None
    """Seconds since 1970 by a clock that the owner vouches for (NTS, authenticated PTP, set by an operator), if any."""


class Status(enum.Enum):
    """How things stand."""

    FRESH = "FRESH"
    STALE = "STALE"
    EXPIRED = "EXPIRED"
    NO_KEY = "NO_KEY"


@dataclasses.dataclass(frozen=True)
class Floor:
    """At `operated` operating seconds it was `time` or later."""

    time: int
    operated: int

    def now(self, operated: int) -> int:
        """The bound after more operating."""
        return min(self.time + max(operated - self.operated, 0), _TIME_MAX)

    def raised(self, signed: int, operated: int) -> Floor:
        """The floor after a signed time was accepted: up by signed times alone, and never down."""
        return Floor(signed, operated) if signed > self.now(operated) else self


@dataclasses.dataclass(frozen=True)
class Announced:
    """A key listed as next or active: since how many operating seconds, and whether it was allowed to be used."""

    fingerprint: bytes
    since: int
    in_use: bool


@dataclasses.dataclass(frozen=True)
class VerifiedKey:
    """A public key that may be sealed to. Only verification makes one; ask [`Trust.verified_key`] at each session."""

    arn: str
    key: RsaKey
    statement_digest: bytes
    epoch: int
    sequence: int
    seal_until: int
    refresh_by: int
    expires_at: int

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the key's SubjectPublicKeyInfo."""
        return self.key.fingerprint


@dataclasses.dataclass(frozen=True)
class Stored:
    """The statement in force with what belongs to it."""

    statement: Statement
    key: VerifiedKey
    announced: tuple[Announced, ...]
    floor: Floor


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Roots, statement and public keys as they travel. Nothing in it is believed because of who sent it."""

    roots: Sequence[bytes] = ()
    statement: bytes | None = None
    spkis: Sequence[bytes] = ()


@dataclasses.dataclass(frozen=True)
class Trust:
    """What a device believes."""

    site: str
    root: Root
    root_floor: Floor
    operated_before: int = 0
    cosignature_needed: bool = False
    stored: Stored | None = None

    @staticmethod
    def provision(authority: str, site: str, root: bytes, clock: Clock = Clock()) -> Trust:
        """A new device with the root that its owner gave it by hand."""
        verified = verify.first_root(authority, root)
        return Trust(names.site(site), verified, Floor(verified.issued_at, clock.uptime_s))

    def operated_s(self, clock: Clock) -> int:
        """Operating seconds in the device's whole life."""
        return self.operated_before + clock.uptime_s

    def now_lower_bound(self, clock: Clock) -> int:
        """The largest time that has certainly passed, by signatures and operating alone."""
        operated = self.operated_s(clock)
        floors = [self.root_floor] + ([self.stored.floor] if self.stored else [])
        return max(floor.now(operated) for floor in floors)

    def now(self, clock: Clock) -> int:
        """The best knowledge of now: the bound, or the trusted clock if that is later."""
        return max(self.now_lower_bound(clock), clock.trusted_now or 0)

    @property
    def version(self) -> tuple[int, int]:
        """Epoch and sequence of what is stored; sequence 0 if there is no statement in this epoch."""
        return self.root.epoch, self.stored.statement.sequence if self.stored else 0

    def verified_key(self, clock: Clock) -> VerifiedKey:
        """The key to seal to, asked for at every session start: EXPIRED or NO_KEY if there is none."""
        if self.stored is None:
            raise TrustRefused("NO_KEY", "no statement was accepted yet")
        key, now = self.stored.key, self.now(clock)
        if now >= key.expires_at:
            raise TrustRefused("EXPIRED", "the statement is past its end: take in a newer one")
        if now >= key.seal_until:
            raise TrustRefused("NO_KEY", "the key is past its use: take in a newer statement")
        if key.fingerprint in self.root.denylist:
            raise TrustRefused("NO_KEY", "the root has denylisted the key: take in a newer statement")
        return key

    def status(self, clock: Clock) -> Status:
        """How things stand."""
        try:
            key = self.verified_key(clock)
        except TrustRefused as refused:
            return Status.EXPIRED if refused.trust_code == "EXPIRED" else Status.NO_KEY
        return Status.STALE if self.now(clock) > key.refresh_by else Status.FRESH

    def newer_roots(self, roots: Sequence[bytes]) -> list[bytes]:
        """Drops the roots up to one's own: an export begins with version 1. What cannot be read stays, to be refused."""

        def newer(root: bytes) -> bool:
            try:
                return verify.version_unverified(root) > self.root.version
            except TrustRefused:
                return True

        return [root for root in roots if newer(root)]

    def apply(self, bundle: Bundle, clock: Clock) -> tuple[Trust, TrustRefused | None]:
        """Takes in a bundle: what is believed then, and the first refusal. What was accepted before it stands."""
        if len(bundle.roots) > MAX_ROOTS:
            return self, TrustRefused("PARSE", f"more than {MAX_ROOTS} roots")
        trust = self
        try:
            for root in bundle.roots:
                trust = trust._with_root(root, clock)
            if bundle.statement is not None:
                trust = trust._with_statement(bundle.statement, bundle.spkis, clock)
        except TrustRefused as refused:
            return trust, refused
        return trust, None

    def _with_root(self, signed_object: bytes, clock: Clock) -> Trust:
        root = verify.next_root(self.root, signed_object)
        raised = root.epoch > self.root.epoch
        return dataclasses.replace(
            self, root=root, root_floor=self.root_floor.raised(root.issued_at, self.operated_s(clock)),
            cosignature_needed=raised or self.cosignature_needed, stored=None if raised else self.stored,
        )

    def _with_statement(self, signed_object: bytes, spkis: Sequence[bytes], clock: Clock) -> Trust:
        now, operated, stored = self.now(clock), self.operated_s(clock), self.stored
        new, cosigned = verify.statement(self.root, signed_object)
        meaning.addressed(self.root, self.site, new)
        if stored is not None:
            meaning.follows(stored.statement, new)
        meaning.timely(self.root, new, now, clock.trusted_now is not None)
        meaning.keys(self.root, stored.statement if stored else None, new, now)

        announced = self._announced(new, cosigned, operated)
        in_use = {known.fingerprint for known in announced if known.in_use}
        usable = [key for key in new.keys if key.fingerprint in in_use and key.seal_until > now]
        if not usable:
            raise TrustRefused("UNANNOUNCED", "no active key was announced for long enough: somebody else may sign")
        # The latest; of equals the first that is listed, which is what max gives.
        key = prove(max(usable, key=lambda key: key.not_before), new, spkis)
        issued = Floor(new.issued_at, operated)
        floor = stored.floor.raised(new.issued_at, operated) if stored else issued
        return dataclasses.replace(self, cosignature_needed=False, stored=Stored(new, key, announced, floor))

    def _announced(self, new: Statement, cosigned: bool, operated: int) -> tuple[Announced, ...]:
        before = {known.fingerprint: known for known in self.stored.announced} if self.stored else {}
        table = []
        for key in new.keys:
            if not key.status.is_listed:
                continue
            known = before.get(key.fingerprint)
            since = known.since if known else operated
            if cosigned:
                allowed = True
            elif self.cosignature_needed:
                allowed = False
            elif self.stored is None:
                allowed = True
            else:
                waited = operated - since >= self.root.policy.hold_down_s
                allowed = (known is not None and known.in_use) or waited
            table.append(Announced(key.fingerprint, since, key.status is KeyStatus.ACTIVE and allowed))
        return tuple(table)


def prove(chosen: StatementKey, statement: Statement, spkis: Sequence[bytes]) -> VerifiedKey:
    """The chosen key with the bytes that the signed fingerprint vouches for: SPKI_MISSING or SPKI_PARSE."""
    spki = next((spki for spki in spkis if hashlib.sha256(spki).digest() == chosen.fingerprint), None)
    if spki is None:
        raise TrustRefused("SPKI_MISSING", f"the public key of {chosen.arn} was not served, or another was")
    try:
        key = RsaKey.from_spki(spki)
    except NotAKey as error:
        raise TrustRefused("SPKI_PARSE", f"the public key of {chosen.arn}: {error}") from error
    if key.bits != chosen.bits:
        raise TrustRefused("SPKI_PARSE", f"the public key of {chosen.arn} has {key.bits} bits, not {chosen.bits}")
    return VerifiedKey(
        chosen.arn, key, statement.digest, statement.epoch, statement.sequence, chosen.seal_until, statement.refresh_by,
        statement.expires_at,
    )
