"""A gateway and a decryptor on loopback, as their operators would set them up. Here with KMS behind both; without any cloud
account, and with a WAN that can be cut, in tests/deploy/site_on_loopback.py.
"""

import base64
import json
import pathlib

from certificates import Ca
from parties import AUTHORITY, SITE
from programs import Server, free_port, program


class Programs:
    """Folders, certificates, configurations, and the two programs. A kind of site says what is special: `keys`, `unwrap` and
    `relay` are sections of the configurations."""

    gateway_name = "gw-1"
    sink = "out.jsonl"

    def __init__(self, folder, spool="256MiB", more=""):
        self.folder, self.spool, self.more, self.running = pathlib.Path(folder), spool, more, []
        self.ports = {name: free_port() for name in ("gateway", "gateway_admin", "decryptor", "decryptor_admin")}
        self.out = self.folder / self.sink
        for below in ("gateway-data", "decryptor-data"):
            (self.folder / below).mkdir()
        self.ca = Ca(f"{SITE} site CA", self.folder / "site-ca.pem")
        self.cloud_ca = Ca("cloud CA", self.folder / "cloud-ca.pem")
        self.ca.issue(self.folder / "gateway", spiffe=f"spiffe://{SITE}/gateway/{self.gateway_name}", server=True)
        self.cloud_ca.issue(self.folder / "decryptor", server=True)

    def keys(self):
        return f'upstream = "127.0.0.1:{self.ports["decryptor"]}"\nupstream_ca = "cloud-ca.pem"'

    def relay(self):
        return f'[relay]\nendpoint = "127.0.0.1:{self.ports["decryptor"]}"\nca = "cloud-ca.pem"'

    def environment(self, name):
        """Of a program, besides that of the tests."""
        return {}

    def command(self, name, config):
        """`name` is that of the program: gateway or decryptor."""
        return [program(f"pithead-{name}"), "run", "-c", config]

    @property
    def address(self):
        return f"127.0.0.1:{self.ports['gateway']}"

    def start_decryptor(self, ready=True):
        self.decryptor = self._start("decryptor", f"""
            [decryptor]
            data_dir = "decryptor-data"
            certificate = "decryptor.pem"
            private_key = "decryptor.key"
            [ingest]
            listen = "127.0.0.1:{self.ports["decryptor"]}"
            [[site]]
            name = "{SITE}"
            ca = "site-ca.pem"
            [keys]
            bundles = ["{self.authority.bundle}"]
            [unwrap]
            {self.unwrap()}
            [sink]
            kind = "jsonl"
            path = "{self.sink}"
            [admin]
            listen = "127.0.0.1:{self.ports["decryptor_admin"]}"
        """, ready)

    def start_gateway(self, ready=True):
        self.gateway = self._start("gateway", self.gateway_toml(), ready)

    def gateway_toml(self, name="gateway", spool=""):
        """The configuration of a gateway; `spool` is more of that section."""
        return f"""
            [gateway]
            site = "{SITE}"
            data_dir = "{name}-data"
            certificate = "{name}.pem"
            private_key = "{name}.key"
            [trust]
            authority = "{AUTHORITY}"
            root = "{self.authority.root}"
            [keys]
            {self.keys()}
            [ingest]
            listen = "127.0.0.1:{self.ports[name]}"
            device_ca = "site-ca.pem"
            [spool]
            max_size = "{self.spool}"
            segment_size = "5MiB"
            {spool}
            {self.more}
            [admin]
            listen = "127.0.0.1:{self.ports[f"{name}_admin"]}"
            {self.relay()}
        """

    def _start(self, name, toml, ready):
        config = self.folder / f"{name}.toml"
        config.write_text("\n".join(line.strip() for line in toml.splitlines()) + "\n")
        server = Server(self.command(name.split("-")[0], config), self.folder / f"{name}.log", env=self.environment(name), admin=self.ports[f"{name}_admin"])
        self.running.append(server)
        return server.ready() if ready else server


class Site(Programs):
    gateway_name = "edge-1"

    def __init__(self, folder, kms, authority, bundle=None, gateway_asks_kms=True, relay=""):
        """With a bundle the gateway takes its statements from that file, and relays where `relay` says or stands alone; else from and to
        the decryptor."""
        self.kms, self.authority, self.bundle, self.gateway_asks_kms = kms, authority, bundle, gateway_asks_kms
        self.elsewhere = relay
        super().__init__(folder)

    @classmethod
    def into_bucket(cls, folder, kms, authority, url, endpoint, region):
        """One whose gateway relays into a bucket, under a profile of a file of credentials."""
        folder.mkdir()
        (folder / "credentials").write_text("[pit]\naws_access_key_id = test\naws_secret_access_key = test\n")
        relay = f"""[relay]
            kind = "object_store"
            [relay.store]
            url = "{url}"
            endpoint = "{endpoint}"
            region = "{region}"
            credentials = "credentials"
            profile = "pit"
            bundle_delay = "200ms"
        """
        return cls(folder, kms, authority, bundle=authority.bundle, gateway_asks_kms=False, relay=relay)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ended = [server.stop() for server in reversed(self.running)]
        assert not any(ended), f"exit codes after SIGTERM: {ended}"

    def keys(self):
        source = f'bundle = "{self.bundle}"' if self.bundle else super().keys()
        return f"kms = {str(self.gateway_asks_kms).lower()}\n{source}"

    def unwrap(self):
        return "kms = true"

    def relay(self):
        return self.elsewhere if self.bundle else super().relay()

    def environment(self, name):
        return self.kms.environment

    def device(self, name):
        """A certificate and its key for a device of that name."""
        return self.ca.issue(self.folder / name, spiffe=f"spiffe://{SITE}/device/{name}")

    def delivered(self, device):
        """The lines of the decryptor's sink about a device, with their data decoded."""
        lines = self.out.read_text().splitlines(keepends=True) if self.out.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        for record in records:
            record["data"] = base64.b64decode(record["data"])
        return [record for record in records if record["device"] == device]
