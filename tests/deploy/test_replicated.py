"""deploy/k3s-replicated: three NATS servers from the very configuration that the pods get, with a client that is not ours; and
what in the manifests keeps them apart, known and closed."""

import asyncio
import os
import re
import ssl
import tomllib

import nats
import pytest
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

import kustomize
from nats_cluster import CONF, FOLDER, NAMES, Cluster, localised, make_keys
from programs import program, run, succeed
from test_kubernetes import assert_files_of_the_pod, by_kind
from tools import DEPLOY, ask, content, needs


@pytest.fixture(scope="module")
def objects():
    return kustomize.build(FOLDER)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("nats") / "keys", "pithead-gateway-0", "pithead-gateway-1")


@pytest.fixture(scope="module")
def cluster(keys, tmp_path_factory):
    running = Cluster(tmp_path_factory.mktemp("nats"), keys)
    try:
        yield running.healthy()
    finally:
        running.stop()


def test_the_server_takes_the_configuration(keys, tmp_path):
    for name in NAMES:
        config = tmp_path / f"{name}.conf"
        config.write_text(localised(keys, tmp_path / "data"))
        content("nats-server", "-t", "-c", config, env={**os.environ, "POD_NAME": name})
    good = config.read_text()
    for right, wrong, named in (("sync_interval", "sync_intervall", "sync_intervall"), ("always", "sometimes", "sync_interval"), ("max_payload", "max_paylaod", "max_paylaod")):
        config.write_text(good.replace(right, wrong))
        code, said = ask("nats-server", "-t", "-c", config, env={**os.environ, "POD_NAME": "x"})
        assert code != 0 and named in said, said


def test_a_stream_of_three_replicas_takes_a_whole_group_and_outlives_a_server(cluster):
    async def stream():
        connection = await cluster.connect(cluster.keys / "pithead-gateway-0.creds")
        # The largest group, which the largest envelope fits into.
        assert connection.max_payload >= constant("mod", "GROUP_BYTES") + constant("mod", "HEADERS_BYTES")
        group = b"\x5a" * (connection.max_payload - 1024)
        manager = connection.jetstream(timeout=10)
        await until_made(manager, StreamConfig(
            name="lane", subjects=["lane.>"], num_replicas=3, storage=StorageType.FILE, discard=DiscardPolicy.NEW, max_bytes=64 << 20,
        ))
        first = await manager.publish("lane.0", group)
        info = await manager.stream_info("lane")
        assert info.config.num_replicas == 3 and {info.cluster.leader, *(one.name for one in info.cluster.replicas)} == set(NAMES)
        await connection.close()
        # The one that leads is killed; the other two go on, behind what was acknowledged.
        led = info.cluster.leader
        cluster.servers[led].kill()
        connection = await cluster.connect(cluster.keys / "pithead-gateway-1.creds", [name for name in NAMES if name != led])
        manager = connection.jetstream(timeout=5)
        second = await until_published(manager, b"second", expected=first.seq)
        assert second.seq == first.seq + 1
        # Whoever expects something else is told so: this is how an owner that was replaced finds out.
        with pytest.raises(nats.js.errors.APIError, match="wrong last sequence"):
            await manager.publish("lane.0", b"third", headers={"Nats-Expected-Last-Sequence": str(first.seq)})
        got = await manager.get_msg("lane", first.seq)
        assert got.data == group
        await connection.close()
        return led

    led = asyncio.run(stream())
    cluster.back(led)


async def until_made(manager, config):
    """A cluster that has just found its leader may need a moment."""
    for attempt in range(20):
        try:
            return await manager.add_stream(config)
        except (nats.errors.TimeoutError, nats.js.errors.APIError, nats.errors.NoRespondersError):
            if attempt == 19:
                raise
            await asyncio.sleep(0.5)


async def until_published(manager, body, expected):
    """The same publish until it is answered: with the sequence that it expects it is taken once at most."""
    for attempt in range(20):
        try:
            return await manager.publish("lane.0", body, headers={"Nats-Expected-Last-Sequence": str(expected)})
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError):
            if attempt == 19:
                raise
            await asyncio.sleep(0.5)


