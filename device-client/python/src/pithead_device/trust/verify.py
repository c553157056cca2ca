"""Signatures: how many distinct keys of a role have signed, and what that makes of an object (docs/trust.md, 2).

A signature counts if its kid is in the role, its header names the algorithm that the root gives that key, and it holds
over exactly the bytes that came. A key counts once; signatures of strangers count for nothing and do no harm.
"""

from __future__ import annotations

from ..errors import TrustRefused
from . import cose, root as roots, statement as statements
from .root import Role, Root
from .statement import Statement

_ZERO = bytes(32)


def _meets(root: Root, role: Role, signed: cose.Signed) -> bool:
    holding: set[bytes] = set()
    for signature in signed.signatures:
        if signature.kid not in role.kids or signature.kid in holding:
            continue
        key = root.keys[signature.kid]
        if key.algorithm == signature.algorithm and key.verifies(signed.to_be_signed(signature), signature.signature):
            holding.add(signature.kid)
    return len(holding) >= role.threshold


def _read_root(signed_object: bytes) -> tuple[cose.Signed, Root]:
    signed = cose.read(signed_object, cose.ROOT)
    return signed, roots.read(signed, signed_object)


def version_unverified(signed_object: bytes) -> int:
    """The version that a root claims, believed for nothing but finding the roots that are newer than one's own."""
    return _read_root(signed_object)[1].version


def first_root(authority: str, signed_object: bytes) -> Root:
    """A root that is provisioned: checked against its own threshold, since there is no older one."""
    signed, root = _read_root(signed_object)
    if root.authority != authority:
        raise TrustRefused("AUTHORITY", "the root speaks for another authority")
    if root.version == 0:
        raise TrustRefused("ROOT_VERSION", "a root of version 0")
    if root.version == 1 and root.previous != _ZERO:
        raise TrustRefused("ROOT_PREV", "the first root names one before it")
    if not _meets(root, root.root_role, signed):
        raise TrustRefused("THRESHOLD_NEW", "too few of the root's own keys have signed it")
    return root


def next_root(current: Root, signed_object: bytes) -> Root:
    """The root that follows `current`, signed by the thresholds of both."""
    signed, root = _read_root(signed_object)
    if root.authority != current.authority:
        raise TrustRefused("AUTHORITY", "the root speaks for another authority")
    if root.version != current.version + 1:
        raise TrustRefused("ROOT_VERSION", f"version {root.version} does not follow {current.version}")
    if root.previous != current.digest:
        raise TrustRefused("ROOT_PREV", "the root does not name the one before it")
    if root.epoch - current.epoch not in (0, 1) or root.issued_at < current.issued_at:
        raise TrustRefused("EPOCH", "the epoch jumps, or time ran backwards between roots")
    if not _meets(current, current.root_role, signed):
        raise TrustRefused("THRESHOLD_OLD", "too few keys of the root before have signed")
    if not _meets(root, root.root_role, signed):
        raise TrustRefused("THRESHOLD_NEW", "too few of the root's own keys have signed it")
    return root


def statement(root: Root, signed_object: bytes) -> tuple[Statement, bool]:
    """A statement whose signatures hold under `root`, and whether the root threshold has signed it as well.

    Nothing of the payload is read before the signatures hold.
    """
    signed = cose.read(signed_object, cose.STATEMENT)
    if not _meets(root, root.statement_role, signed):
        raise TrustRefused("THRESHOLD", "too few statement keys of the root have signed")
    return statements.read(signed, signed_object), _meets(root, root.root_role, signed)


def statement_unverified(signed_object: bytes) -> Statement:
    """What a stored statement says. Its signatures were verified when it was accepted; the root may be gone since."""
    return statements.read(cose.read(signed_object, cose.STATEMENT), signed_object)
