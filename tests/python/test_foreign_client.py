"""A device in another language (device-client/python) at a whole site, whose certificates come from Python too."""

import json
import pathlib
import re
import secrets
import shlex
import sys

import grpc
import pytest
from pithead.ingest.v1 import ingest_pb2 as ingest, ingest_pb2_grpc as ingest_grpc
from pithead.keys.v1 import keys_pb2 as keys, keys_pb2_grpc as keys_grpc
from pithead_device import Client, Device as PythonDevice, SigningKey, __main__ as command_line, deliver, enroll, refresh

import stock
from parties import AUTHORITY, SITE, Authority, Device
from programs import WORKSPACE, program, run, succeed
from whole_site import Site


def command_of_the_docstring(act, values):
    """The command line that stands in the program's docstring, with these values in place of those that it shows."""
    shown = re.search(rf"^ +python -m pithead_device ({act} .*)$", command_line.__doc__, re.MULTILINE).group(1)
    words = shlex.split(shown)[1:]
    command = [sys.executable, "-m", "pithead_device", act]
    while words:
        name = words.pop(0)
        if name.startswith("--"):
            assert not words.pop(0).startswith("--")
            command.append(name)
        command.append(values[name])
    return command


def enrolled(folder, authority, device):
    """A folder that the package's own command has enrolled; the root came by hand, and no key yet."""
    succeed(*command_of_the_docstring("enroll", {
        "--dir": folder, "--authority": AUTHORITY, "--site": SITE, "--device": device, "--root": authority.root,
    }))
    return folder


def run_submit(site, folder, payload, device, *more):
    """Runs it as its docstring says, as a program of its own."""
    certificate, key = site.device(device)
    return run(*command_of_the_docstring("submit", {
        "--dir": folder, "--gateway": site.address, "--ca": site.ca.path, "--cert": certificate, "--key": key, "FILE": payload,
    }), *more)


def client_of(site, name):
    certificate, key = site.device(name)
    return Client(site.address, site.ca.path.read_bytes(), certificate.read_bytes(), key.read_bytes())


class Connection:
    """The generated stubs on one channel, as one device."""

    def __init__(self, site, name):
        certificate, key = site.device(name)
        read = pathlib.Path.read_bytes
        credentials = grpc.ssl_channel_credentials(read(site.ca.path), read(key), read(certificate))
        self.channel = grpc.secure_channel(site.address, credentials)
        self.ingest = ingest_grpc.IngestServiceStub(self.channel)
        self.keys = keys_grpc.KeyServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def submit(self, envelope):
        return self.ingest.Submit(ingest.SubmitRequest(envelope=envelope), timeout=30)

    def bundle(self):
        request = keys.GetKeyBundleRequest(authority=AUTHORITY, site=SITE, have=keys.Held(root_version=1))
        return self.keys.GetKeyBundle(request, timeout=30).bundle


def refusal(error):
    """The status code, and the reason in the status's ErrorInfo."""
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    found = re.search(rb"\x0a.([A-Z_0-9]+)\x12\x07pithead", details, re.DOTALL)
    return error.code(), found.group(1).decode() if found else None


def test_an_envelope_of_the_python_package_arrives_with_its_identity(site, tmp_path):
    payload = secrets.token_bytes(100_000)
    (tmp_path / "payload").write_bytes(payload)
    folder = enrolled(tmp_path / "device", site.authority, "python-1")

    finished = run_submit(site, folder, tmp_path / "payload", "python-1")

    assert finished.returncode == 0, finished.stderr.decode()
    identity, durability = finished.stdout.decode().split()
    assert durability == "DISK"
    [record] = site.decryptor.until("delivers it", lambda: site.delivered("python-1"))
    named = "/".join(str(record[part]) for part in ("site", "device", "stream", "run", "seq"))
    assert named == identity
    assert record["data"] == payload
    assert record["assurance"] == "vouched"
    status = succeed(*command_of_the_docstring("status", {"--dir": folder})).decode()
    assert "FRESH" in status and re.search(r"waiting +0", status)


