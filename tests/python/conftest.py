"""What the suites share: one KMS with real RSA, keys in it, and authorities and devices made by the real programs."""

import functools
import os
import signal

import pytest

from kms import Kms, Moto
from parties import Authority, Device
from whole_site import Site

# A proxy of the machine's is for the world outside; everything here talks to loopback.
for variable in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
    os.environ[variable] = "127.0.0.1,localhost"


def pytest_configure():
    # Ended by SIGTERM, as by a time limit, the session still stops the programs that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(params=["kms", "moto"], ids=["ministack", "moto"])
def server(request):
    """Each cloud on loopback in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def kms(tmp_path_factory):
    """ministack on a free port of loopback, for as long as the session lasts."""
    with Kms(tmp_path_factory.mktemp("kms")) as running:
        yield running


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """moto's server on a free port of loopback."""
    with Moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture(scope="session")
def authority_for(kms, tmp_path_factory):
    """The authority whose statement names the key of so many bits in KMS as the one to seal to."""

    @functools.cache
    def make(bits):
        authority = Authority(tmp_path_factory.mktemp(f"authority-{bits}") / "authority", kms, min_rsa_bits=bits)
        authority.statement("--kms-key", kms.key(bits).arn, "--no-standby")
        return authority

    return make


@pytest.fixture(scope="session")
def device_for(authority_for, tmp_path_factory):
    """A device that has met no gateway: it got its key with its enrolment, and only seals."""

    @functools.cache
    def make(bits):
        return Device(tmp_path_factory.mktemp(f"device-{bits}") / "truck-7", "truck-7", authority_for(bits))

    return make


@pytest.fixture(scope="module")
def site(kms, authority_for, tmp_path_factory):
    """A whole site: gateway and decryptor run, certificates come from Python, keys lie in KMS."""
    with Site(tmp_path_factory.mktemp("site"), kms, authority_for(4096)) as running:
        running.start_decryptor()
        running.start_gateway()
        yield running
