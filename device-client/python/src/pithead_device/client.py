"""The way to a gateway: keys in, envelopes out, over TLS with the device's certificate (docs/delivery.md, 3).

An envelope is sent as the bytes that lie in the outbox, again and again until there is an answer, and forgotten only then:
after a lost answer the same bytes are no second copy. `Submit` is one envelope and one answer; the streaming call of the
same contract moves more on a bad link and is not spoken here, and neither are uploads.

grpcio judges the gateway's certificate by the system's clock. A machine whose clock may be wrong by years needs another
client (docs/trust.md, section 3).
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Final

import grpc
from pithead.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from pithead.keys.v1 import keys_pb2, keys_pb2_grpc

from . import bundles
from .device import Device
from .names import Identity
from .refusals import ENDS_THE_LINE, Refused
from .trust import Bundle

CALL_TIMEOUT_S: Final = 30.0
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 60.0
# More roots than a bundle has are asked for again; a device is never this far behind.
_ROUNDS_MAX: Final = 32
_REQUEST_MAX: Final = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The gateway's word for an envelope."""

    durability: str
    """Which copy it stands for: DISK, REPLICATED, APPLIED."""
    duplicate: bool
    """It was there before, as far as could be compared."""
    trust: tuple[int, int]
    """Epoch and sequence of the statement in force there; (0, 0) if it did not say."""


@dataclasses.dataclass
class Delivered:
    """What became of a delivery."""

    accepted: list[tuple[Identity, Accepted]] = dataclasses.field(default_factory=list)
    refused: list[tuple[Identity, Refused]] = dataclasses.field(default_factory=list)
    newer_statement: bool = False
    """The gateway has a statement that this device does not: [`refresh`] it."""


class Client:
    """A connection to one gateway. Made without a network: the first call connects."""

    def __init__(self, address: str, ca_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> None:
        credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, certificate_pem)
        options = [
            # What is sent again is decided here, and a proxy of the machine's is for the world outside.
            ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", _REQUEST_MAX), ("grpc.max_send_message_length", _REQUEST_MAX),
        ]
        self._channel = grpc.secure_channel(address, credentials, options)
        self._ingest = ingest_pb2_grpc.IngestServiceStub(self._channel)
        self._keys = keys_pb2_grpc.KeyServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def bundle(self, authority: str, site: str, root_version: int, statement_digest: bytes = b"") -> Bundle | None:
        """What is newer than what is held, not looked at yet; nothing if nothing is."""
        held = keys_pb2.Held(root_version=root_version, statement_digest=statement_digest)
        request = keys_pb2.GetKeyBundleRequest(authority=authority, site=site, have=held)
        try:
            answer = self._keys.GetKeyBundle(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise Refused.of(error) from error
        if answer.unchanged or not answer.HasField("bundle"):
            return None
        return bundles.from_message(answer.bundle)

    def submit(self, envelope: bytes) -> Accepted:
        """Hands over one envelope. An answer is that it is held; no answer says nothing: send the same bytes again."""
        try:
            answer = self._ingest.Submit(ingest_pb2.SubmitRequest(envelope=envelope), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise Refused.of(error) from error
        if answer.durability not in (
            ingest_pb2.DURABILITY_DISK, ingest_pb2.DURABILITY_REPLICATED, ingest_pb2.DURABILITY_APPLIED,
        ):
            # An acknowledgement that stands for no copy is none.
            raise Refused("NOT_DURABLE", "the gateway's answer stands for no copy", "OK", None, {})
        durability = ingest_pb2.Durability.Name(answer.durability).removeprefix("DURABILITY_")
        return Accepted(durability, answer.HasField("duplicate"), (answer.trust.epoch, answer.trust.sequence))


def refresh(device: Device, client: Client) -> bool:
    """Fetches what the gateway has newer, verifies it and takes it in; whether anything has changed.

    Raises the refusal of what is not believed. The key in force stays in force then.
    """
    changed = False
    for _ in range(_ROUNDS_MAX):
        trust = device.trust
        digest = trust.stored.statement.digest if trust.stored else b""
        bundle = client.bundle(trust.root.authority, trust.site, trust.root.version, digest)
        if bundle is None or not device.apply(bundle):
            break
        changed = True
    return changed


def deliver(
    device: Device, client: Client, patience_s: float = 0.0, sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random,
) -> Delivered:
    """Hands over what waits, in order.

    Where waiting helps it waits and tries again for `patience_s` seconds in all: a uniform draw below a ceiling that doubles
    from 0.5 s to 60 s, on top of what the gateway asks for. Then, and for what is wrong with the connection or the caller,
    it raises [`Refused`]; nothing is lost by that. What is wrong with one envelope sets that one aside and goes on.
    """
    done, ends_s, ceiling_s = Delivered(), monotonic() + patience_s, BACKOFF_FIRST_S
    for identity in device.waiting():
        while (envelope := device.read(identity)) is not None:
            try:
                accepted = client.submit(envelope)
            except Refused as refused:
                if refused.is_of_the_envelope:
                    _settle_refused(device, identity, refused)
                    done.refused.append((identity, refused))
                    break
                wait_s = (refused.retry_after_s or 0.0) + draw() * ceiling_s
                if not refused.is_temporary or monotonic() + wait_s > ends_s:
                    raise
                ceiling_s = min(ceiling_s * 2, BACKOFF_MAX_S)
                sleep(wait_s)
                continue
            ceiling_s = BACKOFF_FIRST_S
            device.acknowledged(identity)
            done.accepted.append((identity, accepted))
            done.newer_statement |= accepted.trust > device.trust.version
            break
    return done


def _settle_refused(device: Device, identity: Identity, refused: Refused) -> None:
    if refused.reason == "CONFLICT" and refused.metadata.get("kept") == "true":
        # Kept beside the first, by the gateway: it is held.
        device.acknowledged(identity)
    else:
        device.refused(identity, refused.reason, refused.detail)
    if refused.reason in ENDS_THE_LINE:
        device.begin_run(identity.stream)
