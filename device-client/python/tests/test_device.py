"""What a device keeps: through kills at every write, a damaged disk, a full one; and what it says of its lines."""

import dataclasses
import itertools
import json
import os

import pytest
from pithead.batch.v1 import batch_pb2

import pithead_device
from authority import ARN, AUTHORITY, DEVICE, SITE, Authority, rsa_key, unwrap
from pithead_device import Device, PitheadError, Status, StorageFailed, TrustRefused, disk
from pithead_device.batch import BatchBuilder
from pithead_device.envelope import opening, reading


def opened(device, identity):
    head, plaintext = opening.open_envelope(device.read(identity), lambda arn: arn == ARN, unwrap)
    assert reading.identity(head) == identity
    return plaintext


def batches(device):
    return [batch_pb2.Batch.FromString(opened(device, identity)) for identity in device.waiting()]


def test_records_are_sealed_together_with_both_clocks(device, turned):
    device.record("can", b"one", "speed")
    turned.wall_us -= 500
    device.record("can", b"two")
    assert device.waiting() == [], "they are in memory"
    device.flush()
    [batch] = batches(device)
    assert [(record.dt_us, record.data, record.name) for record in batch.records] == [(0, b"one", "speed"), (-500, b"two", "")]
    assert (batch.base_us, batch.monotonic_us) == (1_790_000_000_000_000, 1_000_000_000)
    assert not batch.HasField("previous")


def test_a_full_batch_is_sealed_and_the_next_begun(device):
    for _ in range(2_500):
        device.record("can", b"x")
    assert [len(batch.records) for batch in batches(device)] == [1_000, 1_000]
    builder = BatchBuilder(bytes_max=4_096)
    while builder.push(bytes(100), "", 0, 0):
        pass
    assert 4_096 - 120 < len(builder.build()) <= 4_096 + 32
    builder.clear()
    assert builder.push(bytes(10_000), "", 0, 0), "an empty batch takes any record"


def test_the_first_batch_of_a_run_names_the_run_before_and_a_heartbeat_every_line(folder, turned):
    with Device(folder, clocks=turned.clocks) as device:
        device.record("can", b"1"), device.flush()
        device.record("can", b"2"), device.flush()
        [first, second] = device.waiting()
        for identity in device.waiting():
            device.acknowledged(identity)
    with Device(folder, clocks=turned.clocks) as device:
        device.seal("files", b"whole", content_type="text/plain")
        device.record("can", b"3"), device.flush()
        device.record("can", b"4"), device.flush()
        device.heartbeat()
        said = [batch_pb2.Batch.FromString(opened(device, i)) for i in device.waiting() if i.stream == "can"]
        run = device.waiting()[0].run
    assert run >> 32 == (first.run >> 32) + 1
    before = said[0].previous
    assert (before.stream, before.run, before.last_seq) == ("can", first.run, second.seq)
    assert not said[1].HasField("previous") and not said[2].HasField("previous")
    assert [(line.stream, line.run, line.last_seq) for line in said[2].heartbeat] == [("can", run, 2), ("files", run, 1)]
    assert said[2].base_us == turned.wall_us and not said[2].records


def test_a_device_without_batches_says_its_heartbeat_on_the_stream_status(device):
    device.seal("files", b"whole")
    assert device.heartbeat().stream == "status"
    [device.heartbeat() for _ in range(2)]
    assert [identity.seq for identity in device.waiting() if identity.stream == "status"] == [1, 2, 3]


class Power(BaseException):
    """No program handles this one."""


