"""What is asked of the model, and the tables and plots of docs/scale.md."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import bundles
import costs as cost_file
import storm
from draw import Axis, Line, bars, lines
from flow import DAY_S, Fleet, Profile, duty, fleet, gateways_for, ingest_us, replicas_for

SEED = 7
FLEETS: Tuple[Tuple[int, int], ...] = ((1, 100), (10, 100), (100, 100), (1_000, 100), (10_000, 100), (1, 5_000))
OUTAGES_DAYS = (1, 3, 14)
LIMIT_DAYS = 90
"""A backlog that is there after so many days is called one that stays."""


# -- words


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def size(value: float) -> str:
    for factor, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def span(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    for factor, unit in ((DAY_S, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.0f} s"


def percent(share: float) -> str:
    value = 100 * share
    if value >= 10:
        return f"{value:,.0f} %"
    return f"{value:.1g} %" if value < 1 else f"{value:.2g} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(out + ["| " + " | ".join(row) + " |" for row in rows])


def name_of(sites: int, vehicles: int) -> str:
    return f"{sites:,} x {vehicles:,}"


def _many(replicas: int) -> str:
    return f"{replicas} decryptor{'s' if replicas > 1 else ''}"


def with_vehicle(costs: SimpleNamespace, **changes: float) -> SimpleNamespace:
    changed = copy.deepcopy(costs)
    for key, value in changes.items():
        if not hasattr(changed.vehicle, key):
            raise KeyError(key)
        setattr(changed.vehicle, key, value)
    return changed


# -- runs


def outage(of: Fleet, days: float, begins_s: float = DAY_S) -> Tuple[Optional[float], str, float]:
    """All links of the fleet are cut for so long. How long after that nothing is late any more (None: never), what held it up for most of
    the time, and for how large a share of it."""
    back = begins_s + days * DAY_S

    def links(up: bool) -> None:
        for one in of.sites:
            one.wan_up = up

    of.at(begins_s, lambda: links(False))
    of.at(back, lambda: links(True))
    of.run(back)
    of.walls.clear()
    drained = of.drain(back + LIMIT_DAYS * DAY_S)
    wall = max(of.walls, key=lambda name: of.walls[name]) if of.walls else ""
    return (None if drained is None else drained - back), wall, of.walls.get(wall, 0.0) / max(1e-9, sum(of.walls.values()))


def lose_replicas(costs: SimpleNamespace, sites: int, vehicles: int, shared: bool, hours: float, begins_s: float = 3_600.0) -> Fleet:
    """Half of the replicas die, and are back after so many hours."""
    replicas = replicas_for(costs, Profile.of(costs.vehicle), sites * vehicles)
    of = fleet(costs, sites, vehicles, shared=shared, groups=1 if shared else replicas, through_bucket=shared)

    def alive(back: bool) -> None:
        if shared:
            of.decryptors[0].replicas = replicas if back else replicas / 2
        else:
            for decryptor in of.decryptors[: replicas // 2]:
                decryptor.replicas = 1 if back else 0

    of.at(begins_s, lambda: alive(False))
    of.at(begins_s + hours * 3_600.0, lambda: alive(True))
    return of


def throttle(costs: SimpleNamespace, sites: int, vehicles: int, hours: float, begins_s: float = 3_600.0) -> Fleet:
    """KMS gives half of its quota for so many hours."""
    of = fleet(costs, sites, vehicles)

    def quota(share: float) -> None:
        of.kms_per_s = costs.cloud.kms_per_s * share

    of.at(begins_s, lambda: quota(0.5))
    of.at(begins_s + hours * 3_600.0, lambda: quota(1.0))
    return of


def late(of: Fleet, until_s: float) -> Tuple[float, Optional[float]]:
    """The oldest that was delivered or waited, and when nothing was late any more."""
    of.run(until_s)
    worst = of.oldest_s
    caught = of.drain(until_s + LIMIT_DAYS * DAY_S)
    return max(worst, of.oldest_s), caught


# -- tables


def walls(costs: SimpleNamespace) -> str:
    profile = Profile.of(costs.vehicle)
    cloud, site = costs.cloud, costs.site
    inline = profile.bytes - costs.vehicle.files_per_h / 3_600 * costs.vehicle.file_bytes
    cpu = ingest_us(site, profile.bytes / profile.envelopes) + site.relay_us

    def puts(sites: int, vehicles: int) -> float:
        gateways = gateways_for(costs, vehicles)
        return (
            sites * gateways / bundles.every_s(costs, vehicles * inline / gateways) * cloud.puts_per_bundle
            + sites * vehicles * costs.vehicle.files_per_h / 3_600 * cloud.puts_per_file
        )

    def end_of_day(sites: int, vehicles: int) -> str:
        of = fleet(costs, sites, vehicles)
        of.run(2 * DAY_S)
        return span(of.oldest_s)

    def shares(used: Callable[[int, int], float], full: str) -> List[str]:
        return [*(percent(used(*one)) for one in FLEETS), full]

    per_hundred = puts(1_000, 100) / 100_000
    rows = [
        ["vehicles", *(f"{sites * vehicles:,}" for sites, vehicles in FLEETS), ""],
        [
            "gateways at each site, by connections",
            *(f"{gateways_for(costs, vehicles)}" for _, vehicles in FLEETS),
            f"{site.connections:,} at a gateway",
        ],
        [
            "busy: CPU of a gateway",
            *shares(
                lambda s, v: v / gateways_for(costs, v) * profile.envelopes * cpu / 1e6 / site.cores,
                f"{site.cores * 1e6 / cpu / profile.envelopes:,.0f} at a gateway",
            ),
        ],
        ["used: the link of each site", *shares(lambda s, v: profile.bytes * 8e-6 / site.wan_mbit_per_vehicle, "by assumption")],
        ["... Mbit/s while all work", *(number(v * profile.bytes * 8e-6) for _, v in FLEETS), ""],
        ["KMS: of the quota", *shares(lambda s, v: s * v * profile.keys / cloud.kms_per_s, f"**{cloud.kms_per_s / profile.keys:,.0f}**")],
        [
            "one decryptor: envelopes",
            *shares(lambda s, v: s * v * profile.envelopes / cloud.drain_per_s, f"**{cloud.drain_per_s / profile.envelopes:,.0f}**"),
        ],
        [
            "one decryptor: data keys that it keeps",
            *shares(lambda s, v: s * v * profile.live_keys / cloud.cache_keys, f"**{cloud.cache_keys / profile.live_keys:,.0f}**"),
        ],
        ["one decryptor: devices", *shares(lambda s, v: s * v / cloud.devices, f"{cloud.devices:,}")],
        [
            "one decryptor: unwraps",
            *shares(lambda s, v: s * v * profile.keys / cloud.total_per_s, f"{cloud.total_per_s / profile.keys:,.0f}"),
        ],
        [
            "S3: PUTs, of one prefix",
            *shares(lambda s, v: puts(s, v) / cloud.s3_put_per_s, f"{cloud.s3_put_per_s / per_hundred:,.0f} at sites of 100"),
        ],
        ["decryptors, a third of each idle", *(f"{replicas_for(costs, profile, s * v)}" for s, v in FLEETS), ""],
        ["simulated with those: the latest after two days", *(end_of_day(*one) for one in FLEETS), ""],
    ]
    return table(["sites x vehicles", *(name_of(*one) for one in FLEETS), "full at so many vehicles"], rows)


def after(costs: SimpleNamespace) -> str:
    rows = []
    cases: List[Tuple[str, Dict[str, Any]]] = [
        (f"{name_of(*one)}, {_many(replicas_for(costs, Profile.of(costs.vehicle), one[0] * one[1]))}", dict(sites=one[0], vehicles=one[1]))
        for one in FLEETS
    ]
    cases += [
        ("1 x 5,000 through S3, 1 decryptor", dict(sites=1, vehicles=5_000, through_bucket=True)),
        ("1,000 x 100, 16 decryptors", dict(sites=1_000, vehicles=100, replicas=16)),
        ("1,000 x 100, 32 decryptors", dict(sites=1_000, vehicles=100, replicas=32)),
        ("1,000 x 100, 32 decryptors, a link of 25 Mbit/s", dict(sites=1_000, vehicles=100, replicas=32, wan_mbit_per_vehicle=0.25)),
        ("10,000 x 100, 74 decryptors, 5,000 unwraps/s", dict(sites=10_000, vehicles=100, kms_per_s=5_000)),
        ("10,000 x 100, 148 decryptors, 5,000 unwraps/s", dict(sites=10_000, vehicles=100, replicas=148, kms_per_s=5_000)),
    ]
    for name, how in cases:
        row = [name]
        for days in OUTAGES_DAYS:
            took, wall, share = outage(fleet(costs, **how), days)
            words = wall if share > 0.995 else f"{wall}, {percent(share)} of the time"
            row.append(f"{span(took)}: {words}" if took is not None else f"never: {wall}")
        rows.append(row)
    return table(["sites x vehicles", *(f"{days} day{'s' if days > 1 else ''} cut off" for days in OUTAGES_DAYS)], rows)


def in_bucket(costs: SimpleNamespace) -> str:
    rows = []
    for replicas in (8, 16, 32):
        row = [f"1,000 x 100, {replicas} decryptors"]
        for days in OUTAGES_DAYS:
            of = fleet(costs, 1_000, 100, replicas=replicas, through_bucket=True)
            outage(of, days)
            row.append(span(of.in_bucket_s()))
        rows.append(row)
    heads = (f"after {days} day{'s' if days > 1 else ''} cut off" for days in OUTAGES_DAYS)
    return table(["how long a bundle waits in the bucket, at most", *heads], rows)


def disk(costs: SimpleNamespace) -> str:
    profile = Profile.of(costs.vehicle)
    a_day = profile.bytes * 100 * DAY_S * duty(costs.vehicle)
    rows = []
    for disk_days in (3, 5, 10, costs.site.disk_days):
        row = [f"{size(a_day * disk_days)} ({disk_days} days)"]
        for days in OUTAGES_DAYS:
            of = fleet(costs, 1, 100, disk_days=disk_days)
            outage(of, days)
            made = days * DAY_S * duty(costs.vehicle) * 100
            row.append("nothing" if of.total("refused") < 1 else percent(of.total("refused") / made))
        rows.append(row)
    return table(["spool of a site with 100 vehicles", *(f"refused of {days} day{'s' if days > 1 else ''}" for days in OUTAGES_DAYS)], rows)


def gateway_down(costs: SimpleNamespace) -> str:
    row = []
    hours = (1, 2, 3, 4, 8)
    for down in hours:
        of = fleet(costs, 1, 100)

        def up(value: bool, of: Fleet = of) -> None:
            of.sites[0].gateway_up = value

        of.at(3_600.0, lambda: up(False))
        of.at((1 + down) * 3_600.0, lambda: up(True))
        of.run((1 + down) * 3_600.0)
        refused = of.total("refused") / (100 * 3_600.0)
        caught = of.drain(10 * DAY_S)
        row.append((span(refused * 3_600.0) if refused > 0 else "nothing", span(caught - (1 + down) * 3_600.0) if caught else "never"))
    return table(
        ["the gateway of 100 vehicles is away for", *(f"{down} h" for down in hours)],
        [
            ["refused at the vehicles, of their work", *(refused for refused, _ in row)],
            ["delivered again without delay after", *(again for _, again in row)],
        ],
    )


def covered(of: Fleet, on_s: float, off_s: float, until_s: float) -> None:
    """The radio comes and goes, over and over."""

    def radio(up: bool) -> None:
        for one in of.sites:
            one.radio_up = up
        of.clock.after(on_s if up else off_s, lambda: of.change(lambda: radio(not up)))

    of.change(lambda: radio(True))
    of.run(until_s)


def coverage(costs: SimpleNamespace) -> str:
    """One vehicle that is alone in its cell, with the share of it that it has."""
    rows = []
    for name, on_s, off_s in (
        ("20 s, then none for 60 s", 20.0, 60.0),
        ("15 min each hour", 900.0, 2_700.0),
        ("5 min each hour", 300.0, 3_300.0),
        ("1 h, then none for 2 h", 3_600.0, 7_200.0),
        ("1 h, then none for 5 h", 3_600.0, 18_000.0),
    ):
        of = fleet(costs, 1, 1)
        covered(of, on_s, off_s, 5 * DAY_S)
        one = of.sites[0]
        rows.append(
            [
                name,
                percent(one.most_outbox / one.outbox_room),
                span(of.oldest_s),
                "nothing" if one.refused < 1 else percent(one.refused / one.recorded),
            ]
        )
    return table(["coverage", "outbox used, at most", "latest", "refused of five days"], rows)


def powercut(costs: SimpleNamespace) -> str:
    rows = []
    for vehicles, gateways in ((100, 1), (2_000, 1), (5_000, 1), (5_000, 2)):
        met = storm.reconnect(costs, vehicles, gateways, SEED)
        at_once = storm.reconnect(costs, vehicles, gateways, SEED, (0.0, 0.0), 0.0)
        rows.append(
            [
                f"{vehicles:,}",
                f"{gateways}",
                span(met.last_s) if met.connected == vehicles else f"never: {vehicles - met.connected:,} find no place",
                span(met.after_up_s),
                f"{met.attempts / vehicles:.1f}",
                f"{met.cpu_s:.2g} s",
                span(at_once.last_s) if at_once.connected == vehicles else "never",
            ]
        )
    return table(
        [
            "vehicles of a site",
            "gateways",
            "all connected after",
            "longest for one that is up",
            "attempts each",
            "CPU of the gateways",
            "if all were up at one moment",
        ],
        rows,
    )


WAVES = (10_000, 50_000, 100_000, 150_000, 200_000, 300_000, 400_000)


def after_power(costs: SimpleNamespace, vehicles: int, full_age: bool = False, sample: int = 5_000) -> storm.Waves:
    return storm.sessions(costs, vehicles, costs.cloud.kms_per_s, 2.0, SEED, full_age, max(1, vehicles // sample))


def wave_of(met: storm.Waves) -> List[str]:
    return [
        f"{max(waiting for _, waiting in met.waiting):,.0f}",
        span(met.longest_s),
        "never" if met.through_s is None else span(met.through_s),
    ]


def waves(costs: SimpleNamespace) -> str:
    rows = []
    for vehicles in WAVES:
        met, in_step = after_power(costs, vehicles), after_power(costs, vehicles, True)
        rows.append(
            [
                f"{vehicles:,}",
                percent(vehicles * Profile.of(costs.vehicle).keys / costs.cloud.kms_per_s),
                *wave_of(met),
                span(met.longest_later_s),
                span(in_step.longest_later_s),
            ]
        )
    return table(
        [
            "vehicles",
            "of the quota, evenly spread",
            "data keys that wait, at most",
            "longest wait",
            "none waits any more after",
            "longest wait from then on",
            "the same with all sessions of the full age, each quarter of an hour",
        ],
        rows,
    )


def first_wave(costs: SimpleNamespace) -> str:
    cloud = copy.deepcopy(costs)
    cloud.cloud.kms_per_s = 2_000
    cases = (
        ("as above", costs),
        ("a quota of 2,000/s", cloud),
        ("up within 10 minutes of each other, not 2", with_vehicle(costs, boot_last_s=costs.vehicle.boot_first_s + 600)),
        ("one stream for all records", with_vehicle(costs, streams=1)),
    )
    return table(
        ["200,000 vehicles", "data keys that wait, at most", "longest wait", "none waits any more after"],
        [[name, *wave_of(after_power(of, 200_000))] for name, of in cases],
    )


def throttled(costs: SimpleNamespace) -> str:
    rows = []
    for sites in (1_000, 2_000, 2_500, 3_000, 3_500):
        of = throttle(costs, sites, 100, 6.0)
        worst, caught = late(of, 7 * 3_600.0)
        rows.append(
            [
                name_of(sites, 100),
                percent(sites * 100 * Profile.of(costs.vehicle).keys / costs.cloud.kms_per_s),
                span(worst),
                "at once" if worst < 60 else span(caught - 7 * 3_600.0) if caught else "never",
            ]
        )
    return table(["sites x vehicles", "of the full quota", "latest", "caught up after"], rows)


def lost(costs: SimpleNamespace) -> str:
    rows = []
    for sites in (1_000, 10_000):
        replicas = replicas_for(costs, Profile.of(costs.vehicle), sites * 100)
        quota = costs.cloud.kms_per_s if sites < 4_000 else 5_000
        changed = copy.deepcopy(costs)
        changed.cloud.kms_per_s = quota
        for shared in (False, True):
            of = lose_replicas(changed, sites, 100, shared, 6.0)
            worst, caught = late(of, 7 * 3_600.0)
            keys = sites * 100 * Profile.of(costs.vehicle).live_keys * (replicas // 2) / replicas
            rows.append(
                [
                    f"{name_of(sites, 100)}, {replicas} decryptors, {quota:,}/s at KMS",
                    "any replica opens any site's" if shared else "each has its sites",
                    span(worst),
                    span(caught - 7 * 3_600.0) if caught else "never",
                    f"{keys:,.0f}",
                ]
            )
    return table(["", "how sites are divided", "latest", "caught up after", "data keys to be asked for again"], rows)


REPLICAS = (1, 2, 4, 8, 16, 32, 64)


def affinity_curves(costs: SimpleNamespace) -> Dict[Tuple[int, bool], Dict[int, bundles.Calls]]:
    return {
        (sites, by_site): {
            replicas: bundles.kms_calls(costs, sites, 100, replicas, by_site, SEED, minutes, warm_s) for replicas in REPLICAS
        }
        # 1,000 sites fill 64 caches within two minutes.
        for sites, minutes, warm_s in ((10, 15.0, 900.0), (100, 10.0, 900.0), (1_000, 2.0, 240.0))
        for by_site in (False, True)
    }


def affinity(curves: Dict[Tuple[int, bool], Dict[int, bundles.Calls]]) -> str:
    rows = []
    for (sites, by_site), calls in curves.items():
        rows.append(
            [
                name_of(sites, 100),
                "to one replica" if by_site else "to any replica",
                *(f"{number(calls[replicas].kms_per_s)} ({calls[replicas].times:.1f})" for replicas in REPLICAS),
            ]
        )
    return table(
        ["sites x vehicles", "a site's bundles go", *(f"{replicas} replica{'s' if replicas > 1 else ''}" for replicas in REPLICAS)], rows
    )


PARTS = ("KMS", "PUT and LIST", "GET", "SQS", "sealed bundles kept", "machines")


def bill(
    costs: SimpleNamespace, sites: int, vehicles: int, through_bucket: bool, rsa: str = "kms_rsa_3072", kms_times: float = 1.0
) -> List[float]:
    """$ a day, in the order of PARTS. `kms_times`: KMS calls for each session."""
    prices, profile = costs.prices, Profile.of(costs.vehicle)
    asked = bundles.requests_a_day(costs, sites, vehicles, gateways_for(costs, vehicles))
    kms = sites * vehicles * profile.keys * DAY_S * duty(costs.vehicle) * kms_times / 10_000 * getattr(prices, rsa)
    machines = replicas_for(costs, profile, sites * vehicles) * prices.machine_h * 24
    if not through_bucket:
        return [kms, 0.0, 0.0, 0.0, 0.0, machines]
    held_gb, kept = asked["bytes"] * costs.cloud.kept_days / 1e9, 0.0
    for room, price in (
        (50_000.0, prices.s3_gb_month_first),
        (450_000.0, prices.s3_gb_month_next),
        (float("inf"), prices.s3_gb_month_rest),
    ):
        kept += min(held_gb, room) * price / 30
        held_gb = max(0.0, held_gb - room)
    return [
        kms,
        asked["puts"] / 1_000 * prices.s3_put,
        asked["gets"] / 1_000 * prices.s3_get,
        asked["sqs"] / 1e6 * prices.sqs,
        kept,
        machines,
    ]


def bills(costs: SimpleNamespace) -> List[Tuple[str, List[float]]]:
    sites, vehicles = 1_000, 100
    larger = copy.deepcopy(costs)
    larger.cloud.bundle_bytes, larger.cloud.bundle_s = 32 << 20, 60
    shorter = copy.deepcopy(costs)
    shorter.cloud.kept_days = 1
    return [
        ("straight to the decryptors", bill(costs, sites, vehicles, False)),
        ("straight, RSA_2048", bill(costs, sites, vehicles, False, "kms_rsa_2048")),
        ("through S3", bill(costs, sites, vehicles, True)),
        ("S3, bundles kept for 1 day", bill(shorter, sites, vehicles, True)),
        ("S3, bundles of 32 MiB or 60 s", bill(larger, sites, vehicles, True)),
        ("S3, a linger of 5 s", bill(with_vehicle(costs, linger_s=5), sites, vehicles, True)),
        ("S3, one stream for all records", bill(with_vehicle(costs, streams=1), sites, vehicles, True)),
        ("S3, no files", bill(with_vehicle(costs, files_per_h=0), sites, vehicles, True)),
        ("S3, RSA_2048", bill(costs, sites, vehicles, True, "kms_rsa_2048")),
    ]


def price(costs: SimpleNamespace, any_times: float) -> str:
    """`any_times`: KMS calls for each session where any of 8 replicas opens any site's bundles."""
    rows = [[name, *(f"${part:,.2f}" if part else "-" for part in parts), f"${sum(parts):,.2f}"] for name, parts in bills(costs)]
    for name, parts in (
        ("S3, bundles to any of 8 replicas, if KMS gave so much", bill(costs, 1_000, 100, True, kms_times=any_times)),
        ("10,000 x 100, straight", bill(costs, 10_000, 100, False)),
        ("10,000 x 100, through S3", bill(costs, 10_000, 100, True)),
    ):
        rows.append([name, *(f"${part:,.0f}" if part else "-" for part in parts), f"${sum(parts):,.0f}"])
    return table(["1,000 x 100, $ a day", *PARTS, "together"], rows)


