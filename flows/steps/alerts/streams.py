"""Alerts about what comes in a stream: rejects, or nothing."""

from collections.abc import Iterator

from freshet.flows.steps.alerts.about import About
from freshet.flows.steps.alerts.rule import Alert, Case
from freshet.schemas.view import View

REJECTS_SHARES = {"page": 0.25, "ticket": 0.01}
REJECTS_COUNT_MIN = 10
REJECT_LIMIT_SHARE = 0.5
USUAL_COUNT_MIN = 3
"""In so many looks, five minutes apart, events must have come: else it is nothing usual that they come."""


def of_stream(about: About, stream: str, topic: str, fed: tuple[View, ...]) -> list[Alert]:
    """Return the alerts about what comes, or does not come, in a stream."""
    of_stream = f'stream="{stream}"'
    labels = {"stream": stream}

    def coming(accepted: str, rejected: str) -> dict[str, str]:
        return {
            f'freshet_events_total{{{of_stream},outcome="accepted"}}': accepted,
            f'freshet_events_total{{{of_stream},outcome="rejected"}}': rejected,
            f'freshet_rejects_total{{{of_stream},reason="contract"}}': rejected,
        }

    because = {**labels, "reason": "contract"}
    half = Case(coming("0+50x80", "0+50x80"), "20m", because, "50%", also=("ticket",))
    some = Case(coming("0+950x80", "0+50x80"), "20m", because, "5%")
    made = []
    for severity, share in REJECTS_SHARES.items():
        rejects = f"freshet_rejects_total{{{of_stream}}}[10m]"
        made.append(
            Alert(
                "FreshetRejects",
                f"sum by (stream, reason) (rate({rejects}))"
                f" / on (stream) group_left () sum by (stream) (rate(freshet_events_total{{{of_stream}}}[10m]))"
                f" > {share}"
                f" and on (stream, reason) sum by (stream, reason) (increase({rejects})) >= {REJECTS_COUNT_MIN}",
                "5m",
                severity,
                about.project,
                f"{{{{ $value | humanizePercentage }}}} of the events of {stream} are rejected as"
                " {{ $labels.reason }}",
                f"They are kept in {topic}.dlq and can be sent again once the cause is gone. Until then rows are made"
                " without them. `freshet dlq list --since 1h` shows them.",
                fed,
                (half if severity == "page" else some,),
                (
                    Case(coming("0+20000x80", "0+10x80"), "20m"),
                    Case(coming("0x80", "0x60 1x20"), "20m"),  # of a single event nothing is said
                ),
                {"topic": topic},
            )
        )
    made.append(
        Alert(
            "FreshetRejectLimitNear",
            f"max by (stream) (freshet_rejects_in_a_row{{{of_stream}}}"
            f" / on (job, instance) group_left () freshet_rejects_in_a_row_limit) > {REJECT_LIMIT_SHARE}",
            "0s",
            "page",
            about.project,
            f"nothing but rejects comes in {stream}: {{{{ $value | humanizePercentage }}}} of what stops the flow",
            "So many events in a row could not be used as speak for a wrong deploy. At FRESHET_REJECT_LIMIT the"
            " materializer ends itself, and each start ends it again, until the producers are put right.",
            fed,
            (
                Case(
                    {
                        f'freshet_rejects_in_a_row{{{of_stream},job="m",instance="i"}}': "0+500x20",
                        'freshet_rejects_in_a_row_limit{job="m",instance="i"}': "10000x20",
                    },
                    "4m",
                    labels,
                    "80%",
                ),
            ),
            (
                Case(
                    {
                        f'freshet_rejects_in_a_row{{{of_stream},job="m",instance="i"}}': "0+100x20",
                        'freshet_rejects_in_a_row_limit{job="m",instance="i"}': "10000x20",
                    },
                    "4m",
                ),
            ),
            {"topic": topic},
        )
    )
    return [*made, *_silences(about, stream, topic, fed)]


def _silences(about: About, stream: str, topic: str, fed: tuple[View, ...]) -> Iterator[Alert]:
    """Yield the alerts about a stream that falls silent, though it never was.

    What was usual is the average of three days, of which only the time counts when the flow ran and Kafka answered: so
    it is as much after a long outage as before it. What was sent once, as to try things, is nothing usual.
    """
    counted = f'freshet_events_total{{stream="{stream}"}}'
    waiting = f'kafka_consumergroup_lag_sum{{consumergroup="{about.group}",topic="{topic}"}}'
    seen = f"sum by (stream) (rate({counted}[5m])) and on () sum({waiting})"
    long_ago = "[3d:5m] offset 15m"
    for severity, per_minute, silence in (("page", 60, "5m"), ("ticket", 2, "15m")):
        by_outcome = f'freshet_events_total{{stream="{stream}",outcome="accepted"}}'

        def case(events: str, waits: str, at: str, value: str, *also: str, counted: str = by_outcome) -> Case:
            return Case({counted: events, waiting: waits}, at, {"stream": stream}, value, "1m", also)

        fires = (
            (
                case("0+125x20 2500x40", "0x60", "40m", "100", "ticket"),
                # Kafka was away for two hours: the materializer ended soon, or waited; nothing was sent after it
                case("0+100x60 stale _x120 0x30", "0x60 stale _x120 0x30", "192m", "100", "ticket"),
                case("0+100x60 6000x151", "0x60 stale _x120 0x30", "192m", "100", "ticket"),
            )
            if severity == "page"
            else (case("0+10x20 200x40", "0x60", "40m", "8"),)
        )
        yield Alert(
            "FreshetSilent",
            f"avg_over_time(({seen}){long_ago}) * 60 > {per_minute}"
            f" and on (stream) count_over_time((({seen}) > 0){long_ago}) >= {USUAL_COUNT_MIN}"
            f" and on (stream) sum by (stream) (increase({counted}[{silence}])) == 0"
            f" and on () sum({waiting}) == 0",
            "1m",
            severity,
            about.project,
            f"no event of {stream} for {silence}; {{{{ $value | humanize }}}} a minute were usual",
            f"Everything in {topic} is read, and nothing new comes: the producers are silent, or cannot reach Kafka."
            " The flow is well; values fall by time alone. See whether the producers run.",
            fed,
            fires,
            (
                Case({by_outcome: "0+7200x60", waiting: "0x60"}, "40m", interval="1m"),
                Case({by_outcome: "0+1x20 20x40", waiting: "0x60"}, "40m", interval="1m"),  # seldom anything comes
                Case({by_outcome: "0+7200x20 144000x40", waiting: "0x20 500x40"}, "40m", interval="1m"),  # not read
                Case({by_outcome: "0+5000x2 10000x60", waiting: "0x60"}, "40m", interval="1m"),  # sent once
            ),
            {"topic": topic},
        )
