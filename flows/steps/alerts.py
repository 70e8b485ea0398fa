"""The alerts that a declaration implies: Prometheus' rules, and promtool's tests of them, from one table. Pure.

An alert names what it is about by its labels, and whom it concerns by its annotations: the feature views, their
features, and the runbook that says what to do. `page` wants somebody now, `ticket` within days.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from freshet.flows.steps.freshness import BURN_RULES, CHECKS_MIN, BurnRule
from freshet.flows.steps.monitoring import dashboard_uid
from freshet.schemas import units
from freshet.schemas.declaration import Declaration
from freshet.schemas.finding import Cause
from freshet.schemas.plan import Pipeline
from freshet.schemas.view import View

RULES = "deploy/prometheus/rules.yml"
RULES_TEST = "deploy/prometheus/rules_test.yml"
RUNBOOKS = "deploy/runbooks"

SMALL_CAUSES = (Cause.EXPIRED_TTL, Cause.CLOCK_SKEW, Cause.SCHEMA_DRIFT)
"""Findings that can wait until tomorrow: what is served is right, or will be by itself."""

QUIET_AFTER = timedelta(minutes=1)
"""How long a process, or what it does, may be missing."""
BREACH_AHEAD = timedelta(minutes=15)
RETENTION_AHEAD = timedelta(hours=6)
REJECTS_SHARES = {"page": 0.25, "ticket": 0.01}
REJECTS_COUNT_MIN = 10
REJECT_LIMIT_SHARE = 0.5


def consumer_group(project: str) -> str:
    """Return the Kafka group under which the materializer's progress is known."""
    return f"freshet-{project}-materializer"


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
    """One rule. `hold` is how long `expr` must be so; `labels` stand beside severity and project.

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
            "runbook_url": self.runbook,
            "dashboard_url": f"/d/{self.dashboard}",
        }

    @property
    def rule(self) -> dict[str, Any]:
        """The rule in Prometheus' form."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
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


def alerts_of(
    declaration: Declaration, pipeline: Pipeline, topics: Mapping[str, str], epoch: timedelta
) -> tuple[Alert, ...]:
    """Return every alert. `topics` has the topic of each stream, `epoch` is how often offsets are committed."""
    about = _About.of(declaration, pipeline, epoch)
    made: list[Alert] = []
    for stream, topic in topics.items():
        fed = tuple(plan.view for plan in pipeline.of_source(stream))
        made += _of_topic(about, topic, fed)
        made += _of_stream(about, stream, topic, fed)
    for view in pipeline.views:
        sources = [topics[source] for source in view.sources if source in topics]
        # an alert about a topic silences those about views that have no other
        place = {"feature_view": view.name, **({"topic": sources[0]} if len(sources) == 1 else {})}
        made += _of_view(about, view, place)
    return (*made, *_of_project(about))


@dataclass(frozen=True)
class _About:
    """What the expressions need of a project."""

    project: str
    views: tuple[View, ...]
    objective: units.Objective
    epoch: timedelta
    volume: units.Volume

    @classmethod
    def of(cls, declaration: Declaration, pipeline: Pipeline, epoch: timedelta) -> "_About":
        serving = declaration.servingRequirements
        return cls(declaration.project, pipeline.views, serving.freshnessTarget, epoch, serving.offlineVolume)

    @property
    def group(self) -> str:
        return consumer_group(self.project)

    @property
    def late_s(self) -> float:
        """From what age on a message is late: rows are online before their offsets are committed."""
        return (self.objective.bound + self.epoch).total_seconds()

    @property
    def declared(self) -> str:
        return units.spell(self.objective.bound)

    @property
    def any_view(self) -> str:
        """The matcher of series about this project's views: metrics do not name the project."""
        return f'feature_view=~"{"|".join(view.name for view in self.views)}"'

    @property
    def one_view(self) -> str:
        return self.views[0].name


