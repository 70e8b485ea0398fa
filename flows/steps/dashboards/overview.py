"""The overview: is it behind, how long until that matters, which features, what is to be done."""

from typing import Any

from freshet.flows.steps.dashboards.lag import behind
from freshet.flows.steps.dashboards.panels import Column, Panel, Query, Section, stat, table, text, timeseries
from freshet.flows.steps.dashboards.shown import ANY, BURN_COLOURS, QUIET, RATE, REJECTS_NEAR, Shown
from freshet.flows.steps.dashboards.validation import last_validation, open_findings
from freshet.flows.steps.monitoring import MATERIALIZER_JOB, VALIDATOR_JOB, dashboard_uid

_ADVICE = """\
1. **Alerts fire**: go by the runbook of that name, in `deploy/runbooks`; the alert names the features, the runbook the
   cause and the next command.
2. **It is behind, and does not catch up**: [lag](/d/freshet-lag) says which partitions, as does `freshet status`.
   One partition alone: its key is hot, or an event there is slow. All: the materializer is down, or waits, or
   needs more workers.
3. **Findings are open**: [validation](/d/freshet-validation) says which features and why; `freshet repair` writes the
   newest offline rows online again.
4. **Rejects come**: `freshet dlq list` says why; after a fix, `freshet dlq redrive` sends them again.
5. **Clients wait, or get errors**: [serving](/d/freshet-serving) says whether the server is late, fails, or serves
   what is old.
"""


def overview(shown: Shown) -> dict[str, Any]:
    """Return the dashboard to begin with."""
    sections = [
        Section("Is it behind, and how long until that matters?", behind(shown)),
        Section("Is anything wrong?", _wrong(shown)),
        Section("Which features?", [_views_now(shown), _views_listed(shown), _advice()]),
        Section("What flows", [*_flow(), _lag_by_topic(shown), _freshness_by_view(shown), _offline_bytes(shown)]),
    ]
    description = f"Project {shown.declaration.project}: rows are to be online within {shown.target} of their event."
    return shown.dashboard(dashboard_uid("overview"), "overview", description, "overview", sections)


def _wrong(shown: Shown) -> list[Panel]:
    return [
        stat(
            "Alerts that fire",
            "How many alerts of this project fire. Each one's runbook says what it means and what to do.",
            Query(f"count({shown.firing}) or vector(0)"),
            thresholds=ANY,
        ),
        _up(),
        stat(
            "Last checkpoint",
            "How long ago everything taken was last in both stores. It rises while the materializer is stopped, or an"
            " outage of Kafka, the online store or the disk is waited out: its /healthz says for what.",
            Query("time() - max(freshet_checkpoint_last_success_timestamp_seconds)"),
            "s",
            QUIET,
        ),
        last_validation(),
        open_findings(),
        stat(
            "Rejects in a row, of the limit",
            "How many events were rejected one after the other, as a share of FRESHET_REJECT_LIMIT; at 100 % the"
            " materializer stops, so that a bad deploy does not empty a topic. `freshet dlq list` shows them.",
            Query("max(freshet_rejects_in_a_row) / max(freshet_rejects_in_a_row_limit)"),
            "percentunit",
            REJECTS_NEAR,
        ),
        table(
            "The alerts",
            "What fires now. The runbook of an alert is deploy/runbooks/<its name>.md.",
            [Column("alerts", f"count by (alertname, severity, topic, feature_view) ({shown.firing})")],
            height=5,
        ),
    ]


def _up() -> Panel:
    jobs = f"{MATERIALIZER_JOB}|{VALIDATOR_JOB}"
    return stat(
        "Processes",
        "Whether Prometheus reaches each process. One that is down answers nobody: look at its last log line.",
        Query(f'min by (job) (up{{job=~"{jobs}"}})', "{{job}}"),
        thresholds=((float("-inf"), "red"), (1.0, "green")),
        texts={0: "down", 1: "up"},
    )


def _views_now(shown: Shown) -> Panel:
    return table(
        "Feature views now",
        f"A row for each feature view. Freshness is the {shown.percentile} of five minutes, from the event's being"
        f" readable in Kafka to its row's being readable online, against the declared {shown.target}; at a burn rate"
        " of 1 a month's budget of late looks lasts a month.",
        [
            Column("freshness", shown.quantile("", "feature_view", "[5m]"), "s", shown.late),
            Column(
                "burn rate, 1 h",
                'max by (feature_view) (freshet_freshness_burn_rate{window="1h"})',
                thresholds=BURN_COLOURS,
            ),
            Column("open findings", "sum by (feature_view) (freshet_validator_findings)", thresholds=ANY),
            Column("rows/s online", 'sum by (feature_view) (rate(freshet_rows_total{store="online"}[5m]))', "rps"),
            Column("entities", "sum by (feature_view) (freshet_state_entities)"),
            Column("behind the clock", "time() - min by (feature_view) (freshet_clock_timestamp_seconds > 0)", "s"),
        ],
        height=7,
    )


def _views_listed(shown: Shown) -> Panel:
    lines = [
        f"- [{view.name}](/d/{dashboard_uid('view', view.name)}), of {', '.join(view.sources)}:"
        f" {', '.join(feature.name for feature in view.features)}"
        for view in shown.views
    ]
    return text(
        "Features by view",
        "Which features a view has, and which streams feed it: what is affected when one of them is late.",
        "\n".join(lines),
        width=14,
    )


def _advice() -> Panel:
    return text("What to do", "Where to go on, by what is red above.", _ADVICE, width=10)


def _flow() -> list[Panel]:
    return [
        timeseries(
            "Events taken",
            "Events a second, taken from Kafka, by what became of them. None while lag grows: the materializer stands.",
            [Query(f"sum by (stream, outcome) (rate(freshet_events_total{RATE}))", "{{stream}} {{outcome}}")],
            "eps",
        ),
        timeseries(
            "Rejects",
            "Events a second that were not accepted, by reason. They are in the dead-letter topic, byte for byte.",
            [Query(f"sum by (stream, reason) (rate(freshet_rejects_total{RATE}))", "{{stream}} {{reason}}")],
            "eps",
        ),
    ]


def _lag_by_topic(shown: Shown) -> Panel:
    return timeseries(
        "Lag by topic",
        f"Age of the oldest event that waits, of each topic's worst partition. The line is {shown.lag_limit}.",
        [Query(f"max by (topic) (freshet_lag_seconds{{{shown.group}}})", "{{topic}}")],
        "s",
        shown.lag_line,
    )


def _freshness_by_view(shown: Shown) -> Panel:
    return timeseries(
        "Freshness by view",
        f"The {shown.percentile} of the time from an event's being readable in Kafka to its row's being readable"
        f" online. The line is the declared {shown.target}.",
        [Query(shown.quantile("", "feature_view", RATE), "{{feature_view}}")],
        "s",
        shown.bound_line,
    )


def _offline_bytes(shown: Shown) -> Panel:
    return timeseries(
        "Offline bytes a day",
        "Parquet written by each view, at the rate of the last hour, in bytes a day. The line is the declared"
        f" offlineVolume, {shown.volume}, of all together.",
        [
            Query("sum by (feature_view) (rate(freshet_offline_bytes_total[1h])) * 86400", "{{feature_view}}"),
            Query("sum(rate(freshet_offline_bytes_total[1h])) * 86400", "all"),
        ],
        "decbytes",
        ((shown.volume.bytes_per_day, "red"),),
        width=24,
    )
