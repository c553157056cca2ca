"""Three NATS servers on loopback, from the configuration that the pods of deploy/k3s-replicated get, and keys from its script."""

import os
import re
import ssl

import nats

from programs import Server, free_port, succeed
from tools import DEPLOY, tool

FOLDER = DEPLOY / "k3s-replicated"
CONF = (FOLDER / "nats.conf").read_text()
NAMES = [f"pithead-nats-{number}" for number in range(3)]


def make_keys(folder, *gateways, more=()):
    """What kustomization.yaml says has to be made, by the script beside it."""
    site = folder.parent / f"{folder.name}-ca"
    if not more:
        site.mkdir()
        succeed("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "30", "-subj", "/CN=pit-7 site CA",
                "-keyout", site / "ca.key", "-out", site / "ca.pem")
    named = [part for gateway in gateways for part in ("--gateway", gateway)]
    succeed(FOLDER / "make-keys", folder, *(more or ("--site", "pit-7", "--ca", site / "ca.pem", "--ca-key", site / "ca.key", "--name", "127.0.0.1")), *named)
    return folder


def localised(keys, data):
    """nats.conf with the places of this machine."""
    text = CONF.replace("/etc/nats-keys", str(keys)).replace("/etc/nats-trust", str(keys)).replace('"/data"', f'"{data}"')
    # Included files are found from the folder of the including one.
    return text.replace("../nats-trust", os.path.relpath(keys, data.parent))


class Cluster:
    """nats.conf three times, with places and ports of this machine."""

    def __init__(self, folder, keys):
        self.folder, self.keys = folder, keys
        self.ports = {name: {port: free_port() for port in ("4222", "6222", "8222")} for name in NAMES}
        self.servers = {name: self.start(name) for name in NAMES}

    def start(self, name):
        config = self.folder / f"{name}.conf"
        config.write_text(self.localised(name))
        (self.folder / name).mkdir(exist_ok=True)
        return Server([tool("nats-server"), "-c", config], self.folder / f"{name}.log", env={"POD_NAME": name}, admin=self.ports[name]["8222"])

    def localised(self, name):
        text = localised(self.keys, self.folder / name)
        text = re.sub(r'"0\.0\.0\.0:(\d+)"', lambda found: f'"127.0.0.1:{self.ports[name][found[1]]}"', text)
        text = re.sub(r"tls://([\w-]+)\.pithead-nats:6222", lambda found: f"tls://127.0.0.1:{self.ports[found[1]]['6222']}", text)
        return text.replace("max_file_store: 200GB", "max_file_store: 20GB")

    def healthy(self):
        for server in self.servers.values():
            server.until("is healthy", lambda server=server: server.get("/healthz?js-server-only=true")[0] == 200)
        return self

    def back(self, name):
        """Starts a server again, and waits until it has all that the others have: the startup probe of its pod."""
        server = self.servers[name] = self.start(name)
        server.until("has caught up", lambda: server.get("/healthz")[0] == 200)

    def stop(self):
        for server in self.servers.values():
            server.stop()

    @property
    def ca(self):
        """Of the servers' certificates: the site's."""
        return self.keys.parent / f"{self.keys.name}-ca" / "ca.pem"

    async def connect(self, credentials, names=NAMES):
        context = ssl.create_default_context(cafile=self.ca)
        servers = [f"tls://127.0.0.1:{self.ports[name]['4222']}" for name in names]
        return await nats.connect(servers=servers, tls=context, user_credentials=credentials and str(credentials),
                                  allow_reconnect=False, connect_timeout=5, max_reconnect_attempts=1)
