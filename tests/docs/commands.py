#!/usr/bin/env python3
"""Every command that a page names exists, with its options: the pages against the programs' own `--help`.

    tests/docs/commands.py [PAGE...]          all pages of the tree but the changelog, if none is given

Looked at are code blocks and code within a line, wherever `pithead-gateway`, `pithead-device` or `pithead-decryptor` begins a
command. Its subcommands have to be those of the help, and each `--option` and `-o` one that this subcommand takes. `a | b` in
a line of prose code is a choice of subcommands. The programs come from PATH.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

from links import ROOT, files

PROGRAMS = ("pithead-gateway", "pithead-device", "pithead-decryptor")
START = re.compile(r"(?<![\w./-])(pithead-(?:gateway|device|decryptor))(?=[\s`]|$)")
SKIPPED = {"CHANGELOG.md"}
"""The changelog tells what once was."""


@functools.cache
def help_of(*command):
    """Subcommands, and options, of a command."""
    run = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=30, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)} --help: {run.stderr.strip() or run.returncode}")
    subcommands = set()
    if match := re.search(r"^Commands:\n((?: .*\n|\n)*)", run.stdout, re.M):
        subcommands = set(re.findall(r"^  ([a-z][\w-]*)", match[1], re.M))
    options = {"--help", "-h"}
    for line in re.findall(r"^ +((?:-\w, )?--[\w-]+|-\w\b).*$", run.stdout, re.M):
        options.update(part.strip() for part in line.split(","))
    return subcommands, options


def pieces(page):
    """(line, text, whether a block) of all code of a page."""
    text = page.read_text()
    fence = re.compile(r"^( *)(```|~~~)[^\n]*\n(.*?)^\1\2\s*$", re.M | re.S)
    for match in fence.finditer(text):
        first = text.count("\n", 0, match.start(3)) + 1
        lines = match[3].splitlines()
        number = 0
        while number < len(lines):
            begun, line = number, lines[number]
            while line.endswith("\\") and number + 1 < len(lines):
                number += 1
                line = line[:-1] + " " + lines[number].strip()
            yield first + begun, line, True
            number += 1
    rest = fence.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in re.finditer(r"^(?: {4}|\t)(.*)$", rest, re.M):
        yield rest.count("\n", 0, match.start()) + 1, match[1], True
    for match in re.finditer(r"(`+)((?:(?!\1).)+?)\1", rest, re.S):
        yield rest.count("\n", 0, match.start()) + 1, " ".join(match[2].split()), False


def check(code, block):
    """What is wrong with the commands in a piece of code."""
    for start in START.finditer(code):
        before = code[: start.start()].rstrip()
        # A name in a list of arguments (`cp pithead-gateway bin/`, `-p pithead-gateway`) begins no command.
        if before and not re.search(r"(^|[|&;({`$\"'!]|\bsudo|\bdo|\buntil|\bwhile|\bif|\bthen|\bexec|\bsudo -u \S+|=\S+|\bsystemd-run.*|\$ )$", before):
            if not (before.endswith(("machine", "device", "cloud", "next:")) and not block):
                continue
        tail = code[start.end():]
        tail = re.sub(r"\s#.*$", "", tail)
        if block:
            tail = re.split(r"\||&|;|\d?>|<(?![A-Z])|\)|\"?\$\(", tail)[0]
        words = [word.strip("[]`'\",.") for word in tail.split()]
        command, index = [start[1]], 0
        while True:
            subcommands, options = help_of(*command)
            if not subcommands:
                break
            # Options of the program itself may stand before its subcommand, each with a value of its own or none.
            while index < len(words) and (words[index].startswith("-") or (index and words[index - 1] in ("-c", "-o", "--config", "--output", "--log-format"))):
                if words[index].startswith("-"):
                    option = words[index].split("=")[0]
                    if option not in options and option != "--":
                        yield f"{' '.join(command)} has no option {option}"
                index += 1
            if index >= len(words) or not re.match(r"[a-z]", words[index]):
                break
            choices = [words[index]]
            while not block and index + 2 < len(words) and words[index + 1] == "|":
                index += 2
                choices.append(words[index])
            bad = [choice for choice in choices if choice not in subcommands]
            for choice in bad:
                yield f"{' '.join(command)} has no command {choice}"
            if bad or len(choices) > 1:
                return
            command.append(choices[0])
            index += 1
        _, options = help_of(*command)
        for word in words[index:]:
            if word in ("...", "|"):
                continue
            if match := re.match(r"(--[a-z][\w-]*|-[A-Za-z])(=.*)?$", word):
                if match[1] not in options:
                    yield f"{' '.join(command)} has no option {match[1]}"


def main():
    if sys.argv[1:]:
        pages = [Path(name).resolve() for name in sys.argv[1:]]
    else:
        pages = [page for page in files("*.md") if str(page.relative_to(ROOT)) not in SKIPPED]
    wrong, seen = [], 0
    for page in pages:
        for line, code, block in pieces(page):
            seen += len(START.findall(code))
            wrong += [f"{os.path.relpath(page)}:{line}: {problem}" for problem in check(code, block)]
    for problem in wrong:
        print(problem)
    if wrong:
        sys.exit(f"{len(wrong)} commands do not exist")
    if not seen:
        sys.exit("no command found in any page")
    print(f"{seen} mentions of the programs in code, every command and option exists ({len(pages)} pages)")


if __name__ == "__main__":
    main()
