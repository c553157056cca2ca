"""Names and contexts keep to their grammar; every rule of the profile can be broken, and has its name and its reason."""

import pytest

from pithead_device import NameRefused, ProfileRefused, names
from pithead_device.envelope import context

GOOD = {
    "pithead:v": "1", "pithead:site": "pit-7", "pithead:device": "truck-7", "pithead:stream": "can",
    "pithead:content-type": "text/plain; charset=utf-8",
}
SIGNATURE = {
    "pithead:kid": "A" * 22, "pithead:run": "0000000100000002", "pithead:sid": "A" * 43, "pithead:sig": "A" * 86,
}


@pytest.mark.parametrize(("reader", "good", "bad"), [
    (names.site, ["p", "pit-7", "7-", "a" * 63], ["", "-pit", "Pit", "pit_7", "pité", "a b", "a" * 64, "pit\n"]),
    (names.device, ["truck-0042", "T.1_2-3", "a."], ["", ".a", "-a", "_a", "a..b", "a/b", "..", "a\0", "a" * 64]),
    (names.stream, ["-", "s" * 32], ["", "S", "a.b", "s" * 33]),
    (names.run_from_text, ["00000003deadbeef"], ["0" * 16, "00000003DEADBEEF", "3deadbeef", "+0000003deadbeef", ""]),
    (names.seq_from_text, ["1", "9223372036854775807"], ["0", "01", "+1", "-1", "", "9223372036854775808", "1 ", "١"]),
])
def test_names_keep_to_their_grammar(reader, good, bad):
    for text in good:
        reader(text)
    for text in bad:
        with pytest.raises(NameRefused):
            reader(text)


@pytest.mark.parametrize("arn", [
    "arn:aws:kms:eu-west-1:111122223333:alias/mine", "alias/mine", "00000000-12ab-34cd-56ef-1234567890ab",
    "arn:aws:s3:eu-west-1:111122223333:key/a", "arn:aws:kms:eu-west-1:11112222333:key/a", "arn:aws:kms::111122223333:key/a",
    "arn:aws:kms:eu-west-1:111122223333:key/", "arn:aws:kms:eu-west-1:111122223333:key/a/b",
    "arn:AWS:kms:eu-west-1:111122223333:key/a", "arn:aws:kms:eu-west-1:111122223333:key/a ",
    "arn:aws:kms:eu-west-1:111122223333:key/" + "a" * 256,
])
def test_what_is_no_full_key_arn_is_told(arn):
    assert not names.is_key_arn(arn)
    assert names.is_key_arn("arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-0a1b")


def test_a_good_context_is_read():
    facts = context.check(GOOD | SIGNATURE | {
        "pithead:name": "caf%C3%A9.bag", "pithead:created": "2026-11-23T16:40:00.5+05:30", "pithead:encoding": "zstd",
        "shift": "night",
    })
    assert facts["pithead:name"] == "café.bag" and facts["pithead:run"] == 0x100000002 and "shift" not in facts
    assert context.encode_file_name("café.bag") == "caf%C3%A9.bag"


@pytest.mark.parametrize(("change", "rule", "code"), [
    ({f"k{number}": "v" for number in range(12)}, "context-too-large", "PH-2101"),
    ({"k": "v" * 1_024}, "context-too-large", "PH-2101"),
    ({"k": ""}, "context-empty-text", "PH-2101"),
    ({"": "v"}, "context-empty-text", "PH-2101"),
    ({"k": "é"}, "context-not-printable", "PH-2101"),
    ({"k": "a\tb"}, "context-not-printable", "PH-2101"),
    ({"aws-crypto-public-key": "v"}, "context-reserved-key", "PH-2101"),
    ({"pithead:unheard-of": "1"}, "context-unknown-key", "PH-2101"),
    ({"pithead:stream": None}, "context-missing-key", "PH-2101"),
    ({"pithead:v": "2"}, "context-version", "PH-2101"),
    ({"pithead:site": "Pit"}, "context-bad-value", "PH-2101"),
    ({"pithead:content-type": "text"}, "context-bad-value", "PH-2101"),
    ({"pithead:content-type": "text/" + "x" * 60}, "context-bad-value", "PH-2101"),
    ({"pithead:encoding": "gzip"}, "context-bad-value", "PH-2101"),
    ({"pithead:created": "2026-02-30T00:00:00Z"}, "context-bad-value", "PH-2101"),
    ({"pithead:created": "2026-02-03 00:00:00Z"}, "context-bad-value", "PH-2101"),
    ({"pithead:name": "..%2Fetc"}, "context-bad-value", "PH-2101"),
    ({"pithead:name": "%2E%2E"}, "context-bad-value", "PH-2101"),
    ({"pithead:name": "a b"}, "context-bad-value", "PH-2101"),
    # Unused bits that are not zero: a second spelling of the same bytes.
    ({"pithead:statement": "A" * 21 + "B"}, "context-bad-value", "PH-2101"),
    ({"pithead:statement": "A" * 22 + "=="}, "context-bad-value", "PH-2101"),
    ({"pithead:statement": "A" * 20 + "+/"}, "context-bad-value", "PH-2101"),
    ({"pithead:seq": "0000000000000000/1"}, "context-bad-value", "PH-2102"),
    ({"pithead:kid": "A" * 22}, "signature-incomplete", "PH-2101"),
    (SIGNATURE | {"pithead:seq": "0000000100000002/1"}, "signature-seq", "PH-2101"),
])
def test_every_rule_can_be_broken(change, rule, code):
    pairs = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ProfileRefused) as refused:
        context.check(pairs)
    assert (refused.value.rule, refused.value.code) == (rule, code)
