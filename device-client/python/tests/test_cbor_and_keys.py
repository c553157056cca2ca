"""One value has one spelling; a role key that proves nothing is no key."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authority import spki
from pithead_device import cbor
from pithead_device.trust.keys import _P, _SMALL_ORDER, NotAKey, RoleKey, RsaKey


@pytest.mark.parametrize("data", ["1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "1f", "5f4100ff", "bfff"])
def test_a_longer_form_is_refused(data):
    with pytest.raises(cbor.CborError):
        cbor.well_formed(bytes.fromhex(data))


@pytest.mark.parametrize("data", [
    "a202000100", "a201000100", "", "5bffffffffffffffff", "9bffffffffffffffff", "81" * 64, "0000", "f4", "c100", "61ff",
])
def test_what_is_not_deterministic_is_refused(data):
    with pytest.raises(cbor.CborError):
        cbor.well_formed(bytes.fromhex(data))


def test_labels_out_of_order_twice_unknown_or_missing_are_refused():
    for data in ("a202000100", "a201000100", "a201000300", "a10200"):
        with pytest.raises(cbor.CborError):
            fields = cbor.Reader(bytes.fromhex(data)).map()
            fields.required(1).uint()
            if (at := fields.optional(2)) is not None:
                at.uint()
            fields.finish()


@pytest.mark.parametrize("value", [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1])
def test_what_is_written_is_read_back(value):
    written = cbor.array([cbor.uint(value), cbor.byte_string(bytes(300)), cbor.text("é")])
    cbor.well_formed(written)
    reader = cbor.Reader(written)
    assert (reader.array(3, 3), reader.uint(), reader.bytes(300), reader.text()) == (3, value, bytes(300), "é")
    reader.finish()


def test_the_points_of_small_order_are_those_and_no_others():
    # Edwards25519: -x^2 + y^2 = 1 + d x^2 y^2. Each listed y is on the curve, and eight times its point is the neutral one.
    d = -121_665 * pow(121_666, -1, _P) % _P
    root = pow(2, (_P - 1) // 4, _P)

    def double(point):
        (x, y) = point
        product = d * x * x * y * y % _P
        return 2 * x * y * pow(1 + product, -1, _P) % _P, (y * y + x * x) * pow(1 - product, -1, _P) % _P

    for y in _SMALL_ORDER:
        square = (y * y - 1) * pow(d * y * y + 1, -1, _P) % _P
        x = pow(square, (_P + 3) // 8, _P)
        x = x if x * x % _P == square else x * root % _P
        assert x * x % _P == square
        assert double(double(double((x, y % _P)))) == (0, 1)
    assert len({y % _P for y in _SMALL_ORDER}) == 5


def test_a_role_key_of_small_order_or_in_a_second_encoding_is_refused():
    prefix = bytes.fromhex("302a300506032b6570032100")
    for y in _SMALL_ORDER:
        for sign in (0, 1 << 255):
            with pytest.raises(NotAKey):
                RoleKey.from_spki(prefix + (y | sign).to_bytes(32, "little"))
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    good = point.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    compressed = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    assert RoleKey.from_spki(good).spki == good
    for bad in (head + compressed, good + b"\0", good[:-1], spki(ec.generate_private_key(ec.SECP384R1()))):
        with pytest.raises(NotAKey):
            RoleKey.from_spki(bad)
    with pytest.raises(NotAKey):
        RsaKey.from_spki(good)


def test_a_signature_with_an_r_of_small_order_is_refused():
    key = ed25519.Ed25519PrivateKey.generate()
    reader = RoleKey.from_spki(spki(key))
    assert reader.verifies(b"message", key.sign(b"message"))
    assert not reader.verifies(b"another", key.sign(b"message"))
    assert not reader.verifies(b"message", (1).to_bytes(32, "little") + bytes(32))
    assert not reader.verifies(b"message", key.sign(b"message") + b"\0")
