"""One feature view: how fresh its rows are, whether both stores agree, what it takes and makes."""

from typing import Any

from freshet.flows.steps.dashboards.panels import Column, Panel, Query, Section, heatmap, stat, table, text, timeseries
from freshet.flows.steps.dashboards.shown import ANY, BURN_COLOURS, RATE, Shown
from freshet.flows.steps.monitoring import dashboard_uid
from freshet.schemas.view import Kind, View


def feature_view(shown: Shown, view: View) -> dict[str, Any]:
    """Return the dashboard of one feature view."""
    sections = [
        Section("Now", [*_view_now(shown, view), _features(view)]),
        Section("How fresh its rows are", _view_freshness(shown, view)),
        Section("Whether both stores agree", _view_validation(view)),
        Section("What it takes and makes", _view_flow(view)),
    ]
    description = (
        f"Feature view {view.name}: {len(view.features)} features of {', '.join(view.entity_names)}, from"
        f" {', '.join(view.sources)}."
    )
    return shown.dashboard(dashboard_uid("view", view.name), view.name, description, "feature-view", sections)


def _view_now(shown: Shown, view: View) -> list[Panel]:
    own = f'{{feature_view="{view.name}"}}'
    waits = f"freshet_lag_seconds{{{shown.group},{shown.topics_of(view)}}}"
    late, all_ = (f"sum(increase(freshet_freshness_{kind}_total{own}[1h]))" for kind in ("stale", "checked"))
    return [
        stat(
            "Freshness",
            f"The {shown.percentile} of five minutes, from an event's being readable in Kafka to its row's being"
            f" readable online. Declared is {shown.target}.",
            Query(shown.quantile(own, "feature_view", "[5m]")),
            "s",
            shown.late,
        ),
        stat(
            "Oldest event that waits",
            "How long the oldest event of its streams that is not yet in both stores has waited. Red: for longer than"
            f" {shown.lag_limit}.",
            Query(f"max({waits})"),
            "s",
            shown.lags,
        ),
        stat(
            "Looks in time, 1 h",
            f"Share of the validator's looks that found no event waiting for longer than {shown.bound}. No data while"
            " the streams are idle.",
            Query(f"1 - {late} / ({all_} > 0)"),
            "percentunit",
            ((float("-inf"), "red"), (shown.target.percentile / 100, "green")),
            decimals=2,
        ),
        stat(
            "Open findings",
            "Of this view. `freshet check` looks once more; `freshet repair` writes its newest offline rows online"
            " again.",
            Query(f"sum(freshet_validator_findings{own})"),
            thresholds=ANY,
        ),
        stat("Entities", "Entities with state.", Query(f"sum(freshet_state_entities{own})")),
        stat(
            "Behind the clock",
            "Up to how long ago every tick, at which time alone changes a value, is written.",
            Query(f"time() - min(freshet_clock_timestamp_seconds{own} > 0)"),
            "s",
        ),
    ]


def _features(view: View) -> Panel:
    lines = []
    for feature in view.features:
        said = f": {feature.description}" if feature.description else ""
        sql = " ".join(feature.transformation.split())
        lines.append(f"- **{feature.name}**, {feature.dtype.name.lower()}{said}: `{sql}`")
    return text(
        "Features",
        "What this view serves, as declared: all of it is affected when the view is late or wrong.",
        "\n".join(lines),
        height=7,
    )


def _view_freshness(shown: Shown, view: View) -> list[Panel]:
    own = f'feature_view="{view.name}"'
    plain = f'sum by (le) (increase(freshet_freshness_seconds_bucket{{{own},kind="event"}}{RATE}))'
    kinds = ", ".join(kind.name.lower() for kind in Kind)
    return [
        timeseries(
            "Freshness by kind",
            f"The {shown.percentile}, by what made the row ({kinds}): the event itself, the time alone, or an event"
            f" elsewhere in its window. The line is the declared {shown.target}.",
            [Query(shown.quantile(f"{{{own}}}", "kind", RATE), "{{kind}}")],
            "s",
            shown.bound_line,
        ),
        heatmap(
            "Rows by freshness",
            "How many rows were made by their event in which time: two bands mean two causes.",
            plain,
            "s",
        ),
        timeseries(
            "Burn rates",
            f"How many times too fast late looks use up what {shown.target} leaves room for, by window.",
            [Query(f"max by (window) (freshet_freshness_burn_rate{{{own}}})", "{{window}}")],
            thresholds=BURN_COLOURS,
        ),
        timeseries(
            "Lag of its streams",
            f"Age of the oldest event that waits, by topic. The line is {shown.lag_limit}.",
            [
                Query(
                    f"max by (topic) (freshet_lag_seconds{{{shown.group},{shown.topics_of(view)}}})",
                    "{{topic}}",
                )
            ],
            "s",
            shown.lag_line,
        ),
    ]


def _view_validation(view: View) -> list[Panel]:
    own = f'{{feature_view="{view.name}"}}'
    return [
        table(
            "Features compared",
            "By feature, in the last hour: values that were compared, and rows in which a confirmed finding held; *"
            " stands for whole rows.",
            [
                Column("compared", f"sum by (feature) (increase(freshet_skew_compared_total{own}[1h]))"),
                Column(
                    "confirmed",
                    f"sum by (feature) (increase(freshet_skew_confirmed_total{own}[1h]))",
                    thresholds=ANY,
                ),
            ],
            width=12,
        ),
        timeseries(
            "Open findings by cause",
            "docs/findings.md says what each cause means. Nothing is good.",
            [Query(f"sum by (cause) (freshet_validator_findings{own}) > 0", "{{cause}}")],
        ),
        timeseries(
            "Rounds without a word",
            "Rounds a second of which nothing could be said, or in which the validator failed. Neither is an ok.",
            [
                Query(f"sum(rate(freshet_skew_inconclusive_total{own}{RATE}))", "inconclusive"),
                Query(f"sum(rate(freshet_validator_errors_total{own}{RATE}))", "failed"),
            ],
            "ops",
            width=24,
        ),
    ]


def _view_flow(view: View) -> list[Panel]:
    own = f'{{feature_view="{view.name}"}}'
    streams = f'{{stream=~"{"|".join(view.sources)}"}}'
    return [
        timeseries(
            "Events of its streams",
            "Events a second, taken from Kafka, by what became of them.",
            [
                Query(
                    f"sum by (stream, outcome) (rate(freshet_events_total{streams}{RATE}))",
                    "{{stream}} {{outcome}}",
                )
            ],
            "eps",
        ),
        timeseries(
            "Rows written",
            "Rows a second. Offline has every row; online only the newest of an entity in each batch.",
            [Query(f"sum by (store) (rate(freshet_rows_total{own}{RATE}))", "{{store}}")],
            "rps",
        ),
        timeseries(
            "Events without an entity",
            "Accepted events a second that make no row here, their entity being NULL.",
            [Query(f"sum(rate(freshet_events_without_entity_total{own}{RATE}))", "events")],
            "eps",
        ),
        timeseries(
            "Offline bytes a day",
            "Parquet written, at the rate of the last hour.",
            [Query(f"sum(rate(freshet_offline_bytes_total{own}[1h])) * 86400", "bytes a day")],
            "decbytes",
        ),
    ]
