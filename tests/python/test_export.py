"""An export of a gateway's spool is standard envelopes: the stock AWS Encryption SDK opens them, and nothing else is needed."""

import hashlib
import json

import stock
from parties import Device
from programs import program, succeed


def test_the_stock_sdk_opens_what_was_carried_away_from_a_gateway(site, kms, authority_for, tmp_path):
    certificate, key = site.device("truck-8")
    more = ("--gateway", site.address, "--ca", site.ca.path, "--cert", certificate, "--key", key)
    device = Device(tmp_path / "truck-8", "truck-8", authority_for(4096), more)
    plaintext = b"hour,tonnes\n" + b"7,912\n" * 20_000
    (tmp_path / "shift.csv").write_bytes(plaintext)
    device.do("send", tmp_path / "shift.csv", "--content-type", "text/csv")

    gateway, config = program("pithead-gateway"), site.folder / "gateway.toml"
    told = json.loads(succeed(
        gateway, "spool", "export", "--all", "--to", tmp_path / "stick", "-c", config, "-o", "json",
    ))

    lines = (tmp_path / "stick" / "index.jsonl").read_text().splitlines()
    assert told["written"] == len(lines)
    items = [item for item in map(json.loads, lines) if item["device"] == "truck-8"]
    opened = {}
    for item in items:
        sealed = (tmp_path / "stick" / item["file"]).read_bytes()
        assert (hashlib.sha256(sealed).hexdigest(), len(sealed)) == (item["sha256"], item["bytes"])
        opened[item["stream"], item["seq"]], context = stock.unseal(kms.client, kms.key(4096), sealed)
        assert (context["pithead:device"], context["pithead:stream"]) == ("truck-8", item["stream"])
    assert plaintext in opened.values()
