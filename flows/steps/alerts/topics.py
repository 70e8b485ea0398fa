"""Alerts about how far the materializer is behind in a topic."""

from datetime import timedelta
from typing import Any

from freshet.flows.steps.alerts.about import About
from freshet.flows.steps.alerts.rule import Alert, Case, humanized, number
from freshet.schemas.view import View

BREACH_AHEAD = timedelta(minutes=15)
RETENTION_AHEAD = timedelta(hours=6)


def of_topic(about: About, topic: str, fed: tuple[View, ...]) -> list[Alert]:
    """Return the alerts about how far the materializer is behind in a topic."""
    lagging = f'consumergroup="{about.group}",topic="{topic}"'
    place = f'{{{lagging},partition="3"}}'
    partition = "by (topic, partition)"
    labels = {"topic": topic, "partition": "3"}
    late_s, ahead_s, left_s = about.late_s, BREACH_AHEAD.total_seconds(), RETENTION_AHEAD.total_seconds()

    def alert(name: str, expr: str, hold: str, severity: str, summary: str, description: str, **cases: Any) -> Alert:
        place = {"topic": topic}
        return Alert(
            name, expr, hold, severity, about.project, summary, description, fed,
            **cases, labels=place, dashboard="freshet-lag",
        )  # fmt: skip

    def status(name: str, over: str = "") -> str:
        selected = f'freshet_lag_status{{{lagging},status="{name}"}}'
        return f"max {partition} ({f'max_over_time({selected}[{over}])' if over else selected}) == 1"

    def standing(name: str, value: str) -> Case:
        series = {
            f"kafka_consumergroup_lag{place}": "120x40",
            f'freshet_lag_status{{{lagging},partition="3",status="{name}"}}': f"{value}x40",
        }
        return Case(series, "5m", labels, "120")

    waiting = f"max {partition} (kafka_consumergroup_lag{{{lagging}}})"
    return [
        alert(
            "FreshetLag",
            f"max by (topic) (freshet_lag_seconds{{{lagging}}}) > {number(late_s)}",
            "1m",
            "page",
            f"{topic} is {{{{ $value | humanizeDuration }}}} behind; {about.declared} is declared",
            "Messages have waited in Kafka for longer than the freshness target, for a whole minute."
            " `freshet status` says which part does not answer, or in how many partitions it stands still;"
            " with --json in which.",
            fires=(Case({f"freshet_lag_seconds{place}": f"{number(late_s * 4)}x20"}, "3m", {}, humanized(late_s * 4)),),
            silent=(
                Case({f"freshet_lag_seconds{place}": f"{number(late_s / 2)}x20"}, "3m"),
                Case({f"freshet_lag_seconds{place}": f"{number(late_s * 4)}x3 0x20"}, "3m"),
            ),
        ),
        alert(
            "FreshetStopped",
            f"{waiting} and on (topic, partition) {status('STOP')}",
            "1m",
            "page",
            f"{topic}/{{{{ $labels.partition }}}}: nothing is committed any more, {{{{ $value | humanize }}}} messages"
            " wait",
            "The materializer has stopped committing this partition (Burrow's STOP). If it is all partitions, it is"
            " down, or Kafka or a store does not answer; if it is one, that one is stuck.",
            fires=(standing("STOP", "1"),),
            silent=(standing("STOP", "0"), standing("WARN", "1")),
        ),
        alert(
            "FreshetStalled",
            f"{waiting} and on (topic, partition) {status('STALL')}",
            "1m",
            "page",
            f"{topic}/{{{{ $labels.partition }}}}: the same offset is committed again and again,"
            " {{ $value | humanize }} messages wait",
            "The materializer commits, but does not get on with this partition (Burrow's STALL).",
            fires=(standing("STALL", "1"),),
            silent=(standing("STALL", "0"), standing("OK", "1")),
        ),
        alert(
            "FreshetRewound",
            status("REWIND", "15m"),
            "0s",
            "ticket",
            f"{topic}/{{{{ $labels.partition }}}}: an offset was committed that lies before the last one",
            "Committed offsets of this partition went back (Burrow's REWIND). The materializer never does that:"
            f" somebody reset the group {about.group}, or made the topic anew.",
            fires=(standing("REWIND", "0x4 1x2 0"),),
            silent=(standing("REWIND", "0"),),
        ),
        alert(
            "FreshetBreachNear",
            f"min {partition} (freshet_lag_breach_seconds{{{lagging}}} > 0) < {number(ahead_s)}",
            "5m",
            "page",
            f"{topic}/{{{{ $labels.partition }}}} will be later than {about.declared} in"
            " {{ $value | humanizeDuration }}",
            "More comes than the materializer gets done, and has for five minutes. Nothing is late yet.",
            fires=(Case({f"freshet_lag_breach_seconds{place}": f"{number(ahead_s / 3)}x40"}, "8m", labels, "5m 0s"),),
            silent=(
                Case({f"freshet_lag_breach_seconds{place}": f"{number(ahead_s * 2)}x40"}, "8m"),
                Case({f"freshet_lag_breach_seconds{place}": "0x40"}, "8m"),
            ),
        ),
        alert(
            "FreshetRetentionNear",
            f"min {partition} (freshet_retention_left_seconds{{{lagging}}}) < {number(left_s)}"
            f" and on (topic, partition) max {partition} (freshet_lag_seconds{{{lagging}}}) > {number(late_s)}",
            "5m",
            "page",
            f"{topic}/{{{{ $labels.partition }}}}: in {{{{ $value | humanizeDuration }}}} Kafka deletes messages that"
            " were never read",
            "The oldest waiting message nears the end of the topic's retention. Once it is deleted, its events are lost"
            " to both stores. Lengthen the retention first, then find out why it waits.",
            fires=(
                Case(
                    {
                        f"freshet_retention_left_seconds{place}": f"{number(left_s / 6)}x40",
                        f"freshet_lag_seconds{place}": f"{number(late_s * 9)}x40",
                    },
                    "8m",
                    labels,
                    "1h 0m 0s",
                ),
            ),
            silent=(
                Case(
                    {
                        f"freshet_retention_left_seconds{place}": f"{number(left_s * 4)}x40",
                        f"freshet_lag_seconds{place}": f"{number(late_s * 9)}x40",
                    },
                    "8m",
                ),
                Case(  # a topic that is kept for an hour, and read at once
                    {
                        f"freshet_retention_left_seconds{place}": f"{number(left_s / 6)}x40",
                        f"freshet_lag_seconds{place}": f"{number(late_s / 3)}x40",
                    },
                    "8m",
                ),
            ),
        ),
    ]
