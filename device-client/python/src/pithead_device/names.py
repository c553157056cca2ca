"""The names that everything is filed under: site, device, stream, run, number (docs/envelope.md, sections 5 and 6).

A name is checked once, where it comes in. What has passed is safe in a path, in a log line and in a context.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from .errors import NameRefused

SEQ_MAX: Final = 2**63 - 1
STREAMS_PER_DEVICE: Final = 16

_SITE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_STREAM = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_RUN = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SEQ = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_ARN = re.compile(r"arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+", re.ASCII)


def site(text: str) -> str:
    """A site: one place with one gateway and one certificate authority."""
    if not _SITE.fullmatch(text):
        raise NameRefused("PROFILE_CONTEXT", "a site is 1 to 63 of a-z, 0-9 and '-', and begins with a letter or digit")
    return text


def device(text: str) -> str:
    """A device, as its certificate names it."""
    # A device's name becomes a folder in the cloud: no step upwards.
    if not _DEVICE.fullmatch(text) or ".." in text:
        raise NameRefused(
            "PROFILE_CONTEXT",
            "a device is 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', begins with a letter or digit and holds no '..'",
        )
    return text


def stream(text: str) -> str:
    """A stream of one device."""
    if not _STREAM.fullmatch(text):
        raise NameRefused("PROFILE_CONTEXT", "a stream is 1 to 32 of a-z, 0-9 and '-'")
    return text


def run(value: int) -> int:
    """A run: `u32 start counter || u32 random`, never 0."""
    if not 0 < value < 2**64:
        raise NameRefused("PROFILE_NUMBER", "a run is a number of 64 bits other than 0")
    return value


def run_from_text(text: str) -> int:
    """A run from its 16 hex digits, its only spelling."""
    if not _RUN.fullmatch(text):
        raise NameRefused("PROFILE_NUMBER", "a run is written as 16 lower-case hex digits")
    return run(int(text, 16))


def run_text(value: int) -> str:
    """A run's 16 hex digits."""
    return f"{value:016x}"


def seq(value: int) -> int:
    """The number of an envelope on its line: 1 to 2^63 - 1."""
    if not 1 <= value <= SEQ_MAX:
        raise NameRefused("PROFILE_NUMBER", "a number is from 1 to 2^63 - 1")
    return value


def seq_from_text(text: str) -> int:
    """A number from decimal digits without a leading zero."""
    if not _SEQ.fullmatch(text):
        raise NameRefused("PROFILE_NUMBER", "a number is written in decimal without leading zeros")
    return seq(int(text))


def is_key_arn(text: str) -> bool:
    """Whether this is the full ARN of a KMS key. An alias is not: whoever moves it would choose the key."""
    return len(text) <= 256 and _ARN.fullmatch(text) is not None


@dataclasses.dataclass(frozen=True, order=True)
class Identity:
    """What an envelope is filed under, everywhere and for ever. Never its hash."""

    site: str
    device: str
    stream: str
    run: int
    seq: int

    def __post_init__(self) -> None:
        site(self.site), device(self.device), stream(self.stream), run(self.run), seq(self.seq)

    def __str__(self) -> str:
        return f"{self.site}/{self.device}/{self.stream}/{run_text(self.run)}/{self.seq}"
