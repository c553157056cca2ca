"""When a session ends, what its messages share and what they do not, and that its signature names the device."""

import dataclasses
import hashlib
import hmac
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from authority import ARN, DEVICE, SITE, rsa_key, spki, unwrap
from pithead_device import EnvelopeRefused, ProfileRefused, SealingFailed, SigningKey
from pithead_device.envelope import Facts, Session, context, opening, reading, session as sessions, signature
from pithead_device.trust import VerifiedKey
from pithead_device.trust.keys import RsaKey

RUN = 3 << 32 | 0xDEADBEEF
FACTS = Facts(SITE, DEVICE, "can", "text/plain")


def key(number=0, arn=ARN, digest=b"\1" * 32):
    return VerifiedKey(arn, RsaKey.from_spki(spki(rsa_key(number))), digest, 1, 1, 2**40, 2**40, 2**40)


def opened(envelope):
    return opening.open_envelope(envelope, lambda arn: True, unwrap)


def test_messages_share_key_and_context_and_never_an_id():
    session = Session.start(key(), FACTS, RUN, 0.0)
    envelopes = [session.seal(seq, f"load {seq}".encode(), 0.0) for seq in (1, 2, 2)]
    heads = [opened(envelope)[0] for envelope in envelopes]
    assert [opened(envelope)[1] for envelope in envelopes] == [b"load 1", b"load 2", b"load 2"]
    assert len({head.edks for head in heads}) == len({head.context_bytes for head in heads}) == 1
    assert len({head.message_id for head in heads}) == len({head.commitment for head in heads}) == 3
    assert [str(reading.identity(head)) for head in heads[:2]] == [
        f"pit-7/truck-7/can/00000003deadbeef/{seq}" for seq in (1, 2)
    ]
    assert session.sealed_len(6) == len(envelopes[0])
    assert heads[0].context["pithead:statement"] == context.base64url(b"\1" * 16)


def test_a_session_ends_by_age_messages_bytes_and_when_it_is_closed(monkeypatch):
    session = Session.start(key(), FACTS, RUN, 100.0)
    assert session.ended(100.0 + sessions.AGE_MAX_S - 1) is None
    assert session.ended(100.0 + sessions.AGE_MAX_S) is not None
    with pytest.raises(SealingFailed):
        session.seal(1, b"", 100.0 + sessions.AGE_MAX_S)

    monkeypatch.setattr(sessions, "MESSAGES_MAX", 2)
    session.seal(1, b"", 100.0), session.seal(2, b"", 100.0)
    with pytest.raises(SealingFailed):
        session.seal(3, b"", 100.0)

    monkeypatch.setattr(sessions, "MESSAGES_MAX", 100_000)
    monkeypatch.setattr(sessions, "BYTES_MAX", 10)
    session.seal(3, bytes(10), 100.0)
    with pytest.raises(SealingFailed):
        session.seal(4, b"", 100.0)

    another = Session.start(key(), FACTS, RUN, 100.0)
    another.close()
    with pytest.raises(SealingFailed):
        another.seal(1, b"", 100.0)


def test_a_forked_child_seals_nothing_with_its_parents_key():
    session = Session.start(key(), FACTS, RUN, 0.0)
    child = os.fork()
    if child == 0:
        try:
            session.seal(1, b"", 0.0)
        except SealingFailed:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    session.seal(1, b"", 0.0)


def test_a_session_goes_on_under_a_newer_statement_and_not_under_another_key():
    session = Session.start(key(), FACTS, RUN, 0.0)
    assert session.goes_on(key(digest=b"\2" * 32), FACTS, RUN, 0.0)
    assert not session.goes_on(key(number=1), FACTS, RUN, 0.0)
    assert not session.goes_on(key(arn=ARN[:-1] + "c"), FACTS, RUN, 0.0)
    assert not session.goes_on(key(), FACTS, RUN + 1, 0.0)
    assert not session.goes_on(key(), dataclasses.replace(FACTS, content_type="text/csv"), RUN, 0.0)


def test_an_edk_under_another_context_is_refused():
    one, two = (Session.start(key(), dataclasses.replace(FACTS, stream=name), RUN, 0.0) for name in ("can", "gps"))
    one._edk = two._edk
    one._data_key = two._data_key
    with pytest.raises(EnvelopeRefused) as refused:
        opened(one.seal(1, b"", 0.0))
    assert refused.value.envelope_class == "edk"


def test_a_file_is_one_message_in_constant_pieces_in_a_session_of_its_own():
    content = os.urandom(200_000)
    session = Session.start(key(), dataclasses.replace(FACTS, file_name="drive 1.bag"), RUN, 0.0)
    pieces = list(session.seal_file(1, (content[at : at + 7_000] for at in range(0, len(content), 7_000)), 0.0))
    head, plaintext = opened(b"".join(pieces))
    assert plaintext == content and head.context["pithead:name"] == "drive%201.bag"
    assert max(map(len, pieces)) <= 65_536 + 40
    with pytest.raises(SealingFailed):
        session.seal(2, b"", 0.0)


def test_a_signed_session_names_its_device_and_its_run():
    private = ec.generate_private_key(ec.SECP256R1())
    session = Session.start(key(), FACTS, RUN, 0.0, SigningKey(private))
    head, _ = opened(session.seal(1, b"load", 0.0))
    said = context.check(head.context)
    data_key = opening.unwrap_data_key(head, head.edks[0], unwrap)

    assert said["pithead:run"] == RUN and said["pithead:kid"] == hashlib.sha256(spki(private)).digest()[:16]
    prk = hmac.digest(b"pithead-session-v1", data_key, "sha512")
    assert said["pithead:sid"] == hmac.digest(prk, b"sid\x01", "sha512")[:32]
    # What is signed, put together by hand from docs/envelope.md, section 8.
    counted = lambda data: len(data).to_bytes(2, "big") + data
    rest = sorted((k.encode(), v.encode()) for k, v in head.context.items() if k != "pithead:sig")
    unsigned = len(rest).to_bytes(2, "big") + b"".join(counted(part) for pair in rest for part in pair)
    message = b"pithead-session-v1\0" + counted(b"aws-kms-rsa") + counted(ARN.encode()) + hashlib.sha384(unsigned).digest()
    assert signature.signed_bytes(ARN, head.context) == message, "a verifier has the signature in the context"
    halves = said["pithead:sig"][:32], said["pithead:sig"][32:]
    der = utils.encode_dss_signature(*(int.from_bytes(half, "big") for half in halves))
    private.public_key().verify(der, message, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        private.public_key().verify(der, message + b"\0", ec.ECDSA(hashes.SHA256()))


def test_what_no_hop_would_admit_is_refused_before_anything_is_sealed():
    for facts in (dataclasses.replace(FACTS, content_type="text"), dataclasses.replace(FACTS, others=(("a", "é"),))):
        with pytest.raises(ProfileRefused):
            Session.start(key(), facts, RUN, 0.0)
    with pytest.raises(SealingFailed):
        Session.start(key(), dataclasses.replace(FACTS, others=(("pithead:seq", "1"),)), RUN, 0.0)
    with pytest.raises(ProfileRefused):
        Session.start(key(), dataclasses.replace(FACTS, file_name="../etc"), RUN, 0.0)


def test_no_secret_is_shown():
    session = Session.start(key(), FACTS, RUN, 0.0)
    shown = repr(session) + repr(session._next(1, 0.0)) + repr(vars(SigningKey(ec.generate_private_key(ec.SECP256R1()))))
    assert bytes(session._data_key).hex() not in shown and repr(bytes(session._data_key)) not in shown
