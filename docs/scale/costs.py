"""What everything costs: the numbers of costs.json, each with where it comes from.

A number that stands in a page or a source of this tree too is read there (`read`: file and pattern, times `scale`), and has to be the
same: a new measurement, or a new bound in the code, makes the simulation stale and not wrong.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).resolve().parent / "costs.json"
KINDS = ("measured", "code", "design", "quota", "list price", "assumption")


class Stale(Exception):
    """A number here is not the one that its source has."""


def entries() -> Dict[str, Dict[str, Dict[str, Any]]]:
    return json.loads(FILE.read_text())


def faults() -> List[str]:
    """What is wrong with the file, one sentence each."""
    found = []
    for section, numbers in entries().items():
        for name, entry in numbers.items():
            where = f"costs.json: {section}.{name}"
            if entry["kind"] not in KINDS:
                found.append(f"{where}: {entry['kind']} is no kind")
            if "read" in entry:
                path, pattern = entry["read"]
                match = re.search(pattern, (ROOT / path).read_text())
                if not match:
                    found.append(f"{where}: {path} does not have it any more")
                    continue
                there = float(match[1].replace(",", "").replace("_", "")) * entry.get("scale", 1)
                if abs(there - entry["value"]) > 1e-9 * max(1.0, abs(there)):
                    found.append(f"{where}: is {entry['value']:g}, and {there:g} in {path}")
            elif entry["kind"] == "code":
                found.append(f"{where}: a number of the code has to be read there")
    return found


def load() -> SimpleNamespace:
    """`costs.vehicle.streams` and so on."""
    if wrong := faults():
        raise Stale("\n".join(wrong))
    return SimpleNamespace(
        **{section: SimpleNamespace(**{name: entry["value"] for name, entry in numbers.items()}) for section, numbers in entries().items()}
    )