@pytest.mark.parametrize("records", [1, 3])
def test_a_kill_at_any_write_loses_nothing_that_was_promised_and_repeats_no_number(authority, tmp_path, monkeypatch, records):
    """Killed before and after every call that changes the disk, one after the other, until a life gets through."""
    real = {name: getattr(os, name) for name in ("write", "ftruncate", "fsync", "replace", "unlink")}
    for at in itertools.count(1):
        folder = tmp_path / f"life-{records}-{at}"
        pithead_device.enroll(folder, AUTHORITY, SITE, DEVICE, authority.root, authority.bundle())
        left, promised, forgotten = [at], {}, set()

        def tick():
            left[0] -= 1
            if left[0] == 0:
                raise Power

        def counted(name):
            def call(*arguments, **options):
                tick()
                done = real[name](*arguments, **options)
                tick()
                return done

            return call

        for name in real:
            monkeypatch.setattr(os, name, counted(name))
        killed, device = False, None
        try:
            device = Device(folder)
            for number in range(records):
                identity = device.seal("can", f"load {number}".encode(), content_type="text/plain")
                promised[identity] = f"load {number}".encode()
            first = device.waiting()[0]
            forgotten.add(first)
            device.acknowledged(first)
            device.close()
        except Power:
            killed = True
            # The kernel lets the lock go; nothing else of the process is left.
            if device is not None:
                device._open.close()
        for name, call in real.items():
            monkeypatch.setattr(os, name, call)
        with Device(folder) as device:
            held = {identity: opened(device, identity) for identity in device.waiting()}
            assert {i: p for i, p in promised.items() if i not in forgotten}.items() <= held.items()
            fresh = device.seal("can", b"after", content_type="text/plain")
            assert fresh not in held and fresh.seq == 1 and all(fresh.run > identity.run for identity in promised)
            # The run before is named to its last number, also when all of it was handed over and forgotten.
            if promised:
                device.record("can", b""), device.flush()
                said = batch_pb2.Batch.FromString(opened(device, device.waiting()[-1])).previous
                assert said.run == max(promised).run and said.last_seq >= max(promised).seq
        if not killed:
            break
    assert at > 20


def test_an_envelope_that_the_disk_failed_under_gives_its_number_to_no_other(device, monkeypatch):
    device.seal("can", b"good", content_type="text/plain")

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "sync_folder", fails)
    with pytest.raises(StorageFailed) as refused:
        device.seal("can", b"unsure", content_type="text/plain")
    assert refused.value.code == "PH-6007"
    monkeypatch.undo()
    after = device.seal("can", b"after", content_type="text/plain")
    assert after.seq == 1 and after.run > device.waiting()[0].run


def test_what_the_disk_has_damaged_is_declared_inside_a_seal_and_kept_aside(folder, turned):
    with Device(folder, clocks=turned.clocks) as device:
        lost, kept, late = (device.seal("can", bytes([n]), content_type="text/plain") for n in (1, 2, 3))
    [path] = (folder / "outbox").glob(f"*-{lost.seq}-*.envelope")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with Device(folder, clocks=turned.clocks) as device:
        assert device.waiting() == [kept, late]
        [path] = (folder / "outbox").glob(f"*-{late.seq}-*.envelope")
        path.write_bytes(b"gone")
        assert device.read(late) is None
    # A batch that was not safe has declared nothing: it is said again.
    with Device(folder, clocks=turned.clocks) as device:
        device.heartbeat()
        device.heartbeat()
        first, second = (
            batch_pb2.Batch.FromString(opened(device, identity)) for identity in device.waiting() if identity != kept
        )
    assert [(gap.stream, gap.run, getattr(gap, "from"), gap.to, gap.reason) for gap in first.gaps] == [
        ("can", lost.run, 1, 1, batch_pb2.GAP_REASON_OUTBOX_DAMAGED), ("can", lost.run, 3, 3, batch_pb2.GAP_REASON_OUTBOX_DAMAGED),
    ]
    assert not second.gaps and len(list((folder / "outbox" / "damaged").iterdir())) == 2


def test_a_full_outbox_and_a_too_large_envelope_use_up_no_number(folder, turned):
    with Device(folder, clocks=turned.clocks, outbox_bytes=2_000) as device:
        device.seal("can", bytes(100), content_type="text/plain")
        for plaintext, code in ((bytes(1_500), "PH-6009"), (bytes(2**20), "PH-2107")):
            with pytest.raises(PitheadError) as refused:
                device.seal("can", plaintext, content_type="text/plain")
            assert refused.value.code == code
        device.acknowledged(device.waiting()[0])
        assert device.seal("can", bytes(1_000), content_type="text/plain").seq == 2


def test_records_of_a_batch_that_found_no_room_stay_until_there_is_some(folder, turned):
    with Device(folder, clocks=turned.clocks, outbox_bytes=1_500) as device:
        device.seal("can", bytes(300), content_type="text/plain")
        device.record("can", bytes(500))
        with pytest.raises(StorageFailed):
            device.flush()
        device.acknowledged(device.waiting()[0])
        device.flush()
        assert len(batches(device)[0].records) == 1


def test_a_forked_child_uses_no_device_of_its_parents(device):
    child = os.fork()
    if child == 0:
        try:
            device.waiting()
        except pithead_device.SealingFailed:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_one_program_works_in_a_folder(device, folder, authority):
    for act in (
        lambda: Device(folder),
        lambda: pithead_device.enroll(folder, AUTHORITY, SITE, DEVICE, authority.root),
    ):
        with pytest.raises(StorageFailed) as refused:
            act()
        assert refused.value.code == "PH-6005"


