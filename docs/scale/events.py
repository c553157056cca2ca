"""The core: a clock that jumps from event to event, a token bucket, and a station at which jobs wait in line.

Events at one moment happen in the order in which they were asked for, so a run is the same every time.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Callable, Deque, List, Tuple


class Clock:
    """Events in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: List[Tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, time: float, what: Callable[[], None]) -> None:
        if time < self.now:
            raise ValueError(f"an event at {time} cannot be asked for at {self.now}")
        self._asked += 1
        heapq.heappush(self._heap, (time, self._asked, what))

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay, what)

    def run(self, until: float = float("inf")) -> None:
        """Everything up to and at `until`; then that is the time, if it is one."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, what = heapq.heappop(self._heap)
            what()
        if until != float("inf"):
            self.now = until


class Bucket:
    """So many at once, and so many a second in the long run. Full at the beginning."""

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s, self.burst = per_s, burst
        self._tokens, self._at = burst, 0.0

    def take(self, now: float) -> bool:
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_s)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Station:
    """Servers that take `service_s` for each job, first come, first served. KMS under a quota of 1,000/s is one server that takes 1 ms."""

    def __init__(self, clock: Clock, service_s: float, servers: int = 1) -> None:
        self.clock, self.service_s, self.servers = clock, service_s, servers
        self.busy, self.served, self.most_waiting = 0, 0, 0
        self.waited_s, self.longest_s, self.busy_s = 0.0, 0.0, 0.0
        self._line: Deque[Tuple[float, Callable[[], None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._line)

    def ask(self, done: Callable[[], None] = lambda: None) -> None:
        self._line.append((self.clock.now, done))
        self._serve()
        self.most_waiting = max(self.most_waiting, self.waiting)

    def _serve(self) -> None:
        while self._line and self.busy < self.servers:
            since, done = self._line.popleft()
            wait = self.clock.now - since
            self.waited_s += wait
            self.longest_s = max(self.longest_s, wait)
            self.busy += 1
            self.busy_s += self.service_s
            self.clock.after(self.service_s, lambda done=done: self._finish(done))

    def _finish(self, done: Callable[[], None]) -> None:
        self.busy -= 1
        self.served += 1
        self._serve()
        done()
