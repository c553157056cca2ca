"""Envelope and statement read by hand, from the documents alone: nothing of Pithead and nothing of the SDK is used."""

import base64
import dataclasses
import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SUITE = b"\x04\x78"


class _Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        assert self.at + count <= len(self.data), "ends early"
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count):
        return int.from_bytes(self.take(count))

    def counted(self):
        return self.take(self.number(2))


@dataclasses.dataclass
class Header:
    body: bytes
    message_id: bytes
    context_bytes: bytes
    context: dict
    edks: list
    frame_length: int
    commitment: bytes
    tag: bytes


def header(envelope):
    """The header, docs/envelope.md section 1.1."""
    data = _Bytes(envelope)
    assert data.take(3) == b"\x02" + SUITE
    message_id = data.take(32)
    context_bytes = data.counted()
    pairs = _Bytes(context_bytes)
    context = {pairs.counted().decode(): pairs.counted().decode() for _ in range(pairs.number(2))}
    assert pairs.at == len(context_bytes)
    edks = [(data.counted(), data.counted(), data.counted()) for _ in range(data.number(2))]
    assert data.take(1) == b"\x02"
    frame_length, commitment = data.number(4), data.take(32)
    body = envelope[: data.at]
    return Header(body, message_id, context_bytes, context, edks, frame_length, commitment, data.take(16))


def open_with(envelope, data_key):
    """The plaintext, or InvalidTag: sections 1.3 and 1.4."""
    head = header(envelope)
    prk = hmac.digest(head.message_id, data_key, "sha512")
    expand = lambda info: hmac.digest(prk, info + b"\x01", "sha512")[:32]
    assert expand(b"COMMITKEY") == head.commitment
    cipher = AESGCM(expand(SUITE + b"DERIVEKEY"))
    cipher.decrypt(bytes(12), head.tag, head.body)

    data = _Bytes(envelope[len(head.body) + 16 :])
    plaintext, number, final = b"", 0, False
    while not final:
        number += 1
        seq = data.take(4)
        final = seq == b"\xff\xff\xff\xff"
        seq = data.take(4) if final else seq
        assert seq == number.to_bytes(4)
        iv = data.take(12)
        assert iv == bytes(8) + seq
        length = data.number(4) if final else head.frame_length
        kind = b"AWSKMSEncryptionClient Final Frame" if final else b"AWSKMSEncryptionClient Frame"
        plaintext += cipher.decrypt(iv, data.take(length + 16), head.message_id + kind + seq + length.to_bytes(8))
    assert data.at == len(data.data), "bytes after the final frame"
    return plaintext


def session_signature(head):
    """Key id, session id, signature, and what was signed: docs/envelope.md, session signature."""
    value = lambda name: _unbase64(head.context[f"pithead:{name}"])
    rest = sorted((name, text) for name, text in head.context.items() if name != "pithead:sig")
    counted = lambda data: len(data).to_bytes(2) + data
    unsigned = len(rest).to_bytes(2) + b"".join(counted(part.encode()) for pair in rest for part in pair)
    [(provider, arn, _)] = head.edks
    signed = b"pithead-session-v1\0" + counted(provider) + counted(arn) + hashlib.sha384(unsigned).digest()
    return value("kid"), value("sid"), value("sig"), signed


def session_id(data_key):
    """What only a holder of the data key can compute."""
    prk = hmac.digest(b"pithead-session-v1", data_key, "sha512")
    return hmac.digest(prk, b"sid\x01", "sha512")[:32]


def _unbase64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def cbor(data):
    """One CBOR item, of the kinds that statements are made of."""
    source = _Bytes(data)
    item = _item(source)
    assert source.at == len(data), "bytes after the item"
    return item


def _item(source):
    first = source.number(1)
    kind, small = first >> 5, first & 31
    value = small if small < 24 else source.number(1 << (small - 24))
    match kind:
        case 0:
            return value
        case 1:
            return -1 - value
        case 2:
            return source.take(value)
        case 3:
            return source.take(value).decode()
        case 4:
            return [_item(source) for _ in range(value)]
        case 5:
            return {_item(source): _item(source) for _ in range(value)}
        case 6:
            return (value, _item(source))
    raise AssertionError(f"CBOR of major type {kind}")


def to_cbor(item):
    """Arrays, texts and byte strings."""
    kind, content = {
        list: lambda: (4, b"".join(map(to_cbor, item))), str: lambda: (3, item.encode()), bytes: lambda: (2, item),
    }[type(item)]()
    count = len(item) if kind == 4 else len(content)
    width = next(width for width in (0, 1, 2, 4) if count < (24 if width == 0 else 1 << 8 * width))
    lead = {0: count, 1: 24, 2: 25, 4: 26}[width]
    return bytes([kind << 5 | lead]) + (count.to_bytes(width) if width else b"") + content


def signatures(signed_object):
    """Payload, and for each signature its key id, algorithm, what was signed, and the signature: docs/trust.md."""
    tag, (body, unprotected, payload, signers) = cbor(signed_object)
    assert (tag, unprotected) == (98, {})
    found = []
    for protected, no_more, signature in signers:
        assert no_more == {}
        named = cbor(protected)
        signed = to_cbor(["Signature", body, protected, b"pithead/v1", payload])
        found.append((named[4], named[1], signed, signature))
    return payload, found


def root_keys(root_payload):
    """Key id to SPKI of every key that the root names."""
    keys = {kid: spki for kid, _, spki, _ in cbor(root_payload)[8]}
    assert all(hashlib.sha256(spki).digest()[:16] == kid for kid, spki in keys.items())
    return keys