PROFILES: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    ("this page", {}),
    ("10 records/s", dict(records_per_s=10)),
    ("1,000 records/s", dict(records_per_s=1_000)),
    ("linger 200 ms", dict(linger_s=0.2)),
    ("linger 5 s", dict(linger_s=5)),
    ("8 streams", dict(streams=8)),
    ("one stream, no files", dict(streams=1, files_per_h=0)),
)


def readoff(costs: SimpleNamespace) -> str:
    columns = []
    for _, changes in PROFILES:
        changed = with_vehicle(costs, **changes)
        profile, cloud, site = Profile.of(changed.vehicle), costs.cloud, costs.site
        streams = profile.bytes - changed.vehicle.files_per_h / 3_600 * changed.vehicle.file_bytes
        a_day = DAY_S * duty(changed.vehicle)
        columns.append(
            [
                f"{profile.bytes * 8e-6:.2g} Mbit/s",
                size(profile.bytes * a_day),
                number(profile.envelopes),
                span(changed.vehicle.streams * costs.vehicle.outbox_bytes / streams),
                number(profile.keys * 3_600),
                f"${profile.keys * a_day * 365 / 10_000 * costs.prices.kms_rsa_3072:,.2f}",
                number(
                    min(
                        site.connections,
                        site.cores * 1e6 / (ingest_us(site, profile.bytes / profile.envelopes) + site.relay_us) / profile.envelopes,
                    )
                ),
                number(min(cloud.drain_per_s / profile.envelopes, cloud.devices) / cloud.headroom),
                number(cloud.cache_keys / profile.live_keys),
                number(cloud.kms_per_s / profile.keys),
                number(site.wan_mbit_per_vehicle / (profile.bytes * 8e-6)) + " times",
            ]
        )
    names = [
        "on the way while it works",
        "... a day, and on the site's disk for each day cut off",
        "envelopes/s",
        "its outbox lasts without a gateway",
        "data keys an hour",
        "KMS a year, RSA_3072",
        "vehicles at a gateway",
        "vehicles at a decryptor, a third idle",
        "... by the data keys that it keeps",
        "**vehicles in an account and region, by KMS**",
        "half a Mbit/s each of WAN is",
    ]
    return table(
        ["one vehicle", *(name for name, _ in PROFILES)], [[name, *(column[row] for column in columns)] for row, name in enumerate(names)]
    )


