"""The sample configurations are taken by the programs, with files of the names that they give."""

import re
import shutil
import tomllib

import pytest

from programs import program, run, succeed
from site_on_loopback import LoopbackSite
from tools import DEPLOY, needs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Certificates, a root and a bundle: made for a site, which is not started."""
    return LoopbackSite(tmp_path_factory.mktemp("made")).folder


def laid_out(sample, folder, made):
    """The sample with what it names beside it. Absolute paths are moved into the folder; nothing else is changed."""
    text = sample.read_text()
    for path in set(re.findall(r'"(/[^"]+)"', text)):
        text = text.replace(f'"{path}"', f'"{folder}{path}"')
    files = {
        "gw-1.pem": "gateway.pem", "gw-1.key": "gateway.key", "gateway.pem": "gateway.pem", "gateway.key": "gateway.key",
        "pithead-gateway-0.pem": "gateway.pem", "pithead-gateway-0.key": "gateway.key", "site-ca.pem": "site-ca.pem", "cloud-ca.pem": "cloud-ca.pem", "pit-7-ca.pem": "site-ca.pem",
        "decryptor.pem": "decryptor.pem", "decryptor.key": "decryptor.key", "root.cose": "authority/roots/1.cose",
        "pit-7.pb": "authority/bundles/pit-7.pb",
    }
    named = set(re.findall(r'^\w+ = \[?"([^"]+\.(?:pem|key|cose|pb))"', text, re.MULTILINE))
    for path in named:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.name == "site-ca.key":
            # The key of the CA that the fixture's certificates are of lies in Python; `init` makes a pair that belongs together.
            continue
        shutil.copy(made / files[place.name], place)
    for path in re.findall(r'^(?:data_dir|path|dir) = "([^"]+)"', text, re.MULTILINE):
        (folder / path).mkdir(parents=True, exist_ok=True)
    config = folder / sample.name
    config.write_text(text)
    return config


@pytest.mark.parametrize(("sample", "section"), [
    ("gateway.toml", "[relay]"), ("k3s/gateway.toml", "[relay]"), ("k3s-replicated/gateway.toml", "[spool.jetstream]"), ("gateway-s3.toml", "[relay.store]"),
])
def test_a_gateways_sample_is_taken(sample, section, made, tmp_path):
    needs("pithead-gateway", section)
    folder = tmp_path / "etc"
    folder.mkdir()
    config = laid_out(DEPLOY / sample, folder, made)
    # A site's CA with its key, as `init` makes them; the certificate of the gateway is of the same.
    arguments = ["--site", "pit-7", "--name", "gw-1", "--host", "gateway.pit-7.example", "--authority", "acme-mining/prod"]
    succeed(program("pithead-gateway"), "init", tmp_path / "init", *arguments, "--root", made / "authority/roots/1.cose",
            "--bundle", made / "authority/bundles/pit-7.pb")
    written = tomllib.loads(config.read_text())
    for key, name in (("certificate", "gateway.pem"), ("private_key", "gateway.key")):
        shutil.copy(tmp_path / "init" / name, folder / written["gateway"][key])
    shutil.copy(tmp_path / "init" / "site-ca.pem", folder / written["ingest"]["device_ca"])
    if "enroll" in written:
        shutil.copy(tmp_path / "init" / "site-ca.key", folder / written["enroll"]["ca_key"])
    for command in ("check", "show"):
        succeed(program("pithead-gateway"), "config", command, "-c", config)
    config.write_text(config.read_text().replace("max_size", "max_sise"))
    refused = run(program("pithead-gateway"), "config", "check", "-c", config)
    assert refused.returncode == 78 and b"max_sise" in refused.stderr


@pytest.mark.parametrize(("sample", "section"), [("decryptor.toml", "[sink]"), ("decryptor-s3.toml", "[source]")])
def test_a_decryptors_sample_is_taken(sample, section, made, tmp_path):
    needs("pithead-decryptor", section)
    config = laid_out(DEPLOY / sample, tmp_path, made)
    succeed(program("pithead-decryptor"), "config", "check", "-c", config)
    succeed(program("pithead-decryptor"), "site", "list", "-c", config)
    config.write_text(config.read_text().replace("bundles", "bundels"))
    assert run(program("pithead-decryptor"), "site", "list", "-c", config).returncode == 78


def test_the_trial_of_the_compose_file_works_with_the_programs_that_its_images_hold(tmp_path):
    """make-site, and then the three commands of compose.yaml, with ports of their own in place of containers."""
    import os
    import yaml
    from programs import BINARIES, Server, free_port

    site = tmp_path / "site"
    succeed(DEPLOY / "docker" / "make-site", site, env={"PATH": f"{BINARIES}:{os.environ['PATH']}"})
    again = run(DEPLOY / "docker" / "make-site", site, env={"PATH": f"{BINARIES}:{os.environ['PATH']}"})
    assert again.returncode == 73, "nothing is written over"
    services = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]
    ports = {name: free_port() for name in ("7443", "7444", "7480", "7490", "7500")}
    for path in [site / "decryptor.toml", site / "gateway" / "gateway.toml", *site.glob("fleet/*/device.toml")]:
        text = re.sub(r'"(?:0\.0\.0\.0|gateway|decryptor|localhost):(\d+)"', lambda found: f'"localhost:{ports[found[1]]}"', path.read_text())
        path.write_text(re.sub(r'(listen = )"localhost', r'\1"127.0.0.1', text))
    servers = []
    try:
        for name, admin in (("decryptor", "7490"), ("gateway", "7480")):
            command = [program(f"pithead-{name}"), *services[name]["command"]]
            servers.append(Server(command, tmp_path / f"{name}.log", cwd=site, admin=ports[admin]).ready())
        command = [part.replace("10min", "4s") for part in services["vehicles"]["command"]]
        said = succeed(program("pithead-device"), *command, cwd=site).decode()
        assert "records" in said
        records = site / "records" / "records.jsonl"
        servers[0].until("has delivered", lambda: records.exists() and records.read_text().count("\n") > 10)
    finally:
        for server in reversed(servers):
            server.stop()
