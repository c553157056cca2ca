"""The relay into buckets of two S3 that we did not write; what lies there is split as the documentation says, and opened by the stock SDK."""

import json
import re

import boto3

import stock
from kms import REGION
from parties import Device
from programs import WORKSPACE, program, succeed, until
from whole_site import Site

PAGE = WORKSPACE / "docs/bundle.md"


def documented_split():
    """The program of the page, as it stands there."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["split"]


def test_what_a_gateway_puts_into_a_bucket_is_split_by_hand_and_opened_by_the_stock_sdk(server, kms, authority_for, tmp_path):
    s3 = boto3.client(
        "s3", region_name=REGION, endpoint_url=server.url, aws_access_key_id="test", aws_secret_access_key="test",
        config=boto3.session.Config(s3={"addressing_style": "path"}),
    )
    bucket = f"pits-{tmp_path.name.replace('_', '-').lower()[-30:].strip('-')}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    authority = authority_for(4096)
    with Site.into_bucket(tmp_path / "site", kms, authority, f"s3://{bucket}/sealed", server.url, REGION) as site:
        site.start_gateway()
        certificate, key = site.device("truck-9")
        more = ("--gateway", site.address, "--ca", site.ca.path, "--cert", certificate, "--key", key)
        device = Device(tmp_path / "truck-9", "truck-9", authority, more)
        small, large = b"hour,tonnes\n" + b"7,912\n" * 2_000, b"scan" * 5_000_000
        for name, data in (("shift.csv", small), ("scan.bin", large)):
            (tmp_path / name).write_bytes(data)
            device.do("send", tmp_path / name, "--content-type", "text/csv")
        found = lambda: {
            item["Key"]: s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            for item in s3.list_objects_v2(Bucket=bucket, Prefix="sealed/").get("Contents", [])
        }
        # Bundles with the small one, the large one, and the bundle that names it: the spool lets go of what is in the bucket.
        until("both are there", lambda: site.gateway.metric("pithead_spool_records") == 0)
        objects = found()

    split, opened, named = documented_split(), {}, []
    for number, (name, data) in enumerate(objects.items()):
        if not name.endswith(".bundle"):
            continue
        pieces = list(split(data))
        (tmp_path / f"{number}.bundle").write_bytes(data)
        out = tmp_path / f"split-{number}"
        succeed(program("pithead-decryptor"), "bundle", "split", tmp_path / f"{number}.bundle", "--out", out)
        lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
        assert [(out / line["file"]).read_bytes() for line in lines if line["state"] == "here"] == pieces
        named += [line["key"] for line in lines if line["state"] == "large"]
        for piece in pieces:
            plaintext, context = stock.unseal(kms.client, kms.key(4096), piece)
            assert context["pithead:device"] == "truck-9"
            opened[plaintext] = context
    assert small in opened
    assert [key for key in objects if "/large/" in key] == [f"sealed/{key}" for key in named]
    plaintext, _ = stock.unseal(kms.client, kms.key(4096), objects[f"sealed/{named[0]}"])
    assert plaintext == large
