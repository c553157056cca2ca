"""Fleets as flows: what vehicles record moves from queue to queue at rates that change at events, not envelope by envelope.

    vehicles ─> outbox ─ radio, gateway ─> spool ─ WAN ─> [bucket] ─ decryptors, KMS ─> delivered
                  │ full: refused            │ full: stays in the outbox

The unit in every queue is a *vehicle-second*: what one vehicle makes in a second of work. It stands for so many bytes, envelopes and
data keys (`Profile`), which leave a queue in the order in which they came, so one number is enough. Between two events all rates are
constant; an event is a queue that runs empty or full, a budget that is used up, or something from outside (a shift begins, a link is
cut, a replica dies). Where sites share something (decryptors, the KMS quota), each gets the same until it needs no more.

Sites that are alike and see the same are one *group* of sites; a fleet whose links come back at different moments is several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Callable, Dict, List, Optional, Tuple

from events import Clock

TINY = 1e-9
MIB = 1 << 20
DAY_S = 86_400.0


@dataclass(frozen=True)
class Profile:
    """What one vehicle makes in a second of work."""

    recorded: float  # bytes that it records, files included
    bytes: float  # bytes sealed, on the way
    envelopes: float
    keys: float  # data keys, each one unwrap at the cloud
    live_keys: float  # data keys in use at one moment

    @staticmethod
    def of(vehicle: SimpleNamespace) -> "Profile":
        per_s = envelopes_per_s(vehicle)
        files = vehicle.files_per_h / 3_600
        raw = vehicle.records_per_s * vehicle.record_bytes
        return Profile(
            recorded=raw + files * vehicle.file_bytes,
            bytes=vehicle.records_per_s * (vehicle.record_bytes + vehicle.record_around)
            + per_s * vehicle.envelope_around
            + files * vehicle.file_bytes,
            envelopes=per_s + files,
            keys=vehicle.streams / vehicle.session_s + files,
            live_keys=vehicle.streams,
        )


def envelopes_per_s(vehicle: SimpleNamespace) -> float:
    """A stream that always has something closes an envelope at each linger; one that has less, one for each record."""
    return min(vehicle.records_per_s, vehicle.streams / vehicle.linger_s)


def duty(vehicle: SimpleNamespace) -> float:
    return vehicle.shift_h / (vehicle.shift_h + vehicle.pause_h)


def ingest_us(site: SimpleNamespace, size: float) -> float:
    """CPU of the gateway for an envelope of this size: a line through the two sizes that were measured."""
    slope = (site.ingest_64k_us - site.ingest_1k_us) / 63
    return site.ingest_1k_us + slope * (size / 1024 - 1)


@dataclass
class Sites:
    """Sites that are alike. Rates are of all of them together, in vehicle-seconds a second."""

    count: int
    vehicles: int
    gateways: int
    radio: float
    gateway: float
    wan: float
    budget: float  # of unwraps, for all of their gateways
    burst: float
    outbox_room: float
    spool_room: float
    ledger: float = math.inf  # entries of each site's ledger come one after the other
    decryptor: int = 0  # which of the decryptors, where each has its sites
    working: bool = True
    radio_up: bool = True
    gateway_up: bool = True
    wan_up: bool = True
    outbox: float = 0.0
    spool: float = 0.0
    bucket: float = 0.0
    recorded: float = 0.0
    refused: float = 0.0
    delivered: float = 0.0
    most_spool: float = 0.0
    most_outbox: float = 0.0
    over_budget: bool = False
    rates: Dict[str, float] = field(default_factory=dict)
    wall: str = ""
    # At the fleet's `times`: taken by the vehicles, left the site, delivered.
    history: List[Tuple[float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, 0.0)])

    def __post_init__(self) -> None:
        self.tokens = self.burst

    @property
    def waiting(self) -> float:
        return self.outbox + self.spool + self.bucket


@dataclass
class Decryptor:
    """Replicas that share their sites. Each has its own CPU, and its own budget of unwraps."""

    replicas: float
    envelopes_per_s: float
    unwraps_per_s: float


class Fleet:
    """The whole of it, and the events that change its rates. `walls`: site-seconds in which each thing was what held a backlog up."""

    def __init__(
        self,
        profile: Profile,
        sites: List[Sites],
        decryptors: List[Decryptor],
        kms_per_s: float,
        through_bucket: bool,
        work: Optional[Tuple[float, float]] = None,
    ) -> None:
        self.profile, self.sites, self.decryptors = profile, sites, decryptors
        self.kms_per_s, self.through_bucket = kms_per_s, through_bucket
        self.clock = Clock()
        self.walls: Dict[str, float] = {}
        self.most_kms = 0.0
        self.kms_calls = 0.0
        self.times: List[float] = [0.0]
        self.oldest_s = 0.0
        self._last = 0.0
        self._version = 0
        if work:
            self._shift(*work)
        self.change(lambda: None)

    # -- what comes from outside

    def change(self, what: Callable[[], None]) -> None:
        """Something is different from now on."""
        self._advance()
        what()
        self._settle()

    def at(self, time: float, what: Callable[[], None]) -> None:
        self.clock.at(time, lambda: self.change(what))

    def _shift(self, work_s: float, pause_s: float) -> None:
        def turn(working: bool) -> None:
            for one in self.sites:
                one.working = working
            self.clock.after(work_s if working else pause_s, lambda: self.change(lambda: turn(not working)))

        self.clock.after(work_s, lambda: self.change(lambda: turn(False)))

    def run(self, until: float) -> None:
        self.clock.run(until)
        self.change(lambda: None)

    def drain(self, limit: float, waits_s: float = 60.0) -> Optional[float]:
        """Runs until nothing is older than `waits_s`, and says when that was; None if it is not by `limit`."""
        while self.clock.now < limit:
            step = min(limit, self.clock.now + 600.0)
            self.run(step)
            if self.age_s() <= waits_s:
                return self._caught_up(waits_s)
        return None

    def _caught_up(self, waits_s: float) -> float:
        """The first event since which the age has stayed below `waits_s`."""
        index = len(self.times) - 1
        while index > 0 and self._age_at(index - 1) <= waits_s:
            index -= 1
        return self.times[index]

    # -- time

    def _advance(self) -> None:
        now, passed = self.clock.now, self.clock.now - self._last
        self._last = now
        if passed <= 0:
            return
        for one in self.sites:
            rates = one.rates
            one.recorded += rates["in"] * passed
            one.refused += rates["refused"] * passed
            one.outbox = _clean(one.outbox + (rates["in"] - rates["refused"] - rates["up"]) * passed, rates["in"])
            one.spool = _clean(one.spool + (rates["up"] - rates["wan"]) * passed, rates["up"])
            one.bucket = _clean(one.bucket + (rates["wan"] - rates["open"]) * passed, rates["wan"])
            one.delivered += rates["open"] * passed
            one.tokens = min(one.burst, max(0.0, one.tokens + (one.budget - rates["open"] * self.profile.keys) * passed))
            if one.tokens <= TINY * one.burst:
                one.over_budget = True
            elif one.spool + one.bucket <= 0.0:
                one.over_budget = False
            one.most_spool, one.most_outbox = max(one.most_spool, one.spool), max(one.most_outbox, one.outbox)
            self.kms_calls += rates["open"] * self.profile.keys * passed
            if one.wall:
                self.walls[one.wall] = self.walls.get(one.wall, 0.0) + passed * one.count
            one.history.append((one.recorded - one.refused, one.delivered + one.bucket, one.delivered))
        self.times.append(now)
        self.oldest_s = max(self.oldest_s, self.age_s())

    # -- rates

    def _settle(self) -> None:
        """Works the rates out, and asks for the event at which they stop being right."""
        wanted = []
        for one in self.sites:
            coming = one.count * one.vehicles * 1.0 if one.working else 0.0
            up_most = min(one.radio, one.gateway) if one.gateway_up and one.radio_up else 0.0
            up = up_most if one.outbox > 0 else min(coming, up_most)
            wan_most = one.wan if one.wan_up and one.gateway_up else 0.0
            wan = wan_most if one.spool > 0 else min(up, wan_most)
            most = one.budget / self.profile.keys if one.over_budget else math.inf
            if self.through_bucket:
                wants = min(most, one.ledger, math.inf if one.bucket > 0 else wan)
            else:
                wants = min(most, wan)
            one.rates = {"in": coming, "up": up, "wan": wan, "open": 0.0, "refused": 0.0}
            wanted.append(wants)
        walls = self._share(wanted)
        for one, wall in zip(self.sites, walls):
            rates = one.rates
            if not self.through_bucket:
                rates["wan"] = rates["open"]
            if one.spool >= one.spool_room * (1 - TINY):
                rates["up"] = min(rates["up"], rates["wan"])
            if one.outbox >= one.outbox_room * (1 - TINY):
                rates["refused"] = max(0.0, rates["in"] - rates["up"])
            one.wall = self._wall(one, wall)
        self.most_kms = max(self.most_kms, sum(one.rates["open"] for one in self.sites) * self.profile.keys)
        self._ask()

    def _wall(self, one: Sites, shared: str) -> str:
        """What holds this backlog up; nothing if there is none."""
        if one.bucket > 0 or (
            not self.through_bucket and one.spool > 0 and one.rates["open"] < one.wan * (1 - 1e-9) and one.wan_up and one.gateway_up
        ):
            if shared:
                return shared
            if one.over_budget and one.budget / self.profile.keys <= one.ledger:
                return "unwraps of a gateway"
            return "ledger of a site" if self.through_bucket else ""
        if one.spool > 0:
            return "WAN" if one.wan_up and one.gateway_up else "the outage itself"
        if one.outbox > 0:
            return "radio and gateway" if one.gateway_up and one.radio_up else "the outage itself"
        return ""

    def _share(self, wanted: List[float]) -> List[str]:
        """The same for each site until it needs no more, or something shared is used up. Says what stopped each."""
        limits: List[Tuple[str, float, List[int]]] = []
        for number, decryptor in enumerate(self.decryptors):
            members = [index for index, one in enumerate(self.sites) if one.decryptor == number]
            limits.append(("decryptor CPU", decryptor.replicas * decryptor.envelopes_per_s / self.profile.envelopes, members))
            limits.append(("unwraps of a decryptor", decryptor.replicas * decryptor.unwraps_per_s / self.profile.keys, members))
        limits.append(("KMS quota", self.kms_per_s / self.profile.keys, list(range(len(self.sites)))))
        got, stopped = [0.0] * len(wanted), [""] * len(wanted)
        left = [limit for _, limit, _ in limits]
        free = {index for index, wants in enumerate(wanted) if wants > 0}
        while free:
            step = min((wanted[index] - got[index]) / self.sites[index].count for index in free)
            weights = [sum(self.sites[index].count for index in members if index in free) for _, _, members in limits]
            for room, weight in zip(left, weights):
                if weight:
                    step = min(step, room / weight)
            for index in free:
                got[index] += step * self.sites[index].count
            for number, weight in enumerate(weights):
                left[number] -= step * weight
            for number, (name, limit, members) in enumerate(limits):
                if left[number] <= TINY * max(1.0, limit):
                    for index in members:
                        if index in free:
                            stopped[index] = name
                            free.discard(index)
            free -= {index for index in free if got[index] >= wanted[index] * (1 - TINY)}
        for one, rate in zip(self.sites, got):
            one.rates["open"] = rate
        return stopped

    def _ask(self) -> None:
        soonest = math.inf
        for one in self.sites:
            rates = one.rates
            for amount, room, change in (
                (one.outbox, one.outbox_room, rates["in"] - rates["refused"] - rates["up"]),
                (one.spool, one.spool_room, rates["up"] - rates["wan"]),
                (one.bucket, math.inf, rates["wan"] - rates["open"]),
            ):
                scale = TINY * max(1.0, rates["in"])
                if change < -scale and amount > 0:
                    soonest = min(soonest, amount / -change)
                elif change > scale and amount < room * (1 - TINY) and room < math.inf:
                    soonest = min(soonest, (room - amount) / change)
            spent = rates["open"] * self.profile.keys - one.budget
            if not one.over_budget and spent > TINY:
                soonest = min(soonest, one.tokens / spent)
        self._version += 1
        if soonest < math.inf:
            # Not again at the same moment: rounding must not stop the clock.
            self.clock.after(max(soonest, 1e-6), lambda version=self._version: self._if_current(version))

    def _if_current(self, version: int) -> None:
        if version == self._version:
            self.change(lambda: None)

    # -- how late it is

    def age_s(self) -> float:
        """How long ago that was recorded which is delivered now, at the sites that are furthest behind."""
        return self._age_at(len(self.times) - 1)

    def ages(self) -> List[Tuple[float, float]]:
        """At every event so far: its time, and how late deliveries were."""
        return [(time, self._age_at(index)) for index, time in enumerate(self.times)]

    def _age_at(self, index: int) -> float:
        return max(self._age_of(one, index) for one in self.sites)

    def in_bucket_s(self) -> float:
        """The longest that anything has waited in the bucket so far, looked at whenever something changed or `drain` has looked."""
        return max(self._age_of(one, index, 1) for one in self.sites for index in range(len(self.times)))

    def _age_of(self, one: Sites, index: int, since: int = 0) -> float:
        """How long ago that was taken (0), or left the site (1), which is delivered at this point of the history."""
        came, delivered = one.history[index][since], one.history[index][2]
        if delivered >= came * (1 - 1e-9):
            return 0.0
        low, high = 0, index
        while high - low > 1:
            middle = (low + high) // 2
            if one.history[middle][since] <= delivered:
                low = middle
            else:
                high = middle
        began, ended = self.times[low], self.times[high]
        before, after = one.history[low][since], one.history[high][since]
        then = began if after <= before else began + (ended - began) * (delivered - before) / (after - before)
        return self.times[index] - then

    # -- sums

    def total(self, what: str) -> float:
        return sum(getattr(one, what) for one in self.sites)


def _clean(amount: float, rate: float) -> float:
    """Nothing, if rounding is all that is left."""
    return 0.0 if amount < 1e-6 * max(1.0, rate) else amount


def replicas_for(costs: SimpleNamespace, profile: Profile, vehicles: int) -> int:
    """Decryptors that a working day needs, with their headroom: by CPU, and by the data keys that they can keep."""
    by_cpu = costs.cloud.headroom * vehicles * profile.envelopes / costs.cloud.drain_per_s
    by_keys = vehicles * profile.live_keys / costs.cloud.cache_keys
    return max(1, math.ceil(max(by_cpu, by_keys)))


def gateways_for(costs: SimpleNamespace, vehicles: int) -> int:
    return max(1, math.ceil(vehicles / costs.site.connections))


def fleet(
    costs: SimpleNamespace,
    sites: int,
    vehicles: int,
    replicas: Optional[int] = None,
    through_bucket: bool = False,
    shared: bool = True,
    groups: int = 1,
    wan_mbit_per_vehicle: Optional[float] = None,
    disk_days: Optional[float] = None,
    kms_per_s: Optional[float] = None,
    shifts: bool = True,
) -> Fleet:
    """A fleet as costs.json describes it. `shared`: replicas take over for each other; else each has its own sites."""
    profile = Profile.of(costs.vehicle)
    replicas = replicas or replicas_for(costs, profile, sites * vehicles)
    groups = min(groups, sites)
    gateways = gateways_for(costs, vehicles)
    size = profile.bytes / profile.envelopes
    per_gateway = costs.site.cores * 1e6 / (ingest_us(costs.site, size) + costs.site.relay_us) / profile.envelopes
    wan = (wan_mbit_per_vehicle or costs.site.wan_mbit_per_vehicle) * 1e6 / 8 * vehicles / profile.bytes
    a_day = DAY_S * duty(costs.vehicle) * vehicles
    streams = profile.bytes - costs.vehicle.files_per_h / 3_600 * costs.vehicle.file_bytes
    many = []
    for number in range(groups):
        count = sites // groups + (1 if number < sites % groups else 0)
        many.append(
            Sites(
                count=count,
                vehicles=vehicles,
                gateways=gateways,
                radio=count * vehicles * costs.site.radio_mbit_per_vehicle * 1e6 / 8 / profile.bytes,
                gateway=count * gateways * per_gateway,
                wan=count * wan,
                budget=count * gateways * costs.cloud.gateway_per_s,
                burst=count * gateways * costs.cloud.gateway_burst,
                outbox_room=count * vehicles * costs.vehicle.streams * costs.vehicle.outbox_bytes / streams,
                spool_room=count * (disk_days or costs.site.disk_days) * a_day,
                ledger=count * costs.cloud.bundle_bytes / (costs.cloud.ledger_turn_s * streams) if through_bucket else math.inf,
                decryptor=0 if shared else number % replicas,
            )
        )
    if shared:
        decryptors = [Decryptor(replicas, costs.cloud.drain_per_s, costs.cloud.total_per_s)]
    else:
        decryptors = [Decryptor(1, costs.cloud.drain_per_s, costs.cloud.total_per_s) for _ in range(replicas)]
    work = (costs.vehicle.shift_h * 3_600.0, costs.vehicle.pause_h * 3_600.0) if shifts else None
    return Fleet(profile, many, decryptors, kms_per_s or costs.cloud.kms_per_s, through_bucket, work)
