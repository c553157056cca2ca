#!/usr/bin/env python3
"""Executes the commands of a page word for word, and holds what they print against what the page says.

    tests/docs/transcript.py PAGE...          each page in an empty folder, in a network of its own

A page takes part by a line `<!-- executed -->`, or `<!-- executed after tutorial.md -->`: then the blocks of that other page
come first, up to its line `<!-- the site stands -->`. In such a page

- a block ```sh is run as it stands, in one shell for the whole page. Every command in it has to succeed; one that is meant to
  fail stands before `||`;
- a block ```text right behind it is what the block prints, both streams together. A line `...` stands for any lines, `...` within
  a line for anything. Without a text block nothing may be printed;
- a block ```console, and every block of another language, is shown to the reader and not run.

The programs come from PATH. Each page has a network namespace of its own (`unshare`), so that its ports are free and nothing
that it does reaches a network. Where the kernel does not allow that, it runs in the machine's own network, and says so.
"""

import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_TIMEOUT_S = 90
"""A block waits for programs to start, for a registry to be looked at and for a relay that backs off: at most a minute."""

AT_ONCE = 3
"""Pages at once: each has three programs, and a key of 3,072 bits to be found takes a second of a core."""

MARK = "@@block-is-done@@"
EXECUTED = re.compile(r"^<!-- executed(?: after (\S+))? -->$", re.M)
STANDS = "<!-- the site stands -->"


class Block:
    """A command block, where it stands, and what it has to print."""

    def __init__(self, page, line, code):
        self.page, self.line, self.code, self.expected = page, line, code, None

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks_of(page, until=None):
    """The ```sh blocks of a page, each with the ```text block that follows it."""
    found, fence, indent, body, start, last = [], None, "", [], 0, None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is None:
            if until and line == until:
                return found
            # A block in a list is indented, and so is all that is in it.
            if match := re.match(r"( *)```(\w*)\s*$", line):
                indent, fence, body, start = match[1], match[2], [], number
        elif line == indent + "```":
            text = "\n".join(body) + "\n"
            if fence == "sh":
                last = Block(page, start, text)
                found.append(last)
            elif fence == "text" and last is not None:
                last.expected = text
                last = None
            else:
                last = None
            fence = None
        else:
            body.append(line.removeprefix(indent))
    if fence is not None:
        sys.exit(f"{page}:{start}: a block that does not end")
    if until:
        sys.exit(f"{page}: has no line {until}")
    return found


def script_of(page):
    """All blocks that this page takes, those of another page first, or None if it is not to be executed."""
    match = EXECUTED.search(page.read_text())
    if not match:
        return None
    before = []
    if match[1]:
        before = blocks_of((page.parent / match[1]).resolve(), until=STANDS)
    return before + blocks_of(page)


def pattern(expected):
    """What is expected, as a regular expression over whole lines."""
    out = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            out += r"(?:.*\n)*?"
        else:
            out += ".*?".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ \t]*\n"
    return re.compile(out)


def first_difference(expected, actual):
    """The first expected line up to which nothing fits, for people."""
    lines = expected.splitlines()
    for count in range(1, len(lines) + 1):
        part = "\n".join(lines[:count]) + "\n...\n"
        if not pattern(part).fullmatch(actual):
            return lines[count - 1]
    return "(the end: more is printed than the page says)"


