"""The alert rules that a declaration implies, in Prometheus' own form."""

from collections.abc import Sequence
from typing import Any

from freshet.schemas.declaration import Declaration
from freshet.schemas.plan import Pipeline

RULES = "deploy/prometheus/rules.yml"
RULES_TEST = "deploy/prometheus/rules_test.yml"


def consumer_group(project: str) -> str:
    """Return the Kafka group under which the materializer's progress is known."""
    return f"freshet-{project}-materializer"


def lag_alerts(declaration: Declaration, pipeline: Pipeline, topics: Sequence[str]) -> list[dict[str, Any]]:
    """Return one rule a topic: its rows are older than the declared freshness for a whole minute."""
    bound_s = declaration.servingRequirements.freshnessTarget.bound.total_seconds()
    group = consumer_group(declaration.project)
    views = ", ".join(view.name for view in pipeline.views)
    return [
        {
            "alert": "FreshetLag",
            "expr": f'max by (topic) (freshet_lag_seconds{{consumergroup="{group}",topic="{topic}"}}) > {bound_s:.15g}',
            "for": "1m",
            "labels": {"severity": "page", "project": declaration.project},
            "annotations": {
                "summary": f"{topic} is {{{{ $value | humanizeDuration }}}} behind; {bound_s:.15g} s are declared",
                "description": f"Rows of {views} are older than their declared freshness. Ask `freshet check`.",
            },
        }
        for topic in topics
    ]


def rules_file(alerts: Sequence[dict[str, Any]], project: str) -> dict[str, Any]:
    """Return the content of a Prometheus rules file."""
    return {"groups": [{"name": f"freshet-{project}", "rules": list(alerts)}]}


def rules_test(alerts: Sequence[dict[str, Any]], declaration: Declaration) -> dict[str, Any]:
    """Return promtool's unit test of the rules: each fires when lag stays over its bound, and is silent below."""
    bound_s = declaration.servingRequirements.freshnessTarget.bound.total_seconds()
    group = consumer_group(declaration.project)
    cases = []
    for alert in alerts:
        topic = alert["expr"].split('topic="')[1].split('"')[0]
        series = f'freshet_lag_seconds{{consumergroup="{group}",topic="{topic}",partition="0"}}'
        fired = {"exp_labels": {"topic": topic, **alert["labels"]}, "exp_annotations": alert["annotations"]}
        for value, expected in ((bound_s * 4, [fired]), (bound_s / 2, [])):
            summary = alert["annotations"]["summary"].replace("{{ $value | humanizeDuration }}", _humanized(value))
            cases.append(
                {
                    "interval": "15s",
                    "input_series": [{"series": series, "values": f"{value:.15g}x20"}],
                    "alert_rule_test": [
                        {
                            "eval_time": "3m",
                            "alertname": alert["alert"],
                            "exp_alerts": [
                                {**case, "exp_annotations": {**case["exp_annotations"], "summary": summary}}
                                for case in expected
                            ],
                        }
                    ],
                }
            )
    return {"rule_files": ["rules.yml"], "tests": cases}


def _humanized(seconds: float) -> str:
    """Write seconds as Prometheus' humanizeDuration does (prometheus/template/template.go).

    >>> _humanized(8), _humanized(0.5), _humanized(3725)
    ('8s', '500ms', '1h 2m 5s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.4g}ms"
    if seconds != int(seconds) and seconds < 60:
        return f"{seconds:.4g}s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count}{unit}" for count, unit in parts[first:])
