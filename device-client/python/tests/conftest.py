"""A device that was enrolled with one key, under clocks that the test turns."""

import pytest

import pithead_device
from authority import AUTHORITY, DEVICE, SITE, Authority
from pithead_device import Clocks, Device


class Turned:
    """Clocks of the test's."""

    def __init__(self):
        self.boot_s, self.wall_us = 1_000.0, 1_790_000_000_000_000

    @property
    def clocks(self):
        return Clocks(lambda: self.boot_s, lambda: self.wall_us)


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture
def turned():
    return Turned()


@pytest.fixture
def folder(authority, tmp_path):
    pithead_device.enroll(tmp_path / "device", AUTHORITY, SITE, DEVICE, authority.root, authority.bundle())
    return tmp_path / "device"


@pytest.fixture
def device(folder, turned):
    with Device(folder, clocks=turned.clocks) as opened:
        yield opened
