"""Sessions: one data key, one EDK and one context for many messages (docs/envelope.md, section 7).

A public-key operation here and a KMS call in the cloud are paid once per session; every message has an id of its own and
so keys of its own. A session ends after 15 minutes, 100,000 messages or 16 GiB, in a forked child, and, which its owner
asks, when the key changes. It refuses to seal past its end.

Random bytes come from `os.urandom`, which on Linux is the kernel's generator and waits until it is seeded. The data key is
overwritten when the session is closed; copies that the interpreter or the cipher has made are out of Python's reach.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from .. import names
from ..errors import SealingFailed
from ..trust import VerifiedKey
from . import context as contexts, keys
from .message import Material, Sizes
from .signature import SigningKey

AGE_MAX_S: Final = 15 * 60
MESSAGES_MAX: Final = 100_000
BYTES_MAX: Final = 16 << 30
FILE_MAX: Final = 1 << 40

Entropy = Callable[[int], bytes]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a session says of its messages, in clear text. No secret belongs here."""

    site: str
    device: str
    stream: str
    content_type: str = "application/octet-stream"
    encoding: str | None = None
    """`zstd` if the plaintexts are compressed already: docs/envelope.md, section 6, says how."""
    file_name: str | None = None
    created: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    def pairs(self, key: VerifiedKey) -> dict[str, str]:
        """The context, without a signature."""
        said = {
            "pithead:v": "1", "pithead:site": self.site, "pithead:device": self.device, "pithead:stream": self.stream,
            "pithead:content-type": self.content_type,
            "pithead:statement": contexts.base64url(key.statement_digest[:16]),
        }
        if self.encoding is not None:
            said["pithead:encoding"] = self.encoding
        if self.file_name is not None:
            said["pithead:name"] = contexts.encode_file_name(self.file_name)
        if self.created is not None:
            said["pithead:created"] = self.created
        for name, value in self.others:
            if name in said or name.startswith("pithead:"):
                raise SealingFailed(f"{name} is not the application's to set")
            said[name] = value
        return said


class Session:
    """Seals messages of one line. Start one with [`Session.start`]."""

    def __init__(
        self, key: VerifiedKey, facts: Facts, run: int, pairs: Mapping[str, str], edk: keys.Edk, data_key: bytearray,
        started_s: float, entropy: Entropy,
    ) -> None:
        self.key, self.facts, self.run, self.context = key, facts, run, dict(pairs)
        self._wire, self._edk, self._data_key = contexts.serialise(pairs), edk, data_key
        self._started_s, self._entropy = started_s, entropy
        self._pid, self._messages, self._bytes = os.getpid(), 0, 0

    @staticmethod
    def start(
        key: VerifiedKey, facts: Facts, run: int, boot_s: float, signer: SigningKey | None = None,
        entropy: Entropy = os.urandom,
    ) -> Session:
        """Wraps a fresh data key to `key`, which the caller has just been given by [`Trust.verified_key`].

        `boot_s` is a clock that counts sleep and that nobody sets (`CLOCK_BOOTTIME`). With a signer the session is signed,
        and every message of it is of `run`.
        """
        names.run(run)
        data_key, seed = bytearray(entropy(keys.DATA_KEY_LEN)), entropy(keys.SEED_LEN)
        pairs = facts.pairs(key)
        if signer is not None:
            pairs |= {
                "pithead:kid": contexts.base64url(signer.kid), "pithead:run": names.run_text(run),
                "pithead:sid": contexts.base64url(keys.session_id(data_key)),
            }
            pairs["pithead:sig"] = contexts.base64url(signer.sign(key.arn, pairs))
        contexts.check(pairs)
        edk = keys.wrap(key.arn, key.key, contexts.serialise(pairs), data_key, seed)
        return Session(key, facts, run, pairs, edk, data_key, boot_s, entropy)

    def goes_on(self, key: VerifiedKey, facts: Facts, run: int, boot_s: float) -> bool:
        """Whether the next message may be this session's. A newer statement that names the same key ends nothing."""
        same_key = (self.key.arn, self.key.fingerprint) == (key.arn, key.fingerprint)
        return same_key and self.facts == facts and self.run == run and self.ended(boot_s) is None

    def ended(self, boot_s: float) -> str | None:
        """Why it seals nothing more, if it does not."""
        if os.getpid() != self._pid:
            return "this process was forked from the one that began the session"
        if not self._data_key:
            return "it was closed"
        if self._messages >= MESSAGES_MAX:
            return f"it has sealed {MESSAGES_MAX} messages"
        if self._bytes >= BYTES_MAX:
            return f"it has sealed {BYTES_MAX} bytes"
        if boot_s - self._started_s >= AGE_MAX_S:
            return f"it is {AGE_MAX_S} seconds old"
        return None

    def sealed_len(self, plaintext_len: int) -> int:
        """Bytes of the envelope that so many bytes of plaintext become."""
        return Sizes.of(self._wire, [self._edk]).sealed_len(plaintext_len)

    def seal(self, seq: int, plaintext: bytes, boot_s: float) -> bytes:
        """The envelope of number `seq`. Every call draws a fresh message id: a number given twice repeats no nonce."""
        material = self._next(seq, boot_s)
        self._bytes += len(plaintext)
        return material.seal(plaintext)

    def seal_file(self, seq: int, pieces: Iterable[bytes], boot_s: float) -> Iterator[bytes]:
        """The pieces of a file's envelope, up to 1 TiB, in constant memory. It has the session for itself."""
        if self._messages:
            raise SealingFailed("a file has a session of its own")
        material = self._next(seq, boot_s)
        self._bytes = BYTES_MAX
        return material.seal_pieces(_bounded(pieces))

    def _next(self, seq: int, boot_s: float) -> Material:
        if (why := self.ended(boot_s)) is not None:
            raise SealingFailed(f"the session has ended: {why}")
        message_id = self._entropy(16) + names.run(self.run).to_bytes(8, "big") + names.seq(seq).to_bytes(8, "big")
        self._messages += 1
        return Material(message_id, self._wire, (self._edk,), bytes(self._data_key))

    def close(self) -> None:
        """Overwrites the data key."""
        self._data_key[:] = bytes(len(self._data_key))
        self._data_key.clear()


def _bounded(pieces: Iterable[bytes]) -> Iterator[bytes]:
    taken = 0
    for piece in pieces:
        taken += len(piece)
        if taken > FILE_MAX:
            raise SealingFailed(f"the file is longer than {FILE_MAX} bytes")
        yield piece
