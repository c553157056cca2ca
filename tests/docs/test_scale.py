"""The simulation of docs/scale.md against what can be known otherwise: queueing formulas, plain division, sums that must come out, and runs
that were measured.

    python3 -m unittest discover -s tests/docs -p 'test_*.py'
"""

import contextlib
import copy
import json
import math
import random
import re
import runpy
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "docs/scale"))

import bundles  # noqa: E402
import costs as cost_file  # noqa: E402
import draw  # noqa: E402
import flow  # noqa: E402
import scenarios  # noqa: E402
import storm  # noqa: E402
from events import Bucket, Clock, Station  # noqa: E402

DAY_S = 86_400.0
COSTS = cost_file.load()
PROFILE = flow.Profile.of(COSTS.vehicle)


def found(path, pattern):
    match = re.search(pattern, (ROOT / path).read_text())
    if not match:
        raise AssertionError(f"{path} has nothing like {pattern}")
    return [float(group.replace(",", "")) for group in match.groups()]


def changed(section, **values):
    costs = copy.deepcopy(COSTS)
    for key, value in values.items():
        if not hasattr(getattr(costs, section), key):
            raise KeyError(key)
        setattr(getattr(costs, section), key, value)
    return costs


class Core(unittest.TestCase):
    def test_a_station_with_random_arrivals_makes_them_wait_as_long_as_the_formula_says(self):
        # M/D/1: mean wait = load x service / (2 (1 - load)).
        for load in (0.3, 0.6, 0.8):
            clock, drawn = Clock(), random.Random(3)
            station = Station(clock, 1.0)
            at = 0.0
            for _ in range(60_000):
                at += drawn.expovariate(load)
                clock.at(at, station.ask)
            clock.run()
            self.assertEqual(station.served, 60_000)
            self.assertAlmostEqual(station.waited_s / station.served, load / (2 * (1 - load)), delta=0.08 * load / (2 * (1 - load)))
            self.assertAlmostEqual(station.busy_s / clock.now, load, delta=0.02)

    def test_two_servers_take_two_jobs_at_once_and_the_third_waits(self):
        clock = Clock()
        station, ends = Station(clock, 2.0, 2), []
        for name in "abc":
            station.ask(lambda name=name: ends.append((name, clock.now)))
        clock.run()
        self.assertEqual(ends, [("a", 2.0), ("b", 2.0), ("c", 4.0)])
        self.assertEqual((station.longest_s, station.most_waiting), (2.0, 1))

    def test_a_bucket_gives_its_burst_at_once_and_its_rate_after_that(self):
        bucket = Bucket(2.0, 3.0)
        self.assertEqual([bucket.take(0.0) for _ in range(4)], [True, True, True, False])
        self.assertFalse(bucket.take(0.4))
        self.assertTrue(bucket.take(0.5))
        self.assertEqual([bucket.take(100.0) for _ in range(4)], [True, True, True, False])

    def test_events_at_one_moment_keep_their_order_and_the_past_is_refused(self):
        clock, seen = Clock(), []
        for name in "abc":
            clock.at(1.0, lambda name=name: seen.append(name))
        clock.run(5.0)
        self.assertEqual((seen, clock.now), (["a", "b", "c"], 5.0))
        with self.assertRaises(ValueError):
            clock.at(4.0, lambda: None)


