"""Two clouds on loopback, moto and ministack, with our templates as stacks in them; and the question who may do what there,
which iam.py answers from the roles and policies as they were made."""

import functools
import json
import pathlib
import socket
import sys

import boto3
import yaml

from iam import allowed
from programs import Server, free_port

REGION = "eu-central-1"
ACCOUNT = {"moto": "123456789012", "ministack": "000000000000"}
OAEP = {"kms:EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
DIGEST = {"kms:SigningAlgorithm": "ECDSA_SHA_256", "kms:MessageType": "DIGEST"}


def emulator(which, folder, auth=False):
    port = free_port()
    tool = pathlib.Path(sys.executable)
    if which == "moto":
        command, env = [tool.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)], {}
    else:
        # Without the first two it listens on all interfaces.
        command = [tool.with_name("ministack")]
        env = {"BIND_HOST": "127.0.0.1", "IOT_MTLS_ENABLED": "0", "GATEWAY_PORT": str(port), "AUTH": "true" if auth else "false"}
    server = Server(command, folder / f"{which}.log", env=env, cwd=folder)

    def listens():
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return True

    server.until("takes connections", listens)
    return server, f"http://127.0.0.1:{port}"


class Cloud:
    """pithead.yaml as a stack in an emulator, and others beside it."""

    def __init__(self, which, url, template, parameters=None):
        self.which, self.url, self.account = which, url, ACCOUNT[which]
        self.outputs = self.stack("pithead", template, {"AuthorityPrincipal": f"arn:aws:iam::{self.account}:role/key-ceremony"} | (parameters or {}))

    def stack(self, name, template, parameters):
        """Makes a stack of a template, and gives its outputs."""
        given, stack = {"Name": "acme-prod"} | parameters, self.client("cloudformation")
        stack.create_stack(
            StackName=name, TemplateBody=template, Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": str(value)} for key, value in given.items()],
        )
        stack.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        (described,) = stack.describe_stacks(StackName=name)["Stacks"]
        return {one["OutputKey"]: one["OutputValue"] for one in described.get("Outputs", [])}

    def client(self, service, key="test", secret="test", token=None):
        return boto3.client(
            service, region_name=REGION, endpoint_url=self.url, aws_access_key_id=key, aws_secret_access_key=secret,
            aws_session_token=token,
        )

    def role(self, who):
        return self.outputs[f"{who.capitalize()}Role"]

    @functools.cache
    def identity(self, who):
        iam, name = self.client("iam"), self.role(who).rsplit("/", 1)[1]
        assert iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"] == [], "nothing but what is read here"
        names = iam.list_role_policies(RoleName=name)["PolicyNames"]
        assert names, "an emulator that has dropped the role's policies would be no proof of anything"
        return [iam.get_role_policy(RoleName=name, PolicyName=one)["PolicyDocument"] for one in names]

    def trust(self, who):
        document = self.client("iam").get_role(RoleName=self.role(who).rsplit("/", 1)[1])["Role"]["AssumeRolePolicyDocument"]
        return document["Statement"]

    @functools.cache
    def key_policy(self, key):
        policy = self.client("kms").get_key_policy(KeyId=self.outputs[key], PolicyName="default")["Policy"]
        # moto answers with the object where AWS answers with its text.
        statements = (policy if isinstance(policy, dict) else json.loads(policy))["Statement"]
        # And leaves a null where AWS::NoValue leaves nothing.
        return [one for one in statements if one is not None]

    def may(self, who, action, key, context=None):
        principal = who if who.startswith("arn:") else self.role(who)
        identity = [] if who.startswith("arn:") else self.identity(who)
        return allowed(principal, action, self.outputs[key], identity, self.key_policy(key), context, key=True)


class Tagged(yaml.SafeLoader):
    """YAML with CloudFormation's short forms, kept as they are written."""


Tagged.add_multi_constructor("!", lambda loader, suffix, node: (
    suffix, loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode)
    else loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else loader.construct_mapping(node, deep=True),
))