def site_copies(costs: SimpleNamespace) -> str:
    profile, rows = Profile.of(costs.vehicle), []
    for vehicles in (100, 2_000, 5_000):
        coming = vehicles * profile.bytes
        out = coming * (costs.site.replicas - 1)
        rows.append(
            [
                f"{vehicles:,}",
                f"{size(coming)}/s",
                f"{size(out)}/s",
                percent(out * 8 / 1e9),
                percent(coming / (costs.site.nats_1m_per_s * (1 << 20))),
            ]
        )
    return table(
        ["vehicles of a site", "comes in", "leaves the leader for two others", "of a network of 1 Gbit/s", "of what one nats-server took"],
        rows,
    )


def numbers(_: SimpleNamespace) -> str:
    rows = []
    for section, entries in cost_file.entries().items():
        for name, entry in entries.items():
            rows.append(
                [
                    f"`{section}.{name}`",
                    f"{entry['value']:,.10g}" if entry["value"] >= 10_000 else f"{entry['value']:g}",
                    entry["unit"].replace("|", "\\|"),
                    entry["kind"],
                    entry["source"].replace("|", "\\|"),
                ]
            )
    return table(["number", "value", "of what", "kind", "source"], rows)


# -- plots


def plot_walls(costs: SimpleNamespace) -> str:
    profile, cloud = Profile.of(costs.vehicle), costs.cloud
    sizes = [10 ** (2 + n / 10) for n in range(41)]
    used = (
        ("KMS quota of 1,000/s", profile.keys / cloud.kms_per_s),
        ("one decryptor: envelopes", profile.envelopes / cloud.drain_per_s),
        ("one decryptor: data keys kept", profile.live_keys / cloud.cache_keys),
        ("one decryptor: devices", 1 / cloud.devices),
    )
    return lines(
        "How full each bound is on a working day, by the size of the fleet",
        Axis("vehicles at work", 100, 1e6, log=True),
        Axis("used, %", 0.01, 10_000, log=True),
        [Line(name, [(size_, 100 * share * size_) for size_ in sizes]) for name, share in used],
        (100, "full"),
    )