def test_the_page_of_code_in_the_readme_does_what_it_says(site, tmp_path):
    readme = (WORKSPACE / "device-client" / "python" / "README.md").read_text()
    [page] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    certificate, key = site.device("truck-0042")
    files = {"root.cose": site.authority.root, "ca.pem": site.ca.path, "device.pem": certificate, "device.key": key}
    for name, path in files.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "shift.csv").write_bytes(b"hour,tonnes\n7,912\n")
    assert f'"{AUTHORITY}", "{SITE}", "truck-0042"' in page and page.count('"gateway:7443"') == 1
    (tmp_path / "page.py").write_text(page.replace("gateway:7443", site.address))

    succeed(sys.executable, "page.py", cwd=tmp_path)

    site.decryptor.until("delivers both", lambda: len(site.delivered("truck-0042")) == 2)
    delivered = {record["stream"]: record["data"] for record in site.delivered("truck-0042")}
    assert delivered == {"can": b"\x01\x02", "files": b"hour,tonnes\n7,912\n"}


def test_records_of_one_session_cost_one_call_to_kms_and_are_proven_to_be_all(site, tmp_path):
    before = site.decryptor.metric("pithead_kms_decrypt_calls_total")
    folder = enrolled(tmp_path / "device", site.authority, "python-10")
    with PythonDevice(folder) as device, client_of(site, "python-10") as client:
        assert refresh(device, client) and not refresh(device, client)
        for number in range(2_500):
            device.record("can", b"load %d" % number, "tonnes", at_us=1_790_000_000_000_000 + number)
        device.heartbeat()
        done = deliver(device, client)
        assert [accepted.durability for _, accepted in done.accepted] == ["DISK"] * 4 and not done.newer_statement
        assert device.waiting() == []

    site.decryptor.until("delivers them", lambda: len(site.delivered("python-10")) == 2_500)
    records = site.delivered("python-10")
    assert [record["data"] for record in records] == [b"load %d" % number for number in range(2_500)]
    assert site.decryptor.metric("pithead_kms_decrypt_calls_total") == before + 1
    line, _ = site.decryptor.until("has the heartbeat", lambda: complete(site, "python-10", envelopes=4))
    assert line["MISSING"] == "0"
    # The heartbeat rides in number 4 and speaks of what was there before it.
    assert line["PROVEN TO"].endswith("/3")


def books(site, device):
    """What the decryptor's books say of a device's streams, by column. That nothing is missing without a reason, it demands."""
    command = program("pithead-decryptor"), "verify", "-c", site.folder / "decryptor.toml", "--device", device
    columns, *rows = (re.split(r"  +", line) for line in succeed(*command).decode().splitlines())
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)], rows


def complete(site, device, envelopes):
    """The books, once they have so many envelopes of the device's one stream."""
    [line], rows = books(site, device)
    return (line, rows) if line["ENVELOPES"] == str(envelopes) else None


def test_what_a_disk_has_damaged_is_declared_and_is_no_hole(site, tmp_path):
    folder = enrolled(tmp_path / "device", site.authority, "python-11")
    with PythonDevice(folder) as device, client_of(site, "python-11") as client:
        refresh(device, client)
        for text in (b"first", b"lost", b"last"):
            device.record("can", text), device.flush()
        [path] = (folder / "outbox").glob("can-*-2-*.envelope")
        run_before = path.name.split("-")[1]
        path.write_bytes(path.read_bytes()[:-1])
        assert len(deliver(device, client).accepted) == 2
        device.heartbeat()
        assert len(deliver(device, client).accepted) == 1

    site.decryptor.until("delivers them", lambda: len(site.delivered("python-11")) == 2)
    assert [record["data"] for record in site.delivered("python-11")] == [b"first", b"last"]
    line, rows = site.decryptor.until("has the heartbeat", lambda: complete(site, "python-11", envelopes=3))
    # Up to number 3 it is proven: number 2 was declared, and its hole has its reason.
    assert (line["MISSING"], line["PROVEN TO"]) == ("0", f"{run_before}/3")
    assert ["", "declared", f"{run_before}/2"] in rows


