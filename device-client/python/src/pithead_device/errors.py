"""Why something was refused: every exception carries a reason out of the one registry of Pithead.

The registry is `pithead.errors.v1.ErrorReason`; docs/errors.md says of each what to do. `reason` is its name, `code` the
`PH-n` of screens and logs. Nothing here ever holds a key, a plaintext or a token.
"""

from __future__ import annotations


class PitheadError(Exception):
    """The root of this package's exceptions."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    @property
    def number(self) -> int:
        """The reason's number in the registry."""
        # Asked for here and not above: sealing and trust need no generated code until something is refused.
        from pithead.errors.v1 import errors_pb2

        return errors_pb2.ErrorReason.Value(f"ERROR_REASON_{self.reason}")

    @property
    def code(self) -> str:
        """`PH-n`, as screens and logs have it."""
        return f"PH-{self.number}"

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class NameRefused(PitheadError, ValueError):
    """A site, device, stream, run or number that breaks its grammar (docs/envelope.md, 5 and 6)."""


class TrustRefused(PitheadError):
    """A root, a statement or a key is not believed, by the code of docs/trust.md, section 2. The state stays as it was."""

    def __init__(self, trust_code: str, detail: str = "") -> None:
        other = {"NO_KEY": "NO_KEY", "STATE": "STATE_DAMAGED"}
        super().__init__(other.get(trust_code, f"TRUST_{trust_code}"), detail or "refused by the rules of trust")
        self.trust_code = trust_code


class EnvelopeRefused(PitheadError):
    """Bytes that are no sealed envelope, by the class of docs/envelope.md, section 10."""

    def __init__(self, envelope_class: str, detail: str) -> None:
        super().__init__("ENVELOPE_" + envelope_class.upper().replace("-", "_"), detail)
        self.envelope_class = envelope_class


class ProfileRefused(PitheadError):
    """An envelope, or the context of one that was to be sealed, that is not ours: docs/envelope.md, section 6."""

    def __init__(self, rule: str, detail: str, key: str | None = None) -> None:
        reason = {"no-identity": "PROFILE_NUMBER", "edk-provider": "PROFILE_EDK", "edk-key-arn": "PROFILE_EDK"}.get(rule)
        if rule == "context-bad-value" and key == "pithead:seq":
            reason = "PROFILE_NUMBER"
        super().__init__(reason or "PROFILE_CONTEXT", f"{detail} ({rule})")
        self.rule = rule


class SealingFailed(PitheadError):
    """A session seals nothing more."""

    def __init__(self, detail: str) -> None:
        super().__init__("SEALING_FAILED", detail)


class StorageFailed(PitheadError):
    """The device's folder: locked, damaged, full or not to be written."""
