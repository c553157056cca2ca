"""The cloud end on S3: pithead-s3.yaml and pithead-s3-site.yaml beside pithead.yaml, made in moto and in ministack.

Roles are judged in both. The bucket's own policy, its notifications and the redrive of its queue are ministack's alone, since moto
makes none of them out of a template; neither makes lifecycle rules and Roles Anywhere, which are judged as they are written.
"""

import json

import pytest
import yaml

from clouds import OAEP, Cloud, Tagged, emulator
from iam import allowed

RECEIVES = 5
SITE = "pit-7"
ONCE = {"s3:if-none-match": "*", "s3:ObjectCreationOperation": "true"}
PLAIN = {"s3:ObjectCreationOperation": "true"}
# What AWS shows of CreateMultipartUpload and UploadPart.
PART = {"s3:ObjectCreationOperation": "false"}
BUNDLE, LARGE = f"bundles/{SITE}/2026/11/27/05/gw-1-00-0-0000000000000000.bundle", f"large/{SITE}/truck-1/can/1/1-00.envelope"
ENTRY, CHECKPOINT, ASIDE = f"ledger/{SITE}/00000000000000000001", f"checkpoints/{SITE}/00000000000000000256", f"aside/refused/{SITE}/-/00.PH-2009.envelope"
RECORD, OPENED = f"out/{SITE}/2026/11/27/00000000000000000001.jsonl.zst", f"out/{SITE}/2026/11/27/00000000000000000001/00003.large"
# By which a gateway, and a decryptor, see at a start that the store writes over nothing.
PROBE, BOOKS_PROBE = "probe/create-once", "ledger/create-once"
EVERYTHING = (BUNDLE, LARGE, ENTRY, CHECKPOINT, ASIDE, RECORD, OPENED, PROBE, BOOKS_PROBE)
ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


class Stacks(Cloud):
    """All three templates: the keys, the bucket, and the site's relay on the gateway's role."""

    def __init__(self, which, url, folder):
        super().__init__(which, url, (folder / "pithead.yaml").read_text())
        self.outputs |= self.stack("bucket", (folder / "pithead-s3.yaml").read_text(), {
            "DecryptorRole": "acme-prod-decryptor", "ConsumerPrincipal": f"arn:aws:iam::{self.account}:role/analysts", "Receives": RECEIVES,
        })
        self.stack("site", (folder / "pithead-s3-site.yaml").read_text(), {
            "Site": SITE, "Bucket": self.outputs["Bucket"], "GatewayRole": "acme-prod-gateway",
        })
        self.bucket = self.outputs["Bucket"]

    def bucket_policy(self):
        """Empty where the emulator makes none: then the roles alone are judged."""
        if self.which == "moto":
            return []
        return json.loads(self.client("s3").get_bucket_policy(Bucket=self.bucket)["Policy"])["Statement"]

    def may_s3(self, who, action, key="", context=None, identity=None):
        resource = f"arn:aws:s3:::{self.bucket}" + (f"/{key}" if key else "")
        identity = self.identity(who) if identity is None else identity
        return allowed(self.role(who), f"s3:{action}", resource, identity, self.bucket_policy(), ONCE | (context or {}))

    def may_sqs(self, who, action, queue="arrivals"):
        arn = f"arn:aws:sqs:eu-central-1:{self.account}:acme-prod-{queue}"
        return allowed(self.role(who), f"sqs:{action}", arn, self.identity(who))


@pytest.fixture(scope="module", params=["moto", "ministack"])
def cloud(request, deploy, tmp_path_factory):
    server, url = emulator(request.param, tmp_path_factory.mktemp(request.param))
    try:
        yield Stacks(request.param, url, deploy / "cloudformation")
    finally:
        server.kill()


@pytest.fixture
def real(cloud):
    if cloud.which == "moto":
        pytest.skip("moto makes neither the bucket's policy nor its notifications out of a template; ministack does")
    return cloud


def written(deploy, name):
    return yaml.load((deploy / "cloudformation" / name).read_text(), Loader=Tagged)


