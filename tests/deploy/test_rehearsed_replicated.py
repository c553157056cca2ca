"""The runbooks of a replicated site, done with the real programs: two gateways on three NATS servers, which are those of
deploy/k3s-replicated. Skipped where the gateway knows no JetStream."""

import re
import shutil
import subprocess

import pytest

from nats_cluster import NAMES, Cluster, make_keys
from parties import SITE
from programs import free_port, program, run, succeed
from site_on_loopback import LoopbackSite
from test_rehearsed import ask
from tools import needs


@pytest.fixture
def cluster(tmp_path):
    needs("pithead-gateway", "[spool.jetstream]")
    (tmp_path / "nats").mkdir()
    running = Cluster(tmp_path / "nats", make_keys(tmp_path / "keys", "gateway", "gateway-2"))
    try:
        yield running.healthy()
    finally:
        running.stop()


class ReplicatedSite(LoopbackSite):
    """Two gateways that share the site's streams, `gateway` and `gateway-2`; devices know both."""

    names = ("gateway", "gateway-2")

    def __init__(self, folder, cluster):
        super().__init__(folder)
        self.cluster, self.gateways = cluster, {}
        self.ports |= {"gateway-2": free_port(), "gateway-2_admin": free_port()}
        (self.folder / "gateway-2-data").mkdir()
        self.ca.issue(self.folder / "gateway-2", spiffe=f"spiffe://{SITE}/gateway/gw-2", server=True)

    def jetstream(self, name):
        ports = self.cluster.ports.values()
        servers = ", ".join(f'"tls://127.0.0.1:{port["4222"]}"' for port in ports)
        monitor = ", ".join(f'"127.0.0.1:{port["8222"]}"' for port in ports)
        return f"""
            engine = "jetstream"
            [spool.jetstream]
            servers = [{servers}]
            replicas = 3
            credentials = "{self.cluster.keys}/{name}.creds"
            ca = "{self.cluster.ca}"
            monitor = [{monitor}]
        """

    def start(self, name, ready=True):
        self.gateways[name] = self._start(name, self.gateway_toml(name, self.jetstream(name)), ready)

    def start_gateway(self, ready=True):
        for name in self.names:
            self.start(name, ready)
        self.gateway = self.gateways["gateway"]

    def owner(self):
        """The gateway that takes the site's envelopes, once there is one."""
        running = [name for name in self.names if self.gateways[name].process.poll() is None]
        some = self.gateways[running[0]]
        return some.until("has an owner beside it or is one", lambda: next(
            (name for name in running if self.gateways[name].metric("pithead_spool_owner") == 1), None))

    def device(self, name):
        folder = super().device(name)
        config = folder / "device.toml"
        both = ", ".join(f'"127.0.0.1:{self.ports[one]}"' for one in self.names)
        config.write_text("".join(f"endpoints = [{both}]\n" if line.startswith("endpoints") else line for line in config.read_text().splitlines(True)))
        return folder


@pytest.fixture
def site(tmp_path, cluster):
    (tmp_path / "site").mkdir()
    with ReplicatedSite(tmp_path / "site", cluster) as running:
        running.owner()
        yield running


def send(site, name, records):
    """Sends, for as long as it takes: both gateways may be busy with taking over."""
    lines = "".join(f"{number:0100d}\n" for number in range(records))
    command = [program("pithead-device"), "-c", str(site.device(name) / "device.toml"), "send", "--stream", "can", "--timeout", "60s", "-"]
    done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def verified(site):
    succeed(program("pithead-decryptor"), "verify", "-c", site.folder / "decryptor.toml")


@pytest.mark.parametrize("node", NAMES)
def test_lose_a_node(site, node):
    send(site, "truck-1", 5)
    site.cluster.servers[node].kill()
    send(site, "truck-1", 5)
    site.until_delivered("truck-1", 10)
    # It comes back with its disk, and catches up.
    site.cluster.back(node)
    send(site, "truck-1", 5)
    site.until_delivered("truck-1", 15)
    verified(site)


def test_lose_a_node_for_good(site):
    """Its disk too: an empty one takes its place, and the other two fill it."""
    send(site, "truck-1", 20)
    site.cluster.servers[NAMES[1]].kill()
    shutil.rmtree(site.cluster.folder / NAMES[1])
    site.cluster.back(NAMES[1])
    # Now one of the two that have filled it goes, so that the new one counts.
    site.cluster.servers[NAMES[0]].kill()
    send(site, "truck-1", 5)
    site.until_delivered("truck-1", 25)
    verified(site)


def test_lose_a_gateway(site):
    site.wan.cut()
    send(site, "truck-1", 10)
    lost = site.owner()
    site.gateways[lost].kill()
    other = site.owner()
    assert other != lost
    send(site, "truck-1", 10)
    site.wan.heal()
    site.until_delivered("truck-1", 20)
    # The one that was lost comes back, also with an empty disk, and stands beside the other.
    site.start(lost)
    assert site.owner() == other
    verified(site)


def test_move_to_jetstream(tmp_path, cluster):
    (tmp_path / "site").mkdir()
    site = ReplicatedSite(tmp_path / "site", cluster)
    try:
        site.start_decryptor()
        LoopbackSite.start_gateway(site)
        site.gateways = {"gateway": site.gateway}
        site.wan.cut()
        site.send("truck-1", 12)
        site.gateway.stop()
        data, stick = site.folder / "gateway-data", tmp_path / "stick"
        # The new engine is not begun over a backlog of the old one.
        (site.folder / "gateway.toml").write_text("\n".join(line.strip() for line in site.gateway_toml("gateway", site.jetstream("gateway")).splitlines()))
        refused = run(program("pithead-gateway"), "run", "-c", site.folder / "gateway.toml")
        assert refused.returncode != 0 and b"embedded" in refused.stderr, refused.stderr
        done = run(program("pithead-gateway"), "spool", "export", "--to", stick, "--data-dir", data)
        assert done.returncode == 0, done.stderr
        (data / "spool").rename(tmp_path / "old-spool")
        site.start_gateway()
        site.owner()
        ask(site, "spool", "import", stick)
        assert "stored     0" in ask(site, "spool", "import", stick)
        site.wan.heal()
        site.until_delivered("truck-1", 12)
        send(site, "truck-1", 3)
        site.until_delivered("truck-1", 15)
        verified(site)
        # Back again. No command takes out what waits there, and none says that it has.
        assert "JetStream" in ask(site, "spool", "export", "--to", tmp_path / "another-stick", code=2)
        site.gateways["gateway-2"].stop()
        assert site.owner() == "gateway"
        owner = site.gateways["gateway"]
        owner.until("has drained", lambda: owner.metric("pithead_spool_owner") == 1 and owner.metric("pithead_spool_records") == 0)
        stat = ask(site, "spool", "stat")
        assert re.search(r"^owner_here +true$", stat, re.MULTILINE) and re.search(r"^records +0$", stat, re.MULTILINE), stat
        owner.stop()
        (data / "spool").rename(tmp_path / "spool-of-jetstream")
        (tmp_path / "old-spool").rename(data / "spool")
        LoopbackSite.start_gateway(site)
        site.send("truck-1", 3)
        site.until_delivered("truck-1", 18)
        verified(site)
    finally:
        site.__exit__()
