"""What a signed statement must say before a device acts on it: rows 4 to 20 of docs/trust.md, section 2.

Nothing here is reached by somebody without a statement key. The checks are against that somebody all the same: a stolen
statement key must not roll back, fork, outlive the root, weaken keys or bring a dead one back. The order is normative.
"""

from __future__ import annotations

from typing import Final

from ..errors import TrustRefused
from .root import Root
from .statement import KeyStatus, Statement

# How far a statement may be issued in the future of a trusted clock.
_SLACK_S: Final = 300
_RSA_BITS: Final = (2_048, 3_072, 4_096)


def addressed(root: Root, site: str, new: Statement) -> None:
    """Whom it is from, whom it is for, and under which root it was made."""
    if new.authority != root.authority:
        raise TrustRefused("AUTHORITY", "the statement speaks for another authority")
    if site not in new.sites:
        raise TrustRefused("AUDIENCE", f"the statement is not for site {site}")
    if new.root_version > root.version:
        raise TrustRefused("NEED_ROOT", f"the statement rests on root {new.root_version}, {root.version} is held")
    if new.epoch != root.epoch:
        raise TrustRefused("EPOCH", f"the statement is of epoch {new.epoch}, the root of {root.epoch}")


def follows(stored: Statement, new: Statement) -> None:
    """That it follows on the stored one. Gaps are allowed: a device may have been away."""
    if new.sequence < stored.sequence:
        raise TrustRefused("ROLLBACK", f"sequence {new.sequence} is older than {stored.sequence}")
    if new.sequence == stored.sequence and new.digest != stored.digest:
        raise TrustRefused("EQUIVOCATION", f"two statements of sequence {new.sequence}: somebody else signs")
    if new.sequence == stored.sequence + 1 and new.previous != stored.digest:
        raise TrustRefused("FORK", f"sequence {new.sequence} does not name the stored one: somebody else signs")


def timely(root: Root, new: Statement, now: int, clock_is_trusted: bool) -> None:
    """That its times are in order, within the root's life, within policy, and now."""
    in_order = new.issued_at <= new.refresh_by <= new.expires_at
    in_roots_life = root.issued_at <= new.issued_at and new.expires_at <= root.expires_at
    if not in_order or not in_roots_life or new.expires_at - new.issued_at > root.policy.max_statement_validity_s:
        raise TrustRefused("VALIDITY", "times out of order, outside the root's life, or longer than policy allows")
    # A lower bound of time proves that something is over, never that it is early.
    if clock_is_trusted and new.issued_at > now + _SLACK_S:
        raise TrustRefused("NOT_YET_VALID", "issued in the future of the trusted clock")
    if now >= new.expires_at or now >= root.expires_at:
        raise TrustRefused("EXPIRED", "the statement, or the root, is past its end")


def keys(root: Root, stored: Statement | None, new: Statement, now: int) -> None:
    """That its keys are strong enough, alive, and still the keys that they were."""
    for key in new.keys:
        if key.suite not in root.policy.suites:
            raise TrustRefused("KEY_ALG", f"{key.arn}: a suite that the root does not allow")
        if key.bits not in _RSA_BITS or key.bits < root.policy.min_rsa_bits:
            raise TrustRefused("KEY_BITS", f"{key.arn}: {key.bits} bits")
        if key.status is not KeyStatus.REVOKED and key.fingerprint in root.denylist:
            raise TrustRefused("KEY_DENYLISTED", f"{key.arn} is on the root's denylist")
    if stored is not None:
        _same_bindings(stored, new)
        _forward_only(root, stored, new)
    active = [key for key in new.keys if key.status is KeyStatus.ACTIVE]
    if any(key.not_before > new.issued_at for key in active):
        raise TrustRefused("VALIDITY", "an active key begins after the statement was issued")
    if not any(key.seal_until > now for key in active):
        raise TrustRefused("NO_ACTIVE", "no active key may still be sealed to")


def _same_bindings(stored: Statement, new: Statement) -> None:
    for key in new.keys:
        by_arn, by_print = stored.key_by_arn(key.arn), stored.key(key.fingerprint)
        if (by_arn and by_arn.fingerprint != key.fingerprint) or (by_print and by_print.arn != key.arn):
            raise TrustRefused("KID_REBIND", f"{key.arn} and its fingerprint were bound otherwise")


def _forward_only(root: Root, stored: Statement, new: Statement) -> None:
    for old in stored.keys:
        key = new.key(old.fingerprint)
        # A revocation that could be left out would be undone by listing the key anew.
        gone_for_good = old.status is KeyStatus.REVOKED and old.fingerprint not in root.denylist
        if (key is not None and key.status < old.status) or (key is None and gone_for_good):
            raise TrustRefused("KEY_TRANSITION", f"{old.arn}: its status went backwards, or its revocation vanished")