def test_a_gateway_adds_below_its_own_site_and_nowhere_else(cloud):
    for key in (BUNDLE, LARGE):
        assert cloud.may_s3("gateway", "PutObject", key) and cloud.may_s3("gateway", "GetObject", key)
        other = key.replace(SITE, "pit-8")
        assert not cloud.may_s3("gateway", "PutObject", other) and not cloud.may_s3("gateway", "GetObject", other)
    for action in ("AbortMultipartUpload", "ListMultipartUploadParts"):
        assert cloud.may_s3("gateway", action, LARGE)
        assert not cloud.may_s3("gateway", action, BUNDLE)
    assert cloud.may_s3("gateway", "PutObject", PROBE) and not cloud.may_s3("gateway", "GetObject", PROBE)
    for key in (ENTRY, CHECKPOINT, ASIDE, RECORD, OPENED, "anything"):
        for action in ("PutObject", "GetObject", "AbortMultipartUpload"):
            assert not cloud.may_s3("gateway", action, key), (action, key)
    assert not cloud.may_s3("gateway", "PutObject", f"bundles/{SITE}-2/x.bundle"), "a site whose name begins with the other's"


def test_a_gateway_deletes_nothing_lists_nothing_decrypts_nothing_and_sees_no_queue(cloud):
    for key in EVERYTHING:
        for action in ("DeleteObject", "DeleteObjectVersion", "GetObjectVersion", "PutObjectAcl", "PutObjectTagging", "RestoreObject"):
            assert not cloud.may_s3("gateway", action, key), (action, key)
    for action in ("ListBucket", "ListBucketVersions", "PutBucketPolicy", "PutLifecycleConfiguration", "PutBucketNotification"):
        assert not cloud.may_s3("gateway", action), action
    for action in ("ReceiveMessage", "SendMessage", "DeleteMessage", "PurgeQueue"):
        assert not cloud.may_sqs("gateway", action)
    for key in ("DataKeyA", "DataKeyB", "SigningKey"):
        assert not cloud.may("gateway", "kms:Decrypt", key, OAEP)


def test_the_relays_ban_holds_whatever_is_allowed_besides(cloud):
    """Somebody attaches AdministratorAccess to the gateway's role."""
    bans = (("GetObject", RECORD), ("PutObject", ENTRY), ("DeleteObject", BUNDLE), ("GetObject", BUNDLE.replace(SITE, "pit-8")), ("ListBucket", ""),
            ("PutBucketPolicy", ""), ("PutLifecycleConfiguration", ""))
    for action, key in bans:
        assert not cloud.may_s3("gateway", action, key, identity=[*cloud.identity("gateway"), ANYTHING])
    assert cloud.may_s3("gateway", "GetObject", RECORD, identity=[ANYTHING]), "so it is the ban that this shows"


def test_the_decryptor_reads_what_is_sealed_and_writes_books_and_records(cloud):
    for key in (BUNDLE, LARGE):
        assert cloud.may_s3("decryptor", "GetObject", key)
        assert not cloud.may_s3("decryptor", "PutObject", key), "it cannot put words into a device's mouth"
    for key in (ENTRY, CHECKPOINT, ASIDE, RECORD, OPENED):
        assert cloud.may_s3("decryptor", "GetObject", key) and cloud.may_s3("decryptor", "PutObject", key)
    assert cloud.may_s3("decryptor", "ListBucket")
    assert cloud.may_s3("decryptor", "PutObject", BOOKS_PROBE) and not cloud.may_s3("decryptor", "PutObject", PROBE), "it tries where its books are"
    for key in EVERYTHING:
        for action in ("DeleteObject", "DeleteObjectVersion", "PutObjectAcl"):
            assert not cloud.may_s3("decryptor", action, key), (action, key)
    for action in ("PutBucketPolicy", "PutLifecycleConfiguration", "DeleteBucket", "PutBucketVersioning"):
        assert not cloud.may_s3("decryptor", action), action
    assert cloud.may("decryptor", "kms:Decrypt", "DataKeyA", OAEP)
    for algorithm in ("RSAES_OAEP_SHA_1", "RSAES_PKCS1_V1_5"):
        assert not cloud.may("decryptor", "kms:Decrypt", "DataKeyA", {"kms:EncryptionAlgorithm": algorithm})


