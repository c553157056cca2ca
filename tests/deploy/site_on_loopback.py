"""A whole site on loopback without a cloud account: authority, decryptor, gateway and devices, the real programs. Between
gateway and decryptor lies a WAN that can be cut."""

import os
import pathlib
import select
import signal
import socket
import subprocess
import threading

from certificates import Ca
from parties import AUTHORITY, SITE, Authority
from programs import Server, free_port, program, succeed

ARN = "arn:aws:kms:eu-central-1:111122223333:key/"
KEYS = [ARN + "11111111-1111-4111-8111-111111111111", ARN + "22222222-2222-4222-8222-222222222222"]


class Wan:
    """Passes bytes on to a port, until it is cut: then connections end, and new ones are refused."""

    def __init__(self, to):
        self.to, self.port, self.up, self.pairs = to, free_port(), True, set()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self.up = False
        for pair in list(self.pairs):
            for end in pair:
                # Wakes whoever waits on it; closing alone would not.
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def heal(self):
        self.up = True

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            if not self.up:
                near.close()
                continue
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near):
        try:
            far = socket.create_connection(("127.0.0.1", self.to))
        except OSError:
            near.close()
            return
        pair = (near, far)
        self.pairs.add(pair)
        try:
            while self.up:
                for end in select.select(pair, [], [])[0]:
                    bytes_ = end.recv(65536)
                    if not bytes_:
                        return
                    (far if end is near else near).sendall(bytes_)
        except OSError:
            pass
        finally:
            self.pairs.discard(pair)
            near.close()
            far.close()


class LoopbackSite:
    """`prefix(name)` is put before the command of a program, `statement` says how long the key statement lives."""

    def __init__(self, folder, prefix=lambda _: [], statement=("--validity", "180d"), spool="256MiB", gateway_env=None, more=""):
        self.folder, self.prefix, self.running = pathlib.Path(folder), prefix, []
        self.spool, self.gateway_env, self.more = spool, gateway_env or {}, more
        names = ("gateway", "gateway_admin", "decryptor", "decryptor_admin")
        self.ports = {name: free_port() for name in names}
        self.out = self.folder / "records.jsonl"
        for below in ("gateway-data", "decryptor-data"):
            (self.folder / below).mkdir()
        self.ca = Ca(f"{SITE} site CA", self.folder / "site-ca.pem")
        self.cloud_ca = Ca("cloud CA", self.folder / "cloud-ca.pem")
        self.ca.issue(self.folder / "gateway", spiffe=f"spiffe://{SITE}/gateway/gw-1", server=True)
        self.cloud_ca.issue(self.folder / "decryptor", server=True)
        self.authority = Authority(self.folder / "authority")
        for number in ("1", "2"):
            pem = self.folder / f"data-{number}.pem"
            succeed("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", pem)
            succeed("openssl", "pkey", "-in", pem, "-pubout", "-out", self.folder / f"data-{number}.pub.pem")
        self.state(*statement)
        self.wan = Wan(self.ports["decryptor"])

    def state(self, *more):
        first, second = (f"{arn}={self.folder}/data-{n}.pub.pem" for n, arn in enumerate(KEYS, 1))
        self.authority.statement("--key", first, "--next-key", second, *more)

    def __enter__(self):
        self.start_decryptor()
        self.start_gateway()
        return self

    def __exit__(self, *_):
        for server in reversed(self.running):
            self._end(server)

    def _end(self, server):
        if server.process.poll() is not None:
            return
        # strace passes no signal on to whom it watches.
        children = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        strace = pathlib.Path(f"/proc/{server.process.pid}/comm").read_text().strip() == "strace"
        watched = [int(pid) for pid in children.read_text().split()] if strace else []
        for pid in watched:
            os.kill(pid, signal.SIGTERM)
        if watched:
            server.process.wait(60)
        else:
            server.stop()

    def start_decryptor(self):
        unwrap = "\n".join(f'[[unwrap.local]]\narn = "{arn}"\nprivate_key = "data-{n}.pem"' for n, arn in enumerate(KEYS, 1))
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
            kms = false
            {unwrap}
            [sink]
            kind = "jsonl"
            path = "records.jsonl"
            [admin]
            listen = "127.0.0.1:{self.ports["decryptor_admin"]}"
        """)
        self.decryptor.ready()

    def start_gateway(self):
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
            upstream = "127.0.0.1:{self.ports["decryptor"]}"
            upstream_ca = "cloud-ca.pem"
            min_interval = "1s"
            max_interval = "2s"
            [ingest]
            listen = "127.0.0.1:{self.ports["gateway"]}"
            device_ca = "site-ca.pem"
            [spool]
            max_size = "{self.spool}"
            segment_size = "5MiB"
            {self.more}
            [admin]
            listen = "127.0.0.1:{self.ports["gateway_admin"]}"
            [relay]
            endpoint = "127.0.0.1:{self.wan.port}"
            ca = "cloud-ca.pem"
        """, self.gateway_env)
        self.gateway.ready()

    def _start(self, name, toml, env=None):
        config = self.folder / f"{name}.toml"
        config.write_text("\n".join(line.strip() for line in toml.splitlines()) + "\n")
        command = [*self.prefix(name), program(f"pithead-{name}"), "run", "-c", config]
        server = Server(command, self.folder / f"{name}.log", env=env, admin=self.ports[f"{name}_admin"])
        self.running.append(server)
        return server

    def device(self, name):
        """The folder of a device; it is enrolled when it is first asked for."""
        folder = self.folder / "devices" / name
        if not folder.exists():
            certificate, key = self.ca.issue(self.folder / name, spiffe=f"spiffe://{SITE}/device/{name}")
            folder.parent.mkdir(exist_ok=True)
            succeed(
                program("pithead-device"), "enroll", "--dir", folder, "--site", SITE, "--device", name, "--authority", AUTHORITY,
                "--root", self.authority.root, "--bundle", self.authority.bundle,
                "--gateway", f"127.0.0.1:{self.ports['gateway']}", "--ca", self.folder / "site-ca.pem", "--cert", certificate, "--key", key,
            )
        return folder

    def send(self, name, records, size=100, stream="can"):
        """Sends records; returns when the gateway has them on its disk."""
        lines = "".join(f"{number:0{size}d}\n" for number in range(records))
        command = [program("pithead-device"), "-c", str(self.device(name) / "device.toml"), "send", "--stream", stream, "-"]
        subprocess.run(command, input=lines.encode(), check=True, capture_output=True, timeout=120)

    def until_delivered(self, name, records):
        def count():
            text = self.out.read_text() if self.out.exists() else ""
            return text.count(f'"{name}"') >= records

        self.decryptor.until(f"has {records} records of {name}", count)
