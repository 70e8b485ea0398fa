"""The validator: looks at both stores, round after round, and has the judge say whether they agree and keep up.

::

    rounds ── look ── judge ── heed ── report

`look` reads a sample of both stores (`observer`); `judge` is Great Expectations; `heed` tells what is news
(`steps/alarms.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import bytewax.operators as op
import pandas as pd
from bytewax.dataflow import Dataflow

from freshet.flows.edges.bytewax import Failure, PollSource, SingleSink, Stop
from freshet.flows.observer import Observer, Seen
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.frames import freshness
from freshet.flows.steps.freshness import Reading, without_history
from freshet.flows.steps.pools import Pools
from freshet.schemas.finding import Alarm, Finding, Frame, Outcome, Question, Verdict, worst
from freshet.schemas.units import Objective

_GATHERED = {Frame.ROWS, Frame.RECOMPUTED, Frame.REGISTRY, Frame.SERVED}
"""Frames of which each look has other lines, or none."""

EXIT_CODES = {Outcome.OK: 0, Outcome.VIOLATED: 1, Outcome.INCONCLUSIVE: 3, Outcome.VALIDATOR_ERROR: 4}


class Judge(Protocol):
    """What decides: `freshet.flows.edges.quality.Judge`."""

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answer each question: whether its frame is as its checks say."""


def judged(
    judge: Judge, looks: Sequence[Seen], freshness_target: Objective, pools: Mapping[str, Pools] | None = None
) -> tuple[Verdict, ...]:
    """Have every frame of all views judged at once, and make one verdict a view of it.

    `pools` gather each view's rows over rounds for what is judged by many; without them it is judged by the rows there
    are.
    """
    asked = [_questions(seen, freshness_target, pools[seen.view.name] if pools is not None else None) for seen in looks]
    told = iter(judge.judge([question for questions in asked for question in questions]))
    answers = [[(question, next(told)) for question in questions] for questions in asked]
    return tuple(_verdict(seen, freshness_target, own) for seen, own in zip(looks, answers, strict=True))


def _questions(seen: Seen, freshness_target: Objective, pools: Pools | None) -> list[Question]:
    """Return what is to be asked of a look at a view."""
    checks = checks_of(seen.view, freshness_target)
    rows = seen.frames.get(Frame.ROWS)
    to_judge = [(frame, [check for check in checks if check.frame is kind]) for kind, frame in seen.frames.items()]
    if rows is not None:
        to_judge += (pools or Pools(checks, rows_count=1, rounds_count=1)).take(rows)
    return [Question(seen.view.name, frame, own) for frame, own in to_judge]


def _verdict(seen: Seen, freshness_target: Objective, answers: Sequence[tuple[Question, Verdict]]) -> Verdict:
    """Make one verdict of those of a view's frames."""
    view = seen.view
    rows, verdicts = seen.frames.get(Frame.ROWS), [verdict for _, verdict in answers]
    if seen.error:
        verdicts.insert(0, Verdict(view.name, Outcome.VALIDATOR_ERROR, 0, reasons=(f"{view.name}: {seen.error}",)))
    elif seen.void:
        verdicts.append(Verdict(view.name, Outcome.INCONCLUSIVE, 0, reasons=(f"{view.name}: {seen.void}",)))
    elif rows is None:
        verdicts.append(Verdict(view.name, Outcome.INCONCLUSIVE, 0, reasons=(f"{view.name}: nothing is committed",)))
    judged_names = {check.name for question, _ in answers for check in question.checks}
    checks = checks_of(view, freshness_target)
    return Verdict(
        view.name,
        worst(verdict.outcome for verdict in verdicts),
        0 if rows is None else int((rows["offline_row"] == "found").sum()),
        tuple(finding for verdict in verdicts for finding in verdict.findings),
        tuple(reason for verdict in verdicts for reason in verdict.reasons),
        (
            *(name for verdict in verdicts for name in verdict.untold),
            *(check.name for check in checks if check.name not in judged_names),
        ),
    )


def check_once(
    observer: Observer,
    judge: Judge,
    freshness_target: Objective,
    wait: Callable[[timedelta], Any],
    *,
    grace: timedelta,
) -> tuple[Verdict, ...]:
    """Choose entities once, look until all of them can be judged, and return one verdict a view.

    What lags at the last look breaks the objective: there is no history to hold against it. One look at a view that is
    void makes all of them so.
    """
    seen = observer.look(0)
    gathered: dict[tuple[str, Frame], list[pd.DataFrame]] = {}
    void = {one.view.name: one.void for one in seen if one.void}
    wait(grace)
    while True:
        seen = observer.look(0, choose=False)
        void |= {one.view.name: one.void for one in seen if one.void}
        for one in seen:
            for kind in _GATHERED & one.frames.keys():
                gathered.setdefault((one.view.name, kind), []).append(one.frames[kind])
        if not any(one.waiting_count or one.undecided_count for one in seen):
            break
        wait(timedelta(seconds=1))
    looks = []
    for one in seen:
        found = {
            kind: [frame for frame in frames if len(frame)]
            for (view_name, kind), frames in gathered.items()
            if view_name == one.view.name
        }
        whole = {kind: pd.concat(frames, ignore_index=True) for kind, frames in found.items() if frames}
        frames = {**one.frames, **whole}
        if one.view.name in void:
            frames = {kind: frame for kind, frame in frames.items() if kind is Frame.FRESHNESS}
        if Frame.FRESHNESS in frames:
            frames[Frame.FRESHNESS] = freshness(without_history(observer.freshness.lines(one.view.sources)))
        looks.append(Seen(one.view, one.at, frames, one.error, void=void.get(one.view.name, "")))
    return judged(judge, looks, freshness_target)


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return the exit code of a command that found this: the worst verdict decides.

    >>> exit_code([Verdict("a", Outcome.OK, 9), Verdict("b", Outcome.INCONCLUSIVE, 0)])
    3
    """
    return EXIT_CODES[worst(verdict.outcome for verdict in verdicts)]


# --- as a flow --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What one round has to say of one view.

    Its verdict, with confirmed findings only, what became news, and how fresh the view was seen to be so far, if the
    round saw it.
    """

    verdict: Verdict
    news: tuple[Alarm, ...]
    freshness: Reading | None = None


