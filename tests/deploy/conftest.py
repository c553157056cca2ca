"""What these tests share with those of tests/python: programs, certificates, a KMS and a whole site."""

import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]

# A proxy of the machine's is for the world outside; everything here talks to loopback.
for variable in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
    os.environ[variable] = "127.0.0.1,localhost"


@pytest.fixture(scope="session")
def deploy():
    """The folder under test."""
    return HERE.parents[1] / "deploy"
