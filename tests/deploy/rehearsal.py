"""The alerts against a real Prometheus and real programs on loopback: the WAN is cut, the disk fills, keys and certificate come
to their end, a device drops data, the disk is slow, a decryptor goes away. Says which alert fired, after how long, with which
value.

Prometheus scrapes every second, and the `for` of each rule is divided by SCALE; the expressions are those of deploy/. The
forecast of a full disk looks at the last minutes, so that phase takes a minute.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]

import yaml  # noqa: E402

from programs import Server, free_port, program  # noqa: E402
from site_on_loopback import LoopbackSite  # noqa: E402
from tools import DEPLOY, tool  # noqa: E402

SCALE = 60
# How long an alert may take, whatever it is. Nothing is measured against it.
PATIENCE = 150
SLOW_DISK = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=400000"]


def seconds(duration):
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smhd])", str(duration)))


class Prometheus:
    """Debian's, on a free port of loopback, with the rules of deploy/ whose `for` is shortened."""

    def __init__(self, folder, targets):
        self.port, folder = free_port(), pathlib.Path(folder)
        rules = yaml.safe_load((DEPLOY / "prometheus" / "pithead.rules.yml").read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = f"{max(1, seconds(rule['for']) // SCALE)}s"
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()]
        (folder / "prometheus.yml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yml"], "scrape_configs": jobs,
        }))
        # Where Debian's unit has its own.
        self.server = Server([
            tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}", f"--web.console.templates={folder}", f"--web.console.libraries={folder}",
        ], folder / "prometheus.log", admin=self.port)
        self.server.until("is ready", lambda: self.server.get("/-/ready")[0] == 200)

    def firing(self):
        """Alerts that fire: their names with the value and the labels of one of each."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/alerts") as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return {one["labels"]["alertname"]: one for one in alerts if one["state"] == "firing"}

    def until_fires(self, name, meanwhile=lambda: None):
        began = time.monotonic()
        while name not in (firing := self.firing()):
            if time.monotonic() - began > PATIENCE:
                sys.exit(f"{name} did not fire within {PATIENCE} s; these do: {sorted(firing)}\n{self.server.tail()}")
            meanwhile()
            time.sleep(0.2)
        took, alert = time.monotonic() - began, firing[name]
        print(f"  fired     {name} [{alert['labels']['severity']}] after {took:.0f} s, value {float(alert['value']):.4g}")
        print(f"            {alert['annotations']['summary']}")
        print(f"            {alert['annotations']['runbook']}", flush=True)
        return alert

    def until_quiet(self, name):
        began = time.monotonic()
        while name in self.firing():
            if time.monotonic() - began > PATIENCE:
                sys.exit(f"{name} fires still, {PATIENCE} s after its cause was gone")
            time.sleep(0.2)
        print(f"  resolved  {name} after {time.monotonic() - began:.0f} s", flush=True)


def step(words):
    print(f"\n{words}", flush=True)


def drop_policy(site, name):
    """A device whose stream holds 1 MiB and gives up its oldest."""
    config = site.device(name) / "device.toml"
    config.write_text(config.read_text() + '\n[[stream]]\nname = "can"\nkind = "records"\nbudget = "1MiB"\nwhen_full = "drop-oldest"\n')


def main(short=False):
    """`short` leaves out what takes a minute: the disk that fills and is slow, the device that drops data."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pithead-alerts-"))
    began = time.monotonic()
    # The statement ends in five days, the gateway's certificate in three.
    site = LoopbackSite(folder, statement=("--validity", "5d"), spool="256MiB")
    site.ca.issue(folder / "gateway", spiffe="spiffe://pit-7/gateway/gw-1", server=True, days=3)
    prometheus = None
    try:
        with site:
            prometheus = Prometheus(folder, {"pithead-gateway": site.ports["gateway_admin"], "pithead-decryptor": site.ports["decryptor_admin"]})
            site.send("truck-1", 50)
            site.until_delivered("truck-1", 50)

            step("The statement ends in five days, and the gateway's certificate in three")
            prometheus.until_fires("PitheadStatementExpiresSoon")
            prometheus.until_fires("PitheadCertificateExpiresSoon")

            step("The WAN is cut; the vehicles go on")
            site.wan.cut()
            prometheus.until_fires("PitheadWanDown", lambda: site.send("truck-1", 20))
            # Of what pages, nothing but what was near its end before.
            loud = {name for name, one in prometheus.firing().items() if one["labels"]["severity"] == "page"}
            assert loud == {"PitheadStatementExpiresSoon", "PitheadCertificateExpiresSoon"}, loud
            print("  silent    nobody is woken for it", flush=True)

            if short:
                site.wan.heal()
                prometheus.until_quiet("PitheadWanDown")
                return

            step("The disk fills: what waits is all that comes in")

            def fill():
                site.send("truck-1", 20, size=12_000)

            prometheus.until_fires("PitheadSpoolFullSoon", fill)
            prometheus.until_fires("PitheadSpoolFullNow", fill)

            step("The WAN is back")
            site.wan.heal()
            prometheus.until_quiet("PitheadWanDown")
            prometheus.until_quiet("PitheadSpoolFullNow")

            step("A device is out of reach for longer than its outbox holds")
            drop_policy(site, "truck-2")
            site.gateway.stop()
            command = [program("pithead-device"), "-c", str(site.device("truck-2") / "device.toml"), "send", "--stream", "can", "--timeout", "2s", "-"]
            for _ in range(4):
                lines = "".join(f"{number:06d}" + "x" * 1000 + "\n" for number in range(1000))
                subprocess.run(command, input=lines.encode(), capture_output=True, check=False, timeout=120)
            prometheus.until_fires("PitheadDown")
            site.start_gateway()
            prometheus.until_quiet("PitheadDown")
            site.send("truck-2", 1)
            prometheus.until_fires("PitheadDevicesDrop")
            prometheus.until_fires("PitheadPolicyGaps")

            step("The disk is slow: every fdatasync takes 400 ms")
            site.gateway.stop()
            site.prefix = lambda name: SLOW_DISK if name == "gateway" else []
            site.start_gateway()
            prometheus.until_fires("PitheadFsyncSlow", lambda: site.send("truck-1", 5))

            step("The decryptor goes away")
            site.decryptor.stop()
            alert = prometheus.until_fires("PitheadDown")
            assert alert["labels"]["job"] == "pithead-decryptor"
            prometheus.until_fires("PitheadWanDown")
    finally:
        if prometheus:
            prometheus.server.kill()
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\n{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(short="--short" in sys.argv[1:])
