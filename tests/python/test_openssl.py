"""The openssl program and the documents are enough to open an envelope and to check a statement."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

import by_hand
from parties import Authority, Device
from programs import run, succeed

ARN = "arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ESP256, ED25519 = -9, -19


@pytest.fixture(scope="module", params=[2048, 3072, 4096])
def openssl_key(request, tmp_path_factory):
    """A key pair made by openssl, and a device that seals to it."""
    folder = tmp_path_factory.mktemp("openssl")
    bits = request.param
    succeed("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}", "-out", folder / "key.pem")
    succeed("openssl", "pkey", "-in", folder / "key.pem", "-pubout", "-out", folder / "public.pem")
    authority = Authority(folder / "authority", min_rsa_bits=bits)
    authority.statement("--key", f"{ARN}={folder / 'public.pem'}", "--no-standby")
    return folder / "key.pem", Device(folder / "truck-7", "truck-7", authority)


@pytest.mark.parametrize("size", [0, 13, 65_536, 200_000])
def test_openssl_opens_the_data_key_and_hmac_and_aes_gcm_the_rest(openssl_key, tmp_path, size):
    key, device = openssl_key
    plaintext = bytes(number % 251 for number in range(size))
    (tmp_path / "plain").write_bytes(plaintext)
    device.seal(tmp_path / "plain", tmp_path / "sealed")
    sealed = (tmp_path / "sealed").read_bytes()
    head = by_hand.header(sealed)
    [(provider, info, ciphertext)] = head.edks
    assert (provider, info) == (b"aws-kms-rsa", ARN.encode())
    (tmp_path / "edk").write_bytes(ciphertext)

    opened = succeed(
        "openssl", "pkeyutl", "-decrypt", "-inkey", key, "-in", tmp_path / "edk", "-pkeyopt", "rsa_padding_mode:oaep",
        "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256",
    )

    assert len(opened) == 80
    assert opened[:48] == hashlib.sha384(head.context_bytes).digest()
    assert by_hand.open_with(sealed, opened[48:]) == plaintext


def test_openssl_verifies_the_session_signature_of_a_device_whose_key_it_made(tmp_path):
    key, public = tmp_path / "data.pem", tmp_path / "data.pub.pem"
    succeed("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", key)
    succeed("openssl", "pkey", "-in", key, "-pubout", "-out", public)
    authority = Authority(tmp_path / "authority")
    authority.statement("--key", f"{ARN}={public}", "--no-standby")
    identity, certificate = tmp_path / "truck-7.key", tmp_path / "truck-7.pem"
    succeed(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=truck-7",
        "-keyout", identity, "-out", certificate,
    )
    more = ("--bundle", authority.bundle, "--cert", certificate, "--key", identity)
    device = Device(tmp_path / "truck-7", "truck-7", authority, more)
    (tmp_path / "plain").write_bytes(b"a load of ore")
    device.seal(tmp_path / "plain", tmp_path / "sealed")

    head = by_hand.header((tmp_path / "sealed").read_bytes())
    kid, sid, signature, signed = by_hand.session_signature(head)

    spki = succeed("openssl", "pkey", "-in", identity, "-pubout", "-outform", "DER")
    assert kid == hashlib.sha256(spki).digest()[:16]
    assert kid.hex() == device.do("key", "--offline")["signing_kid"]
    pem = succeed("openssl", "pkey", "-in", identity, "-pubout")
    assert (device.folder / "device.pub").read_bytes() == pem
    assert openssl_verifies(tmp_path, ESP256, spki, signed, signature)
    assert not openssl_verifies(tmp_path, ESP256, spki, signed[:-1] + bytes([signed[-1] ^ 1]), signature)
    assert bytes.fromhex(head.context["pithead:run"]) == head.message_id[16:24]
    (tmp_path / "edk").write_bytes(head.edks[0][2])
    opened = succeed(
        "openssl", "pkeyutl", "-decrypt", "-inkey", key, "-in", tmp_path / "edk", "-pkeyopt", "rsa_padding_mode:oaep",
        "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256",
    )
    assert sid == by_hand.session_id(opened[48:])


@pytest.fixture(scope="module")
def spki_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rsa")
    succeed("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", folder / "key.pem")
    succeed("openssl", "pkey", "-in", folder / "key.pem", "-pubout", "-out", folder / "public.pem")
    return folder / "public.pem"


@pytest.mark.parametrize(("name", "algorithm"), [("p256", ESP256), ("ed25519", ED25519)])
def test_openssl_verifies_the_signatures_of_root_and_statement(spki_file, tmp_path, name, algorithm):
    authority = Authority(tmp_path / "authority", more=["--alg", name])
    authority.statement("--key", f"{ARN}={spki_file}", "--no-standby")
    root, root_signatures = by_hand.signatures(authority.root.read_bytes())
    statement, statement_signatures = by_hand.signatures(authority.statement_object())
    keys = by_hand.root_keys(root)

    assert len(root_signatures) == 2 and len(statement_signatures) == 1
    roles = by_hand.cbor(root)[7]
    assert {kid for kid, *_ in root_signatures} == set(roles[1][1])
    assert {kid for kid, *_ in statement_signatures} == set(roles[2][1])
    for kid, named, signed, signature in root_signatures + statement_signatures:
        assert named == algorithm
        assert openssl_verifies(tmp_path, algorithm, keys[kid], signed, signature)
        assert not openssl_verifies(tmp_path, algorithm, keys[kid], signed[:-1] + bytes([signed[-1] ^ 1]), signature)
    # What the statement says is the key that the authority was given.
    [key] = by_hand.cbor(statement)[11]
    der = succeed("openssl", "pkey", "-pubin", "-in", spki_file, "-outform", "DER")
    assert (key[1], key[3], key[4]) == (ARN, hashlib.sha256(der).digest(), 3072)


def openssl_verifies(folder, algorithm, spki, signed, signature):
    (folder / "signer.der").write_bytes(spki)
    (folder / "signed").write_bytes(signed)
    signer = folder / "signer.pem"
    succeed("openssl", "pkey", "-pubin", "-inform", "DER", "-in", folder / "signer.der", "-out", signer)
    if algorithm == ESP256:
        # COSE has r and s side by side; openssl wants them in DER.
        assert len(signature) == 64
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        (folder / "signature").write_bytes(encode_dss_signature(r, s))
        how = ["dgst", "-sha256", "-verify", signer, "-signature", folder / "signature", folder / "signed"]
    else:
        (folder / "signature").write_bytes(signature)
        how = ["pkeyutl", "-verify", "-pubin", "-inkey", signer, "-rawin", "-in", folder / "signed"]
        how += ["-sigfile", folder / "signature"]
    return run("openssl", *how).returncode == 0