def test_the_decryptor_takes_messages_and_sends_none(cloud):
    for action in ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "GetQueueAttributes"):
        assert cloud.may_sqs("decryptor", action)
        # What was set aside is for people.
        assert not cloud.may_sqs("decryptor", action, "set-aside")
    for action in ("SendMessage", "PurgeQueue", "SetQueueAttributes", "DeleteQueue"):
        assert not cloud.may_sqs("decryptor", action), action


def test_the_consumer_reads_records_alone(cloud):
    assert cloud.may_s3("consumer", "GetObject", RECORD)
    assert cloud.may_s3("consumer", "ListBucket", context={"s3:prefix": "out/pit-7/"})
    for prefix in ({}, {"s3:prefix": ""}, {"s3:prefix": "bundles/"}, {"s3:prefix": "ledger/"}):
        assert not cloud.may_s3("consumer", "ListBucket", context=prefix)
    for key in EVERYTHING:
        assert cloud.may_s3("consumer", "GetObject", key) == (key in (RECORD, OPENED))
        for action in ("PutObject", "DeleteObject", "DeleteObjectVersion"):
            assert not cloud.may_s3("consumer", action, key)
    assert not cloud.may_sqs("consumer", "ReceiveMessage")
    (trusted,) = cloud.trust("consumer")
    assert trusted["Principal"] == {"AWS": f"arn:aws:iam::{cloud.account}:role/analysts"}


def test_what_is_in_one_piece_is_created_once_or_not_at_all(real):
    """By the bucket itself: a stolen role cannot write over what is there, and an administrator cannot by mistake."""
    def may(who, key, context):
        resource = f"arn:aws:s3:::{real.bucket}/{key}"
        return allowed(real.role(who), "s3:PutObject", resource, real.identity(who), real.bucket_policy(), context)

    pieces = [("gateway", BUNDLE), ("gateway", PROBE), *(("decryptor", key) for key in (ENTRY, CHECKPOINT, ASIDE, RECORD))]
    for who, key in pieces:
        assert may(who, key, ONCE)
        assert not may(who, key, PLAIN)
        assert not allowed(real.role(who), "s3:PutObject", f"arn:aws:s3:::{real.bucket}/{key}", [ANYTHING], real.bucket_policy(), PLAIN)
    # What is large comes in parts, and under a name that tells its content.
    for who, key in (("gateway", LARGE), ("decryptor", OPENED)):
        assert may(who, key, PART) and may(who, key, PLAIN)


def test_nobody_deletes_what_is_sealed_nor_the_books(real):
    for key in (BUNDLE, LARGE, ENTRY, CHECKPOINT):
        for action in ("s3:DeleteObject", "s3:DeleteObjectVersion"):
            assert not allowed(real.role("decryptor"), action, f"arn:aws:s3:::{real.bucket}/{key}", [ANYTHING], real.bucket_policy())
    assert allowed(real.role("decryptor"), "s3:DeleteObject", f"arn:aws:s3:::{real.bucket}/{RECORD}", [ANYTHING], real.bucket_policy())


def test_the_bucket_is_closed_and_takes_nothing_without_tls(real):
    s3 = real.client("s3")
    assert s3.get_bucket_versioning(Bucket=real.bucket)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=real.bucket)["PublicAccessBlockConfiguration"].values())
    assert not real.may_s3("gateway", "PutObject", BUNDLE, {"aws:SecureTransport": "false"})
    assert not real.may_s3("gateway", "PutObject", BUNDLE, {"s3:TlsVersion": "1.1"})


def test_only_the_bucket_may_tell_the_queue(real):
    sqs = real.client("sqs")
    policy = json.loads(sqs.get_queue_attributes(QueueUrl=real.outputs["Arrivals"], AttributeNames=["Policy"])["Attributes"]["Policy"])
    allows = [one for one in policy["Statement"] if one["Effect"] == "Allow"]
    (one,) = allows
    assert one["Principal"] == {"Service": "s3.amazonaws.com"} and one["Action"] == "sqs:SendMessage"
    assert one["Condition"] == {"ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{real.bucket}"}, "StringEquals": {"aws:SourceAccount": real.account}}


