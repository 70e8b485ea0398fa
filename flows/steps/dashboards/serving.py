"""What the server answers: how fast, with which status, and how old."""

from typing import Any

from freshet.flows.steps.alerts.latency import READ, le
from freshet.flows.steps.alerts.serving import DASHBOARD, ERROR_SHARES, STALE_SHARES
from freshet.flows.steps.dashboards.panels import Panel, Query, Section, Thresholds, heatmap, stat, timeseries
from freshet.flows.steps.dashboards.shown import RATE, Shown
from freshet.flows.steps.monitoring import SERVER_JOB

_READS = f'endpoint="{READ}"'
_ERRORS: Thresholds = ((ERROR_SHARES["ticket"], "orange"), (ERROR_SHARES["page"], "red"))
_OLD: Thresholds = ((STALE_SHARES["ticket"], "orange"), (STALE_SHARES["page"], "red"))


def serving(shown: Shown) -> dict[str, Any]:
    """Return the dashboard of the server."""
    sections = [
        Section("Now", _serving_now(shown)),
        Section("How fast it answers", [_requests(), _durations(shown), _spread(), _errors()]),
        Section("What it answers", [_values(shown), _old(shown)]),
    ]
    description = (
        f"What the server answers: {READ} within {shown.declaration.servingRequirements.onlineLatency} is declared."
        " Empty where there is no server."
    )
    return shown.dashboard(DASHBOARD, "serving", description, "serving", sections)


def _serving_now(shown: Shown) -> list[Panel]:
    latency = shown.declaration.servingRequirements.onlineLatency
    in_time = f'freshet_request_duration_seconds_bucket{{{_READS},le="{le(latency)}"}}'
    counted = f'freshet_requests_total{{{_READS},status!="4xx"}}'
    return [
        stat(
            "Workers up",
            "Of the server's workers, by whether Prometheus reaches them. `freshet run server` starts one.",
            Query(f'sum(up{{job="{SERVER_JOB}"}})'),
            thresholds=((float("-inf"), "red"), (1.0, "green")),
        ),
        stat("Requests", "Of all endpoints, by second.", Query("sum(rate(freshet_requests_total[5m]))"), "reqps"),
        stat(
            f"p{latency.percentile:g}, 5 m",
            f"Within how long so many percent of {READ} were answered, good answers alone. Declared is {latency}.",
            Query(_quantile(latency.percentile / 100, "[5m]")),
            "s",
            _late(shown),
        ),
        stat(
            "Answered in time, 1 h",
            f"Share of {READ} that was answered within the declared bound and without an error. What clients do wrong"
            " (4xx) is not counted.",
            Query(f"sum(increase({in_time}[1h])) / (sum(increase({counted}[1h])) > 0)"),
            "percentunit",
            ((float("-inf"), "red"), (latency.percentile / 100, "green")),
            decimals=2,
        ),
        stat(
            "Errors, 5 m",
            "Share of all requests that were answered with 5xx. The server's log, and its /healthz, say why.",
            Query(_error_share("[5m]")),
            "percentunit",
            _ERRORS,
            decimals=2,
        ),
        stat(
            "Old values, 5 m",
            "Share of the values that the store has which were served as OUTSIDE_MAX_AGE: the view's ttl has passed, or"
            " events of the entity may wait for longer than the declared freshness. `freshet status` says of which"
            " stream.",
            Query(f"max({_old_share(shown, '[5m]')})"),
            "percentunit",
            _OLD,
            decimals=2,
        ),
    ]


def _requests() -> Panel:
    return timeseries(
        "Requests by status",
        "Requests a second, by endpoint and class of answer: 4xx is a client's mistake, 5xx the server's.",
        [Query(f"sum by (endpoint, status) (rate(freshet_requests_total{RATE})) > 0", "{{endpoint}} {{status}}")],
        "reqps",
    )


def _durations(shown: Shown) -> Panel:
    latency = shown.declaration.servingRequirements.onlineLatency
    shares = sorted({0.5, 0.99, latency.percentile / 100})
    return timeseries(
        "Duration of requests",
        f"Of {READ}, in the server, good answers alone. The line is the bound of the declared {latency}.",
        [Query(_quantile(share, RATE), f"p{share * 100:.12g}") for share in shares],
        "s",
        _late(shown)[1:],
    )


def _spread() -> Panel:
    return heatmap(
        "Requests by duration",
        f"How many {READ} took how long: two bands mean two causes.",
        f"sum by (le) (increase(freshet_request_duration_seconds_bucket{{{_READS}}}{RATE}))",
        "s",
    )


def _errors() -> Panel:
    return timeseries(
        "Share of errors",
        "Of requests that were not a client's mistake, those answered with 5xx, by endpoint. The line is where a page"
        " goes out.",
        [Query(_error_share(RATE, "endpoint"), "{{endpoint}}")],
        "percentunit",
        _ERRORS[1:],
    )


def _values(shown: Shown) -> Panel:
    return timeseries(
        "Values served",
        "Values a second, by feature view and the status that Feast's clients see. null_value: the store has the row,"
        " and null in it. not_found: it has no row of that entity.",
        [
            Query(
                f"sum by (feature_view, status) (rate(freshet_served_values_total{{{_views(shown)}}}{RATE})) > 0",
                "{{feature_view}} {{status}}",
            )
        ],
        "ops",
    )


def _old(shown: Shown) -> Panel:
    return timeseries(
        "Share of old values",
        "Of the values that the store has, those served as OUTSIDE_MAX_AGE, by view. The line is where a page goes"
        " out.",
        [Query(_old_share(shown, RATE), "{{feature_view}}")],
        "percentunit",
        _OLD[1:],
    )


def _late(shown: Shown) -> Thresholds:
    bound_s = shown.declaration.servingRequirements.onlineLatency.bound.total_seconds()
    return (bound_s / 2, "orange"), (bound_s, "red")


def _quantile(share: float, range_: str) -> str:
    rate = f"rate(freshet_request_duration_seconds_bucket{{{_READS}}}{range_})"
    return f"histogram_quantile({share:.12g}, sum by (le) ({rate})) >= 0"


def _error_share(range_: str, by: str = "") -> str:
    total = f"sum by ({by})" if by else "sum"
    failed, counted = (
        f"{total} (rate(freshet_requests_total{{{status}}}{range_}))" for status in ('status="5xx"', 'status!="4xx"')
    )
    return f"{failed} / ({counted} > 0)"


def _old_share(shown: Shown, range_: str) -> str:
    old, stored = (
        f"sum by (feature_view) (rate(freshet_served_values_total{{{_views(shown)},status{status}}}{range_}))"
        for status in ('="outside_max_age"', '!="not_found"')
    )
    return f"{old} / ({stored} > 0)"


def _views(shown: Shown) -> str:
    return f'feature_view=~"{"|".join(view.name for view in shown.views)}"'
