"""Keys that no wire carries: a code on a terminal, read by a program that we did not write, reaches a device that seals with it."""

import hashlib

import stock
import zxingcpp
from parties import Device
from programs import program, run, succeed

PREFIX = "pithead-keys-1:"
# What a terminal draws for a character: its upper and its lower half, light or not.
HALVES = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}


def photographed(drawing, scale=4):
    """The drawing as a grey picture, a few points a module."""
    lines = [line for line in drawing.splitlines() if line]
    modules = [[HALVES[character][half] for character in line] for line in lines for half in (0, 1)]
    rows = [bytes(255 * module for module in row for _ in range(scale)) for row in modules for _ in range(scale)]
    return memoryview(b"".join(rows)).cast("B", shape=[len(rows), len(rows[0])])


def test_a_code_on_the_gateways_terminal_gives_a_device_its_key(site, kms, authority_for, tmp_path):
    export = (program("pithead-gateway"), "key", "export", "-c", site.folder / "gateway.toml")
    drawing, _, words = succeed(*export, "--qr").decode().partition("fingerprint")
    [code] = zxingcpp.read_barcodes(photographed(drawing))
    assert code.text.startswith(PREFIX)
    assert code.text == succeed(*export, "--text").decode().strip()
    assert f"{len(code.text)} characters" in words

    # Typed over with the line breaks of a mail program.
    carried = tmp_path / "keys.txt"
    carried.write_text("\r\n".join(code.text[at:at + 60] for at in range(0, len(code.text), 60)))
    device = Device(tmp_path / "truck-9", "truck-9", authority_for(4096), more=())
    told = device.do("key", "--bundle", carried)
    key = kms.key(4096)
    assert (told["status"], told["key"]) == ("FRESH", key.arn)
    assert told["fingerprint"] in words
    (tmp_path / "plain").write_bytes(b"tonnes")
    device.seal(tmp_path / "plain", tmp_path / "sealed")
    assert stock.unseal(kms.client, key, (tmp_path / "sealed").read_bytes())[0] == b"tonnes"


def test_a_text_that_was_not_copied_whole_is_refused_and_a_file_is_whole(site, authority_for, tmp_path):
    export = (program("pithead-gateway"), "key", "export", "-c", site.folder / "gateway.toml")
    text = succeed(*export, "--text").decode().strip()
    device = Device(tmp_path / "truck-9", "truck-9", authority_for(4096), more=())
    config = device.folder / "device.toml"
    for wrong in (text[:-4], text[:200] + text[210:], PREFIX):
        (tmp_path / "keys.txt").write_text(wrong)
        refused = run(program("pithead-device"), "-c", config, "key", "--bundle", tmp_path / "keys.txt")
        assert refused.returncode == 1 and b"PH-10" in refused.stderr, refused.stderr
    succeed(*export, "--out", tmp_path / "keys.pb")
    whole = (tmp_path / "keys.pb").read_bytes()
    assert hashlib.sha256(whole).digest() == hashlib.sha256(authority_for(4096).bundle.read_bytes()).digest()
