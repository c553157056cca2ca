"""The evaluator itself: it allows what AWS allows, and says no for the right reason."""

import pytest

from iam import Unknown, allowed

ROLE = "arn:aws:iam::111122223333:role/gateway"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/1"
ADMINISTRATORS = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}
DIRECTLY = {"Effect": "Allow", "Principal": {"AWS": ROLE}, "Action": ["kms:Decrypt"], "Resource": "*"}


def policy(effect, action, resource="*", **more):
    return {"Version": "2012-10-17", "Statement": [{"Effect": effect, "Action": action, "Resource": resource, **more}]}


def decrypts(identity, key_policy, **context):
    return allowed(ROLE, "kms:Decrypt", KEY, identity, key_policy, {f"kms:{name}": value for name, value in context.items()}, key=True)


def test_without_a_word_it_is_no():
    assert not decrypts([], [])


def test_a_roles_policy_counts_for_a_key_only_where_the_key_hands_it_to_the_account():
    mine = [policy("Allow", "kms:Decrypt")]
    assert not decrypts(mine, [])
    assert decrypts(mine, [ADMINISTRATORS])
    assert not decrypts([], [ADMINISTRATORS])
    assert not decrypts(mine, [ADMINISTRATORS | {"Action": ["kms:Put*", "kms:Describe*"]}])


def test_the_keys_policy_alone_is_enough():
    assert decrypts([], [DIRECTLY])
    assert not decrypts([], [DIRECTLY | {"Principal": {"AWS": "arn:aws:iam::111122223333:role/other"}}])


@pytest.mark.parametrize("action", ["kms:Decrypt", "kms:*", "KMS:decrypt", "kms:De*"])
def test_a_deny_wins_wherever_it_stands(action):
    assert not decrypts([policy("Deny", action)], [DIRECTLY, ADMINISTRATORS])
    assert not decrypts([], [DIRECTLY, {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*"}])


def test_a_deny_of_something_else_changes_nothing():
    assert decrypts([policy("Deny", "kms:Sign"), policy("Deny", "kms:Decrypt", "arn:aws:kms:eu-central-1:111122223333:key/2")], [DIRECTLY])


def test_not_action_is_everything_else():
    apart_from = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "NotAction": "kms:GetPublicKey", "Resource": "*"}]}
    assert not decrypts([apart_from], [DIRECTLY])
    apart_from["Statement"][0]["NotAction"] = "kms:Decrypt"
    assert decrypts([apart_from], [DIRECTLY])


def test_not_resource_is_everywhere_else():
    apart_from = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "kms:*", "NotResource": KEY[:-1] + "2"}]}
    assert not decrypts([apart_from], [DIRECTLY])
    apart_from["Statement"][0]["NotResource"] = [KEY, KEY[:-1] + "2"]
    assert decrypts([apart_from], [DIRECTLY])


def test_null_asks_whether_a_value_is_there():
    unless_said = {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*", "Condition": {"Null": {"kms:EncryptionAlgorithm": "true"}}}
    assert not decrypts([], [DIRECTLY, unless_said])
    assert decrypts([], [DIRECTLY, unless_said], EncryptionAlgorithm="RSAES_OAEP_SHA_1")
    unless_said["Condition"] = {"Null": {"kms:EncryptionAlgorithm": "false"}}
    assert decrypts([], [DIRECTLY, unless_said])
    assert not decrypts([], [DIRECTLY, unless_said], EncryptionAlgorithm="RSAES_OAEP_SHA_1")


def test_a_condition_has_to_hold_and_an_absent_value_does_not_hold():
    only_oaep = DIRECTLY | {"Condition": {"StringEquals": {"kms:EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}}}
    assert decrypts([], [only_oaep], EncryptionAlgorithm="RSAES_OAEP_SHA_256")
    assert not decrypts([], [only_oaep], EncryptionAlgorithm="RSAES_OAEP_SHA_1")
    assert not decrypts([], [only_oaep])


def test_a_negated_condition_holds_for_an_absent_value():
    unless_oaep = {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
                   "Condition": {"StringNotEquals": {"kms:EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}}}
    assert not decrypts([], [DIRECTLY, unless_oaep])
    assert decrypts([], [DIRECTLY, unless_oaep], EncryptionAlgorithm="RSAES_OAEP_SHA_256")


def test_what_it_does_not_understand_it_does_not_judge():
    with pytest.raises(Unknown):
        decrypts([policy("Allow", "kms:Decrypt", Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}})], [ADMINISTRATORS])
    with pytest.raises(Unknown):
        decrypts([], [DIRECTLY | {"NotPrincipal": {"AWS": ROLE}}])
    with pytest.raises(Unknown):
        decrypts([], [DIRECTLY | {"Principal": {"Federated": "x"}}])
