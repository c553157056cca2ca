"""A gateway and a decryptor on loopback, as their operators would set them up, with KMS behind both."""

import base64
import json

from certificates import Ca
from parties import AUTHORITY, SITE
from programs import Server, free_port, program

GATEWAY = "edge-1"


class Site:
    def __init__(self, folder, kms, authority, bundle=None, gateway_asks_kms=True):
        """With a bundle the gateway takes its statements from that file, and stands alone; else from the decryptor."""
        self.folder, self.kms, self.authority, self.bundle = folder, kms, authority, bundle
        self.gateway_asks_kms, self.running = gateway_asks_kms, []
        self.ports = {name: free_port() for name in ("gateway", "gateway_admin", "decryptor", "decryptor_admin")}
        self.out = folder / "out.jsonl"
        for below in ("gateway-data", "decryptor-data"):
            (folder / below).mkdir()
        self.ca = Ca(f"{SITE} site CA", folder / "site-ca.pem")
        self.cloud_ca = Ca("cloud CA", folder / "cloud-ca.pem")
        self.ca.issue(folder / "gateway", spiffe=f"spiffe://{SITE}/gateway/{GATEWAY}", server=True)
        self.cloud_ca.issue(folder / "decryptor", server=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ended = [server.stop() for server in reversed(self.running)]
        assert not any(ended), f"exit codes after SIGTERM: {ended}"

    @property
    def address(self):
        return f"127.0.0.1:{self.ports['gateway']}"

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

    def start_decryptor(self):
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
            kms = true
            [sink]
            kind = "jsonl"
            path = "out.jsonl"
            [admin]
            listen = "127.0.0.1:{self.ports["decryptor_admin"]}"
        """)
        self.decryptor.ready()

    def start_gateway(self, ready=True):
        upstream = f"127.0.0.1:{self.ports['decryptor']}"
        keys = f'bundle = "{self.bundle}"' if self.bundle else f'upstream = "{upstream}"\nupstream_ca = "cloud-ca.pem"'
        relay = "" if self.bundle else f'[relay]\nendpoint = "{upstream}"\nca = "cloud-ca.pem"'
        self.gateway = self._start("gateway", f"""
            [gateway]
            site = "{SITE}"
            data_dir = "gateway-data"
            certificate = "gateway.pem"
            private_key = "gateway.key"
            [trust]
            authority = "{AUTHORITY}"
            root = "{self.authority.root}"
            [keys]
            kms = {str(self.gateway_asks_kms).lower()}
            {keys}
            [ingest]
            listen = "{self.address}"
            device_ca = "site-ca.pem"
            [spool]
            max_size = "256MiB"
            segment_size = "5MiB"
            [admin]
            listen = "127.0.0.1:{self.ports["gateway_admin"]}"
            {relay}
        """)
        if ready:
            self.gateway.ready()

    def _start(self, name, toml):
        config = self.folder / f"{name}.toml"
        config.write_text("\n".join(line.strip() for line in toml.splitlines()) + "\n")
        command = [program(f"pithead-{name}"), "run", "-c", config]
        admin = self.ports[f"{name}_admin"]
        server = Server(command, self.folder / f"{name}.log", env=self.kms.environment, admin=admin)
        self.running.append(server)
        return server
