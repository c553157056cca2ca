"""Every envelope case: sealed again byte by byte, opened, every intermediate value compared, the negatives by their class."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pithead_device.envelope import context, keys, message, opening, reading
from pithead_device.errors import EnvelopeRefused
from pithead_device.trust.keys import RsaKey
from vectors import VECTORS

FILE = json.loads((VECTORS / "envelope.json").read_text())
KEYS = {
    name: (key["key_arn"], load_pem_private_key(key["private_pkcs8_pem"].encode(), None), key["public_spki_der_b64"])
    for name, key in FILE["keys"].items()
}
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
POSITIVE = pytest.mark.parametrize("case", FILE["positive"], ids=[case["id"] for case in FILE["positive"]])
NEGATIVE = pytest.mark.parametrize("case", FILE["negative"], ids=[case["id"] for case in FILE["negative"]])
KEYLESS = {"edk", "commitment", "header-tag", "frame-tag"}


def unbase64(text):
    return base64.b64decode(text, validate=True)


def unwrap(arn, ciphertext):
    private = next(private for known, private, _ in KEYS.values() if known == arn)
    try:
        return private.decrypt(ciphertext, OAEP)
    except ValueError:
        return None


def known(arn):
    return any(arn == key_arn for key_arn, *_ in KEYS.values())


def material(case):
    wire = context.serialise(case["encryption_context"])
    data_key = bytes.fromhex(case["data_key_hex"])
    edks = []
    for edk in case["edks"]:
        arn, _, spki = KEYS[edk["key"]]
        key = RsaKey.from_spki(unbase64(spki))
        edks.append(keys.wrap(arn, key, wire, data_key, bytes.fromhex(edk["oaep_seed_hex"])))
    message_id = bytes.fromhex(case["message_id_hex"])
    return message.Material(message_id, wire, tuple(edks), data_key, case["frame_length"])


@POSITIVE
def test_a_positive_case_is_sealed_again_byte_by_byte(case):
    made, sealed, plaintext = material(case), unbase64(case["sealed_b64"]), unbase64(case["plaintext_b64"])
    assert [edk.ciphertext.hex() for edk in made.edks] == [edk["ciphertext_hex"] for edk in case["edks"]]
    assert made.seal(plaintext) == sealed
    # In pieces of any size the bytes are the same.
    for size in (1, 127, 256, 1000):
        pieces = [plaintext[at : at + size] for at in range(0, len(plaintext), size)]
        assert b"".join(made.seal_pieces(pieces)) == sealed
    assert (len(sealed), hashlib.sha256(sealed).hexdigest()) == (case["sealed_len"], case["sealed_sha256"])
    sizes = message.Sizes(message.Sizes.of(made.context, made.edks).header_len, case["frame_length"])
    assert sizes.sealed_len(len(plaintext)) == len(sealed)


@POSITIVE
def test_every_intermediate_value_of_a_positive_case_is_ours(case):
    made, derived = material(case), case["derived"]
    encryption_key, commitment = keys.derive(made.message_id, made.data_key)
    head = reading.check(unbase64(case["sealed_b64"]))
    found = {
        "serialized_ec_hex": made.context.hex(), "ec_sha384_hex": keys.context_digest(made.context).hex(),
        "encryption_key_hex": encryption_key.hex(), "commitment_hex": commitment.hex(), "header_tag_hex": head.tag.hex(),
        "header_body_len": len(head.body), "body_offset": head.size,
        "frames": len(list(reading.frames(unbase64(case["sealed_b64"]), head))),
    }
    assert found == derived
    for edk, given in zip(head.edks, case["edks"], strict=True):
        assert unwrap(edk.provider_info.decode(), edk.ciphertext).hex() == given["oaep_plaintext_hex"]
    assert head.context == case["encryption_context"]


@POSITIVE
def test_a_positive_case_is_opened_by_every_key_that_it_is_sealed_to(case):
    sealed = unbase64(case["sealed_b64"])
    for edk in case["edks"]:
        only = KEYS[edk["key"]][0]
        head, plaintext = opening.open_envelope(sealed, lambda arn: arn == only, unwrap)
        assert plaintext == unbase64(case["plaintext_b64"])


@NEGATIVE
def test_a_negative_case_is_refused_by_its_class(case):
    sealed = unbase64(case["sealed_b64"])
    with pytest.raises(EnvelopeRefused) as refused:
        opening.open_envelope(sealed, known, unwrap)
    assert refused.value.envelope_class == case["class"]
    # What is refused without a key is refused with one, and by the same class unless a key shows something earlier.
    if case["class"] not in KEYLESS:
        with pytest.raises(EnvelopeRefused) as refused:
            reading.check(sealed)
        assert refused.value.envelope_class == case["class"]


def test_there_are_as_many_cases_as_there_were():
    assert (len(FILE["positive"]), len(FILE["negative"])) >= (5, 26)


def test_a_plaintext_that_fills_its_frames_ends_with_a_full_final_frame_and_an_empty_one_is_read_too():
    case = next(case for case in FILE["positive"] if case["frame_length"] == 256)
    made = material(case)
    sealed = made.seal(bytes(512))
    assert [(f.final, len(f.sealed) - 16) for f in reading.frames(sealed, reading.header(sealed))] == [
        (False, 256), (True, 256),
    ]
    cipher = message.AESGCM(keys.derive(made.message_id, made.data_key)[0])
    head = reading.header(sealed)
    theirs = sealed[: head.size] + b"".join(
        made._frame(cipher, number, bytes(length), final)
        for number, length, final in ((1, 256, False), (2, 256, False), (3, 0, True))
    )
    assert opening.open_envelope(theirs, known, unwrap)[1] == bytes(512)


@pytest.mark.parametrize("case", [FILE["positive"][3]], ids=[FILE["positive"][3]["id"]])
def test_every_flipped_bit_and_every_cut_is_refused(case):
    sealed = unbase64(case["sealed_b64"])
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1 << at % 8
        with pytest.raises(EnvelopeRefused):
            opening.open_envelope(bytes(changed), known, unwrap)
    for length in range(0, len(sealed), 7):
        with pytest.raises(EnvelopeRefused) as refused:
            opening.open_envelope(sealed[:length], known, unwrap)
        assert refused.value.envelope_class == "truncated"
