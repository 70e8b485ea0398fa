"""Alert rules from the declaration: promtool takes them, and they fire when they should."""

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from freshet.flows.steps.alerts import lag_alerts, rules_file, rules_test
from freshet.schemas import declaration, units
from freshet.schemas.plan import Pipeline
from freshet.schemas.view import View

PIPELINE = Pipeline("shop", ())
VIEW = View("by_user", ("clicks",), (), ())


def declared(freshness: str = "p99 < 2s") -> declaration.Declaration:
    text = f"""
project: shop
featureDefinitions: [{{name: a, dtype: int64, source: clicks, transformation: b}}]
servingRequirements: {{freshnessTarget: "{freshness}"}}
"""
    return declaration.read(text).declaration


def test_each_topic_has_one_rule_with_the_declared_bound() -> None:
    rules = lag_alerts(declared("p99 < 5 minutes"), PIPELINE, ["clicks", "orders"])

    assert [rule["expr"] for rule in rules] == [
        f'max by (topic) (freshet_lag_seconds{{consumergroup="freshet-shop-materializer",topic="{topic}"}}) > 300'
        for topic in ("clicks", "orders")
    ]
    assert rules_file(rules, "shop") == {"groups": [{"name": "freshet-shop", "rules": rules}]}


def test_a_bound_below_a_second_keeps_its_digits() -> None:
    (rule,) = lag_alerts(declared("p99 < 10ms"), PIPELINE, ["clicks"])

    assert rule["expr"].endswith("> 0.01")


def test_a_long_bound_is_the_declared_number() -> None:
    (rule,) = lag_alerts(declared("p99 < 1234567s"), PIPELINE, ["clicks"])

    assert float(rule["expr"].rpartition("> ")[2]) == 1234567


@pytest.mark.parametrize("freshness", ["p99 < 2s", "10ms", "1234ms", "5 minutes", "90 s", "1h", "36h", "100 days"])
def test_promtool_takes_the_rules_and_their_tests_hold(promtool: str, tmp_path: Path, freshness: str) -> None:
    said = declared(freshness)
    assert units.objective(freshness).bound > timedelta(0)
    alerts = lag_alerts(said, PIPELINE, ["clicks", "orders.v1"])
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules_file(alerts, "shop")))
    (tmp_path / "rules_test.yml").write_text(yaml.safe_dump(rules_test(alerts, said)))

    for words in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