class Flows(unittest.TestCase):
    def cut(self, of, begins_s, ends_s):
        def links(up):
            for one in of.sites:
                one.wan_up = up

        of.at(begins_s, lambda: links(False))
        of.at(ends_s, lambda: links(True))

    def test_a_backlog_behind_a_link_is_gone_after_what_division_says(self):
        # Without shifts: what came in T is gone after T x in / (link - in).
        of = flow.fleet(COSTS, 1, 100, shifts=False)
        self.cut(of, 0.0, 10_000.0)
        of.run(10_000.0)
        self.assertAlmostEqual(of.total("spool"), 100 * 10_000.0, delta=1)
        times = COSTS.site.wan_mbit_per_vehicle * 1e6 / 8 / PROFILE.bytes
        self.assertAlmostEqual(of.drain(10 * DAY_S, 1.0) - 10_000.0, 10_000.0 / (times - 1), delta=60)
        self.assertEqual(set(of.walls) - {"the outage itself"}, {"WAN"})

    def test_a_backlog_behind_the_quota_of_kms_too(self):
        of = flow.fleet(COSTS, 3_000, 100, replicas=1_000, shifts=False)
        self.cut(of, 0.0, 7_200.0)
        took = of.drain(10 * DAY_S, 1.0) - 7_200.0
        self.assertAlmostEqual(took, 7_200.0 / (COSTS.cloud.kms_per_s / PROFILE.keys / 300_000 - 1), delta=120)
        self.assertAlmostEqual(of.most_kms, COSTS.cloud.kms_per_s, delta=1e-3)

    def test_and_one_behind_the_decryptors_with_the_bucket_between_and_without(self):
        for through_bucket in (False, True):
            of = flow.fleet(COSTS, 1_000, 100, replicas=8, through_bucket=through_bucket, shifts=False)
            self.cut(of, 0.0, 3_600.0)
            took = of.drain(10 * DAY_S, 1.0) - 3_600.0
            self.assertAlmostEqual(took, 3_600.0 / (8 * COSTS.cloud.drain_per_s / PROFILE.envelopes / 100_000 - 1), delta=60)

    def test_the_unwraps_of_a_gateway_hold_up_a_site_whose_link_is_wide(self):
        # 2,000 vehicles need 5 unwraps a second; the burst goes first, then 50 a second.
        of = flow.fleet(COSTS, 1, 2_000, replicas=100, wan_mbit_per_vehicle=100.0, shifts=False)
        self.cut(of, 0.0, DAY_S)
        took = of.drain(30 * DAY_S, 1.0) - DAY_S
        need = 2_000 * PROFILE.keys
        self.assertAlmostEqual(took, (need * DAY_S - COSTS.cloud.gateway_burst) / (COSTS.cloud.gateway_per_s - need), delta=0.02 * took)
        self.assertEqual(max(of.walls, key=lambda name: of.walls[name] if name != "the outage itself" else 0), "unwraps of a gateway")

    def test_a_bundle_waits_in_the_bucket_as_long_as_links_were_ahead_of_the_decryptors(self):
        of = flow.fleet(COSTS, 1_000, 100, replicas=8, through_bucket=True, shifts=False)
        self.cut(of, 0.0, DAY_S)
        of.drain(30 * DAY_S, 1.0)
        link = COSTS.site.wan_mbit_per_vehicle * 1e6 / 8 / PROFILE.bytes
        opening = 8 * COSTS.cloud.drain_per_s / PROFILE.envelopes / 100_000
        # The last that the links were behind with.
        wait = (link - opening) / opening * DAY_S / (link - 1)
        self.assertAlmostEqual(of.in_bucket_s(), wait, delta=1_200)

    def test_the_ledger_of_one_large_site_takes_one_bundle_after_the_other(self):
        of = flow.fleet(COSTS, 1, 5_000, replicas=100, through_bucket=True, shifts=False)
        self.cut(of, 0.0, DAY_S)
        took = of.drain(30 * DAY_S, 1.0) - DAY_S
        most = COSTS.cloud.bundle_bytes / (100 * 107 + 2 * 1_100) / COSTS.cloud.ledger_turn_s
        self.assertAlmostEqual(took, DAY_S / (most / 5_000 - 1), delta=60)
        self.assertIn("ledger of a site", of.walls)

    def test_what_was_recorded_is_delivered_or_waits_or_was_refused(self):
        drawn = random.Random(11)
        for _ in range(40):
            sites, vehicles = drawn.choice(((1, 100), (50, 100), (1, 5_000), (4_500, 100)))
            of = flow.fleet(
                COSTS,
                sites,
                vehicles,
                replicas=drawn.choice((1, 3, 9)),
                through_bucket=drawn.random() < 0.5,
                shared=drawn.random() < 0.5,
                groups=drawn.choice((1, 3, 9)),
                wan_mbit_per_vehicle=drawn.choice((0.1, 0.5, 3.0)),
                disk_days=drawn.choice((0.1, 1, 20)),
            )

            def turn(one, what, value):
                of.at(of.clock.now + drawn.uniform(0, DAY_S), lambda: setattr(one, what, value))

            for _ in range(6):
                for one in of.sites:
                    turn(one, drawn.choice(("wan_up", "gateway_up")), drawn.random() < 0.5)
                of.run(of.clock.now + DAY_S)
                parts = of.total("delivered") + of.total("refused") + of.total("outbox") + of.total("spool") + of.total("bucket")
                self.assertAlmostEqual(of.total("recorded") / max(1.0, parts), 1.0, delta=1e-6)
                for one in of.sites:
                    self.assertLessEqual(one.spool, one.spool_room * (1 + 1e-6))
                    self.assertLessEqual(one.outbox, one.outbox_room * (1 + 1e-6))
                    self.assertTrue(min(one.outbox, one.spool, one.bucket, one.refused) >= 0)
                    if not of.through_bucket:
                        self.assertEqual(one.bucket, 0.0)

    def test_more_of_anything_is_never_slower(self):
        def took(**how):
            return scenarios.outage(flow.fleet(COSTS, 1_000, 100, **how), 3)[0] or float("inf")

        for what in (
            [dict(replicas=n) for n in (4, 6, 8, 16, 64)],
            [dict(replicas=64, wan_mbit_per_vehicle=n) for n in (0.15, 0.3, 1.0, 4.0)],
            [dict(replicas=64, kms_per_s=n) for n in (200, 300, 1_000, 4_000)],
        ):
            times = [took(**how) for how in what]
            self.assertEqual(times, sorted(times, reverse=True))
            self.assertLess(times[-1], times[0])

    def test_a_full_spool_fills_the_outboxes_and_then_vehicles_refuse(self):
        of = flow.fleet(COSTS, 1, 100, disk_days=1, shifts=False)
        self.cut(of, 0.0, 30 * DAY_S)
        of.run(5 * DAY_S)
        a_day = DAY_S * 100 * flow.duty(COSTS.vehicle)
        outboxes = 100 * 2 * COSTS.vehicle.outbox_bytes / (100 * 107 + 2 * 1_100)
        self.assertAlmostEqual(of.total("spool"), a_day, delta=1)
        self.assertAlmostEqual(of.total("outbox"), outboxes, delta=1)
        self.assertAlmostEqual(of.total("refused"), 5 * DAY_S * 100 - a_day - outboxes, delta=10)

    def test_a_vehicle_with_too_little_coverage_refuses_what_its_radio_cannot_carry(self):
        of = flow.fleet(COSTS, 1, 1, shifts=False)
        scenarios.covered(of, 180.0, 3_420.0, 50 * DAY_S)
        # 3 minutes of each hour at the rate of the radio, of what is recorded in it; and the outbox was filled once.
        carried = 0.05 * COSTS.site.radio_mbit_per_vehicle * 1e6 / 8 / PROFILE.bytes
        one = of.sites[0]
        self.assertAlmostEqual(one.refused / one.recorded, 1 - carried - one.outbox_room / (50 * DAY_S), delta=0.002)
        of = flow.fleet(COSTS, 1, 1, shifts=False)
        scenarios.covered(of, 20.0, 60.0, DAY_S)
        self.assertEqual(of.total("refused"), 0.0)
        self.assertAlmostEqual(of.sites[0].most_outbox, 60.0, delta=1e-6)

    def test_a_small_site_gets_what_it_needs_beside_large_ones(self):
        of = flow.fleet(COSTS, 2, 100, replicas=1, shifts=False)
        small, large = of.sites[0], copy.deepcopy(of.sites[0])
        of.sites.append(large)
        small.count, large.count, large.vehicles = 1, 1, 100_000
        for one in of.sites:
            one.wan = one.radio = one.gateway = one.budget = 1e9
        of.change(lambda: None)
        self.assertEqual(small.rates["open"], 100.0)
        self.assertAlmostEqual(large.rates["open"], COSTS.cloud.drain_per_s / PROFILE.envelopes - 100.0, delta=1e-3)

    def test_who_has_its_own_sites_cannot_be_helped_by_others(self):
        of = scenarios.lose_replicas(COSTS, 1_000, 100, False, 6.0)
        worst, _ = scenarios.late(of, 7 * 3_600.0)
        self.assertAlmostEqual(worst, 6 * 3_600.0, delta=60)
        of = scenarios.lose_replicas(COSTS, 1_000, 100, True, 6.0)
        # 4 replicas for 100,000 vehicles: what is delivered falls behind by the share that they lack.
        lacking = 1 - 4 * COSTS.cloud.drain_per_s / PROFILE.envelopes / 100_000
        self.assertAlmostEqual(scenarios.late(of, 7 * 3_600.0)[0], 6 * 3_600.0 * lacking, delta=60)


