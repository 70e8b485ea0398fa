"""The validator: samples both stores, and has the judge say whether they agree and keep up.

::

    sample ─ look ─ join ─ judge ─┬─ ok: done
                                  └─ otherwise wait the grace, look again, judge again: that is the verdict

It has no part in the materializer's memory: it sees the stores, and the lag of the flow's consumer group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from freshet.flows.steps.checks import Entity, Look, checks_of, joined, lagging, sample, schemas
from freshet.schemas.finding import Check, Frame, Outcome, Verdict, worst
from freshet.schemas.plan import Pipeline
from freshet.schemas.units import Objective
from freshet.schemas.view import StoredRow, View

Lags = Mapping[tuple[str, int], float | None]
"""Of (stream, partition), how long its oldest uncommitted event has waited, in seconds; None where it is not known."""

EXIT_CODES = {Outcome.OK: 0, Outcome.VIOLATED: 1, Outcome.INCONCLUSIVE: 3, Outcome.VALIDATOR_ERROR: 4}


class Online(Protocol):
    """What rows are served from."""

    def sample(self, view: View, size: int, seed: int) -> list[Entity]:
        """Return up to `size` entities that have a row of the view."""

    def read(self, view: View, entities: Sequence[Entity]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""


class Offline(Protocol):
    """What keeps rows for ever."""

    def read(self, name: str) -> pa.Table:
        """Return every visible row of a view."""


class Judge(Protocol):
    """What decides: `freshet.flows.edges.quality.Judge`."""

    def judge(self, view_name: str, frame: pd.DataFrame, checks: Sequence[Check], minimum_rows: int) -> Verdict:
        """Judge a frame by checks that are all about it."""


def check_round(
    pipeline: Pipeline,
    online: Online,
    offline: Offline,
    lag_seconds: Callable[[], Lags],
    judge: Judge,
    *,
    freshness_target: Objective,
    sample_count: int,
    seed: int,
    grace: timedelta,
    wait: Callable[[timedelta], Any],
) -> tuple[Verdict, ...]:
    """Compare up to `sample_count` entities of each store with the other store; return one verdict a view.

    What is not ok at once is read again after `grace`, which is longer than a row may take to become visible offline.
    Only then is an online row that stands nowhere offline called lost, and only if the lag by then is shorter than the
    grace: so everything that was online before it has been committed. For this the lag is asked for after the first
    look and before the second. Raises what the stores raise.
    """
    samples = [_Sample(view, online, offline, sample_count, seed) for view in pipeline.views]
    for own in samples:
        own.look()
    lags = lag_seconds()
    verdicts = {own.view.name: own.judge(judge, freshness_target, lags, committed=False) for own in samples}
    unsettled = [own for own in samples if verdicts[own.view.name].outcome is not Outcome.OK]
    if unsettled:
        wait(grace)
        lags = lag_seconds()
        for own in unsettled:
            own.look()
            committed = all(_all_shorter(lags, stream, grace) for stream in own.view.sources)
            verdicts[own.view.name] = own.judge(judge, freshness_target, lags, committed=committed)
    return tuple(verdicts.values())


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return the exit code of a command that found this: the worst verdict decides.

    >>> exit_code([Verdict("a", Outcome.OK, 9), Verdict("b", Outcome.INCONCLUSIVE, 0)])
    3
    """
    return EXIT_CODES[worst(verdict.outcome for verdict in verdicts)]


@dataclass
class _Sample:
    """The entities of a view that one round is about, and what was seen of them."""

    view: View
    online: Online
    offline: Offline
    size: int
    seed: int
    entities: list[Entity] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    schemas: pd.DataFrame = field(default_factory=pd.DataFrame)

    def look(self) -> None:
        """Read both stores, offline first: what is offline by then was online before."""
        rows = self.offline.read(self.view.name)
        self.schemas = schemas(self.view, rows)
        if not self.schemas["declared"].equals(self.schemas["found"]):
            self.looks = []  # rows of another schema can't be compared
            return
        if not self.looks:
            ours = self.online.sample(self.view, self.size, self.seed)
            theirs = sample(self.view, rows, self.size, self.seed)
            self.entities = [*dict.fromkeys((*ours, *theirs))]
        self.looks.append(Look(rows, self.online.read(self.view, self.entities)))

    def judge(self, judge: Judge, freshness_target: Objective, lags: Lags, *, committed: bool) -> Verdict:
        """Have every frame judged, and make one verdict of it."""
        frames = {Frame.SCHEMA: self.schemas, Frame.LAG: lagging(self.view, lags)}
        if self.looks:
            frames[Frame.ROWS] = joined(self.view, self.entities, self.looks, committed=committed)
        checks = checks_of(self.view, freshness_target)
        verdicts = [
            judge.judge(self.view.name, frame, [check for check in checks if check.frame is kind], minimum_rows=1)
            for kind, frame in frames.items()
        ]
        return Verdict(
            self.view.name,
            worst(verdict.outcome for verdict in verdicts),
            int((frames[Frame.ROWS]["offline_row"] == "found").sum()) if self.looks else 0,
            tuple(finding for verdict in verdicts for finding in verdict.findings),
            tuple(reason for verdict in verdicts for reason in verdict.reasons),
        )


def _all_shorter(lags: Lags, stream: str, grace: timedelta) -> bool:
    """Say whether all partitions of a stream are known to lag less than the grace."""
    own = [lag for (name, _), lag in lags.items() if name == stream]
    return bool(own) and all(lag is not None and lag < grace.total_seconds() for lag in own)
