"""What an alert is: a rule, its texts, whom it concerns, and the series with which promtool tries it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freshet.flows.steps.monitoring import RUNBOOKS, USUAL, Deployed
from freshet.schemas.view import View


@dataclass(frozen=True)
class Case:
    """Series, and a time at which an alert fires, or is silent.

    `series` has promtool's notation of the values by series, one value every `interval`. Of an alert that fires,
    `labels` are those that its expression adds, and `value` is how its texts show the expression's value. `also` names
    the severities at which the same alert fires too.
    """

    series: Mapping[str, str]
    at: str
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    interval: str = "15s"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alert:
    """One rule. `hold` is how long `expr` must be so, `keep` for how long it fires on once that is over.

    `labels` stand beside severity and project.

    `fires` and `silent` are what its test tries: at least one case of each.
    """

    name: str
    expr: str
    hold: str
    severity: str
    project: str
    summary: str
    description: str
    views: tuple[View, ...]
    fires: tuple[Case, ...]
    silent: tuple[Case, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    dashboard: str = "freshet-overview"
    keep: str = ""
    deployed: Deployed = USUAL

    @property
    def runbook(self) -> str:
        """Where its runbook stands, seen from the project."""
        return f"{RUNBOOKS}/{self.name}.md"

    @property
    def annotations(self) -> dict[str, str]:
        """What whoever is told reads."""
        return {
            "summary": self.summary,
            "description": self.description,
            "views": ", ".join(view.name for view in self.views),
            "features": ", ".join(feature.name for view in self.views for feature in view.features),
            "runbook_url": self.deployed.runbook(self.name),
            "dashboard_url": self.deployed.dashboard(self.dashboard),
        }

    @property
    def rule(self) -> dict[str, Any]:
        """The rule in Prometheus' form."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            **({"keep_firing_for": self.keep} if self.keep else {}),
            "labels": {"severity": self.severity, "project": self.project, **self.labels},
            "annotations": self.annotations,
        }

    def fired(self, case: Case) -> dict[str, Any]:
        """Return what promtool expects of it where it fires."""
        return {
            "exp_labels": {**case.labels, **self.rule["labels"]},
            "exp_annotations": {name: _shown(text, case) for name, text in self.annotations.items()},
        }


def _shown(text: str, case: Case) -> str:
    """Fill in a text as Prometheus does."""
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: case.labels[found[1]], text)
    return re.sub(r"{{ \$value( \| \w+)? }}", lambda _: case.value, text)


def rules_file(alerts: Sequence[Alert], project: str) -> dict[str, Any]:
    """Return the content of a Prometheus rules file."""
    return {"groups": [{"name": f"freshet-{project}", "rules": [alert.rule for alert in alerts]}]}


def rules_test(alerts: Sequence[Alert]) -> dict[str, Any]:
    """Return promtool's unit test of the rules: rules that differ in what they are about only are tried at once."""
    alike: dict[tuple[str, str, int, int], list[Alert]] = {}
    for alert in alerts:
        key = (alert.name, alert.severity, len(alert.fires), len(alert.silent))
        alike.setdefault(key, []).append(alert)
    tests = [test for same in alike.values() for test in _tests(same, alerts)]
    return {"rule_files": ["rules.yml"], "tests": tests}


def _tests(same: Sequence[Alert], alerts: Sequence[Alert]) -> Iterator[dict[str, Any]]:
    """Yield promtool's form of each case of some alerts whose cases differ in labels only."""
    for fires, own in ((True, [one.fires for one in same]), (False, [one.silent for one in same])):
        for cases in zip(*own, strict=True):
            tried = list(zip(same, cases, strict=True))
            firing = [alert.fired(case) for alert, case in tried if fires]
            firing += [other.fired(case) for alert, case in tried for other in _others(alert, case, alerts)]
            series = {name: values for case in cases for name, values in case.series.items()}
            test = {"eval_time": cases[0].at, "alertname": same[0].name, "exp_alerts": firing}
            yield {
                "interval": cases[0].interval,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [test],
            }


def _others(alert: Alert, case: Case, alerts: Sequence[Alert]) -> list[Alert]:
    """Return the rules that fire too: the same alert at other severities."""
    alike = [one for one in alerts if (one.name, one.labels) == (alert.name, alert.labels)]
    return [one for one in alike if one.severity in case.also and one is not alert]


def number(value: float) -> str:
    """Write a number as expressions and series have it.

    >>> number(2.0), number(0.01), number(1e10)
    ('2', '0.01', '10000000000')
    """
    return f"{value:.15g}"


def humanized(seconds: float) -> str:
    """Write seconds as Prometheus' humanizeDuration does (prometheus/template/template.go).

    >>> humanized(8), humanized(0.5), humanized(3725)
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


def humanized_count(value: float) -> str:
    """Write a number as Prometheus' humanize does.

    >>> humanized_count(1500), humanized_count(20e9), humanized_count(999)
    ('1.5k', '20G', '999')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    while value >= 1000 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.4g}{prefixes[0]}"
