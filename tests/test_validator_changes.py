"""The declaration changes under a validator's feet, in any interleaving with its looks: what is right is never a finding,
looks at rows of two declarations say nothing, and by the new one a fault is found as by the old one.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from history import TARGET, Changing, Once, Sparing, Validator
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from test_validator_histories import SOAK, Stores, judge

from freshet.flows.validator import Round, check_once, exit_code
from freshet.flows.watch import Sampling
from freshet.schemas.finding import Cause, Outcome

ACTS = ["", "", "produce", "process", "commit", "crash", "change", "change"]
STEPS = 7


class Changes(Stores):
    """Both stores under a validator, while the declaration changes, to and fro."""

    history_of = Changing
    history: Changing

    @rule(steps_count=st.integers(1, STEPS))
    def change(self, steps_count: int) -> None:
        self.history.change(steps_count)

    @rule(meanwhile=st.lists(st.sampled_from(ACTS), max_size=40))
    def look(self, meanwhile: list[str]) -> None:
        self.look_amid(meanwhile)

    def acts(self, meanwhile: list[str]) -> dict[str, Callable[[], Any]]:
        return {**super().acts(meanwhile), "change": self.history.change}

    def settle(self) -> None:
        self.history.complete()
        super().settle()


def test_while_the_declaration_changes_what_is_right_is_no_finding_and_a_fault_that_lasts_is_found() -> None:
    run_state_machine_as_test(
        Changes,
        settings=settings(
            max_examples=12 if SOAK == 1 else 30 * SOAK,
            stateful_step_count=30,
            suppress_health_check=[*HealthCheck],
            deadline=None,
        ),
    )


@pytest.fixture
def history() -> Changing:
    return grown()


def grown() -> Changing:
    """Four users' rows, made durable."""
    made = Changing()
    for user in "abcd":
        made.produce(user)
    made.process()
    made.commit()
    return made


def reasons(told: Round) -> list[str]:
    (verdict,) = told.verdicts
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.findings == ()
    return [reason.partition(": ")[2] for reason in verdict.reasons]


def rounds(history: Changing, validator: Validator, count: int) -> list[Round]:
    told = []
    for _ in range(count):
        history.now += timedelta(seconds=5)
        history.process()
        history.commit()
        told.append(validator.round())
    return told


def test_looks_say_why_they_are_void_until_the_validator_begins_anew_and_then_compare_again(history: Changing) -> None:
    validator = Validator(history, judge(), Sampling())
    assert rounds(history, validator, 3)[-1].verdicts[0].compared > 0

    history.change()  # the flow waits: nothing else is so yet
    assert validator.round().verdicts[0].outcome is Outcome.OK
    for _ in range(STEPS - 2):
        history.change()
        assert reasons(validator.round()) == ["its rows are being made anew: another declaration comes into force"]
    history.change()

    last = rounds(history, validator, 4)
    assert last[-1].verdicts[0].outcome is Outcome.OK
    assert last[-1].verdicts[0].compared > 0
    history.alter("a", -1)
    found = {finding.cause for told in rounds(history, validator, 6) for finding in told.open}
    assert found == {Cause.VALUE_MISMATCH}


def test_a_change_that_comes_and_goes_while_it_is_looked_makes_the_look_void(history: Changing) -> None:
    validator = Validator(history, judge(), Sampling())
    rounds(history, validator, 3)
    to_and_fro = [history.change] * 2 * STEPS
    history.meanwhile = lambda: to_and_fro.pop()() if to_and_fro else None

    assert reasons(validator.round()) == ["its rows were made anew"]
    assert not to_and_fro


@pytest.mark.parametrize("steps_count", range(1, 2 * STEPS + 1))
def test_wherever_in_a_look_so_much_of_a_change_comes_nothing_is_found(steps_count: int) -> None:
    """At each single touch of the outside; the look has entities to judge, and the rounds after it have again."""
    touch, touches_count = 0, 1
    while touch < touches_count:
        history = grown()
        validator = Validator(history, Sparing(judge(), every=10**9), Sampling())
        rounds(history, validator, 2)
        history.produce("a")

        history.meanwhile = once = Once(touch, partial(history.change, steps_count))
        told = rounds(history, validator, 1)
        history.meanwhile = lambda: None
        told += rounds(history, validator, 1)
        history.complete()
        told += rounds(history, validator, 3)

        assert [finding for one in told for finding in one.open] == [], touch
        assert Outcome.VALIDATOR_ERROR not in {one.verdicts[0].outcome for one in told}, touch
        assert told[-1].verdicts[0].outcome is Outcome.OK, touch
        assert told[-1].verdicts[0].compared > 0
        touch, touches_count = touch + 1, once.touches_count
    assert touches_count > 10


def test_what_the_ledger_says_of_no_view_is_not_judged(history: Changing) -> None:
    ledger = history.ledger.read()
    assert ledger is not None
    history.ledger.write(ledger.model_copy(update={"views": {}}))

    assert reasons(Validator(history, judge(), Sampling()).round()) == ["the flow makes no rows of it"]


@pytest.mark.parametrize("looks_before", [0, 1, 2])
def test_a_single_round_during_which_the_declaration_changes_is_inconclusive(
    history: Changing, looks_before: int
) -> None:
    observer, looks = Validator(history, judge(), Sampling()).observer, list[timedelta]()

    def wait(length: timedelta) -> None:
        history.now += length
        looks.append(length)
        if len(looks) == looks_before:
            history.change()
            history.complete()

    if looks_before == 0:
        history.change()
        history.change()
    verdicts = check_once(observer, judge(), TARGET, wait, grace=Sampling.grace)

    assert exit_code(verdicts) == 3
    assert [verdict.findings for verdict in verdicts] == [()]
    assert any("anew" in reason or "another declaration" in reason for reason in verdicts[0].reasons)
