"""What a gateway's refusal means for the one who asked: wait, keep the envelope aside, or look at the set-up.

A status carries one `google.rpc.ErrorInfo` of domain `pithead` with a reason of the registry, and `google.rpc.RetryInfo`
where waiting helps (docs/errors.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from . import status_pb2
from .errors import PitheadError

TEMPORARY: Final = frozenset({
    "SPOOL_FULL", "THROTTLED", "DRAINING", "NOT_READY", "NOT_DURABLE", "TOO_MANY_RUNS", "TOO_MANY_SESSIONS",
    "KEYS_NOT_READY", "INTERNAL", "PEER_UNREACHABLE",
})
"""The same request, sent again later, may succeed."""

OF_THE_ENVELOPE: Final = frozenset({
    "ENVELOPE_UNSUPPORTED_VERSION", "ENVELOPE_UNSUPPORTED_SUITE", "ENVELOPE_MALFORMED_HEADER", "ENVELOPE_EDK",
    "ENVELOPE_COMMITMENT", "ENVELOPE_HEADER_TAG", "ENVELOPE_SEQUENCE", "ENVELOPE_IV", "ENVELOPE_FRAME_TAG",
    "ENVELOPE_FINAL_TOO_LONG", "ENVELOPE_TRUNCATED", "ENVELOPE_TRAILING", "PROFILE_CONTEXT", "PROFILE_NUMBER",
    "PROFILE_EDK", "KEY_UNKNOWN", "DEVICE_MISMATCH", "SITE_MISMATCH", "ENVELOPE_TOO_LARGE", "INFLATE_LIMIT",
    "CONTENT_MALFORMED", "SIGNATURE_INVALID", "SIGNATURE_REQUIRED", "SIGNATURE_REVOKED", "SIGNATURE_KEY_UNKNOWN",
    "CONFLICT", "SEQ_JUMP", "TOO_MANY_GAPS", "TOO_MANY_STREAMS", "MODE_DOWNGRADE",
})
"""This envelope will not be taken, whoever sends it and when. Others may be."""

ENDS_THE_LINE: Final = frozenset({"CONFLICT", "SEQ_JUMP", "TOO_MANY_GAPS"})
"""Nothing more goes well on this line: its stream begins a new run."""

# However long a gateway says, of an hour is obeyed at most.
RETRY_MAX_S: Final = 3_600.0
_WITHOUT_A_REASON: Final = {
    grpc.StatusCode.UNAVAILABLE: "PEER_UNREACHABLE", grpc.StatusCode.DEADLINE_EXCEEDED: "PEER_UNREACHABLE",
    grpc.StatusCode.CANCELLED: "PEER_UNREACHABLE", grpc.StatusCode.UNAUTHENTICATED: "CERTIFICATE_INVALID",
}


class Refused(PitheadError):
    """The far end's refusal, or that there is no far end."""

    def __init__(
        self, reason: str, detail: str, status: str, retry_after_s: float | None, metadata: Mapping[str, str],
    ) -> None:
        super().__init__(reason, detail)
        self.status, self.retry_after_s, self.metadata = status, retry_after_s, dict(metadata)

    @property
    def number(self) -> int:
        """The reason's number; 0 for one that this version does not know."""
        try:
            return super().number
        except ValueError:
            return 0

    @property
    def is_temporary(self) -> bool:
        """Waiting may help."""
        return self.reason in TEMPORARY or self.retry_after_s is not None

    @property
    def is_of_the_envelope(self) -> bool:
        """The bytes are at fault, and not the caller, the connection or the moment."""
        return self.reason in OF_THE_ENVELOPE and not self.is_temporary

    @staticmethod
    def of(error: grpc.RpcError) -> Refused:
        """What a call ended with."""
        code: grpc.StatusCode = error.code()
        reason, metadata, retry_after_s = _WITHOUT_A_REASON.get(code, "INTERNAL"), {}, None
        trailing = dict(error.trailing_metadata() or ())
        for detail in _details(trailing.get("grpc-status-details-bin", b"")):
            kind = detail.type_url.rpartition("/")[2]
            try:
                if kind == "google.rpc.ErrorInfo":
                    info = status_pb2.ErrorInfo.FromString(detail.value)
                    if info.domain == "pithead":
                        reason, metadata = info.reason, dict(info.metadata)
                elif kind == "google.rpc.RetryInfo":
                    delay = status_pb2.RetryInfo.FromString(detail.value).retry_delay
                    retry_after_s = min(max(delay.seconds + delay.nanos / 1e9, 0.0), RETRY_MAX_S)
            except DecodeError:
                continue
        return Refused(reason, error.details() or code.name, code.name, retry_after_s, metadata)


def _details(encoded: bytes) -> list[any_pb2.Any]:
    try:
        return list(status_pb2.Status.FromString(encoded).details)
    except DecodeError:
        return []
