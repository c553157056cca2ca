"""The cloud side, made from the template in moto and in ministack, and then asked: who can do what?

Both give back every role and policy as it was made, and iam.py judges them: neither evaluates the conditions of KMS. What
ministack enforces by itself (who may assume a role, and what no policy allows) is tried with real credentials besides.
"""

import copy
import json

import botocore.exceptions
import pytest
import yaml

from clouds import DIGEST, OAEP, Cloud, Tagged, emulator
from iam import allowed


@pytest.fixture(scope="session")
def template(deploy):
    return (deploy / "cloudformation" / "pithead.yaml").read_text()


@pytest.fixture(scope="module", params=["moto", "ministack"])
def cloud(request, template, tmp_path_factory):
    server, url = emulator(request.param, tmp_path_factory.mktemp(request.param))
    try:
        yield Cloud(request.param, url, template)
    finally:
        server.kill()


DATA = ["DataKeyA", "DataKeyB"]


@pytest.mark.parametrize("key", DATA)
def test_the_gateway_reads_the_public_half_and_can_do_nothing_else(cloud, key):
    for action in ("kms:DescribeKey", "kms:GetPublicKey"):
        assert cloud.may("gateway", action, key)
        assert not cloud.may("gateway", action, "SigningKey")
    forbidden = ("Decrypt", "Sign", "Encrypt", "ReEncryptFrom", "ReEncryptTo", "CreateGrant", "PutKeyPolicy", "GenerateMac",
                 "ScheduleKeyDeletion", "DisableKey", "Verify", "DeriveSharedSecret")
    for action in forbidden:
        for context in ({}, OAEP, DIGEST):
            assert not cloud.may("gateway", f"kms:{action}", key, context), action
            assert not cloud.may("gateway", f"kms:{action}", "SigningKey", context), action


@pytest.mark.parametrize("key", [*DATA, "SigningKey"])
def test_a_keys_own_policy_gives_the_gateway_the_public_half_and_no_more(cloud, key):
    """The ban in the role would hide it: so the key's policy is judged by itself."""
    for action in ("Decrypt", "Sign", "CreateGrant", "PutKeyPolicy", "GetPublicKey"):
        by_the_key = allowed(cloud.role("gateway"), f"kms:{action}", cloud.outputs[key], [], cloud.key_policy(key), OAEP | DIGEST, key=True)
        assert by_the_key == (action == "GetPublicKey" and key in DATA)


def test_the_gateways_ban_holds_whatever_is_allowed_besides(cloud):
    """Somebody attaches AdministratorAccess, and somebody hands the key to the account: still neither Decrypt nor Sign."""
    anything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    root = f"arn:aws:iam::{cloud.account}:root"
    handed = [{"Effect": "Allow", "Principal": {"AWS": [root, cloud.role("gateway")]}, "Action": "kms:*", "Resource": "*"}]
    for key, action, context in (("DataKeyA", "kms:Decrypt", OAEP), ("SigningKey", "kms:Sign", DIGEST), ("DataKeyA", "kms:CreateGrant", {})):
        assert not allowed(cloud.role("gateway"), action, cloud.outputs[key], [*cloud.identity("gateway"), anything], handed, context, key=True)
        # Without the ban it could, so it is the ban that this shows.
        assert allowed(cloud.role("gateway"), action, cloud.outputs[key], [anything], handed, context, key=True)


@pytest.mark.parametrize("key", DATA)
def test_the_decryptor_decrypts_in_one_way_and_only_with_its_keys(cloud, key):
    assert cloud.may("decryptor", "kms:Decrypt", key, OAEP)
    for algorithm in ("RSAES_OAEP_SHA_1", "RSAES_PKCS1_V1_5", "SYMMETRIC_DEFAULT"):
        assert not cloud.may("decryptor", "kms:Decrypt", key, {"kms:EncryptionAlgorithm": algorithm})
    assert not cloud.may("decryptor", "kms:Decrypt", key)
    assert not cloud.may("decryptor", "kms:Decrypt", "SigningKey", OAEP)
    stranger = "arn:aws:kms:eu-central-1:111122223333:key/of-somebody-else"
    generous = [{"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{cloud.account}:root"}, "Action": "kms:*", "Resource": "*"}]
    assert not allowed(cloud.role("decryptor"), "kms:Decrypt", stranger, cloud.identity("decryptor"), generous, OAEP, key=True)
    for action in ("Sign", "ReEncryptFrom", "CreateGrant", "PutKeyPolicy", "DisableKey", "ScheduleKeyDeletion", "GetPublicKey"):
        for one in (*DATA, "SigningKey"):
            assert not cloud.may("decryptor", f"kms:{action}", one, OAEP | DIGEST), action


def test_the_authority_signs_digests_with_its_own_key_and_can_do_nothing_else(cloud):
    assert cloud.may("authority", "kms:Sign", "SigningKey", DIGEST)
    for wrong in ({}, DIGEST | {"kms:MessageType": "RAW"}, DIGEST | {"kms:SigningAlgorithm": "ECDSA_SHA_384"}):
        assert not cloud.may("authority", "kms:Sign", "SigningKey", wrong)
    for key in DATA:
        assert cloud.may("authority", "kms:GetPublicKey", key) and cloud.may("authority", "kms:DescribeKey", key)
        for action in ("Sign", "Decrypt", "ReEncryptFrom", "CreateGrant", "PutKeyPolicy", "DisableKey", "ScheduleKeyDeletion"):
            assert not cloud.may("authority", f"kms:{action}", key, OAEP | DIGEST), action


