"""How soon threads are switched: sooner while a flow runs, and as before it once it has ended."""

import sys

from freshet.flows.edges import switching


def test_threads_switch_sooner_only_while_it_lasts() -> None:
    before = sys.getswitchinterval()

    with switching.soon():
        assert sys.getswitchinterval() < before / 2

    assert sys.getswitchinterval() == before
