"""Lag, partition by partition: what waits in Kafka, and what follows from that."""

from typing import Any

from freshet.flows.steps.dashboards.panels import (
    Column,
    Panel,
    Query,
    Section,
    stat,
    state_timeline,
    table,
    timeseries,
)
from freshet.flows.steps.dashboards.shown import (
    ANY,
    DRAINS,
    FAR_S,
    NEAR,
    NOT_AT_THIS_RATE,
    NOT_IN_SIGHT,
    RETENTION_NEAR,
    Shown,
)
from freshet.flows.steps.monitoring import dashboard_uid

_PARTITION = "topic, partition"
_STATUSES = {0: "OK", 1: "WARN", 2: "REWIND", 3: "STALL", 4: "STOP"}
"""Burrow's, from harmless to bad; the numbers are this dashboard's."""
_STATUS_COLOURS = ((1.0, "orange"), (2.0, "purple"), (3.0, "red"), (4.0, "dark-red"))


def lag(shown: Shown) -> dict[str, Any]:
    """Return the dashboard of the lag of each partition."""
    sections = [
        Section("Now", [*behind(shown), _partitions_now(shown)]),
        Section("How it came", [_statuses(shown), *_by_partition(shown)]),
    ]
    description = (
        "Of each partition: what waits in Kafka and is not yet in both stores. It is read from Kafka, by the"
        " validator, and so is right when the materializer is gone."
    )
    return shown.dashboard(dashboard_uid("lag"), "lag", description, "lag", sections)


def _partitions_now(shown: Shown) -> Panel:
    def of(metric: str) -> str:
        return f"max by ({_PARTITION}) ({metric}{{{shown.group}}})"

    def until(metric: str) -> str:
        return f"clamp_max({of(metric)}, {FAR_S})"

    return table(
        "Partitions now",
        "A row for each partition. STOP: nothing is committed any more. STALL: the same offset again and again, so an"
        " event there cannot be worked off, or a sink is away. WARN: it works, but lag only grows. REWIND: an offset"
        " went back, which no run of the materializer does.",
        [
            Column("status", _status(shown), thresholds=_STATUS_COLOURS, texts=_STATUSES),
            Column("oldest waits", of("freshet_lag_seconds"), "s", shown.lags),
            Column("messages", of("kafka_consumergroup_lag")),
            Column("caught up in", until("freshet_lag_drain_seconds"), "s", DRAINS, NOT_AT_THIS_RATE),
            Column("target missed in", until("freshet_lag_breach_seconds"), "s", NEAR, NOT_IN_SIGHT),
            Column("deleted in", until("freshet_retention_left_seconds"), "s", RETENTION_NEAR, NOT_IN_SIGHT),
        ],
        height=9,
    )


def _status(shown: Shown) -> str:
    """Return an expression with the number of each partition's status."""
    said = [
        f'{number} * max by ({_PARTITION}) (freshet_lag_status{{{shown.group},status="{status}"}})'
        for number, status in _STATUSES.items()
    ]
    return " + ".join(said)


def _statuses(shown: Shown) -> Panel:
    return state_timeline(
        "Status by partition",
        "What Burrow's rules said of each partition, over time.",
        Query(_status(shown), "{{topic}}/{{partition}}"),
        _STATUSES,
        _STATUS_COLOURS,
    )


def _by_partition(shown: Shown) -> list[Panel]:
    def lines(metric: str, bound: str = "") -> list[Query]:
        expr = f"max by ({_PARTITION}) ({metric}{{{shown.group}}})"
        return [Query(f"{expr}{bound}", "{{topic}}/{{partition}}")]

    return [
        timeseries(
            "Lag in seconds",
            f"Age of the oldest event that waits, by partition. The line is {shown.lag_limit}.",
            lines("freshet_lag_seconds"),
            "s",
            shown.lag_line,
        ),
        timeseries("Lag in messages", "Messages that wait, by partition.", lines("kafka_consumergroup_lag")),
        timeseries(
            "Until the target is missed",
            "By partition, where lag grows; no line where it does not.",
            lines("freshet_lag_breach_seconds", " < Inf"),
            "s",
        ),
        timeseries(
            "Until it is caught up",
            "By partition; no line where more comes than is worked off.",
            lines("freshet_lag_drain_seconds", " < Inf"),
            "s",
        ),
        timeseries(
            "Until Kafka deletes an unread message",
            "By partition; no line where nothing waits, or Kafka deletes nothing.",
            lines("freshet_retention_left_seconds", " < Inf"),
            "s",
        ),
        timeseries(
            "Kafka's last answer",
            "How old the numbers on this page are. Where this rises, Kafka does not answer, and there are none of lag.",
            [Query("time() - max(freshet_lag_sampled_timestamp_seconds)", "age")],
            "s",
        ),
    ]


def behind(shown: Shown) -> list[Panel]:
    """Return panels of the worst partition: how far behind it is, until when that does no harm, and when it is over."""
    group = shown.group
    return [
        stat(
            "Oldest event that waits",
            "How long the oldest event that is not yet in both stores has waited, of the worst partition; 0 if nothing"
            f" waits. Red: for longer than {shown.lag_limit}. `freshet status` says which partition.",
            Query(f"max(freshet_lag_seconds{{{group}}})"),
            "s",
            shown.lags,
        ),
        stat(
            "Target missed in",
            f"How long until the oldest waiting event is older than {shown.bound}, as lag grows now; 0 if it is. Until"
            " then nobody is harmed.",
            Query(f"clamp_max(min(freshet_lag_breach_seconds{{{group}}}), {FAR_S})"),
            "s",
            NEAR,
            NOT_IN_SIGHT,
        ),
        stat(
            "Caught up in",
            "How long until nothing waits, at the rate of the last minute, of the slowest partition. If more comes"
            " than is worked off, it does not catch up: more workers, or processes, are needed.",
            Query(f"clamp_max(max(freshet_lag_drain_seconds{{{group}}}), {FAR_S})"),
            "s",
            DRAINS,
            NOT_AT_THIS_RATE,
        ),
        stat(
            "Messages that wait",
            "How many messages are in Kafka and not yet committed, in all topics together.",
            Query(f"sum(kafka_consumergroup_lag_sum{{{group}}})"),
        ),
        stat(
            "Partitions not OK",
            "Partitions that Burrow's rules call WARN (lag only grows), STALL (commits repeat one offset), STOP (no"
            " commits) or REWIND (an offset went back). The lag dashboard says which.",
            Query(f'sum(freshet_lag_status{{{group},status!="OK"}})'),
            thresholds=ANY,
        ),
        stat(
            "Kafka deletes unread in",
            "How long until Kafka deletes a message that was not yet taken. After that its event is lost: start the"
            " materializer before, or raise the topic's retention.ms.",
            Query(f"clamp_max(min(freshet_retention_left_seconds{{{group}}}), {FAR_S})"),
            "s",
            RETENTION_NEAR,
            NOT_IN_SIGHT,
        ),
    ]
