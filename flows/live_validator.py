"""The validator as it runs: on Kafka, the online store and the offline store, with all that hear of what it finds.

Also a plain Bytewax flow: `python -m bytewax.run "freshet.flows.live_validator:flow()"` takes its settings from the
environment.
"""

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from bytewax.dataflow import Dataflow

from freshet.flows import settings as settings_
from freshet.flows.canaries import Canaries, agreed
from freshet.flows.courier import Courier
from freshet.flows.edges import bytewax, kafka, log, quality
from freshet.flows.edges.canaries import CanaryWriter
from freshet.flows.edges.data_docs import DataDocs
from freshet.flows.edges.findings import Findings
from freshet.flows.edges.metrics import Server, ValidatorMetrics
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.store_config import store_config
from freshet.flows.edges.webhook import Webhook
from freshet.flows.following import Following
from freshet.flows.lag import LagExporter
from freshet.flows.observer import Observer, Seen
from freshet.flows.parity import Client
from freshet.flows.settings import Settings
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.canaries import Template
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.freshness import STALLED_AFTER, WINDOWS, Freshness, Progress, Source
from freshet.flows.steps.pages import summary
from freshet.flows.steps.status import NO_ROUND
from freshet.flows.validator import Edges, Looker, Report, Round, Rounds, build
from freshet.flows.watch import Outside, Sampling
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import FreshetError, Problem, Refused, Unavailable
from freshet.schemas.finding import Alarm, Check, Outcome, Status, Verdict
from freshet.schemas.ledger import source_key
from freshet.schemas.units import Objective
from freshet.schemas.view import View

LOG = logging.getLogger("freshet")

TOPIC, WEBHOOK = "topic", "webhook"
"""Who is told of findings."""

_PATIENCE_S = 3.0
"""How long one round waits for a system: the next round is another attempt."""
_FEAST_PATIENCE_S = 10.0
_WEBHOOK_ATTEMPTS = 6
_SOUND = (Outcome.OK, Outcome.VIOLATED)
_CLOSING, _STUCK_ROUNDS, _STUCK = timedelta(seconds=5), 10, timedelta(seconds=60)


@dataclass(frozen=True)
class Release:
    """Leave to send canaries, given by the user's file: of what events, and who hears that they are in a store."""

    templates: Sequence[Template]
    seen: Callable[[str, str, float], object]


def open_observer(
    workspace: Workspace,
    sampling: Sampling,
    patience_s: float | None = None,
    release: Release | None = None,
    freshness: Freshness | None = None,
) -> Observer:
    """Connect a project's observer; no question of it waits longer than `patience_s`.

    It sends canaries only if it is given a `release`, and goes on with the `freshness` that it is given. Raises
    `Refused` and `Unavailable`.
    """
    cluster = workspace.kafka if patience_s is None else replace(workspace.kafka, patience_s=patience_s)
    online = workspace.online() if patience_s is None else workspace.online(patience_s)
    if not isinstance(online, OnlineStore):
        hint = "the validator works on redis://; other online stores keep no version to compare by"
        raise Refused([Problem("key", "onlineStore", "cannot be sampled", hint=hint)])
    streams = {contract.stream.topic: name for name, contract in workspace.contracts.items()}
    counts = kafka.PartitionCounts(cluster)
    by_stream = {name: counts.of(topic) for topic, name in streams.items()}
    offsets = kafka.GroupOffsets(cluster, workspace.group)

    def ends() -> Mapping[str, int]:
        return {
            source_key(stream, part): end
            for topic, stream in streams.items()
            for part, end in offsets.end_offsets(topic, counts.of(topic)).items()
        }

    def progress() -> Mapping[Source, Progress]:
        found: dict[Source, Progress] = {}
        for topic, stream in streams.items():
            count = counts.of(topic)
            committed = offsets.committed(topic, count)  # first: what is read later may only be further on
            for part, end in offsets.end_offsets(topic, count).items():
                found[stream, part] = Progress(committed[part], end)
        return found

    def close() -> None:
        offsets.close()
        online.close()

    outside = Outside(
        online,
        workspace.offline(),
        LedgerFile(workspace.offline_root),
        ends,
        progress,
        _now,
        lambda: feast_client(workspace, patience_s or _FEAST_PATIENCE_S),
        workspace.is_in_force,
        close,
    )
    target, epoch = workspace.source.declaration.servingRequirements.freshnessTarget, workspace.settings.epoch
    canaries = None
    if release is not None:
        limit = max(target.bound + epoch, STALLED_AFTER)
        canaries = Canaries(
            release.templates, workspace.pipeline, by_stream, CanaryWriter(cluster), _now, limit, release.seen
        )
    return Observer(workspace.pipeline, outside, sampling, freshness or Freshness(target, epoch), canaries)


