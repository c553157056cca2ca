"""Statements signed by KMS that we did not write, and verified by hand."""

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

import by_hand
from parties import SITE, Authority, Device
from programs import program, run, succeed


def authority_in(kms, folder, signing):
    return Authority(folder, kms, min_rsa_bits=2048, more=("--statement-kms-key", signing.arn))


def verify(spki, signed, signature):
    """ESP256 of RFC 9864: r || s over SHA-256 of what was signed."""
    assert len(signature) == 64
    der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    serialization.load_der_public_key(spki).verify(der, signed, ec.ECDSA(hashes.SHA256()))


def test_a_statement_that_ministack_signs_is_verified_by_hand_and_by_a_device(kms, tmp_path):
    signing = kms.new_signing_key()
    authority = authority_in(kms, tmp_path / "authority", signing)
    # Each signature is drawn anew: among so many there are short r and s.
    for sequence in range(1, 13):
        listed = ("--kms-key", kms.key(2048).arn) if sequence == 1 else ()
        authority.statement(*listed, "--no-standby", "--statement-kms-key", signing.arn)
        payload, [(kid, algorithm, signed, signature)] = by_hand.signatures(authority.statement_object(sequence))
        assert (kid, algorithm) == (hashlib.sha256(signing.spki).digest()[:16], -9)
        verify(signing.spki, signed, signature)
        assert by_hand.cbor(payload)[6] == sequence
    with pytest.raises(InvalidSignature):
        verify(signing.spki, signed + b"\0", signature)

    root, _ = by_hand.signatures(authority.root.read_bytes())
    assert by_hand.cbor(root)[10][5] == 2, "custody: cloud HSM"
    assert signing.spki in by_hand.root_keys(root).values()
    succeed(program("pithead-decryptor"), "authority", "show", "--dir", authority.folder)
    device = Device(tmp_path / "truck", "truck-7", authority)
    (tmp_path / "plain").write_bytes(b"a load of ore")
    assert device.seal(tmp_path / "plain", tmp_path / "sealed")["sealed_bytes"] > 0


def test_moto_shows_the_same_public_key_although_it_names_it_by_a_bare_id(moto, tmp_path):
    signing = moto.new_signing_key()
    alias = signing.arn.split(":key/")[0] + ":alias/pithead-statement"
    moto.client.create_alias(AliasName="alias/pithead-statement", TargetKeyId=signing.arn)
    shown = moto.client.get_public_key(KeyId="alias/pithead-statement")
    assert shown["PublicKey"] == signing.spki and not shown["KeyId"].startswith("arn:")

    authority = authority_in(moto, tmp_path / "authority", signing)
    root, _ = by_hand.signatures(authority.root.read_bytes())
    assert by_hand.root_keys(root)[hashlib.sha256(signing.spki).digest()[:16]] == signing.spki
    # Whoever may move an alias would choose the key.
    command = ["authority", "init", "--dir", tmp_path / "other", "--authority", "acme", "--statement-kms-key", alias]
    refused = run(program("pithead-decryptor"), *command, env=moto.environment)
    assert refused.returncode == 2 and b"alias" in refused.stderr
    # moto signs a hash of the digest: what comes back is verified, and nothing is written.
    made = moto.client.create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
    command = ["authority", "statement", "--dir", authority.folder, "--site", SITE, "--no-standby"]
    command += ["--kms-key", made, "--statement-kms-key", signing.arn]
    refused = run(program("pithead-decryptor"), *command, env=moto.environment)
    assert refused.returncode == 1 and b"SEALING_FAILED" in refused.stderr, refused.stderr
    assert not authority.bundle.exists()