def test_nobody_is_let_in_without_credentials_of_this_site(cluster, tmp_path):
    stranger = make_keys(tmp_path / "stranger", "pithead-gateway-0") / "pithead-gateway-0.creds"
    mixed = tmp_path / "mixed.creds"
    token, seed = (cluster.keys / "pithead-gateway-0.creds").read_text().split("\n\n")
    mixed.write_text("\n\n".join([token, stranger.read_text().split("\n\n")[1]]))

    async def knock(credentials):
        connection = await cluster.connect(credentials)
        await connection.close()

    for credentials in (None, stranger, mixed):
        with pytest.raises(nats.errors.Error, match="(?i)authorization"):
            asyncio.run(knock(credentials))
    make_keys(cluster.keys, "pithead-gateway-2", more=["--more"])
    for number in range(3):
        asyncio.run(knock(cluster.keys / f"pithead-gateway-{number}.creds"))


def test_what_is_secret_is_for_its_owner_alone_and_nothing_is_written_over(keys):
    secrets = [path for path in keys.iterdir() if path.suffix in (".key", ".creds", ".seed")]
    assert len(secrets) >= 6 and all(path.stat().st_mode & 0o077 == 0 for path in secrets)
    before = {path: path.read_bytes() for path in keys.iterdir()}
    for arguments in (["--site", "pit-7", "--ca", keys / "nats.pem", "--ca-key", keys / "nats.key"], ["--more"]):
        done = run(FOLDER / "make-keys", keys, *arguments, "--gateway", "pithead-gateway-0")
        assert done.returncode == 1 and b"is there already" in done.stderr
    assert before == {path: path.read_bytes() for path in keys.iterdir()}


def test_a_gateway_cannot_pass_for_a_server(cluster):
    """The routes have a CA of their own: with a certificate of the site's nobody joins the cluster."""
    async def knock(certificate):
        context = ssl.create_default_context(cafile=cluster.keys / "route-ca.pem")
        context.load_cert_chain(cluster.keys / f"{certificate}.pem", cluster.keys / f"{certificate}.key")
        port = cluster.ports[NAMES[0]]["6222"]
        # By its name in the cluster: the certificate holds for both.
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="pithead-nats-0.pithead-nats")
        # With TLS 1.3 the refusal of a certificate comes with the first read.
        said = await reader.readline()
        writer.close()
        return said

    assert asyncio.run(knock("route")).startswith(b"INFO "), "a server is greeted"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(knock("nats"))


def test_manifests_and_configuration_speak_of_the_same_names_ports_and_files(objects):
    stateful = by_kind(objects, "StatefulSet", "pithead-nats")["spec"]
    pod = stateful["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert set(re.findall(r'"0\.0\.0\.0:(\d+)"', CONF)) == {str(ports[name]) for name in ("client", "route", "monitor")}
    assert stateful["replicas"] == 3 and set(re.findall(r"tls://([\w-]+)\.pithead-nats:6222", CONF)) == set(NAMES)
    assert re.search(r'store_dir: "([^"]+)"', CONF)[1] in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert_files_of_the_pod(FOLDER, pod, re.findall(r'"(/etc/[^"]+)"', CONF) + ["/etc/" + re.search(r'include "../([^"]+)"', CONF)[1]])
    config = tomllib.loads((FOLDER / "gateway.toml").read_text())
    spool = config["spool"]["jetstream"]
    assert spool["servers"] == [f"tls://{name}.pithead-nats:{ports['client']}" for name in NAMES]
    assert spool["monitor"] == [f"{name}.pithead-nats:{ports['monitor']}" for name in NAMES]
    assert spool["replicas"] == stateful["replicas"]
    (egress,) = [rule for rule in by_kind(objects, "NetworkPolicy", "pithead-gateway")["spec"]["egress"] if {"port": ports["client"], "protocol": "TCP"} in rule["ports"]]
    assert {"port": ports["monitor"], "protocol": "TCP"} in egress["ports"]
    devices = int(spool["address"].rsplit(":", 1)[1])
    rules = by_kind(objects, "NetworkPolicy", "pithead-gateway")["spec"]["egress"]
    assert {"ports": [{"port": devices, "protocol": "TCP"}]} in rules, "one that stands by passes on to the other"
    own = by_kind(objects, "NetworkPolicy", "pithead-nats")["spec"]["egress"]
    assert {"to": egress["to"], "ports": [{"port": ports["route"], "protocol": "TCP"}]} in own, "they reach each other"
    assert egress["to"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "pithead-nats"}}}]


