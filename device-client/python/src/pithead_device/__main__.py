"""A device on a command line.

    python -m pithead_device enroll --dir device --authority acme/prod --site pit-1 --device truck-7 --root root.cose
    python -m pithead_device submit --dir device --gateway 127.0.0.1:7443 --ca ca.pem --cert device.pem --key device.key FILE
    python -m pithead_device deliver --dir device --gateway 127.0.0.1:7443 --ca ca.pem --cert device.pem --key device.key
    python -m pithead_device status --dir device

`enroll` takes the trust root that came by hand. `submit` asks the gateway for newer keys and verifies them, seals the file,
keeps it and hands over all that waits; `deliver` does the latter alone. What has no answer waits in the folder.
`--sign` signs the sessions with the key of `--key`; `public-key --key device.key` prints its public half, which the cloud
registers (`pithead-decryptor device add`). Exit codes: 0 done, 1 failed, 75 try again later.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from . import bundles
from .client import Client, Delivered, deliver, refresh
from .device import Device, enroll
from .envelope import SigningKey
from .errors import PitheadError, TrustRefused
from .refusals import Refused


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pithead_device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("public-key").add_argument("--key", type=pathlib.Path, required=True)
    for name in ("enroll", "submit", "deliver", "status"):
        command = commands.add_parser(name)
        command.add_argument("--dir", type=pathlib.Path, required=True)
        if name == "enroll":
            for option in ("authority", "site", "device"):
                command.add_argument(f"--{option}", required=True)
            command.add_argument("--root", type=pathlib.Path, required=True)
            command.add_argument("--bundle", type=pathlib.Path)
        if name in ("submit", "deliver"):
            command.add_argument("--gateway", required=True)
            for option in ("ca", "cert", "key"):
                command.add_argument(f"--{option}", type=pathlib.Path, required=True)
            command.add_argument("--patience", type=float, default=0.0, help="seconds to try again for")
            command.add_argument("--sign", action="store_true", help="sign the sessions with the key of --key")
        if name == "submit":
            command.add_argument("--stream", default="python")
            command.add_argument("--content-type", default="application/octet-stream")
            command.add_argument("file", type=pathlib.Path)
    return parser


def _device(args: argparse.Namespace) -> Device:
    signer = SigningKey.from_pem(args.key.read_bytes()) if getattr(args, "sign", False) else None
    return Device(args.dir, signer=signer)


def _client(args: argparse.Namespace) -> Client:
    return Client(args.gateway, args.ca.read_bytes(), args.cert.read_bytes(), args.key.read_bytes())


def _told(done: Delivered) -> int:
    for identity, accepted in done.accepted:
        print(f"{identity} {accepted.durability}{' duplicate' if accepted.duplicate else ''}")
    for identity, refused in done.refused:
        print(f"{identity} set aside: {refused.reason} ({refused.code}): {refused.detail}", file=sys.stderr)
    return 1 if done.refused else 0


def _enroll(args: argparse.Namespace) -> int:
    bundle = bundles.from_bytes(args.bundle.read_bytes()) if args.bundle else None
    enroll(args.dir, args.authority, args.site, args.device, args.root.read_bytes(), bundle)
    return 0


def _submit(args: argparse.Namespace) -> int:
    with _device(args) as device, _client(args) as client:
        try:
            refresh(device, client)
        except TrustRefused as refused:
            # The key in force stays in force; without one, sealing says so.
            print(f"error[{refused.code}] {refused}", file=sys.stderr)
        except Refused as refused:
            if not refused.is_temporary:
                raise
            print(f"error[{refused.code}] {refused}", file=sys.stderr)
        device.seal(args.stream, args.file.read_bytes(), content_type=args.content_type)
        return _told(deliver(device, client, args.patience))


def _deliver(args: argparse.Namespace) -> int:
    with _device(args) as device, _client(args) as client:
        return _told(deliver(device, client, args.patience))


def _status(args: argparse.Namespace) -> int:
    with _device(args) as device:
        waiting = device.waiting()
        epoch, sequence = device.trust.version
        print(f"device    {device.site}/{device.device}")
        print(f"key       {device.status().value}, root {device.trust.root.version}, statement {epoch}.{sequence}")
        print(f"waiting   {len(waiting)}")
    return 0


def _public_key(args: argparse.Namespace) -> int:
    print(SigningKey.from_pem(args.key.read_bytes()).public_pem.decode(), end="")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parses and delegates."""
    args = _parser().parse_args(arguments)
    acts = {"enroll": _enroll, "submit": _submit, "deliver": _deliver, "status": _status, "public-key": _public_key}
    act = acts[args.command]
    try:
        return act(args)
    except Refused as refused:
        print(f"error[{refused.code}] {refused}", file=sys.stderr)
        return 75 if refused.is_temporary else 1
    except PitheadError as error:
        print(f"error[{error.code}] {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