def plot_drain(costs: SimpleNamespace) -> str:
    curves = []
    replicas = (6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
    for days in reversed(OUTAGES_DAYS):
        points = []
        for count in replicas:
            took, _, _ = outage(fleet(costs, 1_000, 100, replicas=count), days)
            points.append((float(count), (took if took is not None else LIMIT_DAYS * DAY_S) / DAY_S))
        curves.append(Line(f"{days} day{'s' if days > 1 else ''} cut off", points))
    return lines(
        "1,000 sites x 100 vehicles were cut off: until nothing is late any more",
        Axis("decryptors of two cores", 6, 32, ticks=(6, 8, 10, 12, 16, 20, 24, 28, 32)),
        Axis("days", 0.1, 100, log=True),
        curves,
    )


def plot_powercut(costs: SimpleNamespace) -> str:
    curves = []
    for vehicles, full_age, name in (
        (200_000, False, "200,000 vehicles"),
        (100_000, False, "100,000 vehicles"),
        (200_000, True, "200,000, all sessions of the full age"),
    ):
        met = storm.sessions(costs, vehicles, costs.cloud.kms_per_s, 1.0, SEED, full_age, vehicles // 5_000, 5.0)
        curves.append(Line(name, [(at / 60, waiting / 1_000) for at, waiting in met.waiting]))
    return lines(
        "After a power cut of a whole region: data keys that wait for KMS",
        Axis("minutes since the power is back", 0, 60, ticks=range(0, 61, 10)),
        Axis("thousands of data keys", 0, 300),
        curves,
    )


def _late(title: str, hours_late: int, named: Sequence[Tuple[str, Fleet]]) -> str:
    """How late data is in each of these fleets, for a day."""
    curves = []
    for name, of in named:
        of.run(24 * 3_600.0)
        curves.append(Line(name, [(at / 3_600, age / 3_600) for at, age in of.ages()]))
    return lines(title, Axis("hours", 0, 24, ticks=range(0, 25, 2)), Axis("hours late", 0, hours_late), curves)


def plot_late(costs: SimpleNamespace) -> str:
    return _late(
        "KMS gives half of the quota from hour 1 to hour 7: how late data is",
        4,
        [(f"{sites:,} sites", throttle(costs, sites, 100, 6.0)) for sites in (2_000, 2_500, 3_000, 3_500)],
    )


def plot_lost(costs: SimpleNamespace) -> str:
    named = ((False, "each decryptor has its sites (those of the dead ones)"), (True, "any replica opens any site's"))
    return _late(
        "Half of 8 decryptors are away from hour 1 to hour 7: how late data is",
        8,
        [(name, lose_replicas(costs, 1_000, 100, shared, 6.0)) for shared, name in named],
    )


def plot_affinity(curves: Dict[Tuple[int, bool], Dict[int, bundles.Calls]]) -> str:
    return lines(
        "KMS calls by the number of replicas, with bundles in S3",
        Axis("replicas", 1, 64, log=True, ticks=REPLICAS),
        Axis("KMS calls a second", 10, 100_000, log=True),
        [
            Line(
                f"{sites:,} sites, {'a site to one replica' if by_site else 'to any replica'}",
                [(float(count), calls[count].kms_per_s) for count in REPLICAS],
            )
            for (sites, by_site), calls in curves.items()
            if sites >= 100
        ],
        (1_000, "quota"),
    )


def plot_price(costs: SimpleNamespace) -> str:
    return bars(
        "1,000 sites x 100 vehicles: $ a day by what it is paid for",
        "$ a day, list prices",
        [(name, parts) for name, parts in bills(costs)],
        PARTS,
        "${:,.0f}",
    )


def everything(costs: SimpleNamespace) -> Tuple[Dict[str, str], Dict[str, str]]:
    """The tables and the plots of the page, by name."""
    curves = affinity_curves(costs)
    tables: Dict[str, str] = {"affinity": affinity(curves), "price": price(costs, curves[1_000, False][8].times)}
    for make in (readoff, walls, after, in_bucket, disk, gateway_down, coverage, powercut, waves, first_wave, throttled, lost, site_copies, numbers):
        tables[make.__name__.replace("_", "-")] = make(costs)
    plots = {"affinity": plot_affinity(curves)}
    for draw_one in (plot_walls, plot_drain, plot_powercut, plot_late, plot_lost, plot_price):
        plots[draw_one.__name__[len("plot_") :]] = draw_one(costs)
    return tables, plots


def said(costs: SimpleNamespace) -> Dict[str, str]:
    """What the words of the page say too, outside of the tables: each has to be there."""
    profile, cloud = Profile.of(costs.vehicle), costs.cloud
    streams = profile.bytes - costs.vehicle.files_per_h / 3_600 * costs.vehicle.file_bytes
    session_s, first_s = costs.vehicle.session_s, costs.vehicle.first_session_min_s
    return {
        "vehicles at which the quota of KMS is used up": f"{cloud.kms_per_s / profile.keys:,.0f} vehicles",
        "vehicles of a decryptor, by envelopes": f"{cloud.drain_per_s / profile.envelopes:,.0f} vehicles",
        "vehicles of a decryptor, by data keys": f"{cloud.cache_keys / profile.live_keys:,.0f} vehicles",
        "connections of a gateway": f"{costs.site.connections:,} connections",
        "hours that an outbox lasts": span(costs.vehicle.streams * costs.vehicle.outbox_bytes / streams),
        "bytes of a working vehicle": f"{profile.bytes * 8e-6:.2f} Mbit/s",
        "decryptors whose budgets together are the quota": f"{cloud.kms_per_s / cloud.total_per_s:.0f} decryptors",
        "how wide a link has to be before a gateway's unwraps count": f"{cloud.gateway_per_s / (costs.site.connections * profile.keys):.1f} times",
        "data keys an hour": f"{profile.keys * 3_600:.0f} data keys an hour",
        "vehicles from which a power cut makes waves": f"{cloud.kms_per_s * (costs.vehicle.boot_last_s - costs.vehicle.boot_first_s) / costs.vehicle.streams:,.0f} vehicles",
        "how late the first data keys of 100,000 vehicles are": f"100,000 are {span(after_power(costs, 100_000).longest_s)} late",
        "... of 200,000": f"200,000 are {span(after_power(costs, 200_000).longest_s)}.",
        "how far the load after the first wave is above the even one": f"{percent(session_s / (session_s - first_s) - 1)} more",
        "data keys that a shorter first session costs": f"{1 - (session_s + first_s) / 2 / session_s:.2g} of a data key",
        "... of those of a day": f"{percent(2 * costs.vehicle.streams * (1 - (session_s + first_s) / 2 / session_s) / (profile.keys * DAY_S * duty(costs.vehicle)))} of the calls",
        "data keys of a decryptor that is full by CPU": f"{percent(cloud.drain_per_s / profile.envelopes * profile.live_keys / cloud.cache_keys)} of the data keys",
        "decryptors that 1,000 sites' links can keep busy": f"{math.ceil(1e5 * costs.site.wan_mbit_per_vehicle * 1e6 / 8 / profile.bytes * profile.envelopes / cloud.drain_per_s)} decryptors",
        "vehicles whose site fills 1 Gbit/s between three servers": f"{round(1e9 / 8 / profile.bytes / (costs.site.replicas - 1), -3):,.0f} vehicles",
        "bundles in a session": f"{costs.vehicle.session_s / bundles.every_s(costs, 100 * streams):.0f} bundles",
    }