class Storms(unittest.TestCase):
    def test_everybody_connects_once_and_costs_a_handshake(self):
        for vehicles, gateways in ((100, 1), (5_000, 2)):
            met = storm.reconnect(COSTS, vehicles, gateways, 1)
            self.assertEqual(met.connected, vehicles)
            self.assertAlmostEqual(met.cpu_s, vehicles * COSTS.site.handshake_ms / 1_000, places=6)
            self.assertLessEqual(met.after_up_s, COSTS.vehicle.retry_max_s + 1)

    def test_a_gateway_takes_no_more_than_its_connections(self):
        met = storm.reconnect(COSTS, 5_000, 1, 1)
        self.assertEqual(met.connected, COSTS.site.connections)

    def test_beyond_the_burst_connections_come_at_the_rate(self):
        costs = changed("site", connections=10_000, connection_burst=100, connections_per_s=50)
        met = storm.reconnect(costs, 1_100, 1, 1, (0.0, 0.0), 0.0)
        self.assertEqual(met.connected, 1_100)
        self.assertGreaterEqual(met.last_s, (1_100 - 100) / 50)
        self.assertGreater(met.attempts, 1_100)

    def test_the_longest_wait_for_kms_is_what_came_less_what_went_meanwhile(self):
        costs = changed("vehicle", files_per_h=0)
        met = storm.sessions(costs, 100_000, 1_000, 0.2, 5, True, 10)
        spread = costs.vehicle.boot_last_s - costs.vehicle.boot_first_s
        self.assertEqual((met.asked, met.unanswered), (200_000, 0))
        self.assertAlmostEqual(met.longest_s, 200 - spread, delta=2.5)

    def test_what_is_asked_for_is_answered_or_waits(self):
        # Also where the quota is not enough, and minute by minute.
        for vehicles, full_age in ((50_000, False), (200_000, False), (500_000, False), (500_000, True)):
            met = storm.sessions(COSTS, vehicles, 1_000, 1.0, 5, full_age, 50)
            self.assertEqual(met.asked, met.answered + met.unanswered)
            self.assertEqual(sum(met.a_minute), met.asked)
        self.assertGreater(met.unanswered, 0)

    def test_sessions_of_the_full_age_come_back_in_step(self):
        costs = changed("vehicle", files_per_h=0)
        in_step = storm.sessions(costs, 100_000, 1_000, 1.9, 5, True, 10)
        self.assertEqual(in_step.asked, 2 * 100_000 * 8)
        self.assertAlmostEqual(in_step.longest_later_s, in_step.longest_s, delta=1)

    def test_after_the_first_quarter_of_an_hour_no_wave_is_higher_than_the_even_load_and_noise(self):
        vehicles, one_for = 100_000, 10
        even = 60 * vehicles * PROFILE.keys
        settled = math.ceil((COSTS.vehicle.boot_last_s + COSTS.vehicle.session_s) / 60)

        def busiest(full_age):
            met = storm.sessions(COSTS, vehicles, 1_000, 2.0, 5, full_age, one_for)
            return max(met.a_minute[settled:-1]), met

        # Lines miss each other's first minute, so what they ask for is asked for in 14 of 15 minutes. Noise of as many draws as were made.
        first = COSTS.vehicle.first_session_min_s / COSTS.vehicle.session_s
        bound = even / (1 - first) + 5 * one_for * math.sqrt(even / one_for)
        spread, met = busiest(False)
        self.assertLess(spread, bound)
        self.assertLess(met.longest_later_s, 1.0)
        in_step, _ = busiest(True)
        self.assertGreater(in_step, 5 * even)

    def test_the_first_wave_is_through_when_the_quota_has_made_up_for_it_and_for_what_came_meanwhile(self):
        costs = changed("vehicle", files_per_h=0)
        vehicles, per_s = 150_000, 1_000
        first, last, least = costs.vehicle.boot_first_s, costs.vehicle.boot_last_s, costs.vehicle.first_session_min_s
        met, in_step = (storm.sessions(costs, vehicles, per_s, 1.0, 5, full_age, 10) for full_age in (False, True))
        # Second sessions come evenly; how many lines they can come from grows while vehicles start, and a minute later.
        comes = 2 * vehicles / (costs.vehicle.session_s - least)
        by_last = comes * (last - first - least) ** 2 / 2 / (last - first)
        self.assertAlmostEqual(met.longest_s, (2 * vehicles + by_last) / per_s - (last - first), delta=2.0)
        self.assertAlmostEqual(met.longest_s, in_step.longest_s + by_last / per_s, delta=2.0)
        # Asked for until T: 2 for each vehicle, and what came since the middle of the start and a minute. Answered: all the time.
        through = (2 * vehicles + first * per_s - ((first + last) / 2 + least) * comes) / (per_s - comes)
        self.assertAlmostEqual(met.through_s, through, delta=0.02 * through)
        self.assertLess(met.longest_later_s, 1.0)

    def test_a_fleet_that_uses_the_quota_up_never_gets_through_its_first_wave(self):
        met = storm.sessions(COSTS, 400_000, 1_000, 2.0, 5, False, 80)
        self.assertIsNone(met.through_s)
        self.assertGreater(met.longest_later_s, 600)

    def test_a_short_first_session_costs_half_a_data_key_for_each_line_and_start(self):
        # Runs of all lengths between 1 and 1.25 hours, so that no length is one at which a session has just begun.
        costs = changed("vehicle", files_per_h=0)
        more = []
        for minute in range(15):
            hours = 1 + minute / 60
            asked = [storm.sessions(costs, 20_000, 1e6, hours, 5, full_age, 40).asked for full_age in (False, True)]
            more.append((asked[0] - asked[1]) / (20_000 * 2))
        mean_age = (COSTS.vehicle.first_session_min_s + COSTS.vehicle.session_s) / 2
        self.assertAlmostEqual(sum(more) / len(more), 1 - mean_age / COSTS.vehicle.session_s, delta=0.02)

    def test_one_seed_is_one_run(self):
        self.assertEqual(storm.sessions(COSTS, 20_000, 1_000, 1.0, 5, False, 10), storm.sessions(COSTS, 20_000, 1_000, 1.0, 5, False, 10))
        self.assertNotEqual(storm.reconnect(COSTS, 500, 1, 1), storm.reconnect(COSTS, 500, 1, 2))


