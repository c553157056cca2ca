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


@pytest.fixture(scope="session")
def traced_site(tmp_path_factory):
    """A site at work under strace: of each program the system calls that it made, the families of its sockets, and whether
    it has asked for memory that may be written and executed."""
    import re
    import shutil

    from certificates import Ca
    from parties import AUTHORITY, SITE
    import programs
    from site_on_loopback import LoopbackSite

    if not shutil.which("strace"):
        pytest.skip("strace is missing")
    folder = tmp_path_factory.mktemp("traced")
    with LoopbackSite(folder, prefix=lambda name: ["strace", "-f", "-qq", "-o", folder / f"{name}.trace"]) as site:
        site.send("truck-1", 20)
        site.until_delivered("truck-1", 20)
    told = []
    for name in ("gateway", "decryptor"):
        trace = (folder / f"{name}.trace").read_text(errors="replace")
        calls = set(re.findall(r"^\d+\s+(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace, re.MULTILINE))
        families = set(re.findall(r"socket\((AF_\w+)", trace))
        executable = re.findall(r"(?:mmap|mprotect)\(.*PROT_WRITE\|PROT_EXEC", trace)
        told.append((name, calls - {"exit", "execve"}, families, executable))
    return told
