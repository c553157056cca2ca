"""Which number comes next: runs, and where each stream stands (docs/envelope.md, section 5).

A run is drawn every time this state is opened: a start counter that only rises, on disk before the first number of its run
is given out, and 32 random bits, so that neither a restored image nor a cloned disk repeats a number. Numbers are dense
from 1 within (stream, run); one is used up only when its envelope is safe ([`Sequence.commit`]).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from typing import Final

from . import names
from .batch import Line
from .disk import Slots
from .errors import NameRefused, PitheadError, StorageFailed
from .names import Identity

BYTES_MAX: Final = 4_096
_COUNTER_MAX: Final = 2**32 - 1


@dataclasses.dataclass
class _Standing:
    run: int
    last_seq: int = 0
    previous: tuple[int, int] | None = None
    """The line before, while no batch of this run has told of it."""


class Sequence:
    """The sequence state of one device, open for writing."""

    def __init__(self, slots: Slots, entropy: Callable[[int], bytes] = os.urandom) -> None:
        """Reads the state. Nothing is given out before [`Sequence.begin`]."""
        self._slots, self._entropy = slots, entropy
        self.device, self._counter, self._saved = self._load()
        self._streams: dict[str, _Standing] = {}

    @staticmethod
    def create(slots: Slots, device: str) -> None:
        """The state of a new device."""
        slots.save(_encode(names.device(device), 0, {}))

    def begin(self, held: Iterable[Identity]) -> None:
        """Begins a run. `held` are the envelopes of the outbox: they may be newer than what was written before a cut."""
        known = dict(self._saved)
        for identity in held:
            newest = known.get(identity.stream, (identity.run, 0))
            known[identity.stream] = max(newest, (identity.run, identity.seq))
        # An outbox that outlived a lost state: never count below a run that was used.
        self._counter = max([self._counter, *(run >> 32 for run, _ in known.values())])
        self._run = self._draw()
        self._streams = {stream: _Standing(self._run, 0, before) for stream, before in known.items()}
        self.save()

    def _load(self) -> tuple[str, int, dict[str, tuple[int, int]]]:
        stored = self._slots.load()
        if stored is None:
            raise PitheadError("CONFIG_INVALID", "the folder holds no enrolled device")
        try:
            state = json.loads(stored)
            lines = {
                names.stream(stream): (names.run_from_text(run), int(last)) for stream, (run, last) in state["lines"].items()
            }
            return names.device(state["device"]), int(state["counter"]), lines
        except (ValueError, KeyError, TypeError, AttributeError, NameRefused) as error:
            raise StorageFailed("STATE_DAMAGED", "the sequence state is of an unknown version, or malformed") from error

    def _draw(self) -> int:
        if self._counter < _COUNTER_MAX:
            self._counter += 1
            return names.run(self._counter << 32 | int.from_bytes(self._entropy(4), "big"))
        raise StorageFailed("SEALING_FAILED", "the runs of this folder are used up")

    def next(self, stream: str) -> tuple[int, int]:
        """Run and number of the next envelope of `stream`. Nothing is used up by asking."""
        names.stream(stream)
        if stream not in self._streams and len(self._streams) >= names.STREAMS_PER_DEVICE:
            raise PitheadError("TOO_MANY_STREAMS", f"a device has at most {names.STREAMS_PER_DEVICE} streams")
        standing = self._streams.setdefault(stream, _Standing(self._run))
        return standing.run, names.seq(standing.last_seq + 1)

    def commit(self, stream: str, seq: int) -> None:
        """The envelope with that number is safe: the number is used."""
        standing = self._streams[stream]
        standing.last_seq = max(standing.last_seq, seq)

    def begin_run(self, stream: str) -> None:
        """A new run for one stream: after a conflict, or when its outbox was damaged."""
        self._run = self._draw()
        standing = self._streams.get(stream)
        if standing is not None:
            before = (standing.run, standing.last_seq) if standing.last_seq else standing.previous
            self._streams[stream] = _Standing(self._run, 0, before)
        self.save()

    def previous(self, stream: str) -> Line | None:
        """What the first batch of a run tells of the run before it."""
        standing = self._streams.get(stream)
        if standing is None or standing.previous is None:
            return None
        return Line(stream, *standing.previous)

    def told_previous(self, stream: str) -> None:
        """A batch that told of it is safe."""
        self._streams[stream].previous = None

    def marks(self) -> list[Line]:
        """Run and last number of every stream of this opening: a heartbeat."""
        return [Line(stream, at.run, at.last_seq) for stream, at in sorted(self._streams.items()) if at.last_seq]

    def about_to_forget(self, identity: Identity) -> None:
        """Writes down where the lines stand if the outbox is what remembers the newest number of this one."""
        if self._saved.get(identity.stream, (0, 0)) < (identity.run, identity.seq):
            self.save()

    def save(self) -> None:
        """Writes down where the lines stand."""
        lines = {}
        for stream, at in self._streams.items():
            known = (at.run, at.last_seq) if at.last_seq else at.previous
            if known is not None:
                lines[stream] = known
        self._slots.save(_encode(self.device, self._counter, lines))
        self._saved = lines


def _encode(device: str, counter: int, lines: dict[str, tuple[int, int]]) -> bytes:
    told = {stream: [names.run_text(run), last] for stream, (run, last) in lines.items()}
    return json.dumps({"device": device, "counter": counter, "lines": told}, sort_keys=True).encode()
