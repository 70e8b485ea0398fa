"""Write-behind: what is handed over is written while its caller goes on."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

Submit: TypeAlias = Callable[[Callable[[], None]], "Future[None]"]
"""Has some work done, as an executor's `submit`."""


def at_once(work: Callable[[], None]) -> "Future[None]":
    """Do some work here and now; what it raises is raised here."""
    done: Future[None] = Future()
    work()
    done.set_result(None)
    return done


class WriteBehind:
    """Has one write after the other done beside its caller, each begun once the last has ended.

    >>> rows = []
    >>> writes = WriteBehind(at_once)
    >>> writes.begin(lambda: rows.append("ada"))
    >>> writes.end()
    >>> rows
    ['ada']
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._last: Future[None] | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Wait for the last write, and begin another; raises what the last one raised."""
        self.end()
        self._last = self._submit(write)

    def end(self) -> None:
        """Wait for the last write; raises what it raised, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
