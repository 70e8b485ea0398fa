"""Write-behind: one write goes on while its caller does, the next waits for it, and no failure is lost."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Event

import pytest

from freshet.flows.write_behind import WriteBehind, at_once
from freshet.schemas.errors import Unavailable

LIMIT_S = 60.0


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_a_caller_goes_on_while_its_write_does(threads: Executor) -> None:
    writes, went_on, done = WriteBehind(threads.submit), Event(), list[str]()

    def write() -> None:
        assert went_on.wait(LIMIT_S)
        done.append("written")

    writes.begin(write)
    went_on.set()
    writes.end()

    assert done == ["written"]


def test_a_write_begins_once_the_last_one_has_ended() -> None:
    told = list[str]()

    class Told(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            del timeout
            told.append("waited")

    def submit(work: Callable[[], None]) -> Future[None]:
        work()
        return Told()

    writes = WriteBehind(submit)
    writes.begin(lambda: told.append("the first"))
    writes.begin(lambda: told.append("the second"))
    writes.end()

    assert told == ["the first", "waited", "the second", "waited"]


@pytest.mark.parametrize("ends", [True, False])
def test_what_a_write_raises_is_raised_once_by_the_next_call(threads: Executor, *, ends: bool) -> None:
    writes, done = WriteBehind(threads.submit), list[str]()

    def fail() -> None:
        raise Unavailable("the store is away")

    writes.begin(fail)
    with pytest.raises(Unavailable, match="the store is away"):
        writes.end() if ends else writes.begin(lambda: done.append("not begun"))
    writes.end()

    assert done == []


def test_at_once_is_here_and_now() -> None:
    writes = WriteBehind(at_once)

    with pytest.raises(ZeroDivisionError):
        writes.begin(lambda: 1 // 0)  # type: ignore[arg-type, return-value]  # it returns nothing
    writes.end()
