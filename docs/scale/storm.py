"""Single vehicles, where a flow would hide what happens: everybody comes back at one moment.

`reconnect`: one site after a power cut. Each vehicle tries, is refused or waits, and tries again after a delay with full jitter.
`sessions`: data keys that the cloud is asked for after the cut, one by one, against the quota of KMS. All lines begin their first sessions within
the time that it takes to start: that is the first wave. These end at random ages, and every later session after exactly 15 minutes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import List, Optional, Tuple

from events import Bucket, Clock, Station


@dataclass
class Reconnected:
    vehicles: int
    connected: int
    last_s: float  # from the return of power until the last one has its keys
    after_up_s: float  # the longest time from being up, and the gateway too, until connected
    attempts: int
    cpu_s: float


def reconnect(
    costs: SimpleNamespace,
    vehicles: int,
    gateways: int,
    seed: int,
    boots: Optional[Tuple[float, float]] = None,
    gateway_up_s: Optional[float] = None,
) -> Reconnected:
    """Power is back at 0. A vehicle stays at the gateway that takes it, and goes to the next one with each attempt."""
    site, random_ = costs.site, random.Random(seed)
    clock = Clock()
    first, last = boots or (costs.vehicle.boot_first_s, costs.vehicle.boot_last_s)
    ready = site.gateway_boot_s + site.restart_s if gateway_up_s is None else gateway_up_s
    doors = [Bucket(site.connections_per_s, site.connection_burst) for _ in range(gateways)]
    cpus = [Station(clock, site.handshake_ms / 1_000, site.cores) for _ in range(gateways)]
    inside = [0] * gateways
    done: List[Tuple[float, float]] = []
    attempts = 0

    def attempt(number: int, up: float, failures: int) -> None:
        nonlocal attempts
        attempts += 1
        at = (number + failures) % gateways
        cpu = cpus[at]
        handshaking = cpu.busy + cpu.waiting
        # A connection counts from the moment it is accepted. Who would still wait for a processor at the end of the time-out is cut then.
        in_time = handshaking * cpu.service_s / cpu.servers < site.handshake_timeout_s
        if clock.now >= ready and inside[at] + handshaking < site.connections and doors[at].take(clock.now) and in_time:

            def connected() -> None:
                inside[at] += 1
                done.append((clock.now, max(up, ready)))

            cpu.ask(connected)
            return
        delay = random_.uniform(0, min(costs.vehicle.retry_max_s, costs.vehicle.retry_first_s * 2 ** min(failures, 10)))
        clock.after(delay, lambda: attempt(number, up, failures + 1))

    for number in range(vehicles):
        up = random_.uniform(first, last)
        clock.at(up, lambda number=number, up=up: attempt(number, up, 0))
    # Those who find no place try for ever; ten minutes tell.
    clock.run(max(last, ready) + 600.0)
    return Reconnected(
        vehicles=vehicles,
        connected=len(done),
        last_s=max(time for time, _ in done),
        after_up_s=max(time - since for time, since in done),
        attempts=attempts,
        cpu_s=sum(cpu.busy_s for cpu in cpus),
    )


@dataclass
class Waves:
    waiting: List[Tuple[float, float]]  # time, data keys that wait for KMS
    longest_s: float
    through_s: Optional[float]  # all are up, and a data key waits less than a second again: the first wave is through; None: not in this time
    longest_later_s: float  # the longest wait of data keys that were asked for after that; of all later ones, if it never is
    a_minute: List[int]  # data keys that were asked for, minute by minute
    asked: int
    answered: int
    unanswered: int


def sessions(
    costs: SimpleNamespace,
    vehicles: int,
    kms_per_s: float,
    hours: float,
    seed: int,
    full_age: bool = False,
    one_for: int = 1,
    look_s: float = 10.0,
) -> Waves:
    """`full_age`: first sessions are as long as all others, so that lines which begin together stay in step. The device does so only after
    a pause that is shorter than a session, and then for those lines whose session ended in it.
    `one_for`: one vehicle stands for so many, and KMS is as much slower."""
    random_ = random.Random(seed)
    clock = Clock()
    kms = Station(clock, one_for / kms_per_s)
    until = hours * 3_600.0
    asked = 0
    a_minute = [0] * (int(until // 60) + 1)
    waits: List[Tuple[float, float]] = []
    session_s = costs.vehicle.session_s

    def unwrap() -> None:
        nonlocal asked
        asked += 1
        a_minute[int(clock.now // 60)] += one_for
        began = clock.now
        kms.ask(lambda: waits.append((began, clock.now - began)))

    def session(first: bool) -> None:
        unwrap()
        lasts = session_s if full_age or not first else random_.uniform(min(session_s, costs.vehicle.first_session_min_s), session_s)
        if clock.now + lasts < until:
            clock.after(lasts, lambda: session(False))

    def file() -> None:
        unwrap()
        after = random_.expovariate(costs.vehicle.files_per_h / 3_600)
        if clock.now + after < until:
            clock.after(after, file)

    for _ in range(vehicles // one_for):
        up = random_.uniform(costs.vehicle.boot_first_s, costs.vehicle.boot_last_s)
        for _ in range(costs.vehicle.streams):
            clock.at(up + random_.uniform(0, costs.vehicle.linger_s), lambda: session(True))
        if costs.vehicle.files_per_h:
            clock.at(up + random_.expovariate(costs.vehicle.files_per_h / 3_600), file)
    looks: List[Tuple[float, float]] = []

    def look() -> None:
        looks.append((clock.now, float((kms.waiting + kms.busy) * one_for)))
        if clock.now + look_s <= until:
            clock.after(look_s, look)

    clock.at(0.0, look)
    clock.run(until)
    all_up = costs.vehicle.boot_last_s + costs.vehicle.linger_s
    through = next((began for began, wait in waits if began > all_up and wait < 1), None)
    return Waves(
        looks,
        max((wait for _, wait in waits), default=0.0),
        through,
        max((wait for began, wait in waits if began > (all_up if through is None else through)), default=0.0),
        a_minute,
        asked * one_for,
        kms.served * one_for,
        (kms.waiting + kms.busy) * one_for,
    )
