"""The runbooks of a cloud end on S3, done with the real programs: a gateway that relays into the bucket of pithead-s3.yaml, and
decryptors that take bundles out of it, with ministack for AWS. Skipped where the programs know no bucket."""

import json
import subprocess

import pytest

from clouds import REGION, emulator
from parties import SITE
from programs import free_port, program, run, succeed
from site_on_loopback import LoopbackSite
from test_bucket_stack import Stacks
from test_rehearsed import ask
from tools import needs


@pytest.fixture
def stacks(deploy, tmp_path):
    needs("pithead-gateway", "[relay.store]")
    needs("pithead-decryptor", "[source]")
    (tmp_path / "cloud").mkdir()
    server, url = emulator("ministack", tmp_path / "cloud")
    try:
        made = Stacks("ministack", url, deploy / "cloudformation")
        yield made
    finally:
        server.kill()


class BucketSite(LoopbackSite):
    """Statements come to the gateway as a file, bundles go to the bucket, and `decryptor` and `decryptor-2` take them from there."""

    def __init__(self, folder, stacks):
        super().__init__(folder)
        self.stacks = stacks
        self.ports["decryptor-2_admin"] = free_port()
        (self.folder / "decryptor-2-data").mkdir()

    def environment(self, name):
        return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_ENDPOINT_URL_SQS": self.stacks.url}

    def keys(self):
        return f'bundle = "{self.authority.bundle}"\nmin_interval = "1s"\nmax_interval = "2s"'

    def where(self, bucket=None):
        return f'url = "s3://{bucket or self.stacks.bucket}"\nendpoint = "{self.stacks.url}"\nregion = "{REGION}"'

    def relay(self, bucket=None):
        return f'[relay]\nkind = "object_store"\n[relay.store]\n{self.where(bucket)}\nbundle_delay = "200ms"'

    def start_decryptor(self, ready=True, name="decryptor"):
        server = self._start(name, f"""
            [decryptor]
            data_dir = "{name}-data"
            [source]
            kind = "s3"
            {self.where()}
            queue = "{self.stacks.outputs["Arrivals"]}"
            # Nobody here waits minutes for a message that comes again.
            visibility = "3s"
            [[site]]
            name = "{SITE}"
            [keys]
            bundles = ["{self.authority.bundle}"]
            [unwrap]
            {self.unwrap()}
            [sink]
            kind = "objects"
            {self.where()}
            [admin]
            listen = "127.0.0.1:{self.ports[f"{name}_admin"]}"
        """, ready)
        if name == "decryptor":
            self.decryptor = server
        return server

    def names(self, prefix):
        pages = self.stacks.client("s3").get_paginator("list_objects_v2").paginate(Bucket=self.stacks.bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def records(self, device):
        """What a consumer reads."""
        s3, lines = self.stacks.client("s3"), []
        for key in self.names(f"out/{SITE}/"):
            body = s3.get_object(Bucket=self.stacks.bucket, Key=key)["Body"].read()
            lines += subprocess.run(["zstd", "-dc"], input=body, capture_output=True, check=True).stdout.decode().splitlines()
        return [record for record in map(json.loads, lines) if record["device"] == device]

    def until_delivered(self, name, records, by=None):
        (by or self.decryptor).until(f"has delivered {records} records of {name}", lambda: len(self.records(name)) >= records)
        assert len(self.records(name)) == records, "each once"

    def verify(self):
        return run(program("pithead-decryptor"), "verify", "-c", self.folder / "decryptor.toml", env=self.environment("decryptor"))


@pytest.fixture
def site(tmp_path, stacks):
    (tmp_path / "site").mkdir()
    with BucketSite(tmp_path / "site", stacks) as running:
        yield running


def test_a_second_decryptor_is_added_and_the_first_is_lost(site):
    site.send("truck-1", 20)
    site.until_delivered("truck-1", 20)
    second = site.start_decryptor(name="decryptor-2")
    site.decryptor.kill()
    site.send("truck-1", 20)
    site.until_delivered("truck-1", 40, by=second)
    done = site.verify()
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_nobodys_is_set_aside_and_what_was_set_aside_is_sent_back(site):
    sqs, queue = site.stacks.client("sqs"), site.stacks.outputs
    sqs.send_message(QueueUrl=queue["Arrivals"], MessageBody='{"somebody": "else"}')
    site.decryptor.until("says so", lambda: site.decryptor.metric("pithead_queue_messages_total", 'outcome="foreign"') > 0)

    def waiting():
        told = sqs.get_queue_attributes(QueueUrl=queue["SetAside"], AttributeNames=["ApproximateNumberOfMessages"])["Attributes"]
        return int(told["ApproximateNumberOfMessages"])

    site.decryptor.until("leaves it to be set aside", lambda: waiting() == 1)
    (looked,) = sqs.receive_message(QueueUrl=queue["SetAside"], MaxNumberOfMessages=10, VisibilityTimeout=0)["Messages"]
    assert json.loads(looked["Body"]) == {"somebody": "else"} and waiting() == 1, "looking takes nothing away"
    # As start-message-move-task does, which ministack has not got.
    (taken,) = sqs.receive_message(QueueUrl=queue["SetAside"])["Messages"]
    sqs.send_message(QueueUrl=queue["Arrivals"], MessageBody=taken["Body"])
    sqs.delete_message(QueueUrl=queue["SetAside"], ReceiptHandle=taken["ReceiptHandle"])
    site.decryptor.until("leaves it again", lambda: waiting() == 1)
    site.send("truck-1", 3)
    site.until_delivered("truck-1", 3)


def test_a_bundle_that_is_none_is_refused_and_kept(site, tmp_path):
    site.send("truck-1", 2)
    site.until_delivered("truck-1", 2)
    s3 = site.stacks.client("s3")
    good = site.names("bundles/")[0]
    folder, name = good.rsplit("/", 1)
    gateway, _, lane, place = name.rsplit("-", 3)
    bad = f"{folder}/{gateway}-{'ab' * 16}-{lane}-{place}"
    s3.put_object(Bucket=site.stacks.bucket, Key=bad, Body=b"no bundle at all", IfNoneMatch="*")
    site.decryptor.until("refuses it", lambda: site.decryptor.metric("pithead_bundles_total", 'outcome="refused"') > 0)
    assert "bundle.refused" in site.decryptor.log.read_text()
    assert bad in site.names("bundles/"), "it stays"
    for key, code in ((good, 0), (bad, 1)):
        path = tmp_path / key.rsplit("/", 1)[1]
        path.write_bytes(s3.get_object(Bucket=site.stacks.bucket, Key=key)["Body"].read())
        done = run(program("pithead-decryptor"), "bundle", "show", path)
        assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    succeed(program("pithead-decryptor"), "bundle", "split", tmp_path / name, "--out", tmp_path / "split")
    assert (tmp_path / "split" / "index.jsonl").read_text().count("\n") >= 1
    site.send("truck-1", 3)
    site.until_delivered("truck-1", 5)


def test_a_bucket_that_is_not_there_is_told_from_a_wan_that_is_down(site):
    site.gateway.stop()
    right = site.relay
    site.relay = lambda: right("no-such-bucket-anywhere")
    site.start_gateway()
    site.send("truck-1", 3)
    site.gateway.until("says so", lambda: site.gateway.metric("pithead_relay_calls_ended_total", 'reason="STORE_NOT_FOUND"') > 0)
    assert "STORE_NOT_FOUND" in ask(site, "relay", "status", code=3)
    site.gateway.stop()
    site.relay = right
    site.start_gateway()
    site.until_delivered("truck-1", 3)


def test_what_s3_does_not_say_is_found_by_listing(site):
    """The notification is lost: the queue is emptied before anybody has read it."""
    site.decryptor.stop()
    site.send("truck-1", 4)
    site.gateway.until("has handed it over", lambda: site.gateway.metric("pithead_spool_records") == 0)
    site.stacks.client("sqs").purge_queue(QueueUrl=site.stacks.outputs["Arrivals"])
    site.start_decryptor()
    site.until_delivered("truck-1", 4)


def test_an_entry_that_somebody_has_deleted_is_had_back(site):
    s3, bucket = site.stacks.client("s3"), site.stacks.bucket
    for count in (1, 2):
        site.send("truck-1", 1)
        site.until_delivered("truck-1", count)
    site.decryptor.stop()
    entry = min(site.names(f"ledger/{SITE}/"))
    s3.delete_object(Bucket=bucket, Key=entry)
    # From a checkpoint on nobody would read what is gone.
    for key in site.names(f"checkpoints/{SITE}/"):
        s3.delete_object(Bucket=bucket, Key=key)
    site.send("truck-1", 1)
    broken = site.start_decryptor(ready=False)
    said = "is missing although later entries are there"
    try:
        broken.until("says what is missing", lambda: said in broken.log.read_text())
    except AssertionError:
        assert said in broken.log.read_text(), "it may end by itself"
    broken.kill()
    assert len(site.records("truck-1")) == 2, "nothing is decided over a hole"
    (marker,) = [one for one in s3.list_object_versions(Bucket=bucket, Prefix=entry)["DeleteMarkers"] if one["Key"] == entry]
    s3.delete_object(Bucket=bucket, Key=entry, VersionId=marker["VersionId"])
    site.start_decryptor()
    site.until_delivered("truck-1", 3)
