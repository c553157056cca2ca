"""More runbooks done with the real programs: the clock is wrong, KMS fails, a sink fails, somebody else signs, the port is full, a
program does not run. The clock is libfaketime's, KMS is ministack's, and a full disk is strace's word for it."""

import pathlib
import re
import shutil
import signal
import socket

import pytest

from certificates import Ca
from kms import Kms
from parties import SITE
from programs import Server, free_port, program, run, succeed
from site_on_loopback import LoopbackSite, Wan
from test_rehearsed import ask, send
from tools import UNPACKED


@pytest.fixture
def site(tmp_path):
    with LoopbackSite(tmp_path) as running:
        yield running


class WithAClock(LoopbackSite):
    """The gateway's clock is what a file says: `+0` is the right time. Time that passes is left alone."""

    def set_clock(self, offset):
        (self.folder / "clock").write_text(f"{offset}\n")

    def environment(self, name):
        if name != "gateway":
            return {}
        (library,) = (UNPACKED.parent / "lib").glob("*/faketime/libfaketime.so.1")
        return {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.parametrize(("offset", "behind"), [("-60d", True), ("+400d", False)])
def test_wrong_clock(tmp_path, offset, behind):
    site = WithAClock(tmp_path)
    site.set_clock("+0")
    with site:
        site.send("truck-1", 3)
        site.set_clock(offset)
        if behind:
            site.gateway.until("says that it lies before what was signed", lambda: site.gateway.metric("pithead_clock_behind_seconds") > 50 * 86400)
        site.gateway.until("counts the step", lambda: site.gateway.metric("pithead_clock_steps_total") > 0)
        code, said = send(site, "truck-1", 3)
        print(f"the device: exit {code}\n{said}")
        assert code != 0, "certificates are judged by this clock"
        # Nothing else has gone wrong, and no restart is needed.
        site.set_clock("+0")
        site.gateway.until("is right again", lambda: site.gateway.metric("pithead_clock_behind_seconds") == 0)
        done = run(program("pithead-device"), "-c", site.device("truck-1") / "device.toml", "outbox", "drain")
        assert done.returncode == 0, done.stderr
        site.until_delivered("truck-1", 6)
        assert "issued_at" in ask(site, "key", "show")


class WithKms(LoopbackSite):
    """KMS behind a way of its own, which can be cut."""

    def __init__(self, folder, kms):
        self.way = Wan(kms.port)
        super().__init__(folder, kms=kms)

    def environment(self, name):
        return self.kms.environment | {"AWS_ENDPOINT_URL_KMS": f"http://127.0.0.1:{self.way.port}"}


@pytest.fixture
def cloudy(tmp_path):
    (tmp_path / "kms").mkdir()
    (tmp_path / "site").mkdir()
    with Kms(tmp_path / "kms") as kms, WithKms(tmp_path / "site", kms) as running:
        running.send("truck-1", 2)
        running.until_delivered("truck-1", 2)
        yield running


def outcome(site, name):
    return site.decryptor.metric("pithead_kms_decrypt_calls_total", f'outcome="{name}"')


def test_kms_failing_for_a_key_that_is_disabled_and_one_that_is_pending_deletion(cloudy):
    kms, (arn, _) = cloudy.kms.client, cloudy.data_keys
    delivered = 2
    for breaks, name, mends in (
        (lambda: kms.disable_key(KeyId=arn), "key_disabled", [lambda: kms.enable_key(KeyId=arn)]),
        (lambda: kms.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7), "key_pending_deletion",
         [lambda: kms.cancel_key_deletion(KeyId=arn), lambda: kms.enable_key(KeyId=arn)]),
    ):
        breaks()
        cloudy.send("truck-1", 3)
        cloudy.decryptor.until(f"says {name}", lambda name=name: outcome(cloudy, name) > 0)
        cloudy.gateway.until("says that the far end waits", lambda: re.search(r"PH-(3006|5\d\d\d)", ask_anyway(cloudy, "relay", "status")))
        assert cloudy.gateway.metric("pithead_spool_records") > 0, "it waits at the gateway"
        for mend in mends:
            mend()
        # It would be tried again within two minutes.
        ask_anyway(cloudy, "relay", "pause")
        ask_anyway(cloudy, "relay", "resume")
        delivered += 3
        cloudy.until_delivered("truck-1", delivered)
    cloudy.gateway.until("has drained", lambda: cloudy.gateway.metric("pithead_spool_records") == 0)
    succeed(program("pithead-decryptor"), "verify", "-c", cloudy.folder / "decryptor.toml")


