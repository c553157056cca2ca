"""An authority with one key for each role, and a data key whose private half the test holds: enough to enrol a device."""

import functools
import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pithead_device import cbor
from pithead_device.trust import Bundle, cose
from pithead_device.trust.keys import ED25519, ESP256, kid

AUTHORITY, SITE, DEVICE = "acme-mining/prod", "pit-7", "truck-7"
ARN = "arn:aws:kms:ap-southeast-2:111122223333:key/00000000-12ab-34cd-56ef-1234567890ab"
ISSUED, YEAR = 1_790_000_000, 31_536_000


def spki(private):
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@functools.cache
def _rsa_keys():
    return [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]


def rsa_key(number=0):
    """A data key; some tests need two."""
    return _rsa_keys()[number]


def unwrap(arn, ciphertext):
    return rsa_key().decrypt(ciphertext, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))


def signed(object_type, payload, signers, algorithm=None):
    body = cbor.mapping({16: cbor.text(object_type)})
    signatures = []
    for key in signers:
        is_ec = isinstance(key, ec.EllipticCurvePrivateKey)
        said = cbor._lead(1, -1 - (algorithm or (ESP256 if is_ec else ED25519)))
        header = cbor.mapping({1: said, 4: cbor.byte_string(kid(spki(key)))})
        message = cose.Signed(body, object_type, payload, ()).to_be_signed(cose.Signature(header, 0, b"", b""))
        if is_ec:
            numbers = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
            signature = b"".join(number.to_bytes(32, "big") for number in numbers)
        else:
            signature = key.sign(message)
        signatures.append(cbor.array([cbor.byte_string(header), cbor.mapping({}), cbor.byte_string(signature)]))
    parts = [cbor.byte_string(body), cbor.mapping({}), cbor.byte_string(payload), cbor.array(signatures)]
    return cbor._lead(6, 98) + cbor.array(parts)


class Authority:
    def __init__(self):
        self.root_key, self.statement_key = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
        self.root = self.root_object()

    def root_object(self, version=1, previous=bytes(32), root_keys=None, statement_threshold=1, signers=None):
        root_keys = root_keys or [self.root_key]
        role = lambda threshold, keys: cbor.array([
            cbor.uint(threshold), cbor.array([cbor.byte_string(kid(spki(key))) for key in keys]),
        ])
        listed = lambda key, algorithm: cbor.array([
            cbor.byte_string(kid(spki(key))), cbor._lead(1, -1 - algorithm), cbor.byte_string(spki(key)), cbor.text("test"),
        ])
        spare = ec.derive_private_key(7, ec.SECP256R1())
        payload = cbor.mapping({
            1: cbor.uint(1), 2: cbor.text(AUTHORITY), 3: cbor.uint(version), 4: cbor.uint(1), 5: cbor.uint(ISSUED),
            6: cbor.uint(ISSUED + 2 * YEAR),
            7: cbor.mapping({1: role(1, root_keys), 2: role(statement_threshold, [self.statement_key, spare])}),
            8: cbor.array([
                *(listed(key, ED25519) for key in root_keys), listed(self.statement_key, ESP256), listed(spare, ESP256),
            ]),
            9: cbor.array([]),
            10: cbor.mapping({
                1: cbor.uint(0), 2: cbor.uint(2048), 3: cbor.array([cbor._lead(1, 40)]), 4: cbor.uint(YEAR),
            }),
            12: cbor.byte_string(previous),
        })
        return signed(cose.ROOT, payload, signers or root_keys)

    def bundle(
        self, sequence=1, data_key=None, arn=ARN, issued=ISSUED, previous=bytes(32), signers=None, root_version=1, bits=2048,
        algorithm=None,
    ):
        data_key = data_key or rsa_key()
        key = cbor.mapping({
            1: cbor.text(arn), 2: cbor._lead(1, 40), 3: cbor.byte_string(hashlib.sha256(spki(data_key)).digest()),
            4: cbor.uint(bits), 5: cbor.uint(1), 6: cbor.uint(issued), 7: cbor.uint(issued + YEAR),
        })
        payload = cbor.mapping({
            1: cbor.uint(1), 2: cbor.text(AUTHORITY), 3: cbor.array([cbor.text(SITE)]), 4: cbor.uint(root_version),
            5: cbor.uint(1), 6: cbor.uint(sequence), 7: cbor.uint(issued), 8: cbor.uint(issued + 86_400),
            9: cbor.uint(issued + YEAR), 10: cbor.byte_string(previous), 11: cbor.array([key]),
        })
        statement = signed(cose.STATEMENT, payload, signers or [self.statement_key], algorithm)
        return Bundle([], statement, [spki(data_key)])
