"""Any history of a few entities, in any order and interleaved with the validator's looks: what is right is never a finding,
and a fault that lasts is found. FRESHET_SOAK=N tries N times 30 histories.
"""

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from history import START, VIEW, History, Once, Sparing, Validator
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from freshet.flows.edges.quality import Judge
from freshet.flows.steps.checks import checks_of
from freshet.flows.validator import Round
from freshet.flows.watch import Sampling
from freshet.schemas.finding import Cause, Frame
from freshet.schemas.units import Objective

SOAK = int(os.environ.get("FRESHET_SOAK") or 1)
FOUND_WITHIN_ROUNDS = 24
"""Two minutes: of an entity that is not online only its parts tell, and each round reads a few of them."""
FRESHNESS = {
    check.name for check in checks_of(VIEW, Objective(99, timedelta(seconds=5))) if check.frame is Frame.FRESHNESS
}
"""The checks that a flow which may pause for any time does not keep, and that speak of nothing else."""
USERS = st.sampled_from("abcd")


@functools.cache
def judge() -> Judge:
    return Judge()


def halved(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows // 2)


def drifted(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("edits")
    return table.set_column(place, "edits", table["edits"].cast(pa.float64()))


class Stores(RuleBasedStateMachine):
    """Both stores under a validator. Times are of the history alone."""

    history_of = History

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.seed, self.history = seed, self.history_of()
        self.begin_validator()

    @rule()
    def begin_validator(self) -> None:
        """A validator starts, or starts anew."""
        sampling = Sampling(seed=self.seed)
        self.validator = Validator(self.history, Sparing(judge(), every=10**9 if SOAK == 1 else 20), sampling)

    @rule(user=USERS, late_s=st.sampled_from([0, 0, 0, 1, 7, 30]))
    def produce(self, user: str, late_s: float) -> None:
        self.history.produce(user, self.history.now - timedelta(seconds=late_s))

    @rule()
    def process(self) -> None:
        self.history.process()

    @rule(published=st.booleans())
    def commit(self, *, published: bool) -> None:
        self.history.commit(published=published)

    @rule()
    def crash(self) -> None:
        self.history.crash()

    @rule()
    def compact(self) -> None:
        self.history.compact()

    @rule(seconds=st.sampled_from([0.4, 1, 3, 20, 70]))
    def pass_by(self, seconds: float) -> None:
        self.history.now += timedelta(seconds=seconds)

    @rule(minutes=st.sampled_from([10, 40, 90]), restarted=st.booleans())
    def pause(self, minutes: float, *, restarted: bool) -> None:
        """Nothing happens for long, as where machines stand still; the flow goes on, or is started again."""
        self.history.now += timedelta(minutes=minutes)
        if restarted:
            self.history.crash()

    @rule(
        meanwhile=st.lists(
            st.sampled_from(["", "", "", "produce", "process", "commit", "crash", "compact"]), max_size=25
        )
    )
    def look(self, meanwhile: list[str]) -> None:
        """A round; at each of its touches of the outside something may happen there."""
        self.look_amid(meanwhile)

    def acts(self, meanwhile: list[str]) -> dict[str, Callable[[], Any]]:
        """Return what may happen."""
        return {
            "": lambda: None,
            "produce": lambda: self.history.produce("ab"[len(meanwhile) % 2]),
            "process": self.history.process,
            "commit": self.history.commit,
            "crash": self.history.crash,
            "compact": self.history.compact,
        }

    def look_amid(self, meanwhile: list[str]) -> None:
        """Do a round amid what happens; nothing of it is a finding."""
        acts = self.acts(meanwhile)
        self.history.meanwhile = lambda: acts[meanwhile.pop()]() if meanwhile else None
        told = self.round()
        self.history.meanwhile = lambda: None

        assert told == {}, told

    def round(self) -> dict[str, Cause]:
        """Do a round; return what is open after it, but for freshness."""
        self.history.now += timedelta(seconds=5)
        told: Round = self.validator.round()
        assert all(verdict.outcome != "validator_error" for verdict in told.verdicts), told.verdicts
        return {finding.check: finding.cause for finding in told.open if finding.check not in FRESHNESS}

    def settle(self) -> None:
        """Let the flow catch up, and the validator see it."""
        for _ in range(3):
            self.history.process()
            self.history.commit()
            assert self.round() == {}

    def found(self) -> set[Cause]:
        """Look on until something is found; go on with other stores."""
        try:
            for _ in range(FOUND_WITHIN_ROUNDS):
                self.history.process()
                self.history.commit()
                told = self.round()
                if told:
                    return {*told.values()}
            return set()
        finally:
            self.begin(self.seed)

    def has_rows(self) -> bool:
        return bool(self.history.events)

    @precondition(has_rows)
    @rule(
        data=st.data(),
        value=st.sampled_from([(-1, Cause.VALUE_MISMATCH), (None, Cause.NULL_ONLINE), (0.5, Cause.DTYPE)]),
    )
    def alter(self, data: Any, value: tuple[Any, Cause]) -> None:
        self.settle()
        self.history.alter(data.draw(st.sampled_from(sorted(self.history.events))), value[0])

        assert value[1] in self.found()

    @precondition(has_rows)
    @rule(data=st.data())
    def take_away(self, data: Any) -> None:
        self.settle()
        self.history.stored(data.draw(st.sampled_from(sorted(self.history.events)))).clear()

        assert self.found() == {Cause.MISSING_ENTITY}

    @precondition(has_rows)
    @rule(data=st.data())
    def put_back(self, data: Any) -> None:
        self.settle()
        user = data.draw(st.sampled_from(sorted(self.history.events)))
        self.history.overwrite(self.history.row(user, START - timedelta(days=1), 1))

        assert Cause.OUT_OF_ORDER_OVERWRITE in self.found()

    @rule(user=USERS)
    def lose_online(self, user: str) -> None:
        self.settle()
        self.history.produce(user)
        self.history.hooks.writing = lambda _: None

        assert self.found() == {Cause.LOST_ONLINE_WRITE}

    @rule(user=USERS, doubled=st.booleans())
    def damage_offline(self, user: str, *, doubled: bool) -> None:
        self.settle()
        self.history.produce(user)
        self.history.hooks.staged = lambda rows: [*rows, *rows] if doubled else []

        assert self.found() == {Cause.DUPLICATE_OFFLINE if doubled else Cause.LOST_OFFLINE_WRITE}

    @precondition(has_rows)
    @rule(
        data=st.data(),
        change=st.sampled_from(
            [(halved, Cause.PARTIAL_BATCH), (drifted, Cause.SCHEMA_DRIFT), (lambda _: None, Cause.LOST_OFFLINE_WRITE)]
        ),
    )
    def damage_part(self, data: Any, change: tuple[Callable[[pa.Table], pa.Table | None], Cause]) -> None:
        self.settle()
        self.history.change_part(data.draw(st.sampled_from(self.history.parts)), change[0])

        assert self.found() == {change[1]}

    @precondition(has_rows)
    @rule()
    def empty(self) -> None:
        self.settle()
        self.history.online.forget()
        self.history.process = self.history.commit = lambda: None  # type: ignore[method-assign]

        assert self.found() == {Cause.STALE_ONLINE}


def test_what_is_right_is_never_a_finding_and_a_fault_that_lasts_is_found() -> None:
    run_state_machine_as_test(
        Stores,
        settings=settings(
            max_examples=12 if SOAK == 1 else 30 * SOAK,
            stateful_step_count=30,
            suppress_health_check=[*HealthCheck],
            deadline=None,
        ),
    )


@pytest.mark.parametrize("published", [True, False])
def test_wherever_in_a_look_commits_and_a_compaction_come_nothing_is_found(*, published: bool) -> None:
    """The last one's part is visible, or still to become so."""
    touch, touches_count = 0, 1
    while touch < touches_count:
        history = History()
        validator = Validator(history, Sparing(judge(), every=10**9), Sampling())

        def go_on(history: History = history, *, published: bool = True) -> None:
            for user in "abcd":
                history.produce(user)
            history.process()
            history.commit(published=published)

        def looked(history: History = history, validator: Validator = validator) -> list[Any]:
            history.now += timedelta(seconds=5)
            go_on(history)
            return [finding.check for finding in validator.round().open]

        def passed(history: History = history) -> None:
            go_on(history)
            history.compact()
            go_on(history, published=published)

        assert [looked(), looked()] == [[], []]
        history.meanwhile = once = Once(touch, passed)
        assert looked() == [], touch
        history.meanwhile = lambda: None
        assert [looked(), looked()] == [[], []], touch
        touch, touches_count = touch + 1, once.touches_count
    assert touches_count > 10
