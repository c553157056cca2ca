"""The codes that the committed cases do not reach, and what a signature has to be to count."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from authority import AUTHORITY, SITE, rsa_key, spki
from pithead_device import Bundle, Clock, Trust, TrustRefused
from pithead_device.trust import cose
from pithead_device.trust.keys import ED25519


def refused(trust, bundle):
    after, code = trust.apply(bundle, Clock())
    assert after == trust
    return code.trust_code if code else "OK"


@pytest.fixture
def trust(authority):
    return Trust.provision(AUTHORITY, SITE, authority.root)


@pytest.fixture
def digest(authority):
    return hashlib.sha256(cose.read(authority.root, cose.ROOT).payload).digest()


def test_a_root_that_names_another_one_before_it_is_refused(authority, trust, digest):
    assert refused(trust, Bundle([authority.root_object(2, previous=bytes(32))])) == "ROOT_PREV"
    assert trust.apply(Bundle([authority.root_object(2, previous=digest)]), Clock())[1] is None
    with pytest.raises(TrustRefused) as first:
        Trust.provision(AUTHORITY, SITE, authority.root_object(1, previous=b"\1" * 32))
    assert first.value.trust_code == "ROOT_PREV"


def test_a_root_whose_own_keys_have_not_signed_is_refused(authority, trust, digest):
    new = ed25519.Ed25519PrivateKey.generate()
    handed_over = authority.root_object(2, digest, root_keys=[new], signers=[authority.root_key])
    assert refused(trust, Bundle([handed_over])) == "THRESHOLD_NEW"
    both = authority.root_object(2, digest, root_keys=[new], signers=[authority.root_key, new])
    assert trust.apply(Bundle([both]), Clock())[1] is None
    with pytest.raises(TrustRefused) as first:
        Trust.provision(AUTHORITY, SITE, authority.root_object(root_keys=[new], signers=[authority.root_key]))
    assert first.value.trust_code == "THRESHOLD_NEW"


def test_a_root_that_verified_stays_when_the_statement_behind_it_is_refused(authority, trust, digest):
    bundle = dataclasses.replace(authority.bundle(signers=[authority.root_key]), roots=[authority.root_object(2, digest)])
    after, code = trust.apply(bundle, Clock())
    assert (after.root.version, code.trust_code) == (2, "THRESHOLD")


def test_a_statement_that_rests_on_a_newer_root_is_refused(authority, trust):
    assert refused(trust, authority.bundle(root_version=2)) == "NEED_ROOT"


def test_a_root_is_no_statement_and_a_statement_no_root(authority, trust):
    assert refused(trust, Bundle([], authority.root)) == "TYPE"
    assert refused(trust, Bundle([authority.bundle().statement])) == "TYPE"


def test_a_signature_under_another_algorithm_than_the_root_gives_its_key_does_not_count(authority, trust):
    assert refused(trust, authority.bundle(algorithm=ED25519)) == "THRESHOLD"
    assert refused(trust, authority.bundle(algorithm=-7)) == "THRESHOLD"


def test_a_key_that_signs_twice_counts_once_and_strangers_do_no_harm(authority):
    root = authority.root_object(statement_threshold=2)
    trust = Trust.provision(AUTHORITY, SITE, root)
    assert refused(trust, authority.bundle(signers=[authority.statement_key] * 2)) == "THRESHOLD"
    stranger = ed25519.Ed25519PrivateKey.generate()
    one = Trust.provision(AUTHORITY, SITE, authority.root)
    assert one.apply(authority.bundle(signers=[stranger, authority.statement_key]), Clock())[1] is None


def test_a_data_key_that_is_not_as_it_was_stated_is_refused(authority, trust):
    assert refused(trust, authority.bundle(bits=3072)) == "SPKI_PARSE"
    assert refused(trust, authority.bundle(data_key=rsa.generate_private_key(3, 2048))) == "SPKI_PARSE"
    assert refused(trust, authority.bundle(data_key=authority.statement_key)) == "SPKI_PARSE"
    assert refused(trust, dataclasses.replace(authority.bundle(), spkis=[spki(rsa_key(1))])) == "SPKI_MISSING"
    assert refused(trust, Bundle([authority.root] * 33)) == "PARSE"
