"""What the validator finds, and whether it works."""

from typing import Any

from freshet.flows.steps.dashboards.panels import Column, Panel, Query, Section, heatmap, stat, table, timeseries
from freshet.flows.steps.dashboards.shown import ANY, BURN_COLOURS, RATE, Shown
from freshet.flows.steps.freshness import BURN_RULES
from freshet.flows.steps.monitoring import dashboard_uid
from freshet.schemas.units import spell


def validation(shown: Shown) -> dict[str, Any]:
    """Return the dashboard of the validator."""
    sections = [
        Section("Now", [*_validator_now(), _findings_now()]),
        Section("Freshness, as the validator sees it", [_burn_rates(shown), _looks(shown)]),
        Section("Both stores compared", [_compared(), _confirmed(), _unsaid(), _canaries()]),
        Section("The validator itself", [_rounds(), _round_duration(), _deliveries()]),
    ]
    description = "What the validator finds: whether online and offline store agree, and rows are as fresh as declared."
    return shown.dashboard(dashboard_uid("validation"), "validation", description, "validation", sections)


def _validator_now() -> list[Panel]:
    return [
        open_findings(),
        last_validation(),
        stat(
            "Highest burn rate, 1 h",
            "How many times too fast late looks use up what the freshness target leaves room for, of the worst view.",
            Query('max(freshet_freshness_burn_rate{window="1h"})'),
            thresholds=BURN_COLOURS,
            decimals=1,
        ),
        stat(
            "Values compared",
            "Values a second that were compared between both stores. 0 means that nothing is being validated.",
            Query("sum(rate(freshet_skew_compared_total[5m]))"),
            "ops",
            ((float("-inf"), "red"), (0.001, "green")),
        ),
        stat(
            "Rounds failed, 1 h",
            "Rounds and views in which the validator itself failed: an outage, a part that cannot be read, or its"
            " judge.",
            Query("sum(increase(freshet_validator_errors_total[1h]))"),
            thresholds=((1.0, "orange"),),
            decimals=0,
        ),
        stat(
            "News not delivered, 1 h",
            "News of findings that a receiver was never told.",
            Query("sum(increase(freshet_findings_dropped_total[1h]))"),
            thresholds=ANY,
            decimals=0,
        ),
    ]


def _findings_now() -> Panel:
    return table(
        "Open findings by cause",
        "By feature view and cause; docs/findings.md says what each cause means. Empty is good.",
        [Column("findings", "sum by (feature_view, cause) (freshet_validator_findings) > 0", thresholds=ANY)],
        height=6,
    )


def _burn_rates(shown: Shown) -> Panel:
    rules = "; ".join(
        f"{rule.severity} at {rule.factor:g} over {spell(rule.long)} and {spell(rule.short)}" for rule in BURN_RULES
    )
    return timeseries(
        "Burn rates",
        f"How many times too fast late looks use up what {shown.target} leaves room for, by view and window: {rules}.",
        [Query("max by (feature_view, window) (freshet_freshness_burn_rate)", "{{feature_view}} {{window}}")],
        thresholds=BURN_COLOURS,
    )


def _looks(shown: Shown) -> Panel:
    late = f"sum by (feature_view) (rate(freshet_freshness_stale_total{RATE}))"
    all_ = f"sum by (feature_view) (rate(freshet_freshness_checked_total{RATE}))"
    return timeseries(
        "Late looks",
        "Share of looks at partitions with something to be fresh with that found an event waiting for longer than"
        f" {shown.bound}. The line is what {shown.target} leaves room for.",
        [Query(f"{late} / ({all_} > 0)", "{{feature_view}}")],
        "percentunit",
        ((round(1 - shown.target.percentile / 100, 12), "red"),),
    )


def _compared() -> Panel:
    return timeseries(
        "Values compared by view",
        "Values a second that were compared between both stores.",
        [Query(f"sum by (feature_view) (rate(freshet_skew_compared_total{RATE}))", "{{feature_view}}")],
        "ops",
    )


def _confirmed() -> Panel:
    return timeseries(
        "Findings confirmed",
        "Rows, parts or partitions a second in which a confirmed finding held, by view and cause. Nothing is good.",
        [
            Query(
                f"sum by (feature_view, cause) (rate(freshet_skew_confirmed_total{RATE})) > 0",
                "{{feature_view}} {{cause}}",
            )
        ],
        "ops",
    )


def _unsaid() -> Panel:
    inconclusive = f"sum by (feature_view) (rate(freshet_skew_inconclusive_total{RATE}))"
    errors = f"sum by (feature_view) (rate(freshet_validator_errors_total{RATE}))"
    return timeseries(
        "Rounds without a word",
        "Rounds a second of which nothing could be said, or in which the validator failed. Neither is an ok.",
        [Query(inconclusive, "{{feature_view}} inconclusive"), Query(errors, "{{feature_view}} failed")],
        "ops",
    )


def _canaries() -> Panel:
    return timeseries(
        "Age of canaries",
        "How long ago the newest canary was sent that all views have, by partition and store. Empty without"
        " FRESHET_CANARIES. One that rises names the partition that stands still.",
        [
            Query(
                "time() - max by (partition, store) (freshet_canary_last_timestamp_seconds)",
                "{{partition}} {{store}}",
            )
        ],
        "s",
    )


def _rounds() -> Panel:
    buckets = f"sum by (le) (rate(freshet_validator_round_duration_seconds_bucket{RATE}))"
    return timeseries(
        "Duration of rounds",
        "Median and 99th percentile. Rounds that take longer than FRESHET_ROUND come less often.",
        [Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}") for share in (0.5, 0.99)],
        "s",
    )


def _round_duration() -> Panel:
    return heatmap(
        "Rounds by duration",
        "How many rounds took how long.",
        f"sum by (le) (increase(freshet_validator_round_duration_seconds_bucket{RATE}))",
        "s",
    )


def _deliveries() -> Panel:
    return timeseries(
        "Deliveries that failed",
        "Attempts a second to tell a receiver of findings that failed, news that were given up, and pages of Data"
        " Docs that could not be written.",
        [
            Query(f"sum by (receiver) (rate(freshet_finding_delivery_failures_total{RATE}))", "{{receiver}} failed"),
            Query(f"sum by (receiver) (rate(freshet_findings_dropped_total{RATE}))", "{{receiver}} given up"),
            Query(f"sum(rate(freshet_data_docs_failures_total{RATE}))", "Data Docs"),
        ],
        "ops",
        width=24,
    )


def last_validation() -> Panel:
    """Return a panel of how long ago the validator last did its whole work."""
    return stat(
        "Last whole validation",
        "How long ago a round ended in which the validator failed in no view. While this is old, no news is no good"
        " news.",
        Query("time() - max(freshet_validator_last_success_timestamp_seconds)"),
        "s",
        ((60.0, "orange"), (300.0, "red")),
    )


def open_findings() -> Panel:
    """Return a panel of all open findings."""
    return stat(
        "Open findings",
        "Findings of the validator that are not resolved. `freshet check` looks once more; the Data Docs have the"
        " evidence.",
        Query("sum(freshet_validator_findings)"),
        thresholds=ANY,
    )