def test_a_signed_session_is_known_to_the_cloud_by_the_devices_key(site, tmp_path):
    (tmp_path / "payload").write_bytes(b"signed")
    folder = enrolled(tmp_path / "device", site.authority, "python-12")
    _, key = site.device("python-12")
    (tmp_path / "device.pub").write_bytes(succeed(sys.executable, "-m", "pithead_device", "public-key", "--key", key))
    decryptor = program("pithead-decryptor"), "device"
    config = "-c", site.folder / "decryptor.toml"
    succeed(*decryptor, "add", f"{SITE}/python-12", "--key", tmp_path / "device.pub", "--required", *config)
    site.decryptor.until("has read the registry", lambda: site.decryptor.metric("pithead_decryptor_device_keys") == 1)

    # The certificate's key is drawn anew by every call of site.device: this one is kept.
    certificate = key.with_suffix(".pem")
    options = {"--dir": folder, "--gateway": site.address, "--ca": site.ca.path, "--cert": certificate, "--key": key}
    finished = run(*command_of_the_docstring("submit", options | {"FILE": tmp_path / "payload"}), "--sign")

    assert finished.returncode == 0, finished.stderr.decode()
    [record] = site.decryptor.until("delivers it", lambda: site.delivered("python-12"))
    assert (record["data"], record["verdict"], record["assurance"]) == (b"signed", "signed", "signed"), record
    assert record["kid"] == SigningKey.from_pem(key.read_bytes()).kid.hex()


def test_other_bytes_under_a_used_identity_are_refused_and_the_first_stay(site, kms):
    key = kms.key(4096)
    context = stock.context(SITE, "python-2", stock.new_run())
    first = stock.seal(kms.client, key, b"the first", context)
    second = stock.seal(kms.client, key, b"not the first", context)
    with Connection(site, "python-2") as device:
        assert not device.submit(first).HasField("duplicate")
        assert device.submit(first).HasField("duplicate"), "the same bytes again are no conflict"
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as refused:
                device.submit(second)
            assert refusal(refused.value) == (grpc.StatusCode.ALREADY_EXISTS, "CONFLICT")
        # The next number is taken as if nothing had happened, and arrives after whatever came before it.
        next_context = context | {"pithead:seq": context["pithead:seq"].replace("/1", "/2")}
        device.submit(stock.seal(kms.client, key, b"the second", next_context))

    site.decryptor.until("delivers both", lambda: len(site.delivered("python-2")) == 2)
    assert [record["data"] for record in site.delivered("python-2")] == [b"the first", b"the second"]


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"pithead:device": "somebody-else"}, grpc.StatusCode.PERMISSION_DENIED, "DEVICE_MISMATCH"),
        ({"pithead:site": "pit-8"}, grpc.StatusCode.PERMISSION_DENIED, "SITE_MISMATCH"),
        ({"pithead:seq": "0000000000000000/1"}, grpc.StatusCode.INVALID_ARGUMENT, "PROFILE_NUMBER"),
        ({"pithead:unheard-of": "1"}, grpc.StatusCode.INVALID_ARGUMENT, "PROFILE_CONTEXT"),
    ],
    ids=["of another device", "of another site", "run 0", "with an unknown key of ours"],
)
def test_an_envelope_is_refused_when_its_context_is(site, kms, change, code, reason):
    context = stock.context(SITE, "python-3", stock.new_run()) | change
    envelope = stock.seal(kms.client, kms.key(4096), b"never to be seen", context)
    with Connection(site, "python-3") as device:
        with pytest.raises(grpc.RpcError) as refused:
            device.submit(envelope)
    assert refusal(refused.value) == (code, reason)
    assert not site.delivered("python-3") and not site.delivered("somebody-else")