class Shell:
    """One bash for a page. What its blocks print is read by a thread, so that a block that hangs can be given up."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
            env={**os.environ, "COLUMNS": "200", "LC_ALL": "C.UTF-8", "TERM": "dumb", "HOME": folder},
        )
        self.lines, self.seen = [], threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self._say("set -E; trap 'failed=\"${failed:-$BASH_COMMAND (exit $?)}\"' ERR\n")

    def _read(self):
        for line in self.process.stdout:
            with self.seen:
                self.lines.append(line)
                self.seen.notify()
        with self.seen:
            self.lines.append(None)
            self.seen.notify()

    def _say(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def run(self, code):
        """What the block printed, and what failed in it."""
        with self.seen:
            self.lines.clear()
        path = Path(self.folder) / ".block"
        path.write_text(code)
        self._say(f"failed=; . ./.block </dev/null; printf '\\n%s%s\\n' '{MARK}' \"$failed\"\n")
        end, out = time.monotonic() + BLOCK_TIMEOUT_S, []
        while True:
            with self.seen:
                while not self.lines:
                    if not self.seen.wait(max(0.0, end - time.monotonic())):
                        return "".join(out), f"nothing within {BLOCK_TIMEOUT_S} s"
                line = self.lines.pop(0)
            if line is None:
                return "".join(out), "the shell has ended"
            if line.startswith(MARK):
                text = "".join(out)
                # The mark begins with a line feed of its own, so that it has a line of its own.
                return text[:-1], line[len(MARK):].strip()
            out.append(line)

    def end(self):
        """Ends every program that the page has left running: they are in this shell's session."""
        for sig, wait_s in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, sig)
            except ProcessLookupError:
                return
            until = time.monotonic() + wait_s
            while time.monotonic() < until:
                self.process.poll()
                try:
                    os.killpg(self.process.pid, 0)
                except ProcessLookupError:
                    return
                time.sleep(0.05)


def execute(page):
    """Runs a page; returns what is wrong, or None."""
    folder = tempfile.mkdtemp(prefix="pithead-docs-")
    shell = Shell(folder)
    try:
        script = script_of(page)
        if not any(block.page == page for block in script):
            return f"{page}: says that it is executed, and has no ```sh block"
        for block in script:
            printed, failed = shell.run(block.code)
            if printed and not printed.endswith("\n"):
                printed += "\n"
            # A page shows what it shows; it need not count blank lines at the end.
            printed = printed.rstrip("\n") + "\n" if printed.strip() else ""
            expected = block.expected.rstrip("\n") + "\n" if block.expected else ""
            problem = None
            if failed:
                problem = f"failed: {failed}"
            elif not pattern(expected).fullmatch(printed):
                problem = f"prints something else; the first line that does not fit: {first_difference(expected, printed)}"
            if problem:
                logs = "".join(
                    f"--- the end of {log.relative_to(folder)}\n" + "".join(log.read_text(errors="replace").splitlines(True)[-15:])
                    for log in sorted(Path(folder).rglob("*.log"))
                )
                return f"{block}: {problem}\n--- the block\n{block.code}--- it printed\n{printed}{logs}"
        return None
    finally:
        shell.end()
        shutil.rmtree(folder, ignore_errors=True)


def loopback_up():
    """Brings `lo` up in a fresh network namespace (SIOCSIFFLAGS), so that no other program is needed for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, 0x8913, request))[1]
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))


def apart():
    """How to begin a process in a network of its own, or None."""
    for command in (["unshare", "-n", "--"], ["unshare", "-rn", "--"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False).returncode == 0:
                return command
        except (OSError, subprocess.TimeoutExpired):
            pass
    return None


def main():
    if sys.argv[1:2] == ["--inside"]:
        loopback_up()
        sys.exit(execute(Path(sys.argv[2])))
    pages = [Path(name).resolve() for name in sys.argv[1:]]
    if not pages:
        sys.exit(__doc__)
    pages = [page for page in pages if script_of(page) is not None]
    prefix, bad = apart(), 0
    if prefix is None:
        print("the pages run in this machine's network: no network namespace to be had (unshare)")

    def one(page):
        begun = time.monotonic()
        if prefix:
            run = subprocess.run([*prefix, sys.executable, __file__, "--inside", str(page)], stderr=subprocess.PIPE, text=True, check=False)
            problem = None if run.returncode == 0 else (run.stderr or f"{page}: ended with {run.returncode}")
        else:
            problem = execute(page)
        return page, problem, time.monotonic() - begun

    # Pages that have a network each do not meet. They mostly wait, so more of them than there are cores.
    with ThreadPoolExecutor(max_workers=AT_ONCE if prefix else 1) as pool:
        for page, problem, took_s in pool.map(one, pages):
            name = os.path.relpath(page)
            if problem:
                bad += 1
                print(f"FAILED  {name}\n{problem}", flush=True)
            else:
                print(f"ok      {name} ({took_s:.0f} s)", flush=True)
    if bad:
        sys.exit(f"{bad} of {len(pages)} pages do not do what they say")
    if not pages:
        sys.exit("no page to be executed")


if __name__ == "__main__":
    main()
