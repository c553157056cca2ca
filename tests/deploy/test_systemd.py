"""The units are understood by systemd, expose little, and what they forbid is not what the programs do."""

import os
import re
import socket
import subprocess

import pytest

from programs import program
from site_on_loopback import LoopbackSite
from tools import DEPLOY, ask, content

UNITS = ["pithead-gateway", "pithead-decryptor"]
FOLDER = DEPLOY / "systemd"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The units as they would lie in /etc/systemd/system, with the programs where they were built."""
    folder = tmp_path_factory.mktemp("units")
    for unit in UNITS:
        text = (FOLDER / f"{unit}.service").read_text()
        assert f"ExecStart=/usr/bin/{unit} run " in text
        (folder / f"{unit}.service").write_text(text.replace(f"/usr/bin/{unit}", program(unit)))
    drop_in = folder / "pithead-gateway.service.d"
    drop_in.mkdir()
    (drop_in / "credentials.conf").write_text((FOLDER / "pithead-gateway.service.d" / "credentials.conf").read_text())
    return folder


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_about_a_unit(installed, unit):
    # It ends with 0 also when it does not know a key: every line is a failure.
    said = content("systemd-analyze", "verify", "--man=no", installed / f"{unit}.service")
    assert said.strip() == "", said


def test_verify_would_find_a_misspelt_key(installed, tmp_path):
    text = (installed / "pithead-gateway.service").read_text()
    (tmp_path / "broken.service").write_text(text.replace("NoNewPrivileges=", "NoNewPriviledges="))
    _, said = ask("systemd-analyze", "verify", "--man=no", tmp_path / "broken.service")
    assert "NoNewPriviledges" in said


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_exposed_is_under_1_5(unit):
    said = content("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", FOLDER / f"{unit}.service")
    score = re.search(r"Overall exposure level for .*: ([0-9.]+)", said).group(1)
    assert float(score) < 1.5


def test_an_open_unit_is_over_1_5(tmp_path):
    (tmp_path / "open.service").write_text("[Service]\nExecStart=/bin/true\n")
    code, _ = ask("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", tmp_path / "open.service")
    assert code != 0


def test_the_users_of_the_units_are_made(tmp_path):
    users = (FOLDER / "pithead.sysusers.conf").read_text()
    made = set(re.findall(r"^u\s+(\S+)", users, re.MULTILINE))
    wanted = {re.search(r"^User=(\S+)", (FOLDER / f"{unit}.service").read_text(), re.MULTILINE).group(1) for unit in UNITS}
    assert made == wanted
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    done = subprocess.run(["systemd-sysusers", f"--root={root}", str(FOLDER / "pithead.sysusers.conf")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {line.split(":")[0] for line in (root / "etc" / "passwd").read_text().splitlines()} >= made


def test_the_stop_of_a_unit_is_longer_than_the_programs_own():
    for unit in UNITS:
        text = (FOLDER / f"{unit}.service").read_text()
        template = (DEPLOY.parent / unit.removeprefix("pithead-") / "src" / "config.template.toml").read_text()
        parts = re.findall(r'^#?\w+ = "(\d+)s"', template[template.index("[stop]"):], re.MULTILINE)
        assert parts and int(re.search(r"^TimeoutStopSec=(\d+)s", text, re.MULTILINE).group(1)) > sum(map(int, parts))


def system_calls(groups):
    """The system calls of systemd's groups, groups within groups included."""
    text = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True).stdout
    members, group = {}, None
    for line in text.splitlines():
        if line.startswith("@"):
            group = members.setdefault(line.strip(), [])
        elif group is not None and line.startswith("    ") and not line.strip().startswith("#"):
            group.append(line.strip())

    def all_of(name):
        return {call for one in members[name] for call in (all_of(one) if one.startswith("@") else [one])}

    return set().union(*(all_of(group) for group in groups))


def test_what_the_units_forbid_is_not_what_the_programs_do(traced_site):
    """A whole site under strace: a system call that the filter refuses would be a gateway that fails at night."""
    text = (FOLDER / "pithead-gateway.service").read_text()
    filters = re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE)
    assert filters == re.findall(r"^SystemCallFilter=(.*)$", (FOLDER / "pithead-decryptor.service").read_text(), re.MULTILINE)
    permitted, forbidden = filters[0].split(), filters[1].removeprefix("~").split()
    allowed = system_calls(permitted) - system_calls(forbidden)
    families = set(re.search(r"^RestrictAddressFamilies=(.*)$", text, re.MULTILINE).group(1).split())
    for name, calls, opened, executable in traced_site:
        assert calls - allowed == set(), f"{name} calls what its unit forbids"
        assert "fdatasync" in calls and "accept4" in calls, "it was at work"
        assert opened <= families, f"{name} opens sockets of {opened}"
        assert not executable, f"{name} asks for memory that it may write and execute"


class Listening(LoopbackSite):
    """Its programs are started as systemd starts them: told where to say how they are, and how often."""

    def environment(self, name):
        path = self.folder / f"{name}.notify"
        self.notified = getattr(self, "notified", {})
        self.notified[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified[name].bind(str(path))
        self.notified[name].settimeout(30)
        os.chmod(path, 0o777)
        return super().environment(name) | {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}

    def says(self, name, what):
        """Waits for a line of it."""
        while True:
            if what in self.notified[name].recv(4096).decode().splitlines():
                return True


def test_the_programs_say_that_they_are_ready_and_alive_and_stopping(tmp_path):
    """The units are of Type=notify with a watchdog: a program that says nothing would never be started, and be killed."""
    for unit in UNITS:
        text = (FOLDER / f"{unit}.service").read_text()
        assert re.search(r"^Type=notify$", text, re.MULTILINE) and re.search(r"^WatchdogSec=", text, re.MULTILINE)
    with Listening(tmp_path) as site:
        for name in ("gateway", "decryptor"):
            assert site.says(name, "READY=1")
            assert site.says(name, "WATCHDOG=1") and site.says(name, "WATCHDOG=1")
        site.gateway.stop()
        assert site.says("gateway", "STOPPING=1")