class Bundles(unittest.TestCase):
    def test_any_replica_asks_again_as_often_as_chance_says(self):
        # A session lies in B bundles; of R replicas that many see one of them: R (1 - (1 - 1/R)^B).
        every = bundles.every_s(COSTS, 100 * (PROFILE.bytes - 10e6 / 3_600))
        for replicas in (1, 2, 8, 64):
            calls = bundles.kms_calls(COSTS, 20, 100, replicas, False, 3, 30.0)
            of_records = calls.kms_per_s - 2_000 / 3_600
            times = of_records / (20 * 100 * 2 / COSTS.vehicle.session_s)
            self.assertAlmostEqual(times, replicas * (1 - (1 - 1 / replicas) ** (COSTS.vehicle.session_s / every)), delta=0.04 * times)

    def test_a_site_to_one_replica_asks_once_while_the_keys_fit(self):
        self.assertAlmostEqual(bundles.kms_calls(COSTS, 100, 100, 16, True, 3, 10.0).times, 1.0, delta=0.02)
        # 1,000 sites have 200,000 keys; one replica keeps 50,000.
        self.assertGreater(bundles.kms_calls(COSTS, 1_000, 100, 1, True, 3, 2.0).times, 100)

    def test_a_bundle_is_closed_by_its_size_or_by_the_time(self):
        self.assertEqual(bundles.every_s(COSTS, 1_000), 10)
        self.assertEqual(bundles.every_s(COSTS, 8 * (1 << 20)), 1)

    def test_a_bill_is_requests_times_prices(self):
        costs = changed("vehicle", files_per_h=0)
        parts = dict(zip(scenarios.PARTS, scenarios.bill(costs, 10, 100, True)))
        work = 72_000
        count = 10 * work / (COSTS.cloud.bundle_bytes / (100 * (100 * 107 + 2 * 1_100)))
        self.assertAlmostEqual(parts["KMS"], 1_000 * 2 * work / 900 / 10_000 * 0.15, places=6)
        self.assertAlmostEqual(parts["PUT and LIST"], count * 3.01 / 1_000 * 0.005, places=6)
        self.assertAlmostEqual(parts["SQS"], count * 3 / 1e6 * 0.4, places=6)
        self.assertAlmostEqual(parts["sealed bundles kept"], 1_000 * 12_900 * work * 7 / 1e9 * 0.023 / 30, places=6)
        self.assertEqual(scenarios.bill(costs, 10, 100, False)[1:5], [0.0] * 4)