def test_a_bundle_is_told_of_and_set_aside_when_nobody_can_finish_it(real):
    s3, sqs = real.client("s3"), real.client("sqs")

    def receive(queue):
        return sqs.receive_message(QueueUrl=real.outputs[queue], MaxNumberOfMessages=10, WaitTimeSeconds=2).get("Messages", [])

    for one in receive("Arrivals"):
        # S3 says once that it can reach the queue. Whoever reads the queue meets this first.
        assert json.loads(one["Body"])["Event"] == "s3:TestEvent"
        sqs.delete_message(QueueUrl=real.outputs["Arrivals"], ReceiptHandle=one["ReceiptHandle"])
    s3.put_object(Bucket=real.bucket, Key=BUNDLE, Body=b"sealed", IfNoneMatch="*")
    with pytest.raises(s3.exceptions.ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=real.bucket, Key=BUNDLE, Body=b"something else", IfNoneMatch="*")
    for elsewhere in (LARGE, ENTRY, RECORD, f"bundles/{SITE}/note.txt", "out/x.bundle"):
        s3.put_object(Bucket=real.bucket, Key=elsewhere, Body=b"x")
    for _ in range(RECEIVES):
        (message,) = receive("Arrivals")
        (record,) = json.loads(message["Body"])["Records"]
        assert record["s3"]["object"]["key"] == BUNDLE
        sqs.change_message_visibility(QueueUrl=real.outputs["Arrivals"], ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    assert receive("Arrivals") == []
    (left,) = receive("SetAside")
    assert json.loads(left["Body"])["Records"][0]["s3"]["object"]["key"] == BUNDLE
    assert s3.get_object(Bucket=real.bucket, Key=BUNDLE)["Body"].read() == b"sealed"


def test_by_itself_only_what_was_begun_and_what_was_before_is_deleted(deploy):
    template = written(deploy, "pithead-s3.yaml")
    rules = template["Resources"]["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    always = [rule for rule in rules if isinstance(rule, dict)]
    assert [set(rule) - {"Id", "Status"} for rule in always] == [{"AbortIncompleteMultipartUpload"}, {"NoncurrentVersionExpiration"}]
    asked_for = [rule[1] for rule in rules if isinstance(rule, tuple)]
    assert [(condition, rule["Prefix"], rule["ExpirationInDays"]) for condition, rule, _ in asked_for] == [
        ("SealedExpires", "bundles/", ("Ref", "SealedDays")), ("SealedExpires", "large/", ("Ref", "SealedDays")),
        ("RecordsExpire", "out/", ("Ref", "RecordsDays")),
    ]
    assert template["Parameters"]["SealedDays"]["Default"] == template["Parameters"]["RecordsDays"]["Default"] == 0
    # An upload that is resumed after weeks has to be there still.
    assert always[0]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 30
    bucket = template["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"


def test_a_sites_own_role_is_for_who_shows_a_gateways_certificate_of_that_site(deploy):
    resources = written(deploy, "pithead-s3-site.yaml")["Resources"]
    (one,) = resources["RelayRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert one["Principal"] == {"Service": "rolesanywhere.amazonaws.com"}
    assert one["Condition"]["ArnEquals"] == {"aws:SourceArn": ("GetAtt", "SiteTrustAnchor.TrustAnchorArn")}
    assert one["Condition"]["StringLike"] == {"aws:PrincipalTag/x509SAN/URI": ("Sub", "spiffe://${Site}/gateway/*")}
    assert resources["RelayProfile"]["Properties"]["RoleArns"] == [("GetAtt", "RelayRole.Arn")]
    # The same policy for both kinds of role: the one that the other tests judge.
    assert resources["RelayMayAdd"]["Properties"]["Roles"] == [("If", ["OwnRole", ("Ref", "RelayRole"), ("Ref", "GatewayRole")])]


def test_what_is_set_aside_and_what_waits_is_an_alarm_that_leads_to_a_runbook(deploy):
    resources = written(deploy, "pithead-s3.yaml")["Resources"]
    alarms = {name: one["Properties"] for name, one in resources.items() if one["Type"] == "AWS::CloudWatch::Alarm"}
    assert {one["Dimensions"][0]["Value"][1] for one in alarms.values()} == {"Arrivals.QueueName", "SetAside.QueueName"}
    for one in alarms.values():
        page = one["AlarmDescription"].rsplit(" ", 1)[1].rstrip(".")
        assert (deploy.parent / page).is_file(), page
