"""Alerts from the declaration: promtool takes the rules, each fires when it should, and is silent when it should not."""

import re
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from prometheus_client.exposition import generate_latest

from freshet.flows.edges.metrics import Metrics, ServerMetrics, ValidatorMetrics
from freshet.flows.lag import families
from freshet.flows.steps.alerts import Alert, alerts_of, rules_file, rules_test
from freshet.flows.steps.monitoring import Deployed
from freshet.schemas import declaration
from freshet.schemas.dtypes import dtype
from freshet.schemas.finding import Cause
from freshet.schemas.plan import Oracle, Pipeline, ViewPlan
from freshet.schemas.view import Feature, View

INT = dtype("int64")
assert INT is not None


def view(name: str, sources: tuple[str, ...], *features: str) -> View:
    assert INT is not None
    return View(name, sources, (), tuple(Feature(feature, INT, "1") for feature in features))


VIEWS = (
    view("by_user", ("clicks",), "clicks_1h", "clicks_1d"),
    view("by_item", ("clicks",), "item_clicks_1h"),
    view("by_both", ("clicks", "orders"), "both_1h"),
)
PIPELINE = Pipeline(
    "shop", tuple(ViewPlan(one, (), pa.schema([]), (), (), "", Oracle((), ""), whole_history=False) for one in VIEWS)
)
TOPICS = {"clicks": "clicks", "orders": "orders.v1"}


def declared(freshness: str = "p99 < 2s", latency: str = "p99 < 10ms") -> declaration.Declaration:
    text = f"""
project: shop
featureDefinitions: [{{name: a, dtype: int64, source: clicks, transformation: b}}]
servingRequirements: {{freshnessTarget: "{freshness}", onlineLatency: "{latency}", offlineVolume: 10GB/day}}
"""
    return declaration.read(text).declaration


def made(
    freshness: str = "p99 < 2s", epoch: timedelta = timedelta(seconds=1), latency: str = "p99 < 10ms"
) -> tuple[Alert, ...]:
    return alerts_of(declared(freshness, latency), PIPELINE, TOPICS, epoch)


def named(name: str, alerts: tuple[Alert, ...]) -> list[Alert]:
    return [alert for alert in alerts if alert.name == name]


def test_each_topic_is_late_by_the_declared_bound_and_the_time_between_commits() -> None:
    alerts = named("FreshetLag", made("p99 < 5 minutes", timedelta(seconds=10)))

    assert [alert.expr for alert in alerts] == [
        f'max by (topic) (freshet_lag_seconds{{consumergroup="freshet-shop-materializer",topic="{topic}"}}) > 310'
        for topic in ("clicks", "orders.v1")
    ]


def test_an_alert_names_the_views_and_features_that_it_concerns_and_its_runbook() -> None:
    of_orders = named("FreshetLag", made())[1].annotations
    of_item = next(alert for alert in named("FreshetSkew", made()) if alert.views == (VIEWS[1],)).annotations

    assert (of_orders["views"], of_orders["features"]) == ("by_both", "both_1h")
    assert (of_item["views"], of_item["features"]) == ("by_item", "item_clicks_1h")
    assert of_item["runbook_url"] == "deploy/runbooks/FreshetSkew.md"
    for alert in made():
        assert {"summary", "description", "views", "features", "runbook_url", "dashboard_url"} == {*alert.annotations}
        assert all(alert.annotations.values()), alert.name
        assert (alert.rule["labels"]["project"], alert.rule["labels"]["severity"]) == ("shop", alert.severity)
        assert alert.severity in {"page", "ticket"}


@pytest.mark.parametrize(
    ("freshness", "limits"),
    [
        ("p99 < 2s", {"page": ["0.144", "0.06"], "ticket": ["0.03", "0.01"]}),
        ("p90 < 2s", {"page": ["0.6"], "ticket": ["0.3", "0.1"]}),  # 14.4 times a tenth is more than all looks
        ("p50 < 2s", {"ticket": ["0.5"]}),
    ],
)
def test_the_budget_burns_by_the_declared_share_and_no_rule_can_never_fire(
    freshness: str, limits: dict[str, list[str]]
) -> None:
    burns = [alert for alert in made(freshness) if alert.name.startswith("FreshetFreshnessBurns")]
    found = {
        alert.severity: re.findall(r"> (0\.\d+) and sum by \(feature_view\) \(rate", alert.expr) for alert in burns
    }

    assert found == limits


@pytest.mark.parametrize(
    ("latency", "limits"),
    [
        ("p99.9 < 1.7ms", {"page": ["0.0144", "0.006"], "ticket": ["0.003", "0.001"]}),
        ("p90 < 1s", {"page": ["0.6"], "ticket": ["0.3", "0.1"]}),
        ("p50 < 1s", {"ticket": ["0.5"]}),
    ],
)
def test_the_declared_latency_is_an_objective_of_the_same_kind(latency: str, limits: dict[str, list[str]]) -> None:
    alerts = named("FreshetOnlineLatency", made(latency=latency))
    found = {alert.severity: re.findall(r"> (0\.\d+) and 1 - sum", alert.expr) for alert in alerts}

    assert found == limits
    assert all(latency.replace("1.7ms", "1700us") in alert.summary for alert in alerts)


