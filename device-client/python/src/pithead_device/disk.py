"""What survives a power cut: a file that is replaced whole, and state in two slots that are written in turn.

A slot is `NAME.a` or `NAME.b` (docs/trust.md, section 4), numbers big-endian:

```text
 0          8            16      20       24
 | PTHSLOT1 | generation | length | crc32c | payload ... |      crc32c (Castagnoli) over generation, length and payload
```

A save writes the slot that is not the newest and syncs it before it counts, so a cut can only damage the copy that nobody
relies on yet. The newest copy that reads back whole wins.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Final

from .errors import StorageFailed

_MAGIC: Final = b"PTHSLOT1"
_HEAD: Final = 24


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C: Final = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C, Castagnoli."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@contextlib.contextmanager
def told(path: pathlib.Path) -> Iterator[None]:
    """Tells a failure of the disk by its reason in the registry."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageFailed("DISK_FULL" if full else "DISK_FAILED", f"{path}: {error.strerror}") from error


def sync_folder(folder: pathlib.Path) -> None:
    """Makes names in a folder durable: they are in its own data, which has a sync of its own."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: pathlib.Path) -> None:
    """A folder that nobody else can look into."""
    if not folder.is_dir():
        with told(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)


def write_synced(path: pathlib.Path, data: bytes) -> None:
    """Writes a file and syncs it. Its name is not durable yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: pathlib.Path, data: bytes) -> None:
    """The file is the old one or the new one, whole, whenever power goes; when this returns it is the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with told(path):
        write_synced(temporary, data)
        os.replace(temporary, path)
        sync_folder(path.parent)


class Slots:
    """One small state in a folder that exists. One process writes: its owner holds the folder's lock."""

    def __init__(self, folder: pathlib.Path, name: str, bytes_max: int) -> None:
        self._paths = folder / f"{name}.a", folder / f"{name}.b"
        self._bytes_max = bytes_max
        self._newest, self._generation = 1, 0

    def load(self) -> bytes | None:
        """The newest copy that is whole; nothing if none was ever written."""
        found: list[tuple[int, int, bytes]] = []
        seen = False
        for slot, path in enumerate(self._paths):
            try:
                with path.open("rb") as file:
                    data = file.read(_HEAD + self._bytes_max + 1)
            except FileNotFoundError:
                continue
            seen = True
            if (whole := self._decode(data)) is not None:
                found.append((whole[0], slot, whole[1]))
        if not found:
            if seen:
                raise StorageFailed("STATE_DAMAGED", f"neither {self._paths[0]} nor its twin reads back")
            return None
        self._generation, self._newest, payload = max(found)
        return payload

    def save(self, payload: bytes) -> None:
        """Durable when it returns."""
        if len(payload) > self._bytes_max:
            raise StorageFailed("STATE_DAMAGED", f"a state of {len(payload)} bytes, above {self._bytes_max}")
        slot = 1 - self._newest
        path = self._paths[slot]
        new = not path.exists()
        covered = struct.pack(">QI", self._generation + 1, len(payload))
        with told(path):
            write_synced(path, _MAGIC + covered + struct.pack(">I", crc32c(covered + payload)) + payload)
            if new:
                sync_folder(path.parent)
        self._newest, self._generation = slot, self._generation + 1

    @staticmethod
    def _decode(data: bytes) -> tuple[int, bytes] | None:
        if len(data) < _HEAD or data[:8] != _MAGIC:
            return None
        generation, length, crc = struct.unpack(">QII", data[8:_HEAD])
        payload = data[_HEAD:]
        if len(payload) != length or crc32c(data[8:20] + payload) != crc:
            return None
        return generation, payload
