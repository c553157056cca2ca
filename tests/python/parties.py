"""The authority and the device: folders that the real programs made."""

import json

from programs import program, succeed

AUTHORITY = "acme-mining/prod"
SITE = "pit-7"


class Authority:
    """`pithead-decryptor authority`, with key files; data keys come from KMS or from files."""

    def __init__(self, folder, kms=None, min_rsa_bits=3072, more=()):
        self.folder, self.env = folder, kms.environment if kms else {}
        self._act("init", "--authority", AUTHORITY, "--min-rsa-bits", min_rsa_bits, *more)

    def statement(self, *arguments):
        self._act("statement", "--site", SITE, *arguments)

    def _act(self, act, *arguments):
        succeed(program("pithead-decryptor"), "authority", act, "--dir", self.folder, *arguments, env=self.env)

    @property
    def root(self):
        return self.folder / "roots" / "1.cose"

    @property
    def bundle(self):
        return self.folder / "bundles" / f"{SITE}.pb"

    def statement_object(self, sequence=1):
        return (self.folder / "statements" / SITE / f"{sequence}.cose").read_bytes()


class Device:
    """`pithead-device`, enrolled with a bundle unless it has a gateway to ask."""

    def __init__(self, folder, name, authority, more=None):
        self.folder, self.name = folder, name
        more = ("--bundle", authority.bundle) if more is None else more
        succeed(
            program("pithead-device"), "enroll", "--dir", folder, "--site", SITE, "--device", name,
            "--authority", AUTHORITY, "--root", authority.root, *more,
        )

    def do(self, *arguments, **options):
        """A command with its answer as JSON."""
        config = self.folder / "device.toml"
        return json.loads(succeed(program("pithead-device"), "-c", config, "-o", "json", *arguments, **options))

    def seal(self, plaintext, out):
        return self.do("seal", plaintext, "--out", out)
