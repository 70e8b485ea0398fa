"""Dashboards from the declaration: Grafana's form, promtool's grammar, and no metric that nobody exports."""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from freshet.flows.edges.metrics import Metrics, ServerMetrics, ValidatorMetrics
from freshet.flows.lag import LagExporter
from freshet.flows.steps.burrow import Status
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.dashboards import dashboard_files, dashboards
from freshet.flows.steps.freshness import WINDOWS
from freshet.flows.steps.lag import Lag
from freshet.flows.steps.monitoring import dashboard_uid
from freshet.schemas import declaration
from freshet.schemas.dtypes import dtype
from freshet.schemas.view import Feature, View
from freshet.scripts.cli import VERBS

FEATURE = Feature("clicks_1h", dtype("int64"), "count(*) OVER w", 'a "count" of | clicks')
LONG = "orders_of_those_who_came_back_within_a_month_by_customer"
VIEWS = (
    View("clicks_by_user", ("clicks",), (pa.field("user", pa.string()),), (FEATURE,)),
    View(LONG, ("clicks", "orders"), (pa.field("customer", pa.int64()),), (FEATURE,)),
)
EPOCH = timedelta(seconds=2)
TOPICS = {"clicks": "clicks", "orders": "shop.orders"}
DECLARED = declaration.read("""
project: shop
featureDefinitions: [{name: a, dtype: int64, source: clicks, transformation: b}]
servingRequirements: {onlineLatency: p95 < 3ms, freshnessTarget: p99.9 < 500ms, offlineVolume: 50GB/day}
""").declaration
DASHBOARDS = {made["title"].removeprefix("Freshet: "): made for made in dashboards(DECLARED, VIEWS, TOPICS, EPOCH)}
PROMETHEUS_OWN = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity", "project"}}


def panels(title: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[title]["panels"] if panel["type"] != "row"]


def expressions(made: dict[str, Any]) -> Iterator[str]:
    for panel in made["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (annotation["expr"] for annotation in made["annotations"]["list"])


def expression(title: str, panel_title: str, place: int = 0) -> str:
    (panel,) = [panel for panel in panels(title) if panel["title"] == panel_title]
    return str(panel["targets"][place]["expr"])


def exported() -> dict[str, set[str]]:
    """Return the names of all series that our processes export, each with its labels."""
    lag = LagExporter("group", lambda: pytest.fail("Kafka is not asked"))  # type: ignore[arg-type, return-value]
    times = dict.fromkeys(("age_s", "drain_s", "breach_s", "retention_left_s"), 1.0)
    lag.note({("clicks", 0): Lag(end_offset=1, messages_count=1, is_exact=True, status=Status.OK, **times)}, 1.0)
    materializer = Metrics([*TOPICS], [view.name for view in VIEWS])
    target = DECLARED.servingRequirements.freshnessTarget
    validator = ValidatorMetrics(VIEWS, {view.name: checks_of(view, target) for view in VIEWS}, ["topic"], WINDOWS)
    validator.canaries.labels("clicks/0", "online")
    server = ServerMetrics([view.name for view in VIEWS], DECLARED.servingRequirements.onlineLatency.bound)
    samples = [
        sample
        for collector in (materializer.registry, validator.registry, server.registry, lag)
        for family in collector.collect()
        for sample in family.samples
    ]
    return {sample.name: set(sample.labels) | {"job", "instance"} for sample in samples}


def test_there_is_one_of_each_kind_and_one_for_each_view() -> None:
    assert ["overview", "clicks_by_user", LONG, "lag", "validation", "serving"] == list(DASHBOARDS)
    assert ["freshet-overview", "freshet-view-clicks_by_user"] == [made["uid"] for made in DASHBOARDS.values()][:2]


def test_uids_are_different_and_as_short_as_grafana_wants_them() -> None:
    uids = [made["uid"] for made in DASHBOARDS.values()] + [
        dashboard_uid("view", f"{LONG}_{place}") for place in range(9)
    ]

    assert len({*uids}) == len(uids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", uid) for uid in uids)


def test_files_are_json_of_the_dashboards_and_the_same_every_time() -> None:
    files = dashboard_files(DECLARED, VIEWS, TOPICS, EPOCH)

    assert [*DASHBOARDS.values()] == [json.loads(text) for text in files.values()]
    assert files == dashboard_files(DECLARED, VIEWS, TOPICS, EPOCH)
    assert "deploy/grafana/dashboards/freshet-lag.json" in files


@pytest.mark.parametrize("title", DASHBOARDS)
def test_grafana_finds_everything_it_needs(title: str) -> None:
    made = DASHBOARDS[title]

    assert "id" not in made
    assert ("freshet", 39) == (made["tags"][0], made["schemaVersion"])
    assert made["links"][0]["tags"] == ["freshet"]
    assert [("datasource", "prometheus")] == [(one["type"], one["query"]) for one in made["templating"]["list"]]
    assert made["description"]
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    for panel in panels(title):
        assert panel["title"]
        assert panel["description"]
        assert panel["type"] == "text" or panel["targets"]
        assert len({target["refId"] for target in panel.get("targets", [])}) == len(panel.get("targets", []))
        steps = panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {"steps": []})["steps"]
        assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:])
    assert len({panel["title"] for panel in panels(title)}) == len(panels(title))