class Measured(unittest.TestCase):
    def test_bytes_on_the_air_are_those_of_the_bench(self):
        rows = found("docs/device.md", r"1,000/s, linger 200 ms / 1 s \| ([\d.]+) / ([\d.]+) \|") + found(
            "docs/device.md", r"\| the same at 100/s \| ([\d.]+) / ([\d.]+) \|"
        )
        cases = ((1_000, 0.2), (1_000, 1), (100, 0.2), (100, 1))
        for (rate, linger), measured in zip(cases, rows):
            costs = changed("vehicle", streams=1, records_per_s=rate, linger_s=linger, files_per_h=0)
            profile = flow.Profile.of(costs.vehicle)
            self.assertAlmostEqual(profile.bytes / profile.recorded, measured, delta=0.06 * measured, msg=f"{rate}/s, {linger} s")

    def test_the_hundred_vehicles_of_ten_minutes_sealed_fewer_envelopes_than_we_count(self):
        records, envelopes = found("docs/device.md", r"([\d,]+) records in ([\d,]+) envelopes")
        costs = changed("vehicle", streams=1, records_per_s=10, linger_s=0.2)
        counted = records / 10 * flow.envelopes_per_s(costs.vehicle)
        self.assertGreaterEqual(counted, envelopes)
        self.assertLess(counted, 1.3 * envelopes)

    def test_a_backlog_drains_as_fast_as_it_did(self):
        # 1,000,000 envelopes of one stream, measured twice, and once more out of the CPU that both programs took of two cores.
        costs = changed("vehicle", streams=1, records_per_s=1, linger_s=1, files_per_h=0)
        measured = found("docs/benchmarks.md", r"`restart-drain`, `drain` \| ([\d,]+)/s, ([\d,]+)/s")
        profile = flow.Profile.of(costs.vehicle)

        def drained(per_s):
            sites = flow.Sites(
                count=1,
                vehicles=1,
                gateways=1,
                radio=1e9,
                gateway=1e9,
                wan=1e9,
                budget=1e9,
                burst=1e9,
                outbox_room=1e9,
                spool_room=1e9,
                working=False,
                spool=1e6,
            )
            of = flow.Fleet(profile, [sites], [flow.Decryptor(1, per_s, 1e9)], 1e9, False)
            of.run(1_000.0)
            self.assertAlmostEqual(sites.delivered, 1e6, delta=1)
            return next(time for time, (_, _, delivered) in zip(of.times, sites.history) if delivered >= 1e6 - 1)

        for rate in measured:
            self.assertAlmostEqual(drained(COSTS.cloud.drain_per_s), 1e6 / rate, delta=0.03 * 1e6 / rate)
        by_cpu = COSTS.site.cores * 1e6 / (COSTS.cloud.decryptor_us + COSTS.site.relay_us)
        self.assertAlmostEqual(drained(by_cpu), 1e6 / measured[1], delta=0.25 * 1e6 / measured[1])

    def test_five_thousand_handshakes_take_the_cpu_that_they_took(self):
        seconds, cores = found("docs/benchmarks.md", r"([\d.]+) s until 5,000 devices had their keys.*?took ([\d.]+) of a core")
        costs = changed("site", connections=8_192)
        met = storm.reconnect(costs, 5_000, 1, 1, (0.0, 0.0), 0.0)
        self.assertAlmostEqual(met.cpu_s, seconds * cores, delta=0.05 * met.cpu_s)
        # The clients of the bench took the rest of both cores: alone, the gateway is faster.
        self.assertLess(met.last_s, seconds)

    def test_a_working_day_is_the_one_of_the_capacity_page(self):
        page = "docs/explanation/capacity.md"
        (calls,) = found(page, r"\| KMS calls a day \| [\d,]+ \| [\d,]+ \| ([\d,]+) \|")
        self.assertAlmostEqual(100_000 * PROFILE.keys * 72_000, calls, delta=1)
        (terabytes,) = found(page, r"\| bytes a day \| \d+ GB \| [\d.]+ TB \| (\d+) TB \|")
        self.assertAlmostEqual(100_000 * PROFILE.bytes * 72_000 / 1e12, terabytes, delta=0.5)
        of = flow.fleet(COSTS, 10, 100)
        of.run(10 * DAY_S)
        self.assertAlmostEqual(of.kms_calls / 10, 1_000 * PROFILE.keys * 72_000, delta=1)


