"""Batches: many records under one seal, and what a device says of its lines there (docs/envelope.md, section 6).

The bytes are `pithead.batch.v1.Batch`. A batch is bounded before it is built, so that its envelope fits the gateway's
inline limit.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Final

from pithead.batch.v1 import batch_pb2

from . import names
from .envelope.context import BATCH as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "BatchBuilder", "Gap", "GapReason", "Line"]

RECORDS_MAX: Final = 1_000
# A quarter of the gateway's default inline limit.
BYTES_MAX: Final = 256 * 1024
GAPS_MAX: Final = 1_024
LINES_MAX: Final = names.STREAMS_PER_DEVICE


class GapReason(enum.IntEnum):
    """Why numbers will never come."""

    DROPPED_BY_POLICY = 1
    OUTBOX_DAMAGED = 2
    REFUSED = 3


@dataclasses.dataclass(frozen=True)
class Gap:
    """Numbers `first` to `last`, both included, that will never come."""

    stream: str
    run: int
    first: int
    last: int
    reason: GapReason

    def __post_init__(self) -> None:
        names.stream(self.stream), names.run(self.run), names.seq(self.first), names.seq(self.last)
        if self.first > self.last:
            raise ValueError("a gap ends before it begins")


@dataclasses.dataclass(frozen=True)
class Line:
    """The newest number of a line; 0 if nothing was sealed on it."""

    stream: str
    run: int
    last_seq: int

    def to_wire(self) -> batch_pb2.Line:
        """As it stands in a batch."""
        return batch_pb2.Line(stream=self.stream, run=self.run, last_seq=self.last_seq)


def _varint_len(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


class BatchBuilder:
    """A batch that is being filled."""

    def __init__(self, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._records_max, self._bytes_max = records_max, bytes_max
        self.clear()

    def clear(self) -> None:
        """An empty batch."""
        self._batch, self._last_us, self._bytes = batch_pb2.Batch(), 0, 0

    def __len__(self) -> int:
        return len(self._batch.records)

    def push(self, data: bytes, name: str, at_us: int, monotonic_us: int) -> bool:
        """Adds a record taken at `at_us` (microseconds since 1970), when the monotonic clock stood at `monotonic_us`.

        False if the batch is full: finish it and begin the next. An empty batch takes any record.
        """
        first = len(self) == 0
        base_us = at_us if first else self._last_us
        record = batch_pb2.Record(dt_us=at_us - base_us, data=data, name=name)
        length = record.ByteSize()
        framed = 1 + _varint_len(length) + length
        if not first and (len(self) >= self._records_max or self._bytes + framed > self._bytes_max):
            return False
        if first:
            self._batch.base_us, self._batch.monotonic_us = at_us, monotonic_us
        self._batch.records.append(record)
        self._last_us, self._bytes = at_us, self._bytes + framed
        return True

    def build(
        self, previous: Line | None = None, gaps: Iterable[Gap] = (), heartbeat: Iterable[Line] = (),
        clocks_us: tuple[int, int] | None = None,
    ) -> bytes:
        """The plaintext to seal. The builder is left as it is: clear it when the envelope is safe.

        A batch without records has no time of its own: `clocks_us`, wall and monotonic, gives it one.
        """
        batch = batch_pb2.Batch()
        batch.CopyFrom(self._batch)
        if not batch.records and clocks_us is not None:
            batch.base_us, batch.monotonic_us = clocks_us
        if previous is not None:
            batch.previous.CopyFrom(previous.to_wire())
        batch.heartbeat.extend(line.to_wire() for line in heartbeat)
        for gap in gaps:
            batch.gaps.add(
                stream=gap.stream, run=gap.run, to=gap.last, reason=int(gap.reason), **{"from": gap.first},
            )
        if len(batch.gaps) > GAPS_MAX or len(batch.heartbeat) > LINES_MAX:
            raise ValueError(f"a batch has at most {GAPS_MAX} gaps and {LINES_MAX} lines")
        return batch.SerializeToString(deterministic=True)
