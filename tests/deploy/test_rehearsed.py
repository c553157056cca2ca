"""The runbooks' steps, done with the real programs on loopback: each ends where its runbook says that it does.

Wrong clocks, KMS and sinks that fail, foreign signers, full ports and programs that do not run are in test_rehearsed_trouble.py; a
disk that dies is in the Rust suites.
"""

import json
import re
import signal
import subprocess

import pytest

from parties import SITE
from programs import Server, free_port, program, run, succeed
from site_on_loopback import ARN, KEYS, LoopbackSite


@pytest.fixture
def site(tmp_path):
    with LoopbackSite(tmp_path) as running:
        yield running


def ask(site, *arguments, code=0):
    """A command of the gateway's, whose exit code is known; what it said."""
    done = run(program("pithead-gateway"), *arguments, "-c", site.folder / "gateway.toml")
    said = (done.stdout + done.stderr).decode()
    print(f"$ pithead-gateway {' '.join(map(str, arguments))}\n{said}(exit {done.returncode})\n")
    assert done.returncode == code, said
    return said


def send(site, name, records, size=100):
    """The exit code of a send that does not wait for ever."""
    lines = "".join(f"{number:0{size}d}\n" for number in range(records))
    command = [program("pithead-device"), "-c", str(site.device(name) / "device.toml"), "send", "--stream", "can", "--timeout", "3s", "-"]
    done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=120, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_wan_down_and_back(site):
    site.wan.cut()
    site.gateway.until("says so", lambda: site.gateway.metric("pithead_relay_up") == 0)
    site.send("truck-1", 10)
    assert "relay   degraded" in ask(site, "status", code=3)
    ask(site, "relay", "status", code=3)
    assert site.gateway.get("/readyz")[0] == 200
    site.wan.heal()
    site.until_delivered("truck-1", 10)
    ask(site, "status")


def test_disk_full(tmp_path):
    with LoopbackSite(tmp_path, spool="32MiB") as site:
        site.wan.cut()
        code, said = 0, ""
        for _ in range(60):
            code, said = send(site, "truck-1", 60, size=12_000)
            if code:
                break
        print(f"the device: exit {code}\n{said}")
        assert code == 75
        assert "disk    degraded" in ask(site, "status", code=3)
        stick = tmp_path / "stick"
        exported = ask(site, "spool", "export", "--to", stick)
        assert "envelopes" in exported or "records" in exported
        # More room: the configuration, and a restart.
        site.gateway.stop()
        site.spool = "256MiB"
        site.start_gateway()
        done = run(program("pithead-device"), "-c", site.device("truck-1") / "device.toml", "outbox", "drain")
        assert done.returncode == 0, done.stderr
        site.wan.heal()
        site.decryptor.until("has all", lambda: site.gateway.metric("pithead_spool_records") == 0)
        ask(site, "status")
        ask(site, "spool", "stat")


