#!/usr/bin/env python3
"""Metrics and error codes that a page names exist.

    tests/docs/names.py

- A metric, `pithead_...` in code: its name without the prefix, and without `_total`, stands in the sources as a literal.
- A code, PH-1234: it is in the registry; and if the reason stands beside it (PH-1026 `TRUST_UNANNOUNCED`, or without the code
  marks), it is that one.
"""

import os
import re
import sys

from links import ROOT, files

SKIPPED = {"CHANGELOG.md"}
"""The changelog tells what once was."""
NO_METRIC = {"pithead_device", "pithead_options", "pithead_hop", "pithead_tests", "pithead_gateway"}
"""Packages and functions of C that begin in the same way."""


def main():
    registry = dict(
        (int(number), name)
        for name, number in re.findall(r"ERROR_REASON_(\w+) = (\d+);", (ROOT / "proto/pithead/errors/v1/errors.proto").read_text())
    )
    reasons = set(registry.values())
    sources = "\n".join(path.read_text() for path in files("gateway/src/*.rs", "decryptor/src/*.rs", "hop/src/*.rs"))
    literals = set(re.findall(r'"((?:pithead_)?[a-z][a-z0-9_]*)"', sources))
    wrong, seen = [], 0
    for page in files("*.md"):
        name = str(page.relative_to(ROOT))
        if name in SKIPPED or name.startswith("device-client/"):
            continue
        text = page.read_text()

        def at(match, what):
            wrong.append(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}")

        for match in re.finditer(r"\bpithead_([a-z][a-z0-9_]*)(?![a-z0-9_(./-])", text):
            metric = match[1]
            if match[0] in NO_METRIC or match[0].startswith("pithead_options_"):
                continue
            seen += 1
            base = re.sub(r"_(total|bucket|sum|count)$", "", metric)
            known = {metric, base, f"pithead_{metric}", f"pithead_{base}"}
            # prometheus-client writes the unit behind the name.
            known |= {re.sub(r"_(seconds|bytes)$", "", form) for form in list(known)}
            if not known & literals:
                at(match, f"no metric is called pithead_{metric}")
        for match in re.finditer(r"PH-(\d{4})(?:\W{1,3}([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b)?", text):
            seen += 1
            code = int(match[1])
            if code not in registry:
                at(match, f"no reason has the code PH-{code}")
            elif match[2] and match[2] in reasons and match[2] != registry[code]:
                at(match, f"PH-{code} is {registry[code]}, not {match[2]}")
    for line in wrong:
        print(line)
    if wrong:
        sys.exit(f"{len(wrong)} names do not exist")
    print(f"{seen} metrics and codes are named, all exist")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
