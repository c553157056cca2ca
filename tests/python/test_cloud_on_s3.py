"""The cloud end on buckets and queues that we did not write: a gateway relays into the one bucket, its events go to a queue, replicas work on
both, and one of them is killed; what lies in the other bucket is what was recorded."""

import base64
import json

import boto3
import zstandard

from kms import REGION
from parties import SITE, Device
from programs import Server, free_port, program, run, until
from whole_site import Site

ACCESS = {"region_name": REGION, "aws_access_key_id": "test", "aws_secret_access_key": "test"}


class Cloud:
    """Two buckets, a queue that the first one's events go to, a dead-letter queue behind it."""

    def __init__(self, server, name):
        self.url = server.url
        self.s3 = boto3.client("s3", endpoint_url=self.url, config=boto3.session.Config(s3={"addressing_style": "path"}), **ACCESS)
        self.sqs = boto3.client("sqs", endpoint_url=self.url, **ACCESS)
        self.source, self.sink = f"pits-{name}", f"records-{name}"
        for bucket in (self.source, self.sink):
            self.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.dead, dead_arn = self.queue_of(f"dead-{name}")
        redrive = json.dumps({"deadLetterTargetArn": dead_arn, "maxReceiveCount": "2"})
        self.queue, arn = self.queue_of(f"bundles-{name}", RedrivePolicy=redrive)
        told = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}
        told["Filter"] = {"Key": {"FilterRules": [{"Name": "suffix", "Value": ".bundle"}]}}
        self.s3.put_bucket_notification_configuration(
            Bucket=self.source, NotificationConfiguration={"QueueConfigurations": [told]},
        )

    def queue_of(self, name, **attributes):
        url = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return url, self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]

    def messages(self, queue):
        """Those that wait and those that somebody has."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def keys(self, bucket, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def lines(self):
        """The records of all outputs, in the order of the ledger."""
        for key in sorted(self.keys(self.sink, "cloud/out/"), key=lambda key: key.rsplit("/", 1)[1]):
            packed = self.s3.get_object(Bucket=self.sink, Key=key)["Body"].read()
            text = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
            yield from map(json.loads, text.decode().splitlines())

    def decryptor(self, folder, name, authority, kms):
        """A replica, and its file. Its first look finds what was there before; of what comes later the queue alone tells."""
        (folder / name).mkdir()
        admin, config = free_port(), folder / name / "decryptor.toml"
        config.write_text(f"""
[decryptor]
data_dir = "."
[source]
kind = "s3"
url = "s3://{self.source}/sealed"
endpoint = "{self.url}"
region = "{REGION}"
queue = "{self.queue}"
visibility = "3s"
poll = "1h"
sweep = "1h"
grace = "1s"
[[site]]
name = "{SITE}"
[keys]
bundles = ["{authority.bundle}"]
[unwrap]
kms = true
[sink]
kind = "objects"
url = "s3://{self.sink}/cloud"
endpoint = "{self.url}"
region = "{REGION}"
[admin]
listen = "127.0.0.1:{admin}"
""")
        command = [program("pithead-decryptor"), "run", "-c", config]
        return Server(command, folder / f"{name}.log", env=kms.environment, admin=admin).ready(), config


def test_what_devices_record_goes_through_a_bucket_and_a_queue_and_over_the_death_of_a_replica(server, kms, authority_for, tmp_path):
    cloud = Cloud(server, tmp_path.name.replace("_", "-").lower()[-30:].strip("-"))
    authority = authority_for(4096)
    replicas = {name: cloud.decryptor(tmp_path, name, authority, kms) for name in ("one", "two")}
    try:
        with Site.into_bucket(tmp_path / "site", kms, authority, f"s3://{cloud.source}/sealed", cloud.url, REGION) as site:
            site.start_gateway()
            certificate, key = site.device("truck-9")
            more = ("--gateway", site.address, "--ca", site.ca.path, "--cert", certificate, "--key", key)
            device = Device(tmp_path / "truck-9", "truck-9", authority, more)
            cloud.sqs.send_message(QueueUrl=cloud.queue, MessageBody="hello")
            sent = []
            for number in range(6):
                sent.append(b"hour,tonnes\n" + b"%d,912\n" % number * 500)
                (tmp_path / f"shift-{number}.csv").write_bytes(sent[-1])
                device.do("send", tmp_path / f"shift-{number}.csv", "--content-type", "text/csv")
                if number == 2:
                    replicas.pop("one")[0].kill()
            until("the gateway has nothing left", lambda: site.gateway.metric("pithead_spool_records") == 0)
            bundles = cloud.keys(cloud.source, "sealed/bundles/")
            decided = lambda: cloud.keys(cloud.sink, f"cloud/ledger/{SITE}/")
            until("every bundle is decided", lambda: len(decided()) == len(bundles))
            found = until("all of it is written", lambda: len(lines := list(cloud.lines())) >= len(sent) and lines)
        assert [base64.b64decode(line["data"]) for line in found] == sent
        assert {line["device"] for line in found} == {"truck-9"}
        # A foreign message was received as often as the queue allows, and no bundle's is left.
        until("the queue is empty", lambda: cloud.messages(cloud.queue) == 0)
        assert cloud.messages(cloud.dead) == 1
        _, config = replicas["two"]
        checked = run(program("pithead-decryptor"), "check", "-c", config, env=kms.environment).stdout.decode()
        for said in (f"it is listed, {len(bundles)} bundle", "what is created is created once", "0 waiting, 0 in flight"):
            assert said in checked, checked
        verified = run(program("pithead-decryptor"), "verify", "-c", config, "--from-first", "-o", "json", env=kms.environment)
        assert verified.returncode == 0, verified.stderr.decode()
        runs = [one for stream in json.loads(verified.stdout)["streams"] for one in stream["runs"]]
        assert sum(one["envelopes"] for one in runs) >= len(sent)
    finally:
        for replica, _ in replicas.values():
            assert replica.stop() == 0, replica.tail()
