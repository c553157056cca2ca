"""Would AWS allow it? A small evaluator of identity policies and key policies, for the few things that our template uses.

The rules are those of "Policy evaluation logic" and "Key policies" in AWS's documentation, within one account:

- an explicit Deny anywhere that matches is final;
- a key's policy that allows the role itself is enough;
- a key's policy that allows the account (its root) hands the decision to the role's own policies;
- a bucket's policy or the role's own is enough.

What it does not know it refuses to judge (`Unknown`), and never counts as no match: a policy that says something new has to
be looked at by whoever writes it.
"""

import fnmatch


class Unknown(Exception):
    """A policy says something that this evaluator does not understand."""


def as_list(value):
    return value if isinstance(value, list) else [value]


def _like(pattern, value):
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def _condition_holds(operator, key, wanted, context):
    value = context.get(key)
    wanted = [str(one) for one in as_list(wanted)]
    match operator:
        case "StringEquals" | "ArnEquals":
            return value is not None and value in wanted
        # A negated operator holds where the key is absent.
        case "StringNotEquals":
            return value is None or value not in wanted
        case "StringLike" | "ArnLike":
            return value is not None and any(_like(pattern, value) for pattern in wanted)
        case "Null":
            return all((value is None) == (one == "true") for one in wanted)
        case "Bool":
            return value is not None and str(value).lower() in [one.lower() for one in wanted]
        case "NumericLessThan":
            return value is not None and all(float(value) < float(one) for one in wanted)
        case _:
            raise Unknown(f"condition operator {operator}")


def _matches(statement, action, resource, context):
    known = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "Condition"}
    if set(statement) - known:
        raise Unknown(f"elements {set(statement) - known}")
    actions = [one.lower() for one in as_list(statement.get("Action", statement.get("NotAction")))]
    if any(_like(one, action.lower()) for one in actions) == ("NotAction" in statement):
        return False
    resources = as_list(statement.get("Resource", statement.get("NotResource", "*")))
    if any(_like(one, resource) for one in resources) == ("NotResource" in statement):
        return False
    return all(
        _condition_holds(operator, key, wanted, context)
        for operator, pairs in statement.get("Condition", {}).items()
        for key, wanted in pairs.items()
    )


def _names(statement, principal):
    named = statement.get("Principal")
    if named == "*":
        return True
    if not isinstance(named, dict) or set(named) - {"AWS", "Service"}:
        raise Unknown(f"principal {named}")
    return any(one in ("*", principal) for one in as_list(named.get("AWS", [])))


def allowed(principal, action, resource, identity, on_resource=(), context=None, key=False):
    """`identity`: the role's policies; `on_resource`: the statements of the policy on the key or the bucket."""
    context = {"aws:SecureTransport": "true", "s3:TlsVersion": "1.3"} | (context or {})
    root = f"arn:aws:iam::{principal.split(':')[4]}:root"
    own = [one for policy in identity for one in as_list(policy["Statement"]) if _matches(one, action, resource, context)]
    said = [one for one in on_resource if _matches(one, action, resource, context)]
    there = [one for one in said if _names(one, principal)]
    handed_on = [one for one in said if _names(one, root)]
    if any(one["Effect"] == "Deny" for one in own + there):
        return False
    by_resource = any(one["Effect"] == "Allow" for one in there)
    by_identity = any(one["Effect"] == "Allow" for one in own)
    if key:
        # IAM policies say something about a key only where its own policy hands it to the account.
        return by_resource or (by_identity and any(one["Effect"] == "Allow" for one in handed_on))
    return by_resource or by_identity
