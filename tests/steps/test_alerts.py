"""Alerts from the declaration: promtool takes the rules, each fires when it should, and is silent when it should not."""

import re
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from freshet.flows.edges.metrics import Metrics, ValidatorMetrics
from freshet.flows.lag import families
from freshet.flows.steps.alerts import Alert, alerts_of, rules_file, rules_test
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


def declared(freshness: str = "p99 < 2s", volume: str = "10GB/day") -> declaration.Declaration:
    text = f"""
project: shop
featureDefinitions: [{{name: a, dtype: int64, source: clicks, transformation: b}}]
servingRequirements: {{freshnessTarget: "{freshness}", offlineVolume: {volume}}}
"""
    return declaration.read(text).declaration


def made(freshness: str = "p99 < 2s", epoch: timedelta = timedelta(seconds=1)) -> tuple[Alert, ...]:
    return alerts_of(declared(freshness), PIPELINE, TOPICS, epoch)


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
    ]
    families_ = [
        *(family for registry in registries for family in registry.collect()),
        *families("freshet-shop-materializer", {}),
    ]
    exported = {name for family in families_ for name in (family.name, f"{family.name}_total")}
    exported.add("freshet_lag_sampled_timestamp_seconds")

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
    ("freshness", "epoch"),
    [("p90 < 90s", timedelta(seconds=9)), ("p50 < 10ms", timedelta(minutes=9)), ("p99.99 < 36h", timedelta(hours=1))],
)
def test_rules_and_tests_hold_whatever_is_declared(
    promtool: str, tmp_path: Path, freshness: str, epoch: timedelta
) -> None:
    """What the declared freshness is part of; tests/test_cli.py tries all rules of the repository's declaration."""
    usual = {alert.expr for alert in made()}
    alerts = [alert for alert in made(freshness, epoch) if alert.expr not in usual]
    assert {"FreshetLag", "FreshetRetentionNear", "FreshetCheckpointOld"} <= {alert.name for alert in alerts}
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
