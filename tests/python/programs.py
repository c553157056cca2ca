"""The programs under test and those they are tested with: run to their end, or started, watched and stopped."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

WORKSPACE = pathlib.Path(__file__).resolve().parents[2]
BINARIES = pathlib.Path(os.environ.get("PITHEAD_BIN_DIR") or WORKSPACE / "target" / "shipped")

# How long a program may take for anything before it is called stuck. Nothing is measured against it.
PATIENCE = 60


def program(name):
    """The path of one of ours; `tests/python/run` builds them."""
    path = BINARIES / name
    assert path.exists(), f"{path} is missing: use tests/python/run, or set PITHEAD_BIN_DIR"
    return str(path)


def run(*command, env=None, **options):
    """Runs a program to its end and gives what it said, whatever its exit code."""
    environment = {**os.environ, **(env or {})}
    command = [str(part) for part in command]
    return subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False, **options)


def succeed(*command, **options):
    """Runs a program that must end with 0, and gives what it printed."""
    finished = run(*command, **options)
    said = (finished.stdout + finished.stderr).decode(errors="replace")
    assert finished.returncode == 0, f"{command[0]} ended with {finished.returncode}:\n{said}"
    return finished.stdout


def free_port():
    """A port of loopback that nobody has. From below the range out of which the kernel serves outgoing connections, so
    that none of those takes it before the program that it is meant for."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randint(10240, 32000)))
            except OSError:
                continue
            return probe.getsockname()[1]


def until(what, holds):
    """Waits until something holds, and gives what it is."""
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not so after {PATIENCE} s: {what}"
        time.sleep(0.1)
    return found


class Server:
    """A program that runs until it is stopped. Its log is a file, and its end is shown when something goes wrong."""

    def __init__(self, command, log, env=None, cwd=None, admin=None):
        self.log, self.admin = pathlib.Path(log), admin
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command], env={**os.environ, **(env or {})}, cwd=cwd,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )

    def until(self, what, condition):
        """Waits until the condition holds of the running program, and gives what it gave."""
        deadline = time.monotonic() + PATIENCE
        while not (held := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode} before it {what}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"not so after {PATIENCE} s that it {what}:\n{self.tail()}"
            time.sleep(0.02)
        return held

    def get(self, path):
        """Status and text of a page of the admin port; status 0 while nobody listens there."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name, label=""):
        """The sum over the label sets that contain `label`."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if label in line)

    def ready(self):
        self.until("is ready", lambda: self.get("/readyz")[0] == 200)
        return self

    def stop(self):
        """SIGTERM; the exit code of its own orderly end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end after SIGTERM:\n{self.tail()}") from None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
