"""A device: what it believes, where its lines stand, and what it has sealed and not handed over yet. All of it in a folder.

```text
FOLDER/LOCK                held while a program works here
FOLDER/trust.a, trust.b    what is believed (docs/trust.md, section 4)
FOLDER/lines.a, lines.b    where the lines stand
FOLDER/outbox/             what waits to be handed over
```

An envelope is durable before anybody is told of it, and stays until it is acknowledged. What is not sealed yet is in
memory: a record is safe when [`Device.flush`] has returned, and not before. Methods may be called from several threads; a
forked child may use none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from . import names
from .batch import CONTENT_TYPE, GAPS_MAX, BatchBuilder, Gap, GapReason
from .disk import Slots, make_folder
from .envelope import Facts, Session, SigningKey
from .errors import PitheadError, SealingFailed, StorageFailed
from .names import Identity
from .outbox import BYTES_MAX as OUTBOX_BYTES
from .outbox import Outbox
from .sequence import BYTES_MAX as LINES_BYTES
from .sequence import Sequence
from .trust import Bundle, Clock, Status, Trust, VerifiedKey
from .trust import record as records

# What a gateway takes in one piece by default. A larger envelope goes by an upload, which this package does not speak.
INLINE_MAX: Final = 2**20
# How often operating time is written down: what a cut may cost of it, against the wear of a flash cell.
UPTIME_SAVED_EVERY_S: Final = 600
STATUS_STREAM: Final = "status"


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _wall_us() -> int:
    return time.time_ns() // 1_000


@dataclasses.dataclass(frozen=True)
class Clocks:
    """Where time comes from. Wall time stamps records, and nothing is decided by it."""

    boot_s: Callable[[], float] = _boot_s
    """Seconds since the machine was booted, sleep included; nobody can set it."""
    wall_us: Callable[[], int] = _wall_us
    """Microseconds since 1970 by the system's clock."""
    trusted_s: Callable[[], int | None] = lambda: None
    """Seconds since 1970 by a clock that the owner vouches for, if there is one."""


F = TypeVar("F", bound=Callable[..., Any])


def _guarded(method: F) -> F:
    def guarded(self: Device, *arguments: Any, **options: Any) -> Any:
        if os.getpid() != self._pid:
            raise SealingFailed("a forked child uses no device of its parent's")
        with self._mutex:
            return method(self, *arguments, **options)

    guarded.__doc__, guarded.__name__ = method.__doc__, method.__name__
    return guarded  # type: ignore[return-value]


