"""Every cause at several rates, of hot and of cold entities, on twins under a virtual clock: what is found, how soon, as what.

A round every five seconds, at default settings; the seed is FRESHET_SEED. FRESHET_SOAK=N tries N seeds of each case, a rate
more, and asks Great Expectations about every frame.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from history import START, VIEW, History, Row, Sparing, Validator

from freshet.flows.edges.quality import Judge
from freshet.flows.live_validator import sampling_of
from freshet.flows.settings import Settings
from freshet.flows.validator import Round
from freshet.flows.watch import Sampling
from freshet.schemas.finding import Cause, Status
from freshet.scripts.faults.deeds import Choice

SEED, SOAK = int(os.environ.get("FRESHET_SEED", "2026")), int(os.environ.get("FRESHET_SOAK") or 1)
ROUND, TTL = timedelta(seconds=5), timedelta(hours=1)
CLEAN_ROUNDS, MORE_ROUNDS, QUIET_ROUNDS = 3, 2, 15
GROSS_LIMIT, RARE_LIMIT = timedelta(seconds=30), timedelta(seconds=120)
RIGHT_SHARE = 0.95
STRIKES_BY = timedelta(seconds=20)
"""When a fault that is rare strikes once at the latest: what is measured is how long it takes to find it."""


@dataclass(frozen=True)
class Regime:
    """How many entities there are, and how often each has an event."""

    entities_count: int
    every_s: int


REGIMES = {"hot": Regime(60, 10), "cold": Regime(1200, 300)}


@dataclass
class Fault:
    """What goes wrong with a history, from `begin` to `end`."""

    history: History
    rate: float
    seed: int
    begun_at: datetime | None = None
    effective_at: datetime | None = None
    hangs: bool = False
    """Whether the flow stands still."""
    due: list[tuple[datetime, Callable[[], Any]]] = field(default_factory=list)

    def takes(self, *thing: Any) -> bool:
        if self.begun_at is None:
            return False
        overdue = self.effective_at is None and self.history.now - self.begun_at >= STRIKES_BY
        return overdue or Choice(self.rate, self.seed).takes(repr(thing).encode())

    def did(self) -> None:
        self.effective_at = self.effective_at or self.history.now

    def later(self, seconds: float, act: Callable[[], Any]) -> None:
        self.due.append((self.history.now + timedelta(seconds=seconds), act))

    def tick(self) -> None:
        now = [act for at, act in self.due if at <= self.history.now]
        self.due = [one for one in self.due if one[0] > self.history.now]
        for act in now:
            act()
            self.did()

    def end(self) -> None:
        self.begun_at, self.hangs, self.due = None, False, []
        self.history.repair()


def key(row: Row) -> tuple[Any, ...]:
    return row["user"], row["event_timestamp"], row["_version"]


def lost_online(fault: Fault) -> None:
    def writing(row: Row) -> Row | None:
        if not fault.takes(*key(row)):
            return row
        fault.did()
        return None

    fault.history.hooks.writing = writing


def altered(change: Callable[[int], Any]) -> Callable[[Fault], None]:
    def plant(fault: Fault) -> None:
        def written(row: Row) -> None:
            if fault.takes(*key(row)):
                fault.history.alter(row["user"], change(row["edits"]))
                fault.did()

        fault.history.hooks.written = written

    return plant


def older_again(after_s: float) -> Callable[[Fault], None]:
    """The row before comes once more, so long after the newer one."""

    def plant(fault: Fault) -> None:
        newest: dict[str, Row] = {}

        def written(row: Row) -> None:
            before = newest.get(row["user"])
            if before is None or key(before)[1:] < key(row)[1:]:
                newest[row["user"]] = row
                if before is not None and fault.takes(*key(row)):
                    fault.later(after_s, lambda: fault.history.overwrite(before))

        fault.history.hooks.written = written

    return plant


def removed(*, for_good: bool) -> Callable[[Fault], None]:
    """Entities that were online are taken away; for good, or until their next event."""

    def plant(fault: Fault) -> None:
        gone = set[str]()

        def writing(row: Row) -> Row | None:
            user = row["user"]
            if not fault.takes(user) or (user in gone and not for_good):
                return row
            if user not in gone and not fault.history.stored(user):
                return row
            gone.add(user)
            fault.did()
            fault.history.stored(user).clear()
            return None

        fault.history.hooks.writing = writing

    return plant


def kept(fault: Fault) -> None:
    """The online store does not forget a row once its ttl has passed."""

    def written(row: Row) -> None:
        if fault.takes(*key(row)):
            fault.history.keep(row["user"])
            fault.did()

    fault.history.hooks.written = written


def dropped(fault: Fault) -> None:
    def staged(rows: list[Row]) -> list[Row]:
        kept = [row for row in rows if not fault.takes(*key(row))]
        if len(kept) < len(rows):
            fault.did()
        return kept

    fault.history.hooks.staged = staged


def doubled(fault: Fault) -> None:
    def staged(rows: list[Row]) -> list[Row]:
        more = [row for row in rows if fault.takes(*key(row))]
        if more:
            fault.did()
        return [*rows, *more]

    fault.history.hooks.staged = staged


def damaged(change: Callable[[pa.Table], pa.Table | None], after_s: float = 0) -> Callable[[Fault], None]:
    """Parts are damaged once they are visible."""

    def plant(fault: Fault) -> None:
        def visible(part: str) -> None:
            if fault.takes(part):
                fault.later(after_s, lambda: fault.history.change_part(part, change))

        fault.history.hooks.visible = visible

    return plant


def halved(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows // 2)


def drifted(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("edits")
    return table.set_column(place, "edits", table["edits"].cast(pa.float64()))


def ahead(fault: Fault) -> None:
    def sent(event: tuple[str, datetime]) -> tuple[str, datetime]:
        if not fault.takes(*event):
            return event
        fault.did()
        return event[0], event[1] + timedelta(minutes=2)

    fault.history.hooks.sent = sent


def emptied(fault: Fault) -> None:
    """The online store comes back empty while the flow hangs: one that does not would fill it again."""
    fault.later(0, fault.history.online.forget)
    fault.later(0, lambda: setattr(fault, "hangs", True))


def hung(fault: Fault) -> None:
    fault.later(0, lambda: setattr(fault, "hangs", True))


RATES, ALL = (0.01, 0.1, 1.0) if SOAK > 1 else (0.01, 1.0), (1.0,)
WAYS: dict[str, tuple[Cause, Callable[[Fault], None], tuple[float, ...], bool]] = {
    "a value altered online": (Cause.VALUE_MISMATCH, altered(lambda edits: edits + 1), RATES, True),
    "a value null online": (Cause.NULL_ONLINE, altered(lambda _: None), RATES, True),
    "a value of another type online": (Cause.DTYPE, altered(float), RATES, True),
    "a write lost online": (Cause.LOST_ONLINE_WRITE, lost_online, RATES, True),
    "an older row written again": (Cause.OUT_OF_ORDER_OVERWRITE, older_again(6), RATES, True),
    "an entity taken away": (Cause.MISSING_ENTITY, removed(for_good=True), RATES, True),
    "an entity taken away until its next event": (Cause.MISSING_ENTITY, removed(for_good=False), RATES, True),
    "a row kept for longer than its ttl": (Cause.EXPIRED_TTL, kept, RATES, False),
    "a row lost offline": (Cause.LOST_OFFLINE_WRITE, dropped, RATES, False),
    "a part lost offline": (Cause.LOST_OFFLINE_WRITE, damaged(lambda _: None, 7), RATES, False),
    "a row doubled offline": (Cause.DUPLICATE_OFFLINE, doubled, RATES, False),
    "a part cut at once": (Cause.PARTIAL_BATCH, damaged(halved), RATES, False),
    "a part cut after it was met": (Cause.PARTIAL_BATCH, damaged(halved, 7), RATES, False),
    "a part of another type": (Cause.SCHEMA_DRIFT, damaged(drifted), RATES, False),
    "a part that became another type": (Cause.SCHEMA_DRIFT, damaged(drifted, 7), RATES, False),
    "a producer's clock that runs ahead": (Cause.CLOCK_SKEW, ahead, RATES, False),
    "an online store that came back empty": (Cause.STALE_ONLINE, emptied, ALL, True),
    "a flow that stands still": (Cause.STALE_ONLINE, hung, ALL, True),
}
"""By what befalls a history: its cause, how it is done, the rates at which it can be, and whether it can be healed."""


@dataclass(frozen=True)
class Case:
    way: str
    rate: float
    regime: str
    seed: int


@dataclass
class Result:
    """What came of a case: which causes were found `before` the fault and `after` it, and how long the right one took."""

    case: Case
    cause: Cause
    before: set[Cause] = field(default_factory=set)
    after: set[Cause] = field(default_factory=set)
    took: timedelta | None = None
    is_resolved: bool = True

    @property
    def limit(self) -> timedelta:
        return GROSS_LIMIT if self.case.rate == 1 else RARE_LIMIT

    def __str__(self) -> str:
        case = self.case
        before, after = (", ".join(sorted(found)) or "nothing" for found in (self.before, self.after))
        what = f"{case.way}, {case.rate:.0%}, {case.regime}, seed {case.seed}"
        return f"{what}: {self.cause} is found as {after}, after {self.took}; before it, {before}"


CASES = [
    Case(way, rate, regime, SEED + number)
    for number in range(SOAK)
    for way, (_, _, rates, _) in WAYS.items()
    for rate in rates
    for regime in REGIMES
]


class Run:
    """A history with a fault, and its validator."""

    def __init__(self, case: Case, judge: Any) -> None:
        cause, plant, _, self._heals = WAYS[case.way]
        self.chance, self.regime = random.Random(f"{case}"), REGIMES[case.regime]
        self.history = History(view=replace(VIEW, ttl=TTL) if cause is Cause.EXPIRED_TTL else VIEW)
        self.fault = Fault(self.history, case.rate, case.seed)
        self.result = Result(case, cause)
        self.users = [f"u{number}" for number in range(self.regime.entities_count)]
        plant(self.fault)
        self._due, self.fault.due = self.fault.due, []
        for part in range(4):  # what was there before
            self.history.now = START - timedelta(seconds=400 - part)
            for user in self.users[part::4]:
                self.history.produce(user)
            self.history.process()
            self.history.commit()
        self.history.now = START
        sampling = sampling_of(Settings(), Settings().sample, Sampling.limit, case.seed)
        self.validator = Validator(self.history, judge, sampling)

    def second(self) -> None:
        """Let a second pass: events, a commit, now and then a crash."""
        history, chance = self.history, self.chance
        count = self.regime.entities_count / self.regime.every_s
        for _ in range(2):
            history.now += timedelta(seconds=0.5)
            self.fault.tick()
            for _ in range(int(count / 2 + chance.random())):
                if chance.random() < 0.1:
                    self.users.append(f"new{len(self.users)}")
                    user = self.users[-1]
                else:
                    user = chance.choice(self.users)
                late_s = chance.uniform(1, 8) if chance.random() < 0.05 else chance.uniform(0, 0.4)
                history.produce(user, history.now - timedelta(seconds=late_s))
            if not self.fault.hangs and chance.random() < 0.95:
                history.process()
        if not self.fault.hangs:
            history.crash() if chance.random() < 0.01 else history.commit()
        self.fault.tick()

    def round(self) -> Round:
        for _ in range(int(ROUND.total_seconds())):
            self.second()
        return self.validator.round()

    def opened(self) -> set[Cause]:
        return {alarm.finding.cause for alarm in self.round().news if alarm.status is Status.OPENED}

    def go(self) -> Result:
        result, history, fault = self.result, self.history, self.fault
        for _ in range(CLEAN_ROUNDS):
            result.before |= self.opened()
        fault.begun_at, fault.due = history.now, self._due
        more = MORE_ROUNDS
        while more and history.now - (fault.effective_at or fault.begun_at) <= result.limit + ROUND:
            opened = self.opened()
            result.after |= opened
            if fault.effective_at is not None and result.took is None and result.cause in opened:
                result.took = history.now - fault.effective_at
            more -= result.took is not None
        if self._heals and result.case.rate == 1 and (SOAK > 1 or result.case.regime == "hot"):
            fault.end()
            for _ in range(QUIET_ROUNDS):
                told = self.round()
            result.is_resolved = not told.open
        return result


@pytest.fixture(scope="module")
def results() -> list[Result]:
    judge = Sparing(Judge(), every=1 if SOAK > 1 else 500)
    return [Run(case, judge).go() for case in CASES]


def test_every_cause_is_in_the_matrix() -> None:
    assert {cause for cause, *_ in WAYS.values()} == {*Cause}


def test_before_a_fault_nothing_is_found(results: list[Result]) -> None:
    assert [str(one) for one in results if one.before] == []


def test_gross_faults_are_found_within_30_s_and_rare_ones_within_120_s(results: list[Result]) -> None:
    assert [str(one) for one in results if one.took is None or one.took > one.limit] == []


def test_the_cause_is_right(results: list[Result]) -> None:
    wrong = [one for one in results if one.after != {one.cause}]
    confusion = Counter((one.cause.value, cause.value) for one in wrong for cause in one.after - {one.cause})

    assert len(wrong) <= (1 - RIGHT_SHARE) * len(results), "\n".join([f"{confusion}", *map(str, wrong)])


def test_what_heals_is_resolved(results: list[Result]) -> None:
    assert [str(one) for one in results if not one.is_resolved] == []