class Pages(unittest.TestCase):
    def simulate(self):
        return runpy.run_path(str(ROOT / "docs/scale/simulate"), run_name="simulate")

    def test_a_number_that_its_source_no_longer_has_is_named(self):
        self.assertEqual(cost_file.faults(), [])
        kept = cost_file.FILE
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as after:
            after.callback(lambda: setattr(cost_file, "FILE", kept))
            cost_file.FILE = Path(folder) / "costs.json"
            wrong = json.loads(kept.read_text())
            wrong["cloud"]["drain_per_s"]["value"] = 1
            del wrong["cloud"]["devices"]["read"]
            wrong["cloud"]["kms_per_s"]["kind"] = "guess"
            cost_file.FILE.write_text(json.dumps(wrong))
            self.assertEqual(len(cost_file.faults()), 3)
            with self.assertRaises(cost_file.Stale):
                cost_file.load()

    def test_a_table_or_a_plot_that_says_something_else_is_found(self):
        simulate = self.simulate()
        with tempfile.TemporaryDirectory() as folder:
            page, images = Path(folder) / "page.md", Path(folder) / "images"
            images.mkdir()
            # The function reads these through its own module's names.
            names = simulate["stale"].__globals__
            names.update(PAGE=page, IMAGES=images, ROOT=Path(folder))
            page.write_text("# A\n\n<!-- docs/scale/simulate: t -->\n\n| 1 |\n\n<!-- end of t -->\n")
            (images / "p.svg").write_text("<svg/>")
            self.assertEqual(simulate["stale"]({"t": "| 1 |"}, {"p": "<svg/>"}), [])
            self.assertEqual(simulate["stale"]({"t": "| 2 |"}, {"p": "<svg/>"}), ["docs/scale.md"])
            self.assertEqual(simulate["stale"]({"t": "| 1 |"}, {"p": "<svg></svg>"}), ["images/p.svg"])
            self.assertEqual(simulate["stale"]({"t": "| 1 |"}, {}), ["images/p.svg (nothing writes it)"])
            with self.assertRaises(SystemExit):
                simulate["stale"]({"other": ""}, {})

    def test_a_number_in_the_words_of_the_page_is_missed_when_it_changes(self):
        simulate = self.simulate()
        self.assertEqual(simulate["unsaid"](COSTS), [])
        missing = simulate["unsaid"](changed("cloud", kms_per_s=5_000))
        self.assertIn("vehicles at which the quota of KMS is used up, 2,000,000 vehicles", missing)
        self.assertEqual(len(missing), 5)

    def test_a_plot_is_well_formed_and_names_its_axes(self):
        made = draw.lines(
            "a < b",
            draw.Axis("hours", 0, 24, ticks=(0, 12, 24)),
            draw.Axis("Mbit/s & more", 0.1, 1_000, log=True),
            [draw.Line("x", [(0, 1), (24, 5_000)])],
            (100, "full"),
        )
        tree = xml.etree.ElementTree.fromstring(made)
        words = ["".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")]
        for word in ("a < b", "hours", "Mbit/s & more", "x", "full", "24", "1,000"):
            self.assertIn(word, words)
        # What is beyond the axis stays at its edge.
        line = next(
            path for path in tree.iter("{http://www.w3.org/2000/svg}path") if path.get("class") == "line c0" and "L" in path.get("d")
        )
        self.assertGreaterEqual(min(float(point.split()[1]) for point in re.split("[ML]", line.get("d"))[1:]), 48)

    def test_bars_are_as_long_as_their_values(self):
        made = draw.bars("t", "$", [("one", [1.0, 3.0]), ("two", [0.0, 2.0])], ["a", "b"])
        tree = xml.etree.ElementTree.fromstring(made)
        wide = [float(rect.get("width")) for rect in tree.iter("{http://www.w3.org/2000/svg}rect") if rect.get("height") == "24"]
        self.assertAlmostEqual(wide[1], 3 * wide[0], delta=0.2)
        self.assertAlmostEqual(wide[3], 2 * wide[0], delta=0.2)


if __name__ == "__main__":
    unittest.main()
