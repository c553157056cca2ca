"""ministack and moto: two KMS that we did not write. Our programs reach them by the usual AWS variables."""

import base64
import dataclasses
import functools
import hashlib
import pathlib
import socket
import sys

import boto3

from programs import Server, free_port

REGION = "ap-southeast-2"


@dataclasses.dataclass(frozen=True)
class DataKey:
    """What is public of a key that devices seal to."""

    arn: str
    spki: bytes

    @property
    def pem(self):
        return b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(self.spki) + b"-----END PUBLIC KEY-----\n"

    @property
    def fingerprint(self):
        return hashlib.sha256(self.spki).hexdigest()


class Kms:
    """ministack: real RSA, and real signatures."""

    def __init__(self, folder):
        self.port = free_port()
        self.server = self._start(folder)

    def _start(self, folder):
        command = [pathlib.Path(sys.executable).with_name("ministack")]
        # Without the first two it listens on all interfaces.
        env = {"BIND_HOST": "127.0.0.1", "IOT_MTLS_ENABLED": "0", "GATEWAY_PORT": str(self.port)}
        return Server(command, folder / "ministack.log", env=env, cwd=folder)

    def __enter__(self):
        self.server.until("takes connections", self._listens)
        self.client = boto3.client(
            "kms", region_name=REGION, endpoint_url=self.url, aws_access_key_id="test", aws_secret_access_key="test",
        )
        return self

    def __exit__(self, *_):
        self.server.kill()

    def _listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self):
        return {
            "AWS_ENDPOINT_URL_KMS": self.url, "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }

    def new_key(self, bits):
        """Makes an RSA key for encryption."""
        made = self.client.create_key(KeySpec=f"RSA_{bits}", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]
        return DataKey(made["Arn"], self.client.get_public_key(KeyId=made["Arn"])["PublicKey"])

    def new_signing_key(self):
        """Makes a key that signs statements."""
        made = self.client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]
        return DataKey(made["Arn"], self.client.get_public_key(KeyId=made["Arn"])["PublicKey"])

    @functools.cache
    def key(self, bits):
        """The one key of that size that most tests share."""
        return self.new_key(bits)


class Moto(Kms):
    """moto's server: another hand at GetPublicKey and aliases. Its RSA is not real, and its Sign hashes a digest once more."""

    def _start(self, folder):
        command = [pathlib.Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]
        return Server(command, folder / "moto.log", cwd=folder)
