"""A slot is due once, when its newest instant has come, and what changed before leaves nothing behind for long."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.windows.due import NEVER_DUE_US, DueSlots

INSTANTS = st.integers(1, 10**6) | st.integers(1, 10**9) | st.just(NEVER_DUE_US)
STEPS = st.lists(
    st.tuples(st.dictionaries(st.integers(0, 20), INSTANTS, max_size=9), st.integers(0, 10**6)), max_size=30
)


@given(STEPS)
def test_each_slot_is_due_once_when_the_clock_has_reached_its_newest_instant(
    steps: list[tuple[dict[int, int], int]],
) -> None:
    due, told, clock = DueSlots(), dict[int, int](), 0
    for given_here, passed in steps:
        named = {slot: clock + ahead if ahead < NEVER_DUE_US else NEVER_DUE_US for slot, ahead in given_here.items()}
        due.set(np.array([*named], np.int64), np.array([*named.values()], np.int64))
        told |= named
        clock += passed

        taken = due.take(clock).tolist()

        assert taken == sorted(slot for slot, instant in told.items() if instant <= clock)
        told |= dict.fromkeys(taken, NEVER_DUE_US)


def test_instants_that_change_again_and_again_leave_little_behind() -> None:
    due, slots = DueSlots(), np.arange(100)
    for turn in range(10_000):
        due.set(slots, np.full(100, 10**12 + turn * 10**6 * (turn % 2)))

    assert due.entries_count < 10_000
    assert len(due.take(2 * 10**12 + 10**10)) == 100
    assert due.entries_count == 0