def feast_client(workspace: Workspace, patience_s: float) -> Client:
    """Make a client of Feast with a project's registry and stores; the first one of a process takes seconds."""
    from freshet.flows.edges.feast import FeastClient  # noqa: PLC0415  # that is why

    config = store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry)
    return FeastClient(config, workspace.offline(), patience_s)


def sampling_of(settings: Settings, sample_count: int, limit: timedelta, seed: int = 0) -> Sampling:
    """Return how to look at so many entities of a view; two epochs must pass before a second look can differ."""
    return Sampling(
        rows_count=-(-sample_count * 2 // 3),
        keys_count=-(-sample_count // 3),
        grace=settings.epoch * 2 + timedelta(seconds=1),
        limit=limit,
        seed=seed,
        parity_every=settings.parity_every,
    )


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Connecting:
    """An observer that is connected as soon as it can be: until then each round is the validator's own error.

    A validator that ended where it cannot connect could tell nobody that the stores are not looked at.
    """

    views: Sequence[View]
    connect: Callable[[], Looker]
    now: Callable[[], datetime] = _now
    _observer: Looker | None = None

    def begin(self) -> None:
        """Try to connect; raises `Refused` for what waiting does not mend."""
        with contextlib.suppress(Unavailable):  # the first round tries again, and says so
            self._observer = self.connect()

    def look(self, number: int, *, choose: bool = True) -> list[Seen]:
        """Do one round."""
        if self._observer is None:
            try:
                self._observer = self.connect()
            except FreshetError as error:
                return [Seen(view, self.now(), error=str(error)) for view in self.views]
        return self._observer.look(number, choose=choose)

    def close(self) -> None:
        """Let go of all connections."""
        if self._observer is not None:
            self._observer.close()


@dataclass
class LiveReporter:
    """Tells of rounds: the log, metrics, couriers to the topic and the webhook, Data Docs."""

    project: str
    metrics: ValidatorMetrics
    couriers: Sequence[Courier]
    docs: DataDocs
    page: Callable[[str, str, str], str]
    docs_every: timedelta
    _written_at: dict[str, datetime] = field(default_factory=dict)
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    trouble: str = NO_ROUND
    """Why the newest round failed, in any view; nothing if it did in none."""

    def report(self, told: Round, took: timedelta) -> None:
        """Tell of one round, which took so long."""
        self.metrics.observe(told.verdicts, told.open, told.at, took.total_seconds())
        for report in told.reports:
            if (seen := report.freshness) is not None:
                name = report.verdict.view
                self.metrics.observe_freshness(name, seen.checked_count, seen.stale_count, seen.burn_rates)
        for courier in self.couriers:
            courier.send(told.news)
        for report in told.reports:
            self._log(report)
            due = self._written_at.get(report.verdict.view, datetime.min.replace(tzinfo=UTC)) + self.docs_every
            if report.news or told.at >= due:
                self._write(report, told.at)
        self.trouble = _trouble(told.verdicts)

    def follow(self, views: Sequence[View], news: Sequence[Alarm]) -> None:
        """Go on with other views, and tell what became news by that."""
        names = {view.name for view in views}
        self._outcomes = {name: outcome for name, outcome in self._outcomes.items() if name in names}
        for alarm in news:
            _log_alarm(alarm)
        for courier in self.couriers:
            courier.send(news)

    def close(self) -> None:
        """Deliver what can be delivered still."""
        for courier in self.couriers:
            courier.close(_CLOSING)

    def _log(self, report: Report) -> None:
        """Log what is new. A view with few rows is inconclusive now and then: that is told once."""
        verdict, before = report.verdict, self._outcomes.get(report.verdict.view)
        for alarm in report.news:
            _log_alarm(alarm)
        if verdict.outcome is before or (verdict.outcome is Outcome.INCONCLUSIVE and before in _SOUND):
            return
        self._outcomes[verdict.view] = verdict.outcome
        if verdict.outcome is Outcome.VALIDATOR_ERROR:
            LOG.error("%s: validator_error: %s", verdict.view, _said(verdict))
        elif verdict.outcome is not Outcome.VIOLATED:
            LOG.info("%s: %s, %d rows compared", verdict.view, verdict.outcome, verdict.compared)

    def _write(self, report: Report, at: datetime) -> None:
        """Write a page; where that fails it is tried again as late as the next one is due."""
        view_name = report.verdict.view
        self._written_at[view_name] = at
        above = summary(report.verdict, report.news, at.isoformat(timespec="seconds"))
        page = self.page(view_name, f"{self.project}: {view_name}", above)
        try:
            self.docs.write(view_name, at, report.verdict.outcome, page)
        except Unavailable as error:
            self.metrics.docs_failures.inc()
            LOG.warning("%s", error)


def _trouble(verdicts: Sequence[Verdict]) -> str:
    """Say why views could not be judged, each reason once: an outage is that of many views."""
    views: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.outcome is Outcome.VALIDATOR_ERROR:
            views.setdefault(_said(verdict).removeprefix(f"{verdict.view}: "), []).append(verdict.view)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in views.items())


def _said(verdict: Verdict) -> str:
    return verdict.reasons[0] if verdict.reasons else verdict.view


def _log_alarm(alarm: Alarm) -> None:
    finding = alarm.finding
    told = {"feature_view": finding.view, "check": finding.check, "finding": finding.cause.value}
    if alarm.status is Status.OPENED:
        LOG.error("opened %s: %s", finding.cause, finding.message, extra=told)
        for line in finding.evidence[:3]:
            LOG.error("  %s", ", ".join(f"{name}={value}" for name, value in line.items()), extra=told)
    else:
        LOG.info("resolved %s: %s, open since %s", finding.cause, finding.check, alarm.since.isoformat(), extra=told)


@dataclass(frozen=True)
class Begun:
    """What looks at the stores by one declaration, and what what it sees is judged by."""

    workspace: Workspace
    observer: Connecting
    freshness: Freshness

    @property
    def target(self) -> Objective:
        """The declared freshness."""
        return self.workspace.source.declaration.servingRequirements.freshnessTarget

    @property
    def views(self) -> Sequence[View]:
        """All views."""
        return self.workspace.pipeline.views

    @property
    def checks(self) -> dict[str, tuple[Check, ...]]:
        """The checks of each view."""
        return {view.name: checks_of(view, self.target) for view in self.views}


def begin(workspace: Workspace, metrics: ValidatorMetrics, before: Begun | None = None) -> Begun:
    """Begin to look by a declaration, with the history of the one before where both promise the same freshness.

    Raises `Refused`; a system that does not answer yet is waited for in rounds.
    """
    settings = workspace.settings
    sampling = sampling_of(settings, settings.sample, Sampling.limit)
    templates = templates_of(workspace)
    target = workspace.source.declaration.servingRequirements.freshnessTarget
    is_same = before is not None and before.target == target
    freshness = before.freshness if before is not None and is_same else Freshness(target, settings.epoch)
    release = (
        Release(templates, lambda *place: metrics.canaries.labels(*place[:2]).set(place[2])) if templates else None
    )
    observer = Connecting(
        workspace.pipeline.views, lambda: open_observer(workspace, sampling, _PATIENCE_S, release, freshness)
    )
    observer.begin()
    return Begun(workspace, observer, freshness)


@dataclass
class Validator:
    """A validator of a project, ready to run: the dataflow, and what watches it."""

    dataflow: Dataflow
    edges: Edges
    reporter: LiveReporter
    begun: Begun
    lag: LagExporter | None = None
    _begun_at_s: float = field(default_factory=time.monotonic)
    _number: int = 0

    def __post_init__(self) -> None:
        """Follow the declaration in force, round by round."""
        metrics = self.reporter.metrics
        self._following = Following(self.begun.workspace, lambda found: begin(found, metrics, self.begun))
        self.edges.follow = self.follow

    @property
    def workspace(self) -> Workspace:
        """The project as it is looked at now."""
        return self.begun.workspace

    def follow(self) -> None:
        """Begin anew if another declaration is in force, as a restart would, but for what is open, and told of.

        Findings stay open until their checks have held by the new declaration; those of checks that are no more are
        over. Addresses, counters and those who are told stay.
        """
        begun = self._following.look()
        if begun is None:
            return
        before, self.begun = self.begun, begun
        before.observer.close()
        checks = begun.checks
        known = {check.name for own in checks.values() for check in own}
        readings = {view.name: begun.freshness.reading(view.sources) for view in begun.views}
        counted = {name: (one.checked_count, one.stale_count) for name, one in readings.items()}
        self.reporter.follow(begun.views, self.edges.alarms.keep(known, _now()))
        self.reporter.metrics.follow(begun.views, checks, counted)
        self.edges.observer, self.edges.freshness_target = begun.observer, begun.target
        self.edges.pools.clear()
        if self.lag is not None:
            self.lag.follow(begun.workspace.lag_reader)
        LOG.info("validating by declaration %s from now on", begun.workspace.declared.id)

    def run(self) -> None:
        """Run until stopped. Raises what went wrong first, which no outage is."""
        server = self.serve()
        try:
            with self.edges.stop.on_signals():
                bytewax.run(self.dataflow, self.edges.failure, epoch=timedelta(seconds=1))
        finally:
            server.close()
            self.reporter.close()
            if self.lag is not None:
                self.lag.end()
        LOG.info("stopped")

    def serve(self) -> Server:
        """Answer Prometheus and health checks beside the flow."""
        address = self.workspace.settings.metrics_address or settings_.VALIDATOR_ADDRESS
        server = Server(address, self.reporter.metrics.registry, self.health)
        LOG.info("validating %s; metrics at http://%s/metrics", self.workspace.pipeline.project, server.address)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        if self.lag is not None:
            self.lag.start()
        return server

    def health(self) -> str:
        """Return why this process should not be counted on; nothing if it may be."""
        return "stopping" if self.edges.stop else self._stuck() or self.reporter.trouble

    def _stuck(self) -> str:
        """Say that a round does not end, so that none begins."""
        lasts_s, limit = time.monotonic() - self._begun_at_s, max(_STUCK, self.edges.rounds.every * _STUCK_ROUNDS)
        return f"no round has begun for {lasts_s:.0f} s" if lasts_s > limit.total_seconds() else ""

    def _watch(self) -> None:
        while not self.edges.stop.wait(timedelta(seconds=1)):
            if self.edges.rounds.number != self._number:
                self._number, self._begun_at_s = self.edges.rounds.number, time.monotonic()


def open_validator(workspace: Workspace) -> Validator:
    """Make a project's validator. Raises `Refused`; a system that does not answer yet is waited for in rounds."""
    settings, pipeline = workspace.settings, workspace.pipeline
    target = workspace.source.declaration.servingRequirements.freshnessTarget
    webhook = Webhook(workspace.webhook, pipeline.project) if workspace.webhook else None
    if settings.parity_every:
        feast_client(workspace, _PATIENCE_S)  # what takes seconds holds up no round
    judge = quality.Judge()
    receivers = (TOPIC,) if webhook is None else (TOPIC, WEBHOOK)
    checks = {view.name: checks_of(view, target) for view in pipeline.views}
    metrics = ValidatorMetrics(pipeline.views, checks, receivers, WINDOWS)
    begun = begin(workspace, metrics)
    findings = Findings(replace(workspace.kafka, patience_s=_PATIENCE_S), pipeline.project)
    couriers = [_courier(TOPIC, findings, metrics)]
    couriers += [] if webhook is None else [_courier(WEBHOOK, webhook, metrics, _WEBHOOK_ATTEMPTS)]
    docs = DataDocs(workspace.data_docs_root)
    reporter = LiveReporter(pipeline.project, metrics, couriers, docs, judge.page, settings.data_docs_every)
    edges = Edges(begun.observer, judge, Alarms(settings.quiet), Rounds(settings.round, _now), reporter, target)
    lag = workspace.lag_exporter("validator")
    if lag is not None:
        metrics.registry.register(lag)
    return Validator(build(pipeline.project, edges), edges, reporter, begun, lag)


def templates_of(workspace: Workspace) -> tuple[Template, ...]:
    """Return what the user agrees to have published: nothing, unless a setting names a file that says it."""
    if workspace.settings.canaries is None:
        return ()
    told = workspace.project.canaries(workspace.settings.canaries)
    return agreed(told, workspace.contracts, workspace.pipeline)


def _courier(
    name: str, receiver: Findings | Webhook, metrics: ValidatorMetrics, attempts_count: int | None = None
) -> Courier:
    return Courier(
        name,
        receiver,
        attempts_count=attempts_count,
        on_failure=metrics.failures.labels(name).inc,
        on_drop=metrics.dropped.labels(name).inc,
    )


def flow() -> Dataflow:
    """Return the dataflow that the environment describes, for Bytewax's own command, in one worker."""
    settings = settings_.read(os.environ)
    log.begin(settings.log, "validator")
    held = contextlib.ExitStack()
    held.enter_context(log.strays())
    atexit.register(held.close)
    validator = open_validator(Workspace.applied(settings))
    with contextlib.suppress(ValueError):  # signals belong to the main thread; Bytewax's command imports in it
        validator.edges.stop.listen()
    validator.serve()
    atexit.register(validator.reporter.close)
    return validator.dataflow
