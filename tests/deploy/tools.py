"""The tools that tests/deploy/run has installed, and how they are run."""

import functools
import os
import pathlib
import subprocess
import sys

import pytest

from programs import WORKSPACE, program, run

DEPLOY = WORKSPACE / "deploy"
# Where tests/deploy/run unpacked Debian's Prometheus and Alertmanager.
UNPACKED = pathlib.Path(os.environ.get("PITHEAD_DEPLOY_TOOLS") or WORKSPACE / "target" / "deploy-tools") / "usr" / "bin"


def tool(name):
    """A tool out of the virtual environment, or out of Debian's packages."""
    places = [pathlib.Path(sys.executable).with_name(name), UNPACKED / name, pathlib.Path("/usr/bin") / name]
    found = next((place for place in places if place.exists()), None)
    assert found, f"{name} is missing: use tests/deploy/run"
    return str(found)


def ask(name, *arguments, cwd=None, **options):
    """Runs a tool, and gives its exit code and all that it said."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd or DEPLOY, capture_output=True, text=True, timeout=240, check=False, **options)
    return done.returncode, done.stdout + done.stderr


def content(name, *arguments, **options):
    """Runs a tool that has nothing to complain about."""
    code, said = ask(name, *arguments, **options)
    assert code == 0, f"{name} {' '.join(map(str, arguments))} ended with {code}:\n{said}"
    return said


@functools.cache
def template(name):
    """Every key that a program of ours knows, as `config template` prints them."""
    done = run(program(name), "config", "template")
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def needs(name, *words):
    """Skips where the program's template does not have all of these: it is older than what is tested."""
    for word in words:
        if word not in template(name):
            pytest.skip(f"{name} here has no {word} in its configuration yet")
