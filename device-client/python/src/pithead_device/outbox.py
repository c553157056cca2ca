"""Sealed envelopes that the gateway has not acknowledged yet: a folder of files, each durable before it is sent.

```text
FOLDER/<stream>-<run>-<seq>-<first 16 hex digits of SHA-256>.envelope     waits
FOLDER/<the same>.damaged                                                 does not fit its name; not declared yet
FOLDER/damaged/...                                                        was declared inside a seal
FOLDER/refused/<the same>.envelope, .json                                 will never be taken, and why
```

What is sent again is the same bytes. Nothing is thrown away: what the gateway refuses for good, and what the disk has
damaged, is kept beside for a person to look at, and at its bound delivery stops and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Final

from . import disk, names
from .errors import PitheadError, StorageFailed
from .names import Identity

BYTES_MAX: Final = 256 * 2**20
REFUSED_MAX: Final = 1_000
REFUSED_BYTES_MAX: Final = 64 * 2**20

_NAME = re.compile(r"([a-z0-9-]{1,32})-([0-9a-f]{16})-([1-9][0-9]{0,18})-([0-9a-f]{16})\.(envelope|damaged)", re.ASCII)


class Outbox:
    """The outbox of one device. One process: the device holds the folder's lock."""

    def __init__(self, folder: pathlib.Path, site: str, device: str, bytes_max: int = BYTES_MAX) -> None:
        self._folder, self._site, self._device, self._bytes_max = folder, site, device, bytes_max
        self._held: dict[Identity, tuple[pathlib.Path, int]] = {}
        self._damaged: dict[Identity, pathlib.Path] = {}
        disk.make_folder(folder)
        for path in sorted(folder.iterdir()):
            if path.name.endswith(".tmp"):
                # Its name was never durable, so nobody was told of it.
                path.unlink()
                continue
            found = _NAME.fullmatch(path.name)
            if found is None:
                continue
            stream, run, seq, digest, kind = found.groups()
            try:
                identity = Identity(site, device, stream, names.run_from_text(run), names.seq_from_text(seq))
            except PitheadError:
                continue
            if kind == "damaged":
                self._damaged[identity] = path
            elif hashlib.sha256(envelope := path.read_bytes()).hexdigest()[:16] != digest:
                self._mark_damaged(identity, path)
            else:
                self._held[identity] = path, len(envelope)

    @property
    def bytes_held(self) -> int:
        """Bytes that wait."""
        return sum(length for _, length in self._held.values())

    def waiting(self) -> list[Identity]:
        """What waits: older runs first, and the numbers of a line in their order."""
        return sorted(self._held, key=lambda identity: (identity.run, identity.stream, identity.seq))

    def damaged(self) -> list[Identity]:
        """What the disk has damaged and no batch has declared yet."""
        return sorted(self._damaged)

    def room_for(self, length: int) -> None:
        """OUTBOX_FULL if an envelope of that length finds no room."""
        if self.bytes_held + length > self._bytes_max:
            raise StorageFailed("OUTBOX_FULL", f"the outbox holds {self.bytes_held} of {self._bytes_max} bytes")

    def keep(self, identity: Identity, envelope: bytes) -> None:
        """Takes an envelope; it is durable, and may be sent, when this returns."""
        self.room_for(len(envelope))
        digest = hashlib.sha256(envelope).hexdigest()[:16]
        path = self._folder / f"{identity.stream}-{names.run_text(identity.run)}-{identity.seq}-{digest}.envelope"
        disk.replace(path, envelope)
        self._held[identity] = path, len(envelope)

    def read(self, identity: Identity) -> bytes | None:
        """The envelope; nothing if the disk has damaged it since, which is then among [`Outbox.damaged`]."""
        path, _ = self._held[identity]
        envelope = path.read_bytes()
        if hashlib.sha256(envelope).hexdigest()[:16] == path.name.rsplit("-", 1)[1].split(".")[0]:
            return envelope
        del self._held[identity]
        self._mark_damaged(identity, path)
        return None

    def _mark_damaged(self, identity: Identity, path: pathlib.Path) -> None:
        marked = path.with_suffix(".damaged")
        with disk.told(path):
            os.replace(path, marked)
            disk.sync_folder(self._folder)
        self._damaged[identity] = marked

    def declared(self, identities: list[Identity]) -> None:
        """A batch that declares these damaged ones is safe."""
        if not identities:
            return
        aside = self._folder / "damaged"
        disk.make_folder(aside)
        self._move([self._damaged[identity] for identity in identities], aside)
        for identity in identities:
            del self._damaged[identity]

    def _move(self, paths: list[pathlib.Path], aside: pathlib.Path) -> None:
        with disk.told(aside):
            for path in paths:
                os.replace(path, aside / path.name)
            disk.sync_folder(aside)
            disk.sync_folder(self._folder)

    def forget(self, identity: Identity) -> None:
        """It was acknowledged: somebody else holds it. Coming back after a cut is harmless, it is a duplicate then."""
        path, _ = self._held[identity]
        with disk.told(path):
            path.unlink()
        del self._held[identity]

    def set_aside(self, identity: Identity, reason: str, detail: str) -> None:
        """The gateway will never take it: kept with its reason, for a person to look at."""
        path, length = self._held[identity]
        aside = self._folder / "refused"
        disk.make_folder(aside)
        kept = [entry.stat().st_size for entry in aside.glob("*.envelope")]
        if len(kept) >= REFUSED_MAX or sum(kept) + length > REFUSED_BYTES_MAX:
            raise StorageFailed("OUTBOX_FULL", f"{aside} is full: look at the reasons there, then move the files away")
        why = {"identity": str(identity), "reason": reason, "detail": detail}
        disk.replace((aside / path.name).with_suffix(".json"), json.dumps(why).encode())
        self._move([path], aside)
        del self._held[identity]