def test_corrupt_spool(site):
    site.wan.cut()
    for _ in range(3):
        site.send("truck-1", 30, size=2000)
    site.gateway.stop()
    segments = [path for path in (site.folder / "gateway-data" / "spool").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    used = max(segments, key=lambda path: len(path.read_bytes().rstrip(b"\0")))
    content = bytearray(used.read_bytes())
    end = len(bytes(content).rstrip(b"\0"))
    content[end // 3] ^= 0xFF
    used.write_bytes(content)
    said = ask(site, "spool", "verify", code=1)
    assert "truck-1" in said
    # Damage in the middle of a record is found when it is read: by `verify`, or when it is its turn to go out.
    site.start_gateway()
    site.wan.heal()
    site.gateway.until("drains", lambda: site.gateway.metric("pithead_spool_records") == 0)
    assert site.gateway.metric("pithead_spool_corrupt_records_total") > 0
    print("\n".join(line for line in site.gateway.log.read_text().splitlines() if "spool." in line))
    done = run(program("pithead-decryptor"), "verify", "-c", site.folder / "decryptor.toml")
    print(done.stdout.decode(), done.returncode)
    assert done.returncode == 1, "the hole is named"


def test_replace_the_box_and_restore(site, tmp_path):
    site.wan.cut()
    site.send("truck-1", 25)
    site.gateway.kill()
    # The old disk, in another machine; a new gateway with an empty data directory.
    old, stick = tmp_path / "old-disk", tmp_path / "stick"
    (site.folder / "gateway-data").rename(old)
    said = run(program("pithead-gateway"), "spool", "export", "--to", stick, "--data-dir", old)
    print(said.stdout.decode())
    assert said.returncode == 0, said.stderr
    (site.folder / "gateway-data").mkdir()
    site.start_gateway()
    ask(site, "spool", "import", stick)
    site.wan.heal()
    site.until_delivered("truck-1", 25)
    again = ask(site, "spool", "import", stick)
    assert re.search(r"duplicate\w*\s+[1-9]", again), again
    # To the cloud itself, past the gateway.
    ask(site, "spool", "import", stick, "--to", f"127.0.0.1:{site.ports['decryptor']}")


def test_stolen_truck(site):
    site.send("truck-1", 1)
    ask(site, "device", "list")
    ask(site, "device", "revoke", "truck-1", "--unknown")

    def turned_away():
        return send(site, "truck-1", 1)[0] == 77

    site.gateway.until("turns it away", turned_away)
    assert "revoked" in ask(site, "device", "list")


def test_statement_is_carried_in(site):
    site.gateway.until("has one", lambda: site.gateway.metric("pithead_key_sequence") == 1)
    carried = site.folder / "carried.pb"
    site.authority.statement("--out", carried)
    said = ask(site, "key", "import", carried)
    site.gateway.until("has taken it", lambda: site.gateway.metric("pithead_key_sequence") == 2)
    assert "1.2" in said + ask(site, "key", "show")


def test_certificate_is_renewed_without_a_restart(site):
    site.ca.issue(site.folder / "gateway", spiffe=f"spiffe://{SITE}/gateway/gw-1", server=True, days=300)
    ask(site, "config", "check")
    site.gateway.process.send_signal(signal.SIGHUP)
    site.gateway.until("says so", lambda: "reloaded" in site.gateway.log.read_text())
    site.send("truck-1", 3)
    site.until_delivered("truck-1", 3)


def test_refused_envelopes(site):
    """A decryptor that knows nothing of a new key refuses what is sealed to it; given the bundle, it takes all of it."""
    site.decryptor.stop()
    bundle = site.folder / "away.pb"
    site.authority.bundle.rename(bundle)
    config = (site.folder / "decryptor.toml").read_text()
    (site.folder / "decryptor-data").rename(site.folder / "before")
    (site.folder / "decryptor-data").mkdir()
    (site.folder / "decryptor.toml").write_text(re.sub(r"bundles = .*", f'allow = ["{ARN}99999999-9999-4999-8999-999999999999"]', config))
    command = [program("pithead-decryptor"), "run", "-c", site.folder / "decryptor.toml"]
    site.decryptor = Server(command, site.folder / "decryptor.log", admin=site.ports["decryptor_admin"])
    site.running.append(site.decryptor)
    site.decryptor.until("listens", lambda: site.decryptor.get("/livez")[0] == 200)
    lines = "".join(f"{number:0100d}\n" for number in range(4))
    folder = site.folder / "devices" / "truck-1"
    certificate, key = site.ca.issue(site.folder / "truck-1", spiffe=f"spiffe://{SITE}/device/truck-1")
    folder.parent.mkdir(exist_ok=True)
    succeed(program("pithead-device"), "enroll", "--dir", folder, "--site", SITE, "--device", "truck-1", "--authority", "acme-mining/prod",
            "--root", site.authority.root, "--bundle", bundle, "--gateway", f"127.0.0.1:{site.ports['gateway']}",
            "--ca", site.folder / "site-ca.pem", "--cert", certificate, "--key", key)
    subprocess.run([program("pithead-device"), "-c", str(folder / "device.toml"), "send", "--stream", "can", "-"],
                   input=lines.encode(), check=True, capture_output=True, timeout=60)
    site.gateway.until("keeps what was refused", lambda: site.gateway.metric("pithead_refused_records") > 0)
    ask(site, "refused", "list")
    bundle.rename(site.authority.bundle)
    (site.folder / "decryptor.toml").write_text(config)
    site.decryptor.stop()
    site.start_decryptor()
    run(program("pithead-gateway"), "relay", "resume", "-c", site.folder / "gateway.toml")
    ask(site, "refused", "retry", "--all")
    site.until_delivered("truck-1", 4)
    site.gateway.until("has nothing left", lambda: site.gateway.metric("pithead_refused_records") == 0)


def test_rotate_a_key(site):
    pem = site.folder / "data-3.pem"
    succeed("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", pem)
    succeed("openssl", "pkey", "-in", pem, "-pubout", "-out", site.folder / "data-3.pub.pem")
    third = f"{ARN}33333333-3333-4333-8333-333333333333={site.folder / 'data-3.pub.pem'}"
    roots = [part for n in (1, 2) for part in ("--cosign", site.authority.folder / "keys" / f"root-{n}.pem")]
    early = run(program("pithead-decryptor"), "authority", "rotate", "--dir", site.authority.folder, "--site", SITE, "--next-key", third)
    print(early.stderr.decode())
    assert b"TRUST_UNANNOUNCED" in early.stderr, "announced for less than the hold-down"
    print(succeed(program("pithead-decryptor"), "authority", "rotate", "--dir", site.authority.folder, "--site", SITE, "--next-key", third, *roots).decode())
    site.gateway.until("has taken it", lambda: site.gateway.metric("pithead_key_sequence") == 2)
    shown = ask(site, "key", "show")
    assert re.search(r"\* active .*" + KEYS[1], shown)
    site.send("truck-1", 2)
    site.until_delivered("truck-1", 2)


def test_the_books_of_a_folder_of_the_cloud(site):
    site.send("truck-1", 12)
    site.until_delivered("truck-1", 12)
    said = succeed(program("pithead-decryptor"), "verify", "-c", site.folder / "decryptor.toml", "-o", "json")
    assert json.loads(said)