def enroll(folder: pathlib.Path, authority: str, site: str, device: str, root: bytes, bundle: Bundle | None = None) -> None:
    """Provisions a device with the trust root that its owner gives it by hand, and a bundle if there is one.

    A folder that holds a device already is left as it is (WOULD_OVERWRITE); a refused bundle leaves nothing behind.
    """
    trust = Trust.provision(authority, names.site(site), root)
    names.device(device)
    if bundle is not None:
        trust, refused = trust.apply(dataclasses.replace(bundle, roots=trust.newer_roots(bundle.roots)), Clock())
        if refused is not None:
            raise refused
    make_folder(folder)
    with _locked(folder):
        slots = Slots(folder, "trust", records.MAX_RECORD)
        if slots.load() is not None:
            raise PitheadError("WOULD_OVERWRITE", f"{folder} holds a device already")
        Sequence.create(Slots(folder, "lines", LINES_BYTES), device)
        slots.save(records.encode(trust, Clock()))


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageFailed("DATA_DIR_UNWRITABLE", f"{folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageFailed("DATA_DIR_LOCKED", f"another program works in {folder}") from error
        yield
    finally:
        os.close(descriptor)


class Device:
    """An enrolled device, open. Opening begins a run."""

    def __init__(
        self, folder: pathlib.Path, signer: SigningKey | None = None, clocks: Clocks = Clocks(),
        outbox_bytes: int = OUTBOX_BYTES,
    ) -> None:
        self._pid, self._mutex, self._open = os.getpid(), threading.RLock(), contextlib.ExitStack()
        self._clocks, self._signer = clocks, signer
        with contextlib.ExitStack() as opening:
            opening.enter_context(_locked(folder))
            self._trust_slots = Slots(folder, "trust", records.MAX_RECORD)
            record = self._trust_slots.load()
            if record is None:
                raise PitheadError("CONFIG_INVALID", f"{folder} holds no enrolled device")
            self._trust = records.restore(record)
            self._opened_s, self._saved_s = clocks.boot_s(), 0
            self._sequence = Sequence(Slots(folder, "lines", LINES_BYTES))
            self.device = self._sequence.device
            self._outbox = Outbox(folder / "outbox", self.site, self.device, outbox_bytes)
            self._sequence.begin([*self._outbox.waiting(), *self._outbox.damaged()])
            self._open = opening.pop_all()
        self._sessions: dict[str, Session] = {}
        self._batches: dict[str, BatchBuilder] = {}
        self._unsure: set[str] = set()
        self._heartbeat_stream: str | None = None

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_guarded
    def close(self) -> None:
        """Seals what is still open in batches, writes everything down and lets the folder go."""
        with self._open:
            try:
                self.flush()
            finally:
                self._sequence.save()
                self._save_trust()
                for session in self._sessions.values():
                    session.close()
                self._sessions.clear()

    # Trust

    @property
    def site(self) -> str:
        """The device's site."""
        return self._trust.site

    @property
    def trust(self) -> Trust:
        """What is believed."""
        return self._trust

    def _clock(self) -> Clock:
        return Clock(int(self._clocks.boot_s() - self._opened_s), self._clocks.trusted_s())

    def _save_trust(self) -> None:
        clock = self._clock()
        self._trust_slots.save(records.encode(self._trust, clock))
        self._saved_s = clock.uptime_s

    @_guarded
    def tick(self) -> None:
        """Writes operating time down every 10 minutes. To be called now and then; sealing does it as well."""
        if self._clock().uptime_s - self._saved_s >= UPTIME_SAVED_EVERY_S:
            self._save_trust()

    @_guarded
    def apply(self, bundle: Bundle) -> bool:
        """Verifies a bundle and takes in what holds; whether anything has changed.

        What was accepted is durable before this returns, also before it raises the refusal of what came behind it.
        """
        bundle = dataclasses.replace(bundle, roots=self._trust.newer_roots(bundle.roots))
        before, clock = self._trust, self._clock()
        after, refused = before.apply(bundle, clock)
        if after != before:
            # Written first: nothing is believed that a restart would not know of.
            self._trust_slots.save(records.encode(after, clock))
            self._trust, self._saved_s = after, clock.uptime_s
        if refused is not None:
            raise refused
        return after != before

    @_guarded
    def status(self) -> Status:
        """How far the device is from losing its key."""
        return self._trust.status(self._clock())

    @_guarded
    def key(self) -> VerifiedKey:
        """The key to seal to now."""
        return self._trust.verified_key(self._clock())

    # Sealing

    @_guarded
    def seal(self, stream: str, plaintext: bytes, **said: Any) -> Identity:
        """Seals `plaintext` as the next envelope of `stream` and keeps it; durable when this returns.

        `said` are further fields of [`Facts`]: content_type, encoding, file_name, created, others. On an error nothing was
        kept and no number is used.
        """
        self.tick()
        facts = Facts(self.site, self.device, names.stream(stream), **said)
        if stream in self._unsure:
            self._sequence.begin_run(stream)
            self._unsure.discard(stream)
        run, seq = self._sequence.next(stream)
        session = self._session(facts, run)
        length = session.sealed_len(len(plaintext))
        if length > INLINE_MAX:
            raise PitheadError("ENVELOPE_TOO_LARGE", f"an envelope of {length} bytes, above {INLINE_MAX}")
        self._outbox.room_for(length)
        envelope = session.seal(seq, plaintext, self._clocks.boot_s())
        identity = Identity(self.site, self.device, stream, run, seq)
        # Until it has returned, nobody knows whether the disk has it: the number is not given to other bytes then.
        self._unsure.add(stream)
        self._outbox.keep(identity, envelope)
        self._unsure.discard(stream)
        self._sequence.commit(stream, seq)
        return identity

    def _session(self, facts: Facts, run: int) -> Session:
        # Asked for every message, not only at the start: a key that is dead, over or denied ends its session at once.
        key, boot_s = self.key(), self._clocks.boot_s()
        session = self._sessions.get(facts.stream)
        if session is None or not session.goes_on(key, facts, run, boot_s):
            if session is not None:
                session.close()
            session = Session.start(key, facts, run, boot_s, self._signer)
            self._sessions[facts.stream] = session
        return session

    @_guarded
    def record(self, stream: str, data: bytes, name: str = "", at_us: int | None = None) -> None:
        """Adds a record to the open batch of `stream`, which is sealed and kept when it is full."""
        builder = self._batches.setdefault(names.stream(stream), BatchBuilder())
        at_us = self._clocks.wall_us() if at_us is None else at_us
        while not builder.push(data, name, at_us, int(self._clocks.boot_s() * 1_000_000)):
            self._seal_batch(stream)

    @_guarded
    def flush(self) -> None:
        """Seals the open batches. Every record so far is durable when this returns."""
        for stream, builder in self._batches.items():
            if len(builder):
                self._seal_batch(stream)

    @_guarded
    def heartbeat(self) -> Identity:
        """Says, inside a seal, up to which number each stream goes: below it, and only below it, a loss can be proven.

        To be called every 60 s while connected, and at shutdown before [`Device.close`].
        """
        self.flush()
        return self._seal_batch(self._heartbeat_stream or STATUS_STREAM, heartbeat=True)

    def _seal_batch(self, stream: str, heartbeat: bool = False) -> Identity:
        builder = self._batches.setdefault(stream, BatchBuilder())
        damaged = self._outbox.damaged()[:GAPS_MAX]
        gaps = [Gap(lost.stream, lost.run, lost.seq, lost.seq, GapReason.OUTBOX_DAMAGED) for lost in damaged]
        clocks_us = self._clocks.wall_us(), int(self._clocks.boot_s() * 1_000_000)
        marks = self._sequence.marks() if heartbeat else []
        plaintext = builder.build(self._sequence.previous(stream), gaps, marks, clocks_us)
        identity = self.seal(stream, plaintext, content_type=CONTENT_TYPE)
        # Only now: records whose batch could not be kept stay in it, and are tried again.
        builder.clear()
        self._sequence.told_previous(stream)
        self._outbox.declared(damaged)
        self._heartbeat_stream = self._heartbeat_stream or stream
        return identity

    # Handing over

    @_guarded
    def waiting(self) -> list[Identity]:
        """What was not acknowledged yet, in the order in which it is to be sent."""
        return self._outbox.waiting()

    @_guarded
    def read(self, identity: Identity) -> bytes | None:
        """An envelope that waits; nothing if the disk has damaged it, which the next batch then declares."""
        envelope = self._outbox.read(identity)
        if envelope is None:
            self._sequence.begin_run(identity.stream)
        return envelope

    @_guarded
    def acknowledged(self, identity: Identity) -> None:
        """Somebody else holds it: it is forgotten."""
        self._sequence.about_to_forget(identity)
        self._outbox.forget(identity)

    @_guarded
    def refused(self, identity: Identity, reason: str, detail: str) -> None:
        """It will never be taken: kept aside with its reason. Its number is used."""
        self._sequence.about_to_forget(identity)
        self._outbox.set_aside(identity, reason, detail)

    @_guarded
    def begin_run(self, stream: str) -> None:
        """After a conflict: two machines use one name, or a disk was restored from a copy."""
        self._sequence.begin_run(stream)