@pytest.mark.parametrize("title", DASHBOARDS)
def test_panels_are_on_the_grid_side_by_side(title: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[title]["panels"]:
        grid = panel["gridPos"]
        own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert own
        assert max(x for x, _ in own) < 24
        assert not own & taken, panel["title"]
        taken |= own


def test_promtool_takes_every_expression(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard{number}:panel{place}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, made in enumerate(DASHBOARDS.values())
        for place, expr in enumerate(expressions(made))
    ]
    assert len(rules) > 100
    assert not [rule for rule in rules if "$" in rule["expr"]]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))

    done = subprocess.run(
        [promtool, "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_expression_names_metrics_that_are_exported_and_labels_that_they_have() -> None:
    known = {**exported(), **PROMETHEUS_OWN}

    for made in DASHBOARDS.values():
        for expr in expressions(made):
            labelled = re.findall(r"([a-zA-Z_]\w*)\{([^}]*)\}", expr)
            for name, matchers in labelled:
                assert set(re.findall(r"(\w+)(?:=~|!=|=)", re.sub(r'"[^"]*"', "", matchers))) <= known[name], expr
            bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", " ", expr)
            names = set(re.findall(r"(?<![\w.])[a-zA-Z_]\w*(?!\w*\s*\()", bare)) - {"or", "by", "Inf", "e"}
            assert names, expr
            assert names <= {*known}, expr
            labels = {label for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(", ")}
            had = set.union(*(known[name] for name in names))
            assert labels <= had | ({"topic", "feature_view"} if names == {"ALERTS"} else set()), expr


def test_thresholds_are_the_declared_ones() -> None:
    steps = {
        panel["title"]: [
            (step["value"], step["color"]) for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        ]
        for panel in panels("overview")
        if panel["type"] in {"stat", "timeseries"}
    }

    assert [(None, "green"), (0.5, "orange"), (2.5, "red")] == steps["Oldest event that waits"]
    assert (0.5, "red") in steps["Freshness by view"]
    assert (50e9, "red") in steps["Offline bytes a day"]
    assert "histogram_quantile(0.999, " in expression("overview", "Freshness by view")


def test_what_is_served_is_held_against_the_declared_latency() -> None:
    (shown,) = [panel for panel in panels("serving") if panel["title"] == "Duration of requests"]

    assert ["p50", "p95", "p99"] == [target["legendFormat"] for target in shown["targets"]]
    assert (0.003, "red") in [
        (step["value"], step["color"]) for step in shown["fieldConfig"]["defaults"]["thresholds"]["steps"]
    ]
    assert 'le="0.003"' in expression("serving", "Answered in time, 1 h")


def test_a_view_s_dashboard_is_about_its_features_and_all_its_topics() -> None:
    words = json.dumps(DASHBOARDS[LONG])

    assert FEATURE.name in words
    assert r'topic=~"clicks|shop\\.orders"' in expression(LONG, "Lag of its streams")
    assert "clicks_by_user" not in words


def test_links_lead_to_dashboards_and_commands_are_verbs() -> None:
    words = json.dumps([*DASHBOARDS.values()])
    links, commands = re.findall(r"\(/d/([^)]*)\)", words), re.findall(r"`freshet (\w+)", words)

    assert {*links} == {made["uid"] for made in DASHBOARDS.values()} - {"freshet-overview"}
    assert {"check", "repair", "dlq"} <= {*commands} <= {*VERBS}


def test_what_is_asked_gives_what_is_meant(promtool: str, tmp_path: Path) -> None:
    group = 'consumergroup="freshet-shop-materializer",topic="clicks"'
    status = {one: f'freshet_lag_status{{{group},partition="0",status="{one}"}}' for one in Status}
    looks, never, reads = 'feature_view="clicks_by_user"', "Inf " * 11, 'endpoint="get-online-features"'
    series = {
        **{name: "0x99" if one is not Status.STALL else "1x99" for one, name in status.items()},
        f'freshet_lag_breach_seconds{{{group},partition="0"}}': never,
        f'freshet_lag_breach_seconds{{{group},partition="1"}}': never,
        f"freshet_freshness_stale_total{{{looks}}}": "0x119",
        f"freshet_freshness_checked_total{{{looks}}}": "0x59 0+1x59",
        "freshet_checkpoint_last_success_timestamp_seconds": "0x99",
        'freshet_checkpoint_last_success_timestamp_seconds{instance="b"}': "300x99",
        f'freshet_requests_total{{{reads},status="2xx"}}': "0+90x99",
        f'freshet_requests_total{{{reads},status="4xx"}}': "0+900x99",
        f'freshet_requests_total{{{reads},status="5xx"}}': "0+10x99",
        f'freshet_request_duration_seconds_bucket{{{reads},le="0.003"}}': "0+80x99",
        'freshet_served_values_total{feature_view="clicks_by_user",status="present"}': "0+60x99",
        'freshet_served_values_total{feature_view="clicks_by_user",status="outside_max_age"}': "0+20x99",
        'freshet_served_values_total{feature_view="clicks_by_user",status="not_found"}': "0+900x99",
    }
    asked = [
        (expression("lag", "Status by partition"), "10m", [('{topic="clicks", partition="0"}', 3)]),
        (expression("overview", "Partitions not OK"), "10m", [("{}", 1)]),
        (expression("overview", "Target missed in"), "10m", [("{}", 7 * 86400)]),
        (expression("lag", "Until the target is missed"), "10m", []),
        (expression("clicks_by_user", "Looks in time, 1 h"), "10m", []),
        (expression("clicks_by_user", "Looks in time, 1 h"), "119m", [("{}", 1)]),
        (expression("overview", "Last checkpoint"), "10m", [("{}", 300)]),
        (expression("overview", "Alerts that fire"), "10m", [("{}", 0)]),
        (expression("serving", "Answered in time, 1 h"), "10m", [("{}", 0.8)]),
        (expression("serving", "Errors, 5 m"), "10m", [("{}", 0.1)]),
        (expression("serving", "Old values, 5 m"), "10m", [("{}", 0.25)]),
    ]
    tests = [
        {"expr": expr, "eval_time": at, "exp_samples": [{"labels": labels, "value": value} for labels, value in told]}
        for expr, at, told in asked
    ]
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": tests,
    }
    (tmp_path / "rules.yml").write_text("groups: []\n")
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [case]}))

    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