def ask_anyway(site, *arguments):
    """A command of the gateway's, whatever its exit code."""
    done = run(program("pithead-gateway"), *arguments, "-c", site.folder / "gateway.toml")
    return (done.stdout + done.stderr).decode()


def test_kms_failing_because_it_is_not_reached(cloudy):
    cloudy.way.cut()
    cloudy.send("truck-1", 3)
    cloudy.decryptor.until("says so", lambda: outcome(cloudy, "unreachable") > 0)
    cloudy.way.heal()
    cloudy.until_delivered("truck-1", 5)


def test_a_sink_that_fails_ends_the_decryptor_and_goes_on_after_the_next_start(site):
    """The disk of the sink is full, as strace tells the decryptor."""
    full = Server(["strace", "-f", "-qq", "-o", "/dev/null", "-P", site.out, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=ENOSPC",
                   "-p", site.decryptor.process.pid], site.folder / "strace.log")
    status = pathlib.Path(f"/proc/{site.decryptor.process.pid}/status")
    full.until("watches", lambda: "TracerPid:\t0" not in status.read_text())
    site.send("truck-1", 4)
    # A sync that has failed is never asked again: the file is opened anew by the next start, which systemd sees to.
    assert site.decryptor.process.wait(60) == 73
    full.process.wait(30)
    said = site.decryptor.log.read_text()
    assert "PH-6006" in said and "No space left" in said
    assert site.gateway.metric("pithead_spool_records") > 0, "it waits at the gateway"
    site.start_decryptor()
    site.gateway.until("has drained", lambda: site.gateway.metric("pithead_spool_records") == 0)
    assert site.out.read_text().count('"truck-1"') == 4, "each once"


def test_somebody_else_signs_and_the_root_keys_undo_it(site, tmp_path):
    """Two folders of the authority sign one number; then the statement key counts as stolen."""
    site.send("truck-1", 1)
    thief = tmp_path / "thief"
    shutil.copytree(site.authority.folder, thief)
    site.authority.statement()
    site.gateway.until("has the second", lambda: site.gateway.metric("pithead_key_sequence") == 2)
    foreign = tmp_path / "foreign.pb"
    succeed(program("pithead-decryptor"), "authority", "statement", "--dir", thief, "--site", SITE, "--ticket", "of the thief", "--out", foreign)
    refused = run(program("pithead-gateway"), "key", "import", foreign, "-c", site.folder / "gateway.toml")
    print(refused.stderr.decode(), refused.returncode)
    assert refused.returncode != 0 and b"TRUST_EQUIVOCATION" in refused.stderr
    # The page's questions, to the gateway and to the authority.
    history = ask(site, "key", "history")
    ask(site, "refused", "list")
    shown = succeed(program("pithead-decryptor"), "authority", "show", "--dir", site.authority.folder).decode()
    print(shown)
    audit = (site.authority.folder / "audit.log").read_text()
    digests = re.findall(r"\b[0-9a-f]{64}\b", history)
    assert digests and all(one in audit for one in digests), f"what the gateway has is in the audit log:\n{history}\n{audit}"
    # Stolen: another statement key and a raised epoch, signed by the root keys.
    authority, keys = site.authority.folder, site.authority.folder / "keys"
    act = [program("pithead-decryptor"), "authority"]
    succeed(*act, "root", "new-key", "--out", tmp_path / "statement-2.pem")
    succeed(*act, "root", "draft", "--dir", authority, "--out", tmp_path / "2.draft", "--statement-key", f"statement-2={tmp_path}/statement-2.pem.pub", "--raise-epoch")
    read = succeed(*act, "root", "sign", tmp_path / "2.draft").decode()
    fingerprint = re.search(r"fingerprint\W+([0-9a-f]{64})", read)[1]
    signed = []
    for number in (1, 2):
        signed.append(tmp_path / f"{number}.signed")
        succeed(*act, "root", "sign", tmp_path / "2.draft", "--key", keys / f"root-{number}.pem", "--fingerprint", fingerprint, "--out", signed[-1])
    succeed(*act, "root", "accept", "--dir", authority, *signed)
    cosigned = [part for number in (1, 2) for part in ("--cosign", keys / f"root-{number}.pem")]
    succeed(*act, "statement", "--dir", authority, "--site", SITE, "--statement-key", tmp_path / "statement-2.pem", *cosigned)
    site.gateway.until("follows", lambda: "2.3" in ask_anyway(site, "key", "show"))
    site.send("truck-1", 1)
    site.until_delivered("truck-1", 2)
    # And the thief is out.
    succeed(program("pithead-decryptor"), "authority", "statement", "--dir", thief, "--site", SITE, "--out", foreign)
    assert run(program("pithead-gateway"), "key", "import", foreign, "-c", site.folder / "gateway.toml").returncode != 0


