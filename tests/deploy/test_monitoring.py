"""Rules, dashboard and the sample configurations of Prometheus and Alertmanager: they parse, they fire, they name what exists,
and each alert leads to a runbook that leads back."""

import json
import os
import re

import pytest
import yaml

import rehearsal
from site_on_loopback import LoopbackSite
from tools import DEPLOY, ask, content, template

PROMETHEUS, WORKSPACE = DEPLOY / "prometheus", DEPLOY.parent
RULES = PROMETHEUS / "pithead.rules.yml"
REFERENCE = WORKSPACE / "docs" / "reference" / "metrics.md"
RUNBOOKS = WORKSPACE / "docs" / "runbooks"
TESTS = sorted(PROMETHEUS.glob("*.test.yml"))


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads((DEPLOY / "grafana" / "pithead.json").read_text())


def panels():
    return [one for one in dashboard()["panels"] if one["type"] != "row"]


def expressions():
    """Every expression of the dashboard, with Grafana's variables filled in."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    targets += [one["expr"] for one in dashboard()["annotations"]["list"]]
    return [expr.replace("$instance", ".*").replace("$__rate_interval", "2m") for expr in targets]


def test_prometheus_takes_the_rules_and_the_sample():
    content("promtool", "check", "rules", RULES)
    content("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_alerts_fire_when_they_should_and_not_otherwise(path):
    content("promtool", "test", "rules", path)


def test_every_alert_fires_in_one_of_the_tests():
    told = "\n".join(path.read_text() for path in TESTS)
    fired = set(re.findall(r'alertname="(\w+)"[^}]*}\', value: [1-9]', told))
    assert fired == {rule["alert"] for rule in rules()}


def test_alertmanager_takes_the_sample_and_sends_each_severity_where_it_belongs():
    sample = PROMETHEUS / "alertmanager.yml"
    content("amtool", "check-config", sample)
    for severity, receiver in (("page", "page"), ("ticket", "ticket"), ("info", "nobody")):
        said = content("amtool", "config", "routes", "test", f"--config.file={sample}", f"severity={severity}")
        assert said.strip().splitlines()[-1] == receiver or receiver in said.split()
    known = {rule["alert"] for rule in rules()}
    for one in yaml.safe_load(sample.read_text())["inhibit_rules"]:
        for matcher in one["source_matchers"] + one["target_matchers"]:
            pattern = re.search(r'alertname=~?"([^"]+)"', matcher).group(1)
            assert [name for name in known if re.fullmatch(pattern, name)], f"{pattern} is no alert"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_happened_what_it_means_and_where_to_read_on(rule):
    assert rule["labels"]["severity"] in ("page", "ticket", "info")
    assert set(rule["annotations"]) == {"summary", "meaning", "runbook"}
    runbook = WORKSPACE / rule["annotations"]["runbook"]
    assert runbook.is_file() and runbook.parent == RUNBOOKS
    assert f"`{rule['alert']}`" in runbook.read_text(), f"{runbook.name} does not speak of {rule['alert']}"


def test_a_runbook_speaks_of_no_alert_that_does_not_exist():
    known = {rule["alert"] for rule in rules()}
    for path in RUNBOOKS.glob("*.md"):
        assert set(re.findall(r"`(Pithead[A-Z]\w+)`", path.read_text())) <= known, path.name


def test_every_expression_of_the_dashboard_parses(tmp_path):
    recorded = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    content("promtool", "check", "rules", tmp_path / "panels.yml")
    recorded[0]["expr"] += " by ("
    (tmp_path / "broken.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert ask("promtool", "check", "rules", tmp_path / "broken.yml")[0] != 0


def test_every_panel_says_what_it_shows_in_which_unit_and_from_where():
    board = dashboard()
    assert {one["name"]: one["type"] for one in board["templating"]["list"]} == {"datasource": "datasource", "instance": "query"}
    identities = [one["id"] for one in board["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in panels():
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"] and all(one["datasource"]["uid"] == "${datasource}" and one["legendFormat"] for one in panel["targets"])
    taken = set()
    for place in (one["gridPos"] for one in board["panels"]):
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells and place["x"] + place["w"] <= 24, "no panel covers another"
        taken |= cells


def named_metrics():
    """Every metric that a rule or a panel names."""
    text = " ".join([*(rule["expr"] for rule in rules()), *expressions()])
    return set(re.findall(r"\b((?:pithead|process|rpc_server)_[a-z0-9_]+)\b", text))


def series(name):
    """The name under which the reference and a scrape declare it."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """What a running gateway and a running decryptor declare, after some work."""
    with LoopbackSite(tmp_path_factory.mktemp("scraped")) as site:
        site.send("truck-1", 5)
        site.until_delivered("truck-1", 5)
        pages = [server.get("/metrics")[1] for server in (site.gateway, site.decryptor)]
    for page in pages:
        assert page.endswith("# EOF\n")
    return pages


def declared(pages):
    """Each family's name as its series have it: a counter's end with `_total`."""
    found = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", "\n".join(pages), re.MULTILINE):
        found[name + {"counter": "_total", "info": "_info"}.get(kind, "")] = kind
    return found


# On the page from their first event on: labelled by a reason, or by a site of an authority that this decryptor has not got.
# That they exist is then said by the reference alone.
WITH_THEIR_FIRST_EVENT = {
    "pithead_ingest_refusals_total", "pithead_decryptor_refused_total", "pithead_authority_statement_due_timestamp_seconds",
}


# What programs have that know the engine or the bucket, by the words of their configuration.
OF_ENGINES = {
    ("pithead-gateway", "[spool.jetstream]"): {"pithead_spool_owner"},
    ("pithead-gateway", "[relay.store]"): {"pithead_relay_bundles_total", "pithead_relay_bundle_bytes_total"},
    ("pithead-decryptor", "[source]"): {
        "pithead_bundles_total", "pithead_bundles_waiting", "pithead_bundle_oldest_timestamp_seconds", "pithead_queue_messages_total",
        "pithead_ledger_number", "pithead_ledger_unfinished", "pithead_ledger_entries_won_total", "pithead_ledger_entries_lost_total",
        "pithead_bundle_bytes_total", "pithead_sink_object_bytes_total",
    },
}
# On the page where there is a bucket, by its sites.
WITH_A_BUCKET = {"pithead_ledger_number", "pithead_ledger_unfinished", "pithead_bundle_oldest_timestamp_seconds"}


def not_here_yet():
    """Metrics of engines that these programs are too old for. Empty when all of them know all."""
    return set().union(*(metrics for (name, words), metrics in OF_ENGINES.items() if words not in template(name)))


def test_every_metric_that_is_named_is_one_that_the_programs_have(scraped):
    missing = {series(name) for name in named_metrics()} - set(declared(scraped)) - WITH_THEIR_FIRST_EVENT - WITH_A_BUCKET
    assert missing <= not_here_yet()


def test_a_histogram_is_asked_for_its_buckets_and_nothing_else_is(scraped):
    kinds = declared(scraped)
    for name in named_metrics():
        if series(name) in kinds:
            assert (kinds[series(name)] == "histogram") == (series(name) != name), name


def test_every_metric_that_is_named_is_in_the_reference():
    if not REFERENCE.exists() and os.environ.get("CI") != "true":
        pytest.skip("the reference of metrics is not here yet")
    reference = REFERENCE.read_text()
    missing = {series(name) for name in named_metrics() if f"`{series(name)}`" not in reference}
    assert missing <= not_here_yet()


def test_alerts_fire_in_a_real_prometheus_when_the_wan_is_cut_and_when_keys_and_certificates_end(capsys):
    """The first part of tests/deploy/alerts, which has the rest."""
    rehearsal.main(short=True)
    said = capsys.readouterr().out
    for alert in ("PitheadStatementExpiresSoon", "PitheadCertificateExpiresSoon", "PitheadWanDown"):
        assert re.search(rf"fired +{alert} ", said)
    assert "resolved  PitheadWanDown" in said


def test_no_device_is_a_label(scraped):
    assert not re.search(r'\b(device|device_id|truck)="', "\n".join(scraped))
