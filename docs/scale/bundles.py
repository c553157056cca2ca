"""Which replica opens which bundle, and what that does to the number of KMS calls.

A session's envelopes lie in every bundle that its site closes within 15 minutes. A replica that has unwrapped its data key needs no KMS
for the next bundle, if it still has the key. So what counts is whether a site's bundles come to the same replica, and whether all the
keys of its sites fit into its cache. Bundles are simulated one by one; the keys of a site in a cache are counted, not told apart:
sessions end evenly, so of the keys that a replica saw `t` ago `t / 900 s` are over.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Dict, List

from events import Clock
from flow import Profile


def every_s(costs: SimpleNamespace, bytes_per_s: float) -> float:
    """How often a gateway closes a bundle."""
    return min(costs.cloud.bundle_s, costs.cloud.bundle_bytes / bytes_per_s)


@dataclass
class Calls:
    bundles: int
    kms_per_s: float
    sessions_per_s: float

    @property
    def times(self) -> float:
        """KMS calls for each session."""
        return self.kms_per_s / self.sessions_per_s


def kms_calls(
    costs: SimpleNamespace, sites: int, vehicles: int, replicas: int, by_site: bool, seed: int, minutes: float = 30.0, warm_s: float = 900.0
) -> Calls:
    """`by_site`: a site's bundles go to one replica; else to whichever asks the queue first. Counted is what comes after `warm_s`, when the
    caches hold what they will hold."""
    profile = Profile.of(costs.vehicle)
    random_ = random.Random(seed)
    clock = Clock()
    every = every_s(costs, vehicles * (profile.bytes - costs.vehicle.files_per_h / 3_600 * costs.vehicle.file_bytes))
    live = vehicles * profile.live_keys
    # Least recently used goes first; a whole site's keys at a time. The last site may be there in part.
    fits = costs.cloud.cache_keys / live
    caches: List["OrderedDict[int, float]"] = [OrderedDict() for _ in range(replicas)]
    until = warm_s + minutes * 60.0
    calls, bundles = 0.0, 0

    def bundle(site: int) -> None:
        nonlocal calls, bundles
        cache = caches[site % replicas if by_site else random_.randrange(replicas)]
        seen = cache.pop(site, None)
        if fits < 1:
            # Not even one site fits: what is beyond the cache is asked for every time.
            share = 0.0 if seen is None else fits
        else:
            share = 0.0 if seen is None else 1.0
        old = 1.0 if seen is None else min(1.0, (clock.now - seen) / costs.vehicle.session_s)
        asked = live * (1 - share * (1 - old))
        cache[site] = clock.now
        while len(cache) > max(1, int(fits)):
            cache.popitem(last=False)
        if clock.now > warm_s:
            calls += asked
            bundles += 1
        if clock.now + every <= until:
            clock.after(every, lambda: bundle(site))

    for site in range(sites):
        clock.at(random_.uniform(0, every), lambda site=site: bundle(site))
    clock.run(until)
    # A file's key is used for nothing else.
    files = sites * vehicles * costs.vehicle.files_per_h / 3_600
    return Calls(bundles, calls / (until - warm_s) + files, sites * vehicles * profile.keys)


def requests_a_day(costs: SimpleNamespace, sites: int, vehicles: int, gateways: int) -> Dict[str, float]:
    """Of S3 and SQS, on a working day."""
    profile = Profile.of(costs.vehicle)
    hours = 24 * costs.vehicle.shift_h / (costs.vehicle.shift_h + costs.vehicle.pause_h)
    inline = (profile.bytes - costs.vehicle.files_per_h / 3_600 * costs.vehicle.file_bytes) * vehicles / gateways
    bundles = sites * gateways * hours * 3_600 / every_s(costs, inline)
    files = sites * vehicles * costs.vehicle.files_per_h * hours
    return {
        "bundles": bundles,
        "puts": bundles * (costs.cloud.puts_per_bundle + costs.cloud.lists_per_bundle) + files * costs.cloud.puts_per_file,
        "gets": bundles * costs.cloud.gets_per_bundle + files * costs.cloud.gets_per_file,
        "sqs": (bundles + files) * costs.cloud.sqs_per_bundle,
        "bytes": profile.bytes * sites * vehicles * hours * 3_600,
    }
