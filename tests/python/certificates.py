"""Certificates made by pyca/cryptography: a CA that none of our code had a hand in."""

import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


class Ca:
    def __init__(self, name, path):
        self.path = pathlib.Path(path)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, data_encipherment=False,
            key_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )
        certificate = (
            self._draft(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _draft(self, subject, public_key, days=30):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - DAY).not_valid_after(now + days * DAY)
        )

    def issue(self, stem, spiffe=None, server=False, days=30):
        """Signs a certificate; STEM.pem and STEM.key are written, and their paths given."""
        stem = pathlib.Path(stem)
        names = [x509.UniformResourceIdentifier(spiffe)] if spiffe else []
        if server:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        # A gateway is a server to devices and a client of the decryptor, under one certificate.
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] if spiffe else []
        usages += [ExtendedKeyUsageOID.SERVER_AUTH] if server else []
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._draft(x509.Name([]), key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pem, private = stem.with_suffix(".pem"), stem.with_suffix(".key")
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption(),
        ))
        return pem, private