def test_what_differs_between_the_pods_is_said_by_their_environment_and_taken(objects):
    needs("pithead-gateway", "[spool.jetstream]")
    (container,) = by_kind(objects, "StatefulSet", "pithead-gateway")["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one["value"].replace("$(POD_NAME)", "pithead-gateway-1") for one in container["env"] if "value" in one}
    shown = succeed(program("pithead-gateway"), "config", "show", "--origin", "-c", FOLDER / "gateway.toml", env=told).decode()
    for name, value in told.items():
        (line,) = [line for line in shown.splitlines() if line.endswith(f"# {name}")]
        assert f'"{value}"' in line
    assert len(told) == 4


def gibibytes(text):
    """What a size is. NATS counts in powers of two as well, and writes them without the i."""
    return int(re.fullmatch(r"(\d+)(?:GB|GiB|Gi)", text)[1]) << 30


def constant(module, name):
    """A constant of the engine, out of its source."""
    source = (DEPLOY.parent / "gateway/src/envelopes/replicated" / f"{module}.rs").read_text()
    number, shift = re.search(rf"^const {name}: \w+ = ([\d_]+)(?: << (\d+))?;", source, re.MULTILINE).groups()
    return int(number) << int(shift or 0)


def refused_size(config):
    """Of [relay], or its default."""
    source = (DEPLOY.parent / "gateway/src/config/relay.rs").read_text()
    default = int(re.search(r"fn refused_size\(\) -> ByteSize \{\s*ByteSize::mib\((\d+)\)", source)[1]) << 20
    given = config["relay"].get("refused_size")
    return gibibytes(given) if given else default


def test_there_is_room_for_what_is_promised(objects):
    """Nobody enforces the size of a local volume, so each bound lies below the next."""
    config = tomllib.loads((FOLDER / "gateway.toml").read_text())
    store = gibibytes(re.search(r"max_file_store: (\w+)", CONF)[1])
    (claim,) = by_kind(objects, "StatefulSet", "pithead-nats")["spec"]["volumeClaimTemplates"]
    in_use = 1 + sum(bool(config["spool"].get("lanes", {}).get(lane)) for lane in ("first", "third"))
    # As the gateway makes the streams: a lane in use may take all of it, and another a part; the state; the refused area and a part more.
    lanes = gibibytes(config["spool"]["max_size"]) * (in_use + (3 - in_use) / constant("settings", "UNUSED_LANE_PART"))
    refused = refused_size(config) * (1 + 1 / constant("settings", "REFUSED_PART")) + constant("settings", "REFUSED_LEAST")
    reserved = lanes + constant("settings", "STATE_BYTES") + refused
    assert reserved < store < gibibytes(claim["spec"]["resources"]["requests"]["storage"])
    # What is left on a gateway's own volume.
    (claim,) = by_kind(objects, "StatefulSet", "pithead-gateway")["spec"]["volumeClaimTemplates"]
    assert refused_size(config) < gibibytes(claim["spec"]["resources"]["requests"]["storage"])


def test_no_two_of_a_kind_are_on_one_machine_or_away_together(objects):
    for name in ("pithead-nats", "pithead-gateway"):
        pod = by_kind(objects, "StatefulSet", name)["spec"]["template"]
        (rule,) = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        assert rule["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": name} and pod["metadata"]["labels"]["app.kubernetes.io/name"] == name
        assert by_kind(objects, "PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
    service = by_kind(objects, "Service", "pithead-nats")["spec"]
    assert service["publishNotReadyAddresses"] is True, "they find each other before they are ready"


def test_every_message_is_synced_before_it_is_acknowledged():
    assert re.search(r"^  sync_interval: always$", CONF, re.MULTILINE)