def _of_topic(about: _About, topic: str, fed: tuple[View, ...]) -> list[Alert]:
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
            f"max by (topic) (freshet_lag_seconds{{{lagging}}}) > {_number(late_s)}",
            "1m",
            "page",
            f"{topic} is {{{{ $value | humanizeDuration }}}} behind; {about.declared} is declared",
            "Messages have waited in Kafka for longer than the freshness target, for a whole minute."
            " `freshet status` says of which partitions, and which part does not answer.",
            fires=(
                Case({f"freshet_lag_seconds{place}": f"{_number(late_s * 4)}x20"}, "3m", {}, _humanized(late_s * 4)),
            ),
            silent=(
                Case({f"freshet_lag_seconds{place}": f"{_number(late_s / 2)}x20"}, "3m"),
                Case({f"freshet_lag_seconds{place}": f"{_number(late_s * 4)}x3 0x20"}, "3m"),
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
            f"min {partition} (freshet_lag_breach_seconds{{{lagging}}} > 0) < {_number(ahead_s)}",
            "5m",
            "page",
            f"{topic}/{{{{ $labels.partition }}}} will be later than {about.declared} in"
            " {{ $value | humanizeDuration }}",
            "More comes than the materializer gets done, and has for five minutes. Nothing is late yet.",
            fires=(Case({f"freshet_lag_breach_seconds{place}": f"{_number(ahead_s / 3)}x40"}, "8m", labels, "5m 0s"),),
            silent=(
                Case({f"freshet_lag_breach_seconds{place}": f"{_number(ahead_s * 2)}x40"}, "8m"),
                Case({f"freshet_lag_breach_seconds{place}": "0x40"}, "8m"),
            ),
        ),
        alert(
            "FreshetRetentionNear",
            f"min {partition} (freshet_retention_left_seconds{{{lagging}}}) < {_number(left_s)}"
            f" and on (topic, partition) max {partition} (freshet_lag_seconds{{{lagging}}}) > {_number(late_s)}",
            "5m",
            "page",
            f"{topic}/{{{{ $labels.partition }}}}: in {{{{ $value | humanizeDuration }}}} Kafka deletes messages that"
            " were never read",
            "The oldest waiting message nears the end of the topic's retention. Once it is deleted, its events are lost"
            " to both stores. Lengthen the retention first, then find out why it waits.",
            fires=(
                Case(
                    {
                        f"freshet_retention_left_seconds{place}": f"{_number(left_s / 6)}x40",
                        f"freshet_lag_seconds{place}": f"{_number(late_s * 9)}x40",
                    },
                    "8m",
                    labels,
                    "1h 0m 0s",
                ),
            ),
            silent=(
                Case(
                    {
                        f"freshet_retention_left_seconds{place}": f"{_number(left_s * 4)}x40",
                        f"freshet_lag_seconds{place}": f"{_number(late_s * 9)}x40",
                    },
                    "8m",
                ),
                Case(  # a topic that is kept for an hour, and read at once
                    {
                        f"freshet_retention_left_seconds{place}": f"{_number(left_s / 6)}x40",
                        f"freshet_lag_seconds{place}": f"{_number(late_s / 3)}x40",
                    },
                    "8m",
                ),
            ),
        ),
    ]


def _of_stream(about: _About, stream: str, topic: str, fed: tuple[View, ...]) -> list[Alert]:
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


def _silences(about: _About, stream: str, topic: str, fed: tuple[View, ...]) -> Iterator[Alert]:
    """Yield the alerts about a stream that falls silent, though it never was: what was usual is an average day."""
    counted = f'freshet_events_total{{stream="{stream}"}}'
    waiting = f'kafka_consumergroup_lag_sum{{consumergroup="{about.group}",topic="{topic}"}}'
    for severity, per_minute, silence in (("page", 60, "5m"), ("ticket", 2, "15m")):
        by_outcome = f'freshet_events_total{{stream="{stream}",outcome="accepted"}}'
        many = Case(
            {by_outcome: "0+7200x20 144000x40", waiting: "0x60"}, "40m", {"stream": stream}, "100", "1m", ("ticket",)
        )
        some = Case({by_outcome: "0+720x20 14400x40", waiting: "0x60"}, "40m", {"stream": stream}, "10", "1m")
        yield Alert(
            "FreshetSilent",
            f"sum by (stream) (rate({counted}[1d] offset {silence})) * 60 > {per_minute}"
            f" and on (stream) sum by (stream) (increase({counted}[{silence}])) == 0"
            f" and on () sum({waiting}) == 0",
            "1m",
            severity,
            about.project,
            f"no event of {stream} for {silence}; {{{{ $value | humanize }}}} a minute were usual",
            f"Everything in {topic} is read, and nothing new comes: the producers are silent, or cannot reach Kafka."
            " The flow is well; values fall by time alone.",
            fed,
            (many if severity == "page" else some,),
            (
                Case({by_outcome: "0+7200x60", waiting: "0x60"}, "40m", interval="1m"),
                Case({by_outcome: "0+1x20 20x40", waiting: "0x60"}, "40m", interval="1m"),  # seldom anything comes
                Case({by_outcome: "0+7200x20 144000x40", waiting: "0x20 500x40"}, "40m", interval="1m"),  # not read
            ),
            {"topic": topic},
        )


