"""Until there is an answer the same bytes are sent again; what a refusal means is what the registry says."""

import subprocess
import sys

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2

from pithead_device import Accepted, Refused, deliver, status_pb2
from pithead_device.client import BACKOFF_FIRST_S
from pithead_device.refusals import ENDS_THE_LINE, OF_THE_ENVELOPE, TEMPORARY
from vectors import WORKSPACE

TAKEN = Accepted("DISK", False, (1, 1))


def refusal(reason, retry_after_s=None, **metadata):
    return Refused(reason, "because", "UNAVAILABLE", retry_after_s, metadata)


class Gateway:
    """Answers in the order that it is given, then takes everything."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def submit(self, envelope):
        self.seen.append(envelope)
        answer = self.answers.pop(0) if self.answers else TAKEN
        if isinstance(answer, Refused):
            raise answer
        return answer


class Time:
    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def arguments(self, patience_s):
        return {"patience_s": patience_s, "sleep": self.sleep, "monotonic": lambda: self.now, "draw": lambda: 0.5}


def sealed(device, count):
    return [device.seal("can", bytes([n]), content_type="text/plain") for n in range(count)]


def test_the_same_bytes_are_sent_until_there_is_an_answer_and_forgotten_then(device):
    identities, time = sealed(device, 2), Time()
    gateway = Gateway(refusal("PEER_UNREACHABLE"), refusal("SPOOL_FULL", 7.0), Accepted("DISK", True, (1, 2)))
    done = deliver(device, gateway, **time.arguments(60))
    assert [identity for identity, _ in done.accepted] == identities and device.waiting() == []
    assert gateway.seen[0] == gateway.seen[1] == gateway.seen[2] != gateway.seen[3]
    assert time.slept == [BACKOFF_FIRST_S / 2, 7.0 + BACKOFF_FIRST_S]
    assert done.newer_statement


def test_when_patience_ends_everything_still_waits(device):
    identities, time = sealed(device, 2), Time()
    with pytest.raises(Refused) as refused:
        deliver(device, Gateway(*[refusal("DRAINING", 30.0)] * 9), **time.arguments(70))
    assert refused.value.is_temporary and sum(time.slept) <= 70
    assert device.waiting() == identities


def test_what_is_wrong_with_the_caller_ends_the_delivery_and_sets_nothing_aside(device, folder):
    identities = sealed(device, 1)
    for reason in ("CERTIFICATE_REVOKED", "ROLE_NOT_ALLOWED", "REQUEST_INVALID", "A_REASON_OF_NEXT_YEAR"):
        with pytest.raises(Refused):
            deliver(device, Gateway(refusal(reason)), **Time().arguments(60))
    assert device.waiting() == identities and not (folder / "outbox" / "refused").exists()


def test_what_is_wrong_with_one_envelope_is_set_aside_and_the_rest_goes_on(device):
    first, second, third = sealed(device, 3)
    done = deliver(device, Gateway(TAKEN, refusal("PROFILE_CONTEXT")))
    assert [i for i, _ in done.accepted] == [first, third] and [i for i, _ in done.refused] == [second]
    assert device.seal("can", b"").run == first.run


@pytest.mark.parametrize("reason", sorted(ENDS_THE_LINE))
def test_after_a_conflict_the_stream_begins_a_new_run(device, folder, reason):
    [first] = sealed(device, 1)
    deliver(device, Gateway(refusal(reason)))
    assert device.seal("can", b"").run > first.run
    assert len(list((folder / "outbox" / "refused").glob("*.envelope"))) == 1


def test_a_conflict_that_the_gateway_kept_is_not_kept_twice(device, folder):
    sealed(device, 1)
    deliver(device, Gateway(refusal("CONFLICT", kept="true")))
    assert device.waiting() == [] and not (folder / "outbox" / "refused").exists()


class Ended(grpc.RpcError):
    def __init__(self, code, details, trailing):
        self._code, self._details, self._trailing = code, details, trailing

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailing


def test_a_status_is_read_with_its_reason_and_its_wait():
    info = status_pb2.ErrorInfo(reason="SPOOL_FULL", domain="pithead", metadata={"held": "3"})
    foreign = status_pb2.ErrorInfo(reason="SOMETHING", domain="example.com")
    retry = status_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=9_000))
    pack = lambda kind, message: any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=message.SerializeToString())
    details = [pack("ErrorInfo", info), pack("RetryInfo", retry), pack("Help", info), pack("ErrorInfo", foreign)]
    encoded = status_pb2.Status(code=8, details=details).SerializeToString()
    refused = Refused.of(Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-status-details-bin", encoded),)))
    assert (refused.reason, refused.code, refused.metadata, refused.retry_after_s) == ("SPOOL_FULL", "PH-3003", {"held": "3"}, 3_600)

    for trailing in ((("grpc-status-details-bin", b"\xff\xff"),), (), None):
        refused = Refused.of(Ended(grpc.StatusCode.UNAVAILABLE, "failed to connect", trailing))
        assert (refused.reason, refused.is_temporary) == ("PEER_UNREACHABLE", True)
    unknown = refusal("A_REASON_OF_NEXT_YEAR")
    assert unknown.code == "PH-0" and not unknown.is_temporary and not unknown.is_of_the_envelope


def test_reasons_are_of_the_registry_and_waiting_helps_where_it_says_so():
    rows = [[cell.strip() for cell in line.split("|")] for line in (WORKSPACE / "docs" / "errors.md").read_text().splitlines()]
    retry = {row[2].strip("`"): row[6] for row in rows if len(row) > 7 and row[1].startswith("PH-")}
    assert len(retry) > 100
    assert {retry[reason] for reason in TEMPORARY} == {"yes"}
    assert {retry[reason] for reason in OF_THE_ENVELOPE} == {"no"}
    families = {name for name, again in retry.items() if name.startswith(("ENVELOPE_", "PROFILE_", "SIGNATURE_")) and again == "no"}
    assert families <= OF_THE_ENVELOPE


def test_a_device_never_loads_the_module_that_opens():
    loaded = "import sys, pithead_device.__main__; print('pithead_device.envelope.opening' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True).stdout.strip() == b"False"
