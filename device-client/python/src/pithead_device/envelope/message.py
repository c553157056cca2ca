"""One message: header, frames, and the arithmetic of sizes (docs/envelope.md, sections 1 and 4). Sealing only.

```text
02 | 04 78 | message id[32] | u16 A, context[A] | u16 EDKs { u16 id, u16 info, u16 ciphertext }... |
02 | u32 FL | commitment[32]                                                                         -> header body
tag[16] | regular frames: u32 number, IV[12], ciphertext[FL], tag[16] | final: FFFFFFFF, u32 number, IV, u32 n, ...
```

There is no way to seal again from some offset: what is sent again is the same sealed bytes.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import SealingFailed
from . import keys
from .keys import Edk

FRAME_LENGTH: Final = 65_536
TAG_LEN: Final = 16
FINAL_MARK: Final = b"\xff\xff\xff\xff"
REGULAR_NAME: Final = b"AWSKMSEncryptionClient Frame"
FINAL_NAME: Final = b"AWSKMSEncryptionClient Final Frame"
FRAMES_MAX: Final = 2**32 - 1


def _counted(field: bytes) -> bytes:
    return struct.pack(">H", len(field)) + field


def header_body(
    message_id: bytes, context: bytes, edks: Sequence[Edk], frame_length: int, commitment: bytes,
) -> bytes:
    """The header without its tag."""
    parts = [b"\x02", keys.SUITE, message_id, _counted(context), struct.pack(">H", len(edks))]
    for edk in edks:
        parts += map(_counted, (edk.provider_id, edk.provider_info, edk.ciphertext))
    return b"".join([*parts, b"\x02", struct.pack(">I", frame_length), commitment])


def frame_iv(number: int) -> bytes:
    """A frame's nonce: its number. The key is the message's own, so no two frames share both."""
    return bytes(8) + struct.pack(">I", number)


def frame_aad(message_id: bytes, final: bool, number: int, length: int) -> bytes:
    """What a frame's tag covers beside its content."""
    return message_id + (FINAL_NAME if final else REGULAR_NAME) + struct.pack(">IQ", number, length)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a header fixes: everything else follows from one length."""

    header_len: int
    frame_length: int = FRAME_LENGTH

    @staticmethod
    def of(context: bytes, edks: Sequence[Edk]) -> Sizes:
        """For a header with this context and these EDKs."""
        wrapped = sum(6 + len(e.provider_id) + len(e.provider_info) + len(e.ciphertext) for e in edks)
        return Sizes(92 + len(context) + wrapped)

    def sealed_len(self, plaintext_len: int) -> int:
        """Bytes of the envelope that so many bytes of plaintext become."""
        frames = max(1, -(-plaintext_len // self.frame_length))
        return self.header_len + 32 * (frames - 1) + 40 + plaintext_len


@dataclasses.dataclass(frozen=True)
class Material:
    """All that a message is made of. A message id is used for one message, ever: a second one would repeat its nonces."""

    message_id: bytes
    context: bytes
    edks: tuple[Edk, ...]
    data_key: bytes | bytearray = dataclasses.field(repr=False)
    frame_length: int = FRAME_LENGTH

    def seal(self, plaintext: bytes) -> bytes:
        """The whole envelope."""
        return b"".join(self.seal_pieces([plaintext]))

    def seal_pieces(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The envelope's bytes, header first, from plaintext that comes in pieces of any size. Memory: two frames.

        A frame is sealed once it is known whether it is the last, so that a plaintext which fills its frames ends with a
        full final frame. Whoever stops before the end has no envelope, and every reader says so.
        """
        encryption_key, commitment = keys.derive(self.message_id, self.data_key)
        cipher = AESGCM(encryption_key)
        body = header_body(self.message_id, self.context, self.edks, self.frame_length, commitment)
        yield body + cipher.encrypt(bytes(12), b"", body)
        waiting, number = bytearray(), 1
        for piece in pieces:
            waiting += piece
            while len(waiting) > self.frame_length:
                yield self._frame(cipher, number, bytes(waiting[: self.frame_length]), final=False)
                del waiting[: self.frame_length]
                number += 1
        yield self._frame(cipher, number, bytes(waiting), final=True)

    def _frame(self, cipher: AESGCM, number: int, content: bytes, final: bool) -> bytes:
        if number > FRAMES_MAX or (not final and number == FRAMES_MAX):
            raise SealingFailed("the plaintext is longer than an envelope may be")
        iv = frame_iv(number)
        head = struct.pack(">I", number) + iv
        if final:
            head = FINAL_MARK + head + struct.pack(">I", len(content))
        return head + cipher.encrypt(iv, content, frame_aad(self.message_id, final, number, len(content)))
