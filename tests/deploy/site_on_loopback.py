"""A whole site on loopback without a cloud account: authority, decryptor, gateway and devices, the real programs. Between
gateway and decryptor lies a WAN that can be cut."""

import os
import pathlib
import select
import signal
import socket
import subprocess
import threading

from parties import AUTHORITY, SITE, Authority
from programs import free_port, program, succeed
from whole_site import Programs

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


class LoopbackSite(Programs):
    """`prefix(name)` is put before the command of a program, `statement` says how long the key statement lives. With `kms` the
    data keys lie there, else in files."""

    sink = "records.jsonl"

    def __init__(self, folder, prefix=lambda _: [], statement=("--validity", "180d"), spool="256MiB", more="", kms=None):
        super().__init__(folder, spool, more)
        self.prefix, self.kms = prefix, kms
        self.authority = Authority(self.folder / "authority", kms)
        if kms:
            self.data_keys = [kms.new_key(3072).arn for _ in KEYS]
        else:
            for number in ("1", "2"):
                pem = self.folder / f"data-{number}.pem"
                succeed("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", pem)
                succeed("openssl", "pkey", "-in", pem, "-pubout", "-out", self.folder / f"data-{number}.pub.pem")
        self.state(*statement)
        self.wan = Wan(self.ports["decryptor"])

    def state(self, *more):
        if self.kms:
            first, second = self.data_keys
            self.authority.statement("--kms-key", first, "--kms-next-key", second, *more)
        else:
            first, second = (f"{arn}={self.folder}/data-{n}.pub.pem" for n, arn in enumerate(KEYS, 1))
            self.authority.statement("--key", first, "--next-key", second, *more)

    def __enter__(self):
        try:
            self.start_decryptor()
            self.start_gateway()
        except BaseException:
            # What has started already is not left behind.
            self.__exit__()
            raise
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

    def keys(self):
        return super().keys() + '\nmin_interval = "1s"\nmax_interval = "2s"'

    def unwrap(self):
        if self.kms:
            return "kms = true"
        local = (f'[[unwrap.local]]\narn = "{arn}"\nprivate_key = "data-{n}.pem"' for n, arn in enumerate(KEYS, 1))
        return "\n".join(["kms = false", *local])

    def relay(self):
        return f'[relay]\nendpoint = "127.0.0.1:{self.wan.port}"\nca = "cloud-ca.pem"'

    def environment(self, name):
        return self.kms.environment if self.kms else {}

    def command(self, name, config):
        return [*self.prefix(name), *super().command(name, config)]

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
