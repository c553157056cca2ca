#!/usr/bin/env python3
"""A device in another language: fetch the key, seal with a stock AWS Encryption SDK, submit.

    pip install -r requirements.txt
    python submit.py --gateway 127.0.0.1:7443 --ca ca.pem --cert device.pem --key device.key \\
        --authority acme/prod --site pit-1 --device truck-7 --arn KEY_ARN --fingerprint SHA256_OF_THE_KEY FILE

The gateway is not believed: the key that it serves must have the fingerprint that you were given by the authority (its
tool prints it). A client that lives for years verifies the signed statement instead, as docs/trust.md says, and so
learns of the next key by itself.

An envelope is filed under (site, device, stream, run, seq). The stock SDK draws its own message id, so run and seq go
into the encryption context as `pithead:seq`. A run is drawn anew at every start; numbers count from 1 without a hole.
"""

import argparse
import base64
import hashlib
import importlib
import pathlib
import secrets
import sys
import tempfile
import time

import aws_encryption_sdk
import boto3
import grpc
import grpc_tools.protoc
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsRsaKeyringInput
from aws_encryption_sdk.identifiers import AlgorithmSuite

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"


def stubs():
    """Compiles the .proto files into a temporary folder and imports what comes of them."""
    files = [str(path) for path in sorted(PROTO.glob("pithead/*/v1/*.proto"))]
    well_known = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        arguments = [f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
        if grpc_tools.protoc.main(["protoc", *arguments]) != 0:
            sys.exit("protoc failed")
        sys.path.insert(0, out)
        load = importlib.import_module
        return (
            load("pithead.keys.v1.keys_pb2"), load("pithead.keys.v1.keys_pb2_grpc"),
            load("pithead.ingest.v1.ingest_pb2"), load("pithead.ingest.v1.ingest_pb2_grpc"),
        )


def seal(data, spki, arn, context):
    """One AWS Encryption SDK message, readable by whoever may kms:Decrypt with that key and by nobody else."""
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(spki) + b"-----END PUBLIC KEY-----\n"
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    keyring = providers.create_aws_kms_rsa_keyring(CreateAwsKmsRsaKeyringInput(
        public_key=pem, kms_key_id=arn, encryption_algorithm="RSAES_OAEP_SHA_256",
        # Sealing calls no KMS; the keyring only insists on having a client.
        kms_client=boto3.client("kms", region_name=arn.split(":")[3], aws_access_key_id="-", aws_secret_access_key="-"),
    ))
    sealed, _ = aws_encryption_sdk.EncryptionSDKClient().encrypt(
        source=data, keyring=keyring, encryption_context=context, frame_length=65536,
        # The SDK's default suite signs with a key pair of its own, which this keyring cannot carry.
        algorithm=AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
    )
    return sealed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gateway", "ca", "cert", "key", "authority", "site", "device", "fingerprint", "arn"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--stream", default="python")
    parser.add_argument("file", type=pathlib.Path)
    args = parser.parse_args()
    keys, keys_grpc, ingest, ingest_grpc = stubs()

    read = lambda path: pathlib.Path(path).read_bytes()
    credentials = grpc.ssl_channel_credentials(read(args.ca), read(args.key), read(args.cert))
    with grpc.secure_channel(args.gateway, credentials) as channel:
        bundle = keys_grpc.KeyServiceStub(channel).GetKeyBundle(keys.GetKeyBundleRequest(
            authority=args.authority, site=args.site, have=keys.Held(root_version=1)), timeout=30).bundle
        spki = next((s for s in bundle.spkis if hashlib.sha256(s).hexdigest() == args.fingerprint.lower()), None)
        if spki is None:
            sys.exit("the gateway serves no key with that fingerprint: do not seal")

        run = int(time.time()) << 32 | secrets.randbits(32)
        sealed = seal(args.file.read_bytes(), spki, args.arn, {
            "pithead:v": "1", "pithead:site": args.site, "pithead:device": args.device,
            "pithead:stream": args.stream, "pithead:content-type": "application/octet-stream",
            "pithead:seq": f"{run:016x}/1",
        })
        # Without an answer, send these same bytes again until there is one: that makes no second copy.
        answer = ingest_grpc.IngestServiceStub(channel).Submit(ingest.SubmitRequest(envelope=sealed), timeout=30)
        durability = ingest.Durability.Name(answer.durability)
        print(f"{args.site}/{args.device}/{args.stream}/{run:016x}/1 {len(sealed)} bytes {durability}")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as refused:
        sys.exit(f"{refused.code().name}: {refused.details()}")