@pytest.mark.parametrize("latency", ["10ms", "1.7ms", "p95 < 50us", "1s", "90s", "30 days"])
def test_a_late_answer_is_told_by_a_bucket_that_is_exported(latency: str) -> None:
    bound = declared(latency=latency).servingRequirements.onlineLatency.bound
    text = generate_latest(ServerMetrics(["by_user"], bound).registry).decode()
    exported = re.findall(r'freshet_request_duration_seconds_bucket{endpoint="get-online-features",(le=".+?")}', text)

    for alert in named("FreshetOnlineLatency", made(latency=latency)):
        asked = re.findall(r"freshet_request_duration_seconds_bucket{[^}]*(le=[^},]+)", alert.expr)
        assert asked
        assert {*asked} <= {*exported}


def test_what_is_served_of_a_view_has_its_alert_by_name_and_topic() -> None:
    labels = [alert.rule["labels"] for alert in named("FreshetServedStale", made())]

    assert [("by_user", "clicks"), ("by_item", "clicks"), ("by_both", None)] == [
        (one["feature_view"], one.get("topic")) for one in labels if one["severity"] == "page"
    ]


def test_runbooks_and_dashboards_are_where_settings_say() -> None:
    pages = Deployed(runbook_url="https://git.example/runbooks/", grafana_url="https://grafana.example")

    for alert in alerts_of(declared(), PIPELINE, TOPICS, timedelta(seconds=1), pages):
        assert alert.annotations["runbook_url"] == f"https://git.example/runbooks/{alert.name}.md"
        assert alert.annotations["dashboard_url"].startswith("https://grafana.example/d/freshet-")
        assert alert.runbook == f"deploy/runbooks/{alert.name}.md"


def test_without_a_validator_no_rule_is_about_it_or_what_only_it_sees() -> None:
    exported = generate_latest(ValidatorMetrics(VIEWS, {one.name: () for one in VIEWS}).registry).decode()
    names = {*re.findall(r"^# TYPE (freshet_\w+)", exported, re.MULTILINE)}
    without = alerts_of(declared(), PIPELINE, TOPICS, timedelta(seconds=1), Deployed(has_validator=False))

    asked = {alert.name: {*re.findall(r"\bfreshet_\w+", alert.expr)} for alert in made()}
    assert {alert.name for alert in made()} - {alert.name for alert in without} == {
        name for name, metrics in asked.items() if metrics & names
    }


def test_every_cause_of_a_finding_is_a_page_or_a_ticket_and_none_is_both() -> None:
    of_user = [alert for alert in named("FreshetSkew", made()) if alert.views == (VIEWS[0],)]
    by_severity = {}
    for alert in of_user:
        found = re.search(r'cause(=~|!~)"([^"]+)"', alert.expr)
        assert found is not None
        matched = {cause for cause in Cause if cause.value in found[2].split("|")}
        by_severity[alert.severity] = matched if found[1] == "=~" else {*Cause} - matched

    assert by_severity["page"] | by_severity["ticket"] == {*Cause}
    assert not by_severity["page"] & by_severity["ticket"]


def test_every_expression_names_metrics_that_are_exported() -> None:
    registries = [
        Metrics(["clicks"], ["by_user"]).registry,
        ValidatorMetrics(VIEWS, {one.name: () for one in VIEWS}).registry,
        ServerMetrics(["by_user"], timedelta(milliseconds=10)).registry,
    ]
    families_ = [
        *(family for registry in registries for family in registry.collect()),
        *families("freshet-shop-materializer", {}),
    ]
    exported = {name for family in families_ for name in (family.name, f"{family.name}_total")}
    exported |= {"freshet_lag_sampled_timestamp_seconds", "freshet_request_duration_seconds_bucket"}

    for alert in made():
        for name in re.findall(r"\b(?:freshet|kafka)_\w+", alert.expr):
            assert name in exported, f"{alert.name} asks for {name}"


def test_every_rule_is_tried_where_it_fires_and_where_it_is_silent() -> None:
    alerts = made()
    tests = [test["alert_rule_test"][0] for test in rules_test(alerts)["tests"]]

    for alert in alerts:
        labels = alert.rule["labels"]
        fired = [
            any(labels.items() <= one["exp_labels"].items() for one in test["exp_alerts"])
            for test in tests
            if test["alertname"] == alert.name
        ]
        assert {*fired} == {True, False}, (alert.name, labels)


@pytest.mark.parametrize(
    ("freshness", "epoch", "latency"),
    [
        ("p90 < 90s", timedelta(seconds=9), "p99.9 < 1.7ms"),
        ("p50 < 10ms", timedelta(minutes=9), "p50 < 2s"),
        ("p99.99 < 36h", timedelta(hours=1), "p85 < 50us"),
    ],
)
def test_rules_and_tests_hold_whatever_is_declared(
    promtool: str, tmp_path: Path, freshness: str, epoch: timedelta, latency: str
) -> None:
    """What the declaration is part of; tests/test_cli.py tries all rules of the repository's own."""
    usual = {alert.expr for alert in made()}
    alerts = [alert for alert in made(freshness, epoch, latency) if alert.expr not in usual]
    changed = {"FreshetLag", "FreshetRetentionNear", "FreshetCheckpointOld", "FreshetOnlineLatency"}
    assert changed <= {alert.name for alert in alerts}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules_file(alerts, "shop")))
    (tmp_path / "rules_test.yml").write_text(yaml.safe_dump(rules_test(alerts)))

    for words in (["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_never_fires_fails_its_test(promtool: str, tmp_path: Path) -> None:
    """So the tests can fail: promtool says so."""
    alerts = [replace(alert, expr=f"({alert.expr}) < -1") for alert in named("FreshetLag", made())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules_file(alerts, "shop")))
    (tmp_path / "rules_test.yml").write_text(yaml.safe_dump(rules_test(alerts)))

    words = [promtool, "test", "rules", "rules_test.yml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stdout + done.stderr