def test_the_port_is_full_for_an_address(tmp_path):
    with LoopbackSite(tmp_path, more="[ingest.limits]\nconnections_per_ip = 3") as site:
        site.device("truck-1")
        held = [socket.create_connection(("127.0.0.1", site.ports["gateway"])) for _ in range(8)]
        site.gateway.until("turns them away", lambda: site.gateway.metric("pithead_connections_refused_total", 'how="per_address"') > 0)
        page = site.gateway.get("/metrics")[1]
        assert re.search(r"pithead_(connections|handshakes|listener_errors)", page) and site.gateway.get("/devices")[0] == 200
        for one in held:
            one.close()
        # Raised, checked, and started again.
        site.gateway.stop()
        site.more = "[ingest.limits]\nconnections_per_ip = 64\nconnections_per_second_per_ip = 64"
        site.start_gateway()
        ask(site, "config", "check")
        held = [socket.create_connection(("127.0.0.1", site.ports["gateway"])) for _ in range(8)]
        site.send("truck-1", 2)
        site.until_delivered("truck-1", 2)
        assert site.gateway.metric("pithead_connections_refused_total", 'how="per_address"') == 0
        for one in held:
            one.close()


def test_scanners_and_strangers_are_counted_apart_and_a_peer_is_named_with_more_in_the_log(site):
    config = site.folder / "gateway.toml"
    with socket.create_connection(("127.0.0.1", site.ports["gateway"])) as scanner:
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
        site.gateway.until("counts it", lambda: site.gateway.metric("pithead_handshakes_total", 'how="failed"') > 0)
    device = site.device("truck-1")
    certificate, key = Ca("strangers", site.folder / "strangers.pem").issue(site.folder / "stranger", spiffe=f"spiffe://{SITE}/device/truck-1")
    text = re.sub(r'(certificate|cert) = .*', lambda found: f'{found[1]} = "{certificate}"', (device / "device.toml").read_text())
    text = re.sub(r'(private_key|key) = .*', lambda found: f'{found[1]} = "{key}"', text)
    (device / "stranger.toml").write_text(text)
    run(program("pithead-device"), "-c", device / "stranger.toml", "netcheck")
    site.gateway.until("counts it", lambda: site.gateway.metric("pithead_handshakes_total", 'how="certificate"') > 0)
    site.gateway.stop()
    command = [program("pithead-gateway"), "run", "-v", "-c", config]
    site.gateway = Server(command, site.folder / "gateway.log", admin=site.ports["gateway_admin"]).ready()
    site.running.append(site.gateway)
    site.send("truck-1", 1)
    site.gateway.until("names it", lambda: f"{SITE}/device/truck-1" in site.gateway.log.read_text() or "truck-1" in site.gateway.log.read_text())


def start(site):
    """The exit code of a gateway that does not stay, and what it said."""
    done = run(program("pithead-gateway"), "run", "-c", site.folder / "gateway.toml")
    return done.returncode, done.stderr.decode()