def test_an_envelope_of_the_stock_sdk_without_a_number_of_ours_is_never_delivered(site, kms):
    context = stock.context(SITE, "python-9", stock.new_run())
    del context["pithead:seq"]
    before, taken = site.gateway.metric("pithead_refused_records"), 0
    with Connection(site, "python-9") as device:
        for _ in range(8):
            # The SDK draws the message id. What stands where we have the number is out of bounds half of the time, and
            # otherwise nothing that a line could begin with: the gateway cannot know all of that line, the decryptor does.
            try:
                device.submit(stock.seal(kms.client, kms.key(4096), b"never to be seen", context))
                taken += 1
            except grpc.RpcError as error:
                assert refusal(error)[1] in ("PROFILE_NUMBER", "SEQ_JUMP")
    site.gateway.until("sets it aside", lambda: site.gateway.metric("pithead_refused_records") == before + taken)
    assert not site.delivered("python-9")


def test_an_envelope_under_a_key_that_no_statement_named_is_refused(site, kms):
    context = stock.context(SITE, "python-4", stock.new_run())
    envelope = stock.seal(kms.client, kms.key(2048), b"never to be seen", context)
    with Connection(site, "python-4") as device:
        with pytest.raises(grpc.RpcError) as refused:
            device.submit(envelope)
    assert refusal(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_UNKNOWN")


def test_without_a_certificate_of_the_sites_ca_nobody_is_answered(site):
    root = site.ca.path.read_bytes()
    stranger, strangers_key = site.cloud_ca.issue(site.folder / "stranger", spiffe=f"spiffe://{SITE}/device/python-5")
    for credentials in (
        grpc.ssl_channel_credentials(root),
        grpc.ssl_channel_credentials(root, strangers_key.read_bytes(), stranger.read_bytes()),
    ):
        with grpc.secure_channel(site.address, credentials) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                request = keys.GetKeyBundleRequest(authority=AUTHORITY, site=SITE, have=keys.Held(root_version=1))
                keys_grpc.KeyServiceStub(channel).GetKeyBundle(request, timeout=30)
            assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


def test_the_package_seals_nothing_when_another_authority_has_signed_the_key(site, tmp_path):
    (tmp_path / "payload").write_bytes(b"never to be seen")
    with Connection(site, "python-6") as device:
        context = stock.context(SITE, "python-6", stock.new_run())
        device.submit(stock.seal(site.kms.client, site.kms.key(4096), b"so that there is a number to compare", context))
    before = site.gateway.metric("pithead_ingest_envelopes_total")
    # Of the same name, and with keys of its own: so a stolen gateway would have it.
    other = Authority(tmp_path / "authority")
    folder = enrolled(tmp_path / "device", other, "python-6")

    finished = run_submit(site, folder, tmp_path / "payload", "python-6")

    assert finished.returncode == 1
    assert "TRUST_THRESHOLD" in finished.stderr.decode() and "NO_KEY" in finished.stderr.decode()
    assert not list((folder / "outbox").iterdir())
    assert site.gateway.metric("pithead_ingest_envelopes_total") == before > 0


def test_the_package_keeps_aside_what_is_refused_with_its_reason(site, tmp_path):
    (tmp_path / "payload").write_bytes(b"never to be seen")
    folder = enrolled(tmp_path / "device", site.authority, "python-8")

    finished = run_submit(site, folder, tmp_path / "payload", "python-7")

    assert finished.returncode == 1
    assert "DEVICE_MISMATCH (PH-2105)" in finished.stderr.decode()
    [why] = (folder / "outbox" / "refused").glob("*.json")
    assert json.loads(why.read_text())["reason"] == "DEVICE_MISMATCH"


def test_what_the_package_sealed_while_the_gateway_was_away_waits_for_it(site, tmp_path):
    (tmp_path / "payload").write_bytes(b"kept")
    folder = tmp_path / "device"
    enroll(folder, AUTHORITY, SITE, "python-13", site.authority.root.read_bytes())
    with PythonDevice(folder) as device, client_of(site, "python-13") as client:
        refresh(device, client)
    certificate, key = site.device("python-13")
    options = {"--dir": folder, "--ca": site.ca.path, "--cert": certificate, "--key": key}

    away = run(*command_of_the_docstring("submit", options | {"--gateway": "127.0.0.1:9", "FILE": tmp_path / "payload"}))
    assert (away.returncode, b"PEER_UNREACHABLE" in away.stderr) == (75, True), away.stderr
    assert not site.delivered("python-13")

    succeed(*command_of_the_docstring("deliver", options | {"--gateway": site.address}))
    [record] = site.decryptor.until("delivers it", lambda: site.delivered("python-13"))
    assert record["data"] == b"kept"


def test_our_own_device_is_at_home_under_the_same_certificates(site, tmp_path):
    certificate, key = site.device("truck-1")
    here = ["--gateway", site.address, "--ca", site.ca.path, "--cert", certificate, "--key", key]
    device = Device(tmp_path / "truck-1", "truck-1", site.authority, more=here)

    device.do("send", "-", input=b"one\ntwo\nthree\n")

    site.decryptor.until("delivers them", lambda: len(site.delivered("truck-1")) == 3)
    records = site.delivered("truck-1")
    assert [record["data"] for record in records] == [b"one", b"two", b"three"]
    assert {record["assurance"] for record in records} == {"vouched"}


class TestAGatewayThatAsksKms:
    """GetPublicKey and DescribeKey of a KMS that we did not write, against a bundle that came in a file."""

    def site(self, tmp_path, kms, *key, without_spkis=False, gateway_asks_kms=True):
        authority = Authority(tmp_path / "authority", kms)
        authority.statement(*key, "--no-standby")
        bundle = tmp_path / "bundle.pb"
        carried = keys.KeyBundle.FromString(authority.bundle.read_bytes())
        if without_spkis:
            del carried.spkis[:]
        bundle.write_bytes(carried.SerializeToString())
        return Site(tmp_path, kms, authority, bundle=bundle, gateway_asks_kms=gateway_asks_kms)

    def test_serves_the_public_key_from_kms_when_the_bundle_has_none(self, tmp_path, kms):
        key = kms.key(4096)
        with self.site(tmp_path, kms, "--kms-key", key.arn, without_spkis=True) as site:
            site.start_gateway()
            with Connection(site, "python-1") as device:
                assert list(device.bundle().spkis) == [key.spki]
            assert site.gateway.metric("pithead_kms_lookups_total", 'reason="OK"') == 1

    def test_serves_no_key_that_is_neither_in_the_bundle_nor_asked_for_at_kms(self, tmp_path, kms):
        key = ("--kms-key", kms.key(4096).arn)
        with self.site(tmp_path, kms, *key, without_spkis=True, gateway_asks_kms=False) as site:
            self.serves_nothing(site, "PH-1027")
            assert site.gateway.metric("pithead_kms_lookups_total") == 0

    def test_raises_an_alarm_when_kms_serves_another_key_than_was_stated(self, tmp_path, kms):
        # Somebody signed the fingerprint of a key of his own under the ARN of ours.
        (tmp_path / "other.pem").write_bytes(kms.new_key(3072).pem)
        with self.site(tmp_path, kms, "--key", f"{kms.key(4096).arn}={tmp_path / 'other.pem'}") as site:
            self.serves_nothing(site, "PH-5009")
            assert site.gateway.metric("pithead_key_fingerprint_mismatch") == 1

    def test_serves_no_key_that_is_disabled_in_kms(self, tmp_path, kms):
        key = kms.new_key(3072)
        with self.site(tmp_path, kms, "--kms-key", key.arn) as site:
            # This KMS still hands out the public key of a disabled one: DescribeKey must have been asked.
            kms.client.disable_key(KeyId=key.arn)
            self.serves_nothing(site, "PH-5004")

    def serves_nothing(self, site, code):
        site.start_gateway(ready=False)
        site.gateway.until("says why", lambda: code in site.gateway.get("/readyz")[1])
        assert site.gateway.get("/readyz")[0] == 503
        with Connection(site, "python-1") as device:
            with pytest.raises(grpc.RpcError) as refused:
                device.bundle()
        assert refusal(refused.value) == (grpc.StatusCode.UNAVAILABLE, "KEYS_NOT_READY")
