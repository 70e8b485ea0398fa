"""Alerts about what the server answers: errors, old values, or nothing.

A project need not have a server, since others may read the online store: so no alert takes it for missing that was
never there, and without a server's series all of them are silent.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from freshet.flows.steps.alerts.about import About
from freshet.flows.steps.alerts.rule import Alert, Case
from freshet.flows.steps.monitoring import dashboard_uid
from freshet.schemas.view import View

ERROR_SHARES = {"page": 0.05, "ticket": 0.01}
ERRORS_COUNT_MIN = 10
STALE_SHARES = {"page": 0.25, "ticket": 0.05}
STALE_COUNT_MIN = 100

DASHBOARD = dashboard_uid("serving")
_HERE = 'job="j",instance="i"'


def of_server(about: About) -> list[Alert]:
    """Return the alerts about the server's answers as a whole."""
    return [*_dead(about), *_errors(about)]


def of_served(about: About, view: View, place: Mapping[str, str]) -> Iterator[Alert]:
    """Yield the alerts about old values in what is served of a view, among those that the store has."""
    of_view = f'feature_view="{view.name}"'
    old = f'freshet_served_values_total{{{of_view},status="outside_max_age"}}'
    stored = f'freshet_served_values_total{{{of_view},status!="not_found"}}'

    def case(share: float, *also: str, many: int = 1000) -> Case:
        counts = {"outside_max_age": round(many * share), "present": many - round(many * share), "not_found": 9 * many}
        series = {
            f'freshet_served_values_total{{{of_view},status="{status}"}}': f"0+{count}x80"
            for status, count in counts.items()
        }
        return Case(series, "18m", {"feature_view": view.name}, f"{share * 100:.4g}%", also=also)

    for severity, share in STALE_SHARES.items():
        yield Alert(
            "FreshetServedStale",
            f"sum by (feature_view) (rate({old}[10m])) / sum by (feature_view) (rate({stored}[10m])) > {share}"
            f" and sum by (feature_view) (increase({old}[10m])) >= {STALE_COUNT_MIN}",
            "5m",
            severity,
            about.project,
            f"{view.name}: {{{{ $value | humanizePercentage }}}} of the stored values are served as OUTSIDE_MAX_AGE",
            "The server says of these values that they are too old: events of their entities may have waited for longer"
            f" than {about.declared}, or the view's ttl has passed. Clients get them with that status.",
            (view,),
            (case(0.5, "ticket") if severity == "page" else case(0.1),),
            (
                case(0.1, "ticket") if severity == "page" else case(0.01),
                case(0.6, many=2),  # of a few values nothing is said
                Case(dict.fromkeys(case(0.5).series, "9x80"), "18m"),  # nobody asks
            ),
            place,
            DASHBOARD,
        )


def _dead(about: About) -> list[Alert]:
    served = about.served
    own, second, others = (
        f'freshet_served_values_total{{feature_view="{name}",status="present",job="j",instance="{instance}"}}'
        for name, instance in ((about.one_view, "i"), (about.one_view, "k"), ("of_another_project", "i"))
    )
    up, second_up = f"up{{{_HERE}}}", 'up{job="j",instance="k"}'
    gone = f"present_over_time({served}[1d])"

    def alert(expr: str, hold: str, severity: str, summary: str, description: str, **cases: Any) -> Alert:
        name, project = "FreshetServerDead", about.project
        return Alert(
            name, expr, hold, severity, project, summary, description, about.views, **cases, dashboard=DASHBOARD
        )

    return [
        alert(
            f"count({gone}) unless count({served})",
            "1m",
            "page",
            "the server gives no metrics any more: it is down, or Prometheus cannot reach it",
            "Within the last day there was one, and nothing was heard of it for a minute. Whoever asks it for features"
            " gets no answer. Its last line says why it ended.",
            fires=(Case({own: "0x4 stale"}, "5m"), Case({own: "0x4 stale", others: "0x20"}, "5m")),
            silent=(
                Case({own: "0x20"}, "5m"),
                Case({others: "0x4 stale"}, "5m"),  # this project never had one
                Case({own: "0x4 stale", second: "0x20"}, "5m"),
                Case({own: "0x4 stale _x4 0x20"}, "5m"),  # it was started again
            ),
        ),
        alert(
            f"max by (job, instance) (up) == 0 and on (job, instance) count by (job, instance) ({gone})",
            "5m",
            "ticket",
            "a worker of the server, {{ $labels.instance }}, gives no metrics any more",
            "It was there within the last day, and Prometheus still looks for it. If others are left, they answer; all"
            " together carry less.",
            fires=(
                Case(
                    {own: "0x4 stale", second: "0x60", up: "1x4 0x60", second_up: "1x60"},
                    "10m",
                    {"job": "j", "instance": "i"},
                ),
            ),
            silent=(
                Case({own: "0x60", second: "0x60", up: "1x60", second_up: "1x60"}, "10m"),
                Case({others: "0x4 stale", up: "1x4 0x60"}, "10m"),  # something else is down
                Case({own: "0x4 stale", second: "0x60", up: "1x4 stale", second_up: "1x60"}, "10m"),  # taken away
            ),
        ),
    ]


def _errors(about: About) -> Iterator[Alert]:
    served = about.served
    of_us = f"and on (job, instance) {served}"
    errors, total = 'freshet_requests_total{status="5xx"}[10m]', 'freshet_requests_total{status!="4xx"}[10m]'

    def case(failed: int, answered: int, *also: str) -> Case:
        counts = {"2xx": answered, "4xx": 3 * answered, "5xx": failed}
        series = {
            f'freshet_requests_total{{endpoint="events",status="{status}",{_HERE}}}': f"0+{count}x80"
            for status, count in counts.items()
        }
        known = f'freshet_served_values_total{{feature_view="{about.one_view}",status="present",{_HERE}}}'
        share = f"{failed / (failed + answered) * 100:.4g}%"
        return Case({**series, known: "0x80"}, "18m", {"endpoint": "events"}, share, also=also)

    for severity, share in ERROR_SHARES.items():
        yield Alert(
            "FreshetServerErrors",
            f"sum by (endpoint) (rate({errors}) {of_us}) / sum by (endpoint) (rate({total}) {of_us}) > {share}"
            f" and sum by (endpoint) (increase({errors}) {of_us}) >= {ERRORS_COUNT_MIN}",
            "5m",
            severity,
            about.project,
            "{{ $value | humanizePercentage }} of the requests to {{ $labels.endpoint }} are answered with 5xx",
            "The server is up, and cannot answer: the online store does not answer in time, more is asked than it gets"
            " done, or Kafka does not take events. Its log says which.",
            about.views,
            (case(500, 500, "ticket") if severity == "page" else case(20, 980),),
            (
                case(20, 980, "ticket") if severity == "page" else case(2, 998),
                Case(  # a single one, of few
                    {
                        **case(0, 1).series,
                        f'freshet_requests_total{{endpoint="events",status="5xx",{_HERE}}}': "0x60 1x20",
                    },
                    "18m",
                ),
                Case(  # another project's server
                    {
                        name.replace(f'"{about.one_view}"', '"of_another_project"'): values
                        for name, values in case(500, 500).series.items()
                    },
                    "18m",
                ),
            ),
            dashboard=DASHBOARD,
        )
