"""Where the conformance vectors lie: with the crate that they came with, never copied."""

import pathlib

WORKSPACE = pathlib.Path(__file__).resolve().parents[3]
VECTORS = WORKSPACE / "sealing" / "tests" / "vectors"