def _of_view(about: _About, view: View, place: Mapping[str, str]) -> list[Alert]:
    """Return the alerts about what is served of a view."""
    of_view = f'feature_view="{view.name}"'
    made = [*_burns(about, view, place)]
    small = "|".join(SMALL_CAUSES)

    def finding(cause: Cause, values: str, *also: str) -> Case:
        found = {f'freshet_validator_findings{{{of_view},cause="{cause}"}}': values}
        return Case(found, "4m", {"feature_view": view.name, "cause": cause.value}, "2", also=also)

    for severity, sign, own, other in (
        ("page", "!~", Cause.VALUE_MISMATCH, finding(Cause.CLOCK_SKEW, "2x20", "ticket")),
        ("ticket", "=~", Cause.EXPIRED_TTL, finding(Cause.VALUE_MISMATCH, "2x20", "page")),
    ):
        made.append(
            Alert(
                "FreshetSkew",
                f'max by (feature_view, cause) (freshet_validator_findings{{{of_view},cause{sign}"{small}"}}) > 0',
                "1m",
                severity,
                about.project,
                f"{view.name}: {{{{ $labels.cause }}}}, {{{{ $value }}}} of the validator's checks do not hold",
                "The validator has looked twice and has evidence: `freshet check` shows the rows of a look now, the"
                " newest page of its Data Docs those of the finding. The runbook says by cause what to do.",
                (view,),
                (finding(own, "0x2 2x20"),),
                (finding(own, "0x20"), finding(own, "2x3 0x20"), other),
                place,
                "freshet-validation",
            )
        )
    return made


def _burns(about: _About, view: View, place: Mapping[str, str]) -> Iterator[Alert]:
    """Yield the alerts about the budget of late looks. A rule that would take more than all of them is left out."""
    budget = 1 - about.objective.percentile / 100
    checked, stale = (f'freshet_freshness_{name}_total{{feature_view="{view.name}"}}' for name in ("checked", "stale"))

    def share(window: timedelta) -> str:
        counts = (f"sum by (feature_view) (rate({name}[{units.spell(window)}]))" for name in (stale, checked))
        return " / ".join(counts)

    def burns(rule: BurnRule) -> str:
        limit = f"> {rule.factor * budget:.6g}"
        enough = f"sum by (feature_view) (increase({checked}[{units.spell(rule.long)}])) >= {CHECKS_MIN}"
        return f"({share(rule.long)} {limit} and {share(rule.short)} {limit} and {enough})"

    def looks(stale_count: int) -> dict[str, str]:
        return {checked: "0+1000000x280", stale: f"0+{stale_count}x280"}

    def case(stale_share: float) -> Case:
        stale_count = round(stale_share * 1e6)
        return Case(looks(stale_count), "10m", {"feature_view": view.name}, f"{stale_count / 1e4:.4g}%")

    for name, severity, meaning in (
        ("FreshetFreshnessBurnsFast", "page", "At this pace a month's allowance of late looks is gone within days."),
        ("FreshetFreshnessBurnsSlowly", "ticket", "It goes on for long: at the month's end the target was not kept."),
    ):
        rules = [rule for rule in BURN_RULES if rule.severity == severity and rule.factor * budget < 1]
        if not rules:
            continue
        limits = [rule.factor * budget for rule in rules]
        over = {checked: "0+1000000x280", stale: f"0+{round(1e6 * (1 + max(limits)) / 2)}x80"}
        over[stale] += f" {80 * round(1e6 * (1 + max(limits)) / 2)}x200"
        yield Alert(
            name,
            " or ".join(map(burns, rules)),
            "1m",
            severity,
            about.project,
            f"{view.name}: {{{{ $value | humanizePercentage }}}} of the looks found messages late; {about.objective} is"
            " declared",
            f"{meaning} A look is late if a message had waited for longer than {about.declared}. `freshet status` says"
            " how it stands now.",
            (view,),
            (case((1 + max(limits)) / 2), *([case((1 + min(limits)) / 2)] if len(limits) > 1 else [])),
            (
                case(min(limits) / 2),
                Case({checked: "0+1x40", stale: "0+1x40"}, "10m"),  # of forty looks nothing is said
                *([Case(over, "70m")] if severity == "page" else []),  # it is over
            ),
            place,
            dashboard_uid("view", view.name),
        )