def test_enrolling_again_takes_nothing_away_and_a_folder_without_a_device_is_told(folder, authority, tmp_path):
    with pytest.raises(PitheadError) as refused:
        pithead_device.enroll(folder, AUTHORITY, SITE, "another", authority.root)
    assert refused.value.code == "PH-6011"
    with Device(folder) as device:
        assert device.device == DEVICE and device.status() is Status.FRESH
    (tmp_path / "empty").mkdir()
    with pytest.raises(PitheadError) as refused:
        Device(tmp_path / "empty")
    assert refused.value.code == "PH-6001"


def test_a_statement_of_somebody_else_changes_nothing_and_its_key_is_not_sealed_to(device, authority):
    before = device.key()
    thief = Authority()
    for bundle, code in (
        (thief.bundle(2, rsa_key(1)), "THRESHOLD"),
        (authority.bundle(1, rsa_key(1)), "EQUIVOCATION"),
        (dataclasses.replace(authority.bundle(), statement=authority.bundle().statement[:-1]), "PARSE"),
    ):
        with pytest.raises(TrustRefused) as refused:
            device.apply(bundle)
        assert refused.value.trust_code == code
    assert device.key() == before


def test_a_new_key_ends_the_session_at_once_and_survives_a_restart(folder, authority, turned):
    with Device(folder, clocks=turned.clocks) as device:
        first = device.seal("can", b"", content_type="text/plain")
        same = device.seal("can", b"", content_type="text/plain")
        previous = device.trust.stored.statement.digest
        # Hold-down is 0 under this root.
        bundle = authority.bundle(2, rsa_key(1), ARN[:-1] + "c", previous=previous)
        assert device.apply(bundle) and not device.apply(bundle)
        other = device.seal("can", b"", content_type="text/plain")
        edk = lambda identity: reading.header(device.read(identity)).edks[0]
        assert edk(first) == edk(same) != edk(other)
        assert edk(other).provider_info.decode() == ARN[:-1] + "c"
    with Device(folder, clocks=turned.clocks) as device:
        assert device.trust.version == (1, 2)


def test_what_was_accepted_is_durable_before_anybody_acts_on_it(folder, authority):
    with Device(folder) as device:
        previous = device.trust.stored.statement.digest
    device = Device(folder)
    device.apply(authority.bundle(2, rsa_key(1), ARN[:-1] + "c", previous=previous))
    device._open.close()  # as a kill would
    with Device(folder) as device:
        assert device.trust.version == (1, 2)


def test_operating_time_is_written_down_and_ends_the_key(folder, turned):
    with Device(folder, clocks=turned.clocks) as device:
        turned.boot_s += 2 * 86_400
        assert device.status() is Status.STALE
        device.tick()
        device._open.close()
    turned.boot_s = 5.0
    with Device(folder, clocks=turned.clocks) as device:
        assert device.status() is Status.STALE
        turned.boot_s += 366 * 86_400
        assert device.status() is Status.EXPIRED
        with pytest.raises(TrustRefused) as refused:
            device.seal("can", b"")
        assert refused.value.code == "PH-1019"


def test_a_damaged_copy_of_the_state_gives_way_to_the_other(folder):
    with Device(folder) as device:
        run = device.seal("can", b"").run
    slots = disk.Slots(folder, "lines", 4_096)
    slots.load()
    newest = folder / f"lines.{'ab'[slots._newest]}"
    newest.write_bytes(newest.read_bytes()[:-3])
    with Device(folder) as device:
        assert device.seal("can", b"").run > run
    for name in "ab":
        (folder / f"lines.{name}").write_bytes(b"PTHSLOT1")
    with pytest.raises(StorageFailed) as refused:
        Device(folder)
    assert refused.value.code == "PH-6008"


def test_the_checksum_is_crc32c():
    assert disk.crc32c(b"123456789") == 0xE3069283


def test_what_is_refused_is_kept_with_its_reason(device, folder):
    identity = device.seal("can", b"", content_type="text/plain")
    device.refused(identity, "KEY_UNKNOWN", 'a "sentence"')
    [why] = (folder / "outbox" / "refused").glob("*.json")
    assert json.loads(why.read_text()) == {
        "identity": str(identity), "reason": "KEY_UNKNOWN", "detail": 'a "sentence"',
    }
    assert why.with_suffix(".envelope").exists() and device.waiting() == []