def test_a_gateway_that_does_not_run_says_why_in_its_exit_code(site):
    site.send("truck-1", 1)
    site.gateway.stop()
    config = site.folder / "gateway.toml"
    good = config.read_text()
    config.write_text(good.replace("segment_size", "segment_sise"))
    code, said = start(site)
    assert code == 78 and "segment_sise" in said and "^" in said, said
    assert run(program("pithead-gateway"), "config", "check", "-c", config).returncode == 78
    config.write_text(good)
    (site.folder / "gateway-data").rename(site.folder / "unmounted")
    code, said = start(site)
    assert code == 73, said
    (site.folder / "unmounted").rename(site.folder / "gateway-data")
    with socket.create_server(("127.0.0.1", site.ports["gateway"])):
        code, said = start(site)
        assert code == 75, said
    pem = (site.folder / "gateway.pem").read_text()
    Ca("strangers", site.folder / "strangers.pem").issue(site.folder / "other", spiffe="spiffe://pit-8/gateway/gw-1", server=True)
    config.write_text(good.replace('"gateway.pem"', '"other.pem"').replace('"gateway.key"', '"other.key"'))
    code, said = start(site)
    assert code == 77, said
    config.write_text(good)
    assert pem == (site.folder / "gateway.pem").read_text()
    for reason in sorted(set(re.findall(r"PH-\d{4}", said))):
        assert run(program("pithead-gateway"), "explain", reason).returncode == 0
    # The data directory belongs to one.
    site.start_gateway()
    config.write_text(good.replace(str(site.ports["gateway"]), str(free_port())).replace(str(site.ports["gateway_admin"]), str(free_port())))
    code, said = start(site)
    assert code == 75, said
    config.write_text(good)
    site.gateway.until("reaches the decryptor", lambda: site.gateway.metric("pithead_relay_up") == 1)
    ask(site, "status")


def test_a_gateway_that_is_not_ready_says_which_lamp(tmp_path):
    site = LoopbackSite(tmp_path)
    try:
        site.start_gateway(ready=False)
        site.gateway.until("says which", lambda: re.search(r"not ready\n(.*\n)*keys.*no statement was ever accepted", site.gateway.get("/readyz")[1]))
        ask(site, "status", code=4)
        site.start_decryptor()
        site.gateway.ready()
        site.gateway.until("reaches the decryptor", lambda: site.gateway.metric("pithead_relay_up") == 1)
        ask(site, "status")
    finally:
        site.__exit__()
    done = run(program("pithead-gateway"), "status", "-c", site.folder / "gateway.toml")
    assert done.returncode == 69, "it does not run"


def test_a_reload_that_is_refused_leaves_everything_as_it_was(site):
    config = site.folder / "gateway.toml"
    good = config.read_text()
    config.write_text(good + "\n[nonsense]\n")
    site.gateway.process.send_signal(signal.SIGHUP)
    site.gateway.until("refuses", lambda: site.gateway.metric("pithead_config_last_reload_successful") == 0)
    site.send("truck-1", 2)
    site.until_delivered("truck-1", 2)
    assert run(program("pithead-gateway"), "config", "check", "-c", config).returncode == 78
    config.write_text(good)
    site.gateway.process.send_signal(signal.SIGHUP)
    site.gateway.until("takes it", lambda: site.gateway.metric("pithead_config_last_reload_successful") == 1)


def test_a_registry_that_does_not_read_back_leaves_the_last_one_in_force(site):
    site.send("truck-1", 1)
    ask(site, "device", "revoke", "truck-2", "--unknown")
    registry = site.folder / "gateway-data" / "devices.toml"
    good = registry.read_text()
    registry.write_text(good + "\nnonsense = [\n")
    site.gateway.until("says so", lambda: site.gateway.metric("pithead_device_registry_good") == 0)
    assert "devices.registry_refused" in site.gateway.log.read_text()
    registry.write_text(good)
    site.gateway.until("takes it", lambda: site.gateway.metric("pithead_device_registry_good") == 1)
    site.send("truck-1", 1)
