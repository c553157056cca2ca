"""The gateway's disk fails a sync, as strace tells it: once, and from then on always. What was in it was acknowledged to nobody, and all of
it arrives once when the disk is good again."""

import pathlib
import shutil
import signal
import subprocess

import pytest

from programs import Server, program, succeed
from site_on_loopback import LoopbackSite

CALLS = "fsync,fdatasync"


@pytest.fixture(scope="module", autouse=True)
def strace():
    if not shutil.which("strace"):
        pytest.skip("strace is missing")


def drained(site):
    """The gateway has been told of everything that it is delivered."""
    site.gateway.until("has drained", lambda: site.gateway.metric("pithead_spool_records") == 0)


@pytest.fixture
def site(tmp_path):
    with LoopbackSite(tmp_path) as site:
        # The line is there, and with it everything that is made for the first envelope.
        site.send("truck-1", 5)
        site.until_delivered("truck-1", 5)
        drained(site)
        yield site


def failing(site, when, files=()):
    """The gateway's syncs fail, of these files or of all: `when` is strace's word for which of them."""
    of_files = [part for path in files for part in ("-P", path)]
    pid = site.gateway.process.pid
    broken = Server(["strace", "-f", "-qq", "-o", "/dev/null", *of_files, "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:error=EIO:when={when}",
                     "-p", pid], site.folder / "strace.log")
    status = pathlib.Path(f"/proc/{pid}/status")
    broken.until("watches", lambda: "TracerPid:\t0" not in status.read_text())
    return broken


def mend(broken):
    """Lets go of the gateway, which goes on."""
    broken.process.send_signal(signal.SIGINT)
    broken.process.wait(30)


def everything_once(site):
    drained(site)
    succeed(program("pithead-decryptor"), "verify", "-c", site.folder / "decryptor.toml")


def test_what_was_in_a_sync_that_failed_is_acknowledged_when_another_file_has_it(site):
    lanes = sorted(site.folder.glob("gateway-data/spool/lane-?/*"))
    assert lanes, "the spool is somewhere else"
    broken = failing(site, "1", lanes)
    # Returns when the gateway has them on its disk.
    site.send("truck-1", 20)
    mend(broken)
    assert site.gateway.metric("pithead_spool_failed_syncs_total") == 1
    assert site.gateway.metric("pithead_spool_failed_lanes") == 0, "it goes on in another file"
    site.until_delivered("truck-1", 25)
    everything_once(site)
    assert site.out.read_text().count('"truck-1"') == 25, "each once"


def test_a_disk_that_fails_again_ends_the_lane_until_a_restart_and_nothing_was_promised(site):
    broken = failing(site, "1+")
    lines = "".join(f"{number:0100d}\n" for number in range(20)).encode()
    config = str(site.device("truck-1") / "device.toml")
    sending = subprocess.Popen([program("pithead-device"), "-c", config, "send", "--stream", "can", "-"],
                               stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sending.stdin.write(lines)
    sending.stdin.close()
    site.gateway.until("takes nothing more", lambda: site.gateway.metric("pithead_spool_failed_lanes") == 1)
    site.gateway.until("is not ready", lambda: site.gateway.get("/readyz")[0] == 503)
    assert "the disk has failed" in site.gateway.get("/statusz")[1]
    mend(broken)
    assert site.gateway.metric("pithead_spool_failed_lanes") == 1, "a disk that has failed is believed again by nobody but a start"
    assert sending.poll() is None, "the device still has what it was told of nothing"
    sending.kill()
    sending.wait()
    assert site.gateway.metric("pithead_spool_records") == 0, "nothing of it was stored"
    site.gateway.stop()
    site.start_gateway()
    # What it holds from before goes first.
    site.send("truck-1", 5)
    everything_once(site)
    assert site.out.read_text().count('"truck-1"') >= 10