@dataclass(frozen=True)
class Round:
    """What one round has to say: of every view, at a time, and which findings are open after it."""

    number: int
    at: datetime
    reports: tuple[Report, ...]
    open: tuple[Finding, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts, one a view."""
        return tuple(report.verdict for report in self.reports)

    @property
    def news(self) -> tuple[Alarm, ...]:
        """What became news in any view."""
        return tuple(alarm for report in self.reports for alarm in report.news)


@dataclass
class Rounds:
    """Says when a round is due: `every` so often, each once the one before it has ended."""

    every: timedelta
    now: Callable[[], datetime]
    number: int = 0
    running: bool = False
    begun_at: datetime | None = None

    def poll(self) -> int | None:
        """Return the number of the round that is due."""
        now = self.now()
        # A clock that was set back must not hold it up.
        if self.running or (self.begun_at is not None and timedelta(0) <= now - self.begun_at < self.every):
            return None
        self.begun_at, self.running = now, True
        self.number += 1
        return self.number

    def end(self) -> timedelta:
        """Say that the round has ended; return how long it took."""
        assert self.begun_at is not None, "no round has begun"
        self.running = False
        return max(timedelta(0), self.now() - self.begun_at)

    def finished(self) -> bool:
        """It goes on until it is stopped."""
        return False

    def close_epoch(self) -> None:
        """Nothing is kept: a validator that starts anew looks anew."""

    def epoch_durable(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


class Looker(Protocol):
    """What looks at all views: `Observer`."""

    def look(self, number: int, *, choose: bool = True) -> list[Seen]:
        """Do one round."""

    def close(self) -> None:
        """Let go of all connections."""


class Reporter(Protocol):
    """Where rounds are told; it waits for nobody."""

    def report(self, told: Round, took: timedelta) -> None:
        """Tell of one round, which took so long."""


@dataclass
class Edges:
    """What the flow is made of. `pools` gather each view's rows over rounds.

    `follow` is called before each round, which may put other parts in place of these.
    """

    observer: Looker
    judge: Judge
    alarms: Alarms
    rounds: Rounds
    reporter: Reporter
    freshness_target: Objective
    stop: Stop = field(default_factory=Stop)
    failure: Failure = field(default_factory=Failure)
    pools: dict[str, Pools] = field(default_factory=dict)
    follow: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class _Writer:
    """The end of a round."""

    rounds: Rounds
    reporter: Reporter

    def write(self, items: list[Round]) -> None:
        for told in items:
            self.reporter.report(told, self.rounds.end())

    def flush(self) -> None:
        """Nothing waits here."""


def build(project: str, edges: Edges) -> Dataflow:
    """Return the validator's dataflow. It runs in one worker: Great Expectations knows no threads."""

    def look(items: list[tuple[str, int]]) -> list[tuple[int, list[Seen]]]:
        edges.follow()
        return [(number, edges.observer.look(number)) for _, number in items]

    def judge(items: list[tuple[int, list[Seen]]]) -> list[tuple[str, Round]]:
        return [("rounds", heeded(edges, number, seen)) for number, seen in items]

    flow = Dataflow(f"{project}_validator")
    source = PollSource(["rounds"], lambda _: edges.rounds, edges.stop, edges.failure, timedelta(milliseconds=50))
    rounds = op.input("rounds", flow, source)
    seen = op.flat_map_batch("look", rounds, edges.failure.noting(look))
    told = op.flat_map_batch("judge", seen, edges.failure.noting(judge))
    writer = _Writer(edges.rounds, edges.reporter)
    op.output("report", told, SingleSink(lambda: writer, edges.failure))
    return flow


def heeded(edges: Edges, number: int, seen: Sequence[Seen]) -> Round:
    """Have all that a round saw judged, and find out what is news."""
    for one in seen:
        if one.view.name not in edges.pools:
            edges.pools[one.view.name] = Pools(checks_of(one.view, edges.freshness_target))
    reports = []
    for one, found in zip(seen, judged(edges.judge, seen, edges.freshness_target, edges.pools), strict=True):
        verdict, news = edges.alarms.heed(found, one.at)
        reports.append(Report(verdict, news, one.freshness))
    return Round(number, seen[0].at, tuple(reports), tuple(edges.alarms.open.values()))