def _of_project(about: _About) -> list[Alert]:
    """Return the alerts about the processes, and what all of them do together."""
    of_views, view = about.any_view, about.one_view
    quiet_s = QUIET_AFTER.total_seconds()
    epoch_s = about.epoch.total_seconds()
    here = ',job="j",instance="i"'
    on_its_own = "and on (job, instance)"
    checkpoint = "freshet_checkpoint_last_success_timestamp_seconds"
    entities = f"freshet_state_entities{{{of_views}}}"
    round_ = "freshet_validator_last_success_timestamp_seconds"
    errors = f"freshet_validator_errors_total{{{of_views}}}"
    sampled = "freshet_lag_sampled_timestamp_seconds"
    sums = f'kafka_consumergroup_lag_sum{{consumergroup=~"{about.group}"}}'
    one_sum = f'kafka_consumergroup_lag_sum{{consumergroup="{about.group}",topic="t"{here}}}'
    one_entities = f'freshet_state_entities{{feature_view="{view}"{here}}}'
    one_errors = f'freshet_validator_errors_total{{feature_view="{view}"{here}}}'
    place = here.removeprefix(",")
    others = f'freshet_state_entities{{feature_view="of_another_project"{here}}}'
    size = about.volume.bytes_per_day

    def alert(name: str, expr: str, hold: str, severity: str, summary: str, description: str, **cases: Any) -> Alert:
        return Alert(name, expr, hold, severity, about.project, summary, description, about.views, **cases)

    return [
        alert(
            "FreshetCheckpointOld",
            f"sum(max by (topic) ({sums})) > 0 and on ()"
            f" time() - max({checkpoint} {on_its_own} {entities}) > {_number(quiet_s + 3 * epoch_s)}",
            "1m",
            "page",
            f"{{{{ $value | humanize }}}} messages wait, and there was no checkpoint for {units.spell(QUIET_AFTER)}",
            "The materializer runs, but what it has read does not get durable: a store or Kafka does not answer, or a"
            " disk is full. Its /healthz says what it waits for.",
            fires=(
                Case(
                    {f"{checkpoint}{{{place}}}": "0x400", one_entities: "9x400", one_sum: "1500x400"},
                    _at(epoch_s * 3 + 300),
                    {},
                    "1.5k",
                    _step(epoch_s),
                ),
            ),
            silent=(
                Case(  # a night without an event
                    {f"{checkpoint}{{{place}}}": "0x400", one_entities: "9x400", one_sum: "0x400"},
                    _at(epoch_s * 3 + 300),
                    interval=_step(epoch_s),
                ),
                Case({f"{checkpoint}{{{place}}}": "0+15x40", one_entities: "9x40", one_sum: "1500x40"}, "8m"),
            ),
        ),
        alert(
            "FreshetMaterializerDead",
            f"absent({entities})",
            "1m",
            "page",
            "the materializer gives no metrics: it is down, or Prometheus cannot reach it",
            "Nothing of it was heard for a minute. While it is down no feature changes, online or offline. Its last"
            " line says why it ended.",
            fires=(Case({others: "9x20"}, "3m"), Case({one_entities: "9x4 stale"}, "5m")),
            silent=(Case({one_entities: "9x20"}, "3m"),),
            dashboard="freshet-overview",
        ),
        alert(
            "FreshetValidatorDead",
            f"absent({errors})",
            "1m",
            "page",
            "the validator gives no metrics: it is down, or Prometheus cannot reach it",
            "Nobody looks whether both stores agree, and nothing is known of the lag, since the validator exports it:"
            " alerts about either stay silent until it is back.",
            fires=(
                Case({f'freshet_validator_errors_total{{feature_view="of_another_project"{here}}}': "0x20"}, "3m"),
                Case({one_errors: "0x4 stale"}, "5m"),
            ),
            silent=(Case({one_errors: "0x20"}, "3m"),),
            dashboard="freshet-validation",
        ),
        alert(
            "FreshetValidatorFailing",
            f"time() - max({round_} {on_its_own} {errors}) > 300",
            "1m",
            "page",
            "for more than five minutes no round of the validator has succeeded",
            "It runs, but cannot look: Kafka, the online store or the offline store does not answer it, or its judge"
            " fails. Findings stand as they were. Its /healthz says why.",
            fires=(Case({f"{round_}{{{place}}}": "0+15x20 300x80", one_errors: "0x100"}, "15m"),),
            silent=(
                Case({f"{round_}{{{place}}}": "0+15x100", one_errors: "0x100"}, "15m"),
                Case({f"{round_}{{{place}}}": "0+15x20 300x10 450+15x70", one_errors: "0x100"}, "15m"),
            ),
            dashboard="freshet-validation",
        ),
        alert(
            "FreshetLagUnknown",
            f"absent({sums}) or time() - max({sampled} {on_its_own} {sums}) > {_number(quiet_s)}",
            "1m",
            "page",
            "nothing is known of the lag: Kafka does not answer, or nobody exports it",
            "Kafka has not told for a minute how far the materializer is, so no alert about lag can fire. Most often"
            " Kafka is away, and then the materializer waits for it too. `freshet status` asks Kafka itself.",
            fires=(
                Case({f"{sampled}{{{place}}}": "0x20"}, "3m"),  # Kafka went away
                Case({f"{sampled}{{{place}}}": "0x20", one_sum: "0x20"}, "4m"),  # the exporter stands still
            ),
            silent=(Case({f"{sampled}{{{place}}}": "0+15x20", one_sum: "0x20"}, "4m"),),
            dashboard="freshet-lag",
        ),
        alert(
            "FreshetOfflineVolume",
            f"sum(increase(freshet_offline_bytes_total{{{of_views}}}[1d])) > {_number(size)}",
            "15m",
            "ticket",
            f"{{{{ $value | humanize }}}}B of parquet in a day; {about.volume} is declared",
            "The offline store grows faster than the declaration says. `freshet plan` says which view makes how much of"
            " an event.",
            fires=(
                Case(
                    {
                        f'freshet_offline_bytes_total{{feature_view="{view}",job="j",instance="{one}"}}': (
                            f"0x2 {_number(size)}x30"
                        )
                        for one in ("1", "2")
                    },
                    "25m",
                    {},
                    _humanized_count(2 * size),
                    "1m",
                ),
            ),
            silent=(
                Case(
                    {f'freshet_offline_bytes_total{{feature_view="{view}"{here}}}': f"0x2 {_number(size / 2)}x30"},
                    "25m",
                    interval="1m",
                ),
            ),
        ),
    ]


def _number(value: float) -> str:
    """Write a number as expressions and series have it.

    >>> _number(2.0), _number(0.01), _number(1e10)
    ('2', '0.01', '10000000000')
    """
    return f"{value:.15g}"


def _step(epoch_s: float) -> str:
    """Return how far apart the samples of a case about checkpoints may be: some four hundred must cover it."""
    return f"{max(15, int(epoch_s / 60))}s"


def _at(seconds: float) -> str:
    return f"{int(seconds)}s"


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


def _humanized_count(value: float) -> str:
    """Write a number as Prometheus' humanize does.

    >>> _humanized_count(1500), _humanized_count(20e9), _humanized_count(999)
    ('1.5k', '20G', '999')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    while value >= 1000 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.4g}{prefixes[0]}"
