"""The stock AWS Encryption SDK opens what we seal, and we open what it seals, through a KMS that really decrypts."""

import base64
import hashlib
import secrets

import pytest
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import by_hand
import stock
from certificates import Ca
from kms import DataKey
from parties import SITE, Authority, Device
from programs import program, run

KEY_BITS = [2048, 4096]
# An empty one; the edges of a frame of 65,536 bytes; many frames.
SIZES = [0, 1, 65_535, 65_536, 65_537, 5 * 1024 * 1024]
LOCAL_ARN = "arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture(scope="session", params=KEY_BITS)
def local_key(request, tmp_path_factory):
    """A key whose private half is a file, for those who host their own."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=request.param)
    path = tmp_path_factory.mktemp("local-key") / "private.pem"
    path.write_bytes(private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption(),
    ))
    spki = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo,
    )
    return DataKey(LOCAL_ARN, spki), path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", KEY_BITS)
def test_the_stock_sdk_opens_what_the_device_sealed(kms, device_for, authority_for, tmp_path, bits, size):
    plaintext = secrets.token_bytes(size)
    (tmp_path / "plain.bin").write_bytes(plaintext)

    said = device_for(bits).seal(tmp_path / "plain.bin", tmp_path / "sealed")

    sealed = (tmp_path / "sealed").read_bytes()
    opened, context = stock.unseal(kms.client, kms.key(bits), sealed)
    assert opened == plaintext
    statement, _ = by_hand.signatures(authority_for(bits).statement_object())
    digest = base64.urlsafe_b64encode(hashlib.sha256(statement).digest()[:16]).decode().rstrip("=")
    expected = {
        "pithead:v": "1", "pithead:site": SITE, "pithead:device": "truck-7", "pithead:stream": "files",
        "pithead:content-type": "application/octet-stream", "pithead:statement": digest, "pithead:name": "plain.bin",
    }
    assert {name: value for name, value in context.items() if name != "pithead:created"} == expected
    # The identity is in the message id, which the SDK neither knows nor minds.
    head = by_hand.header(sealed)
    line = f"{head.message_id[16:24].hex()}/{int.from_bytes(head.message_id[24:])}"
    assert said["identity"] == f"{SITE}/truck-7/files/{line}"
    assert [(provider, info.decode()) for provider, info, _ in head.edks] == [(b"aws-kms-rsa", kms.key(bits).arn)]
    assert said["sealed_bytes"] == len(sealed)


def test_the_stock_sdk_opens_a_signed_envelope_and_minds_no_signature(kms, authority_for, tmp_path):
    authority = authority_for(2048)
    certificate, key = Ca("site CA", tmp_path / "ca.pem").issue(tmp_path / "truck-8", spiffe=f"spiffe://{SITE}/device/truck-8")
    more = ("--bundle", authority.bundle, "--cert", certificate, "--key", key)
    device = Device(tmp_path / "device", "truck-8", authority, more)
    plaintext = secrets.token_bytes(100_000)
    (tmp_path / "plain.bin").write_bytes(plaintext)
    device.seal(tmp_path / "plain.bin", tmp_path / "sealed")

    sealed = (tmp_path / "sealed").read_bytes()
    opened, context = stock.unseal(kms.client, kms.key(2048), sealed)

    assert opened == plaintext
    assert {"pithead:kid", "pithead:run", "pithead:sid", "pithead:sig"} <= context.keys()
    kid, *_ = by_hand.session_signature(by_hand.header(sealed))
    assert kid.hex() == device.do("key", "--offline")["signing_kid"]
    assert f"{SITE}/truck-8" in decryptor_opens(tmp_path, env=kms.environment)
    assert (tmp_path / "opened").read_bytes() == plaintext


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", KEY_BITS)
def test_the_decryptor_opens_what_the_stock_sdk_sealed_through_kms(kms, tmp_path, bits, size):
    plaintext, stock_run = secrets.token_bytes(size), stock.new_run()
    context = stock.context(SITE, "python-1", stock_run)
    (tmp_path / "sealed").write_bytes(stock.seal(kms.client, kms.key(bits), plaintext, context))

    said = decryptor_opens(tmp_path, env=kms.environment)

    assert (tmp_path / "opened").read_bytes() == plaintext
    assert f"{SITE}/python-1/python/{stock_run:016x}/1" in said


@pytest.mark.parametrize("size", SIZES)
def test_the_decryptor_opens_what_the_stock_sdk_sealed_with_a_private_key_file(kms, local_key, tmp_path, size):
    key, private = local_key
    plaintext, stock_run = secrets.token_bytes(size), stock.new_run()
    context = stock.context(SITE, "python-1", stock_run)
    (tmp_path / "sealed").write_bytes(stock.seal(kms.client, key, plaintext, context))

    said = decryptor_opens(tmp_path, "--private-key", private)

    assert (tmp_path / "opened").read_bytes() == plaintext
    assert f"{SITE}/python-1/python/{stock_run:016x}/1" in said


@pytest.mark.parametrize("part", ["message id", "context", "data key", "commitment", "header tag", "last frame's tag"])
def test_the_stock_sdk_refuses_an_envelope_of_ours_with_one_bit_changed(kms, device_for, tmp_path, part):
    (tmp_path / "plain").write_bytes(b"a load of ore")
    device_for(2048).seal(tmp_path / "plain", tmp_path / "sealed")
    sealed = bytearray((tmp_path / "sealed").read_bytes())
    header_len = len(by_hand.header(bytes(sealed)).body)
    place = {
        "message id": 3, "context": sealed.index(b"truck-7"), "data key": header_len - 32 - 4 - 1 - 1,
        "commitment": header_len - 1, "header tag": header_len, "last frame's tag": len(sealed) - 1,
    }[part]

    sealed[place] ^= 1

    with pytest.raises((AWSEncryptionSDKClientError, InvalidTag)):
        stock.unseal(kms.client, kms.key(2048), bytes(sealed))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda sealed: sealed + b"\0", "ENVELOPE_TRAILING"),
        (lambda sealed: sealed[:-1], "ENVELOPE_TRUNCATED"),
        (lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), "ENVELOPE_FRAME_TAG"),
        (lambda sealed: sealed.replace(b"python-1", b"python-2"), "ENVELOPE_EDK"),
    ],
    ids=["a byte after its end", "a byte short", "a changed tag", "another device's name"],
)
def test_the_decryptor_refuses_a_changed_envelope_of_the_stock_sdk_and_leaves_nothing(kms, tmp_path, change, code):
    context = stock.context(SITE, "python-1", stock.new_run())
    sealed = stock.seal(kms.client, kms.key(2048), b"a load of ore", context)
    (tmp_path / "sealed").write_bytes(change(sealed))

    finished = run(
        program("pithead-decryptor"), "open", tmp_path / "sealed", "-o", tmp_path / "opened", env=kms.environment,
    )

    assert finished.returncode == 1
    assert code in finished.stderr.decode()
    assert not (tmp_path / "opened").exists()


def test_the_stock_sdk_cannot_open_with_another_key(kms, device_for, tmp_path):
    (tmp_path / "plain").write_bytes(b"a load of ore")
    device_for(2048).seal(tmp_path / "plain", tmp_path / "sealed")
    with pytest.raises(AWSEncryptionSDKClientError):
        stock.unseal(kms.client, kms.key(4096), (tmp_path / "sealed").read_bytes())


def test_the_authority_lists_a_key_of_2048_bits_by_explicit_policy_alone(kms, tmp_path):
    default = Authority(tmp_path / "authority", kms)
    command = ["authority", "statement", "--dir", default.folder, "--site", SITE, "--no-standby"]

    finished = run(program("pithead-decryptor"), *command, "--kms-key", kms.key(2048).arn, env=kms.environment)

    assert finished.returncode == 1
    assert "TRUST_KEY_BITS" in finished.stderr.decode()
    assert not default.bundle.exists()


def decryptor_opens(folder, *how, env=None):
    command = [program("pithead-decryptor"), "open", folder / "sealed", "-o", folder / "opened", *how]
    finished = run(*command, env=env)
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stderr.decode()
