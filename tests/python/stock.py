"""The stock AWS Encryption SDK for Python, used as its manual says: the KMS RSA keyring, and the suite that it needs."""

import functools
import secrets
import time

import aws_encryption_sdk
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsRsaKeyringInput
from aws_encryption_sdk.identifiers import AlgorithmSuite


@functools.cache
def _sdk():
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    return aws_encryption_sdk.EncryptionSDKClient(), providers


def _keyring(client, key):
    _, providers = _sdk()
    return providers.create_aws_kms_rsa_keyring(CreateAwsKmsRsaKeyringInput(
        public_key=key.pem, kms_key_id=key.arn, encryption_algorithm="RSAES_OAEP_SHA_256", kms_client=client,
    ))


def seal(client, key, plaintext, context):
    """The client is not called: sealing needs the public key alone."""
    sealed, _ = _sdk()[0].encrypt(
        source=plaintext, keyring=_keyring(client, key), encryption_context=context, frame_length=65536,
        algorithm=AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
    )
    return sealed


def unseal(client, key, sealed):
    """Plaintext and encryption context."""
    plaintext, header = _sdk()[0].decrypt(source=sealed, keyring=_keyring(client, key))
    return plaintext, dict(header.encryption_context)


def new_run():
    """A run's name, as a device draws it at every start."""
    return int(time.time()) << 32 | secrets.randbits(32)


def context(site, device, run, seq=1, stream="python"):
    """Our context in an envelope that a stock SDK seals."""
    return {
        "pithead:v": "1", "pithead:site": site, "pithead:device": device, "pithead:stream": stream,
        "pithead:content-type": "application/octet-stream", "pithead:seq": f"{run:016x}/{seq}",
    }
