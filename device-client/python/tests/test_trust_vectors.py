"""Every conformance case of trust: the codes and the end state are identical, in one go and with restarts between steps."""

import dataclasses
import json

import pytest

from pithead_device.trust import Bundle, Clock, Trust, record
from pithead_device.errors import TrustRefused
from vectors import VECTORS

CASES = json.loads((VECTORS / "trust.json").read_text())


def bundle(step):
    unhex = bytes.fromhex
    statement = unhex(step["stmt"]) if step["stmt"] is not None else None
    return Bundle([unhex(root) for root in step["roots"]], statement, [unhex(spki) for spki in step["spki"]])


@pytest.mark.parametrize("restarts", [False, True], ids=["in one go", "with restarts"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_every_case_has_its_codes_and_its_end(case, restarts):
    given, clock = case["device"], Clock()
    trust = Trust.provision(given["authority"], given["site"], bytes.fromhex(given["root"]))
    for number, step in enumerate(case["steps"]):
        clock = Clock(clock.uptime_s + step["uptime_add"], step["trusted_now"])
        trust, refused = trust.apply(bundle(step), clock)
        assert (refused.trust_code if refused else "OK") == step["expect"], f"step {number}"
        if restarts:
            trust = record.restore(record.encode(trust, clock))
            clock = dataclasses.replace(clock, uptime_s=0)
    found = {
        "final_status": trust.status(clock).value, "final_seq": trust.version[1], "final_root": trust.root.version,
    }
    assert found == {name: value for name, value in case.items() if name.startswith("final_")}


def test_there_are_as_many_cases_as_there_were():
    assert len(CASES) >= 46
    assert {step["expect"] for case in CASES for step in case["steps"]} >= {"OK", "THRESHOLD", "ROLLBACK", "UNANNOUNCED"}


def test_the_committed_record_reads_back_and_is_written_the_same():
    committed = bytes.fromhex((VECTORS / "trust-state-v1.hex").read_text().strip())
    trust = record.restore(committed)
    assert record.encode(trust, Clock()) == committed
    assert (trust.root.version, trust.version, trust.operated_s(Clock(5))) == (2, (1, 2), 1805)


@pytest.mark.parametrize("at", range(0, 1900, 37))
def test_a_record_with_a_changed_bit_is_refused(at):
    committed = bytearray.fromhex((VECTORS / "trust-state-v1.hex").read_text().strip())
    committed[at] ^= 4
    with pytest.raises(TrustRefused) as refused:
        record.restore(bytes(committed))
    assert refused.value.trust_code == "STATE"