@pytest.mark.parametrize("key", [*DATA, "SigningKey"])
def test_the_accounts_administrators_manage_a_key_and_cannot_use_it(cloud, key):
    root, administrator = f"arn:aws:iam::{cloud.account}:root", f"arn:aws:iam::{cloud.account}:role/admin"
    anything = [{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}]
    for who in (root, administrator):
        def may(action, context=None):
            return allowed(who, action, cloud.outputs[key], anything, cloud.key_policy(key), context, key=True)

        assert may("kms:PutKeyPolicy") and may("kms:DescribeKey") and may("kms:TagResource")
        assert not may("kms:Decrypt", OAEP) and not may("kms:Sign", DIGEST) and not may("kms:CreateGrant")
        # A data key that is gone takes with it everything that was sealed to it; a signing key can be replaced.
        assert may("kms:ScheduleKeyDeletion") == may("kms:DisableKey") == (key == "SigningKey")


def test_who_may_become_whom(cloud):
    assert [(one["Effect"], one["Principal"]) for one in cloud.trust("gateway")] == [("Deny", {"AWS": "*"})], "nobody, without a CA"
    (authority,) = cloud.trust("authority")
    assert authority["Principal"] == {"AWS": f"arn:aws:iam::{cloud.account}:role/key-ceremony"}
    assert authority["Condition"] == {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
    (decryptor,) = cloud.trust("decryptor")
    assert decryptor["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}


def test_the_bucket_is_closed_and_keeps_everything(cloud):
    if cloud.which == "moto":
        pytest.skip("moto takes over the bucket's policy alone; ministack has the rest")
    s3, bucket = cloud.client("s3"), cloud.outputs["Records"]
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    rule = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    statements = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]

    def may(who, action, **context):
        object_arn = f"arn:aws:s3:::{bucket}/records/1"
        context = {name.replace("_", ":"): value for name, value in context.items()}
        return allowed(cloud.role(who), action, object_arn, cloud.identity(who), statements, context)

    assert may("decryptor", "s3:PutObject")
    assert not may("decryptor", "s3:PutObject", aws_SecureTransport="false")
    assert not may("decryptor", "s3:PutObject", s3_TlsVersion="1.1")
    for action in ("s3:GetObject", "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutBucketPolicy", "s3:ListBucket"):
        assert not may("decryptor", action), action
    for who in ("gateway", "authority"):
        assert not may(who, "s3:PutObject") and not may(who, "s3:GetObject")


@pytest.fixture(scope="module")
def written(template):
    return yaml.load(template, Loader=Tagged)["Resources"]


def test_what_cannot_be_replaced_outlives_its_stack(written):
    kept = {name for name, one in written.items() if one.get("DeletionPolicy") == "Retain" == one.get("UpdateReplacePolicy")}
    assert kept == {"DataKeyA", "DataKeyB", "SigningKey", "Records"}


def test_the_two_data_keys_differ_in_their_description_alone(written):
    first, second = copy.deepcopy(written["DataKeyA"]), copy.deepcopy(written["DataKeyB"])
    assert first["Properties"].pop("Description") != second["Properties"].pop("Description")
    assert first == second


def test_the_decryptor_signs_only_where_that_was_asked_for(template, tmp_path):
    server, url = emulator("moto", tmp_path)
    try:
        signs = Cloud("moto", url, template, {"DecryptorSigns": "yes", "KeysMayBeRetired": "yes"})
        assert signs.may("decryptor", "kms:Sign", "SigningKey", DIGEST)
        assert not signs.may("decryptor", "kms:Sign", "SigningKey", DIGEST | {"kms:MessageType": "RAW"})
        assert not signs.may("gateway", "kms:Sign", "SigningKey", DIGEST)
        root = f"arn:aws:iam::{signs.account}:root"
        assert allowed(root, "kms:DisableKey", signs.outputs["DataKeyA"], [{"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}],
                       signs.key_policy("DataKeyA"), key=True), "a key that may be retired"
    finally:
        server.kill()


def test_each_alarm_watches_what_a_filter_counts(written):
    properties = {name: one["Properties"] for name, one in written.items()}
    alarms = {name: one for name, one in properties.items() if written[name]["Type"] == "AWS::CloudWatch::Alarm"}
    filters = {name: one for name, one in properties.items() if written[name]["Type"] == "AWS::Logs::MetricFilter"}
    counted = {(str(one["MetricTransformations"][0]["MetricNamespace"]), one["MetricTransformations"][0]["MetricName"]) for one in filters.values()}
    watched = {(str(one["Namespace"]), one["MetricName"]) for one in alarms.values()}
    assert counted == watched and len(watched) == 3


def test_nobody_becomes_gateway_or_authority_in_passing_and_the_decryptor_cannot_sign(template, tmp_path):
    server, url = emulator("ministack", tmp_path, auth=True)
    try:
        cloud = Cloud("ministack", url, template)

        def become(who):
            given = cloud.client("sts").assume_role(RoleArn=cloud.role(who), RoleSessionName="tried")["Credentials"]
            return cloud.client("kms", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])

        for who in ("gateway", "authority"):
            with pytest.raises(botocore.exceptions.ClientError, match="not authorized to perform: sts:AssumeRole"):
                become(who)
        decryptor = become("decryptor")
        with pytest.raises(botocore.exceptions.ClientError, match="not authorized to perform: kms:Sign"):
            decryptor.sign(KeyId=cloud.outputs["SigningKey"], Message=bytes(32), MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256")
        assert cloud.client("kms").describe_key(KeyId=cloud.outputs["DataKeyA"])["KeyMetadata"]["KeySpec"] == "RSA_3072"
    finally:
        server.kill()
