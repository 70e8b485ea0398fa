"""A courier tells one receiver of findings, in a thread of its own: rounds go on however slow or absent it is."""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

from freshet.schemas.errors import FreshetError
from freshet.schemas.finding import Alarm

LOG = logging.getLogger("freshet")

KEPT_COUNT = 10_000
_FIRST_PAUSE_S, _PAUSE_S_MAX = 0.5, 15.0


class Receiver(Protocol):
    """Who is told of findings."""

    def deliver(self, alarms: Sequence[Alarm]) -> None:
        """Return once it has all of them; raises `Unavailable` or `Refused` if it has not."""


class Courier:
    """Delivers alarms in their order, again after growing pauses, each at least once.

    With `attempts_count` those of a batch are dropped after so many attempts; without, they are kept until they are
    delivered. At most `kept_count` wait; beyond that the oldest are dropped. `on_failure` hears of each failed attempt,
    `on_drop` how many were dropped.
    """

    def __init__(
        self,
        name: str,
        receiver: Receiver,
        *,
        attempts_count: int | None = None,
        kept_count: int = KEPT_COUNT,
        first_pause_s: float = _FIRST_PAUSE_S,
        on_failure: Callable[[], object] = lambda: None,
        on_drop: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.name, self._receiver = name, receiver
        self._attempts_count, self._kept_count, self._first_pause_s = attempts_count, kept_count, first_pause_s
        self._on_failure, self._on_drop = on_failure, on_drop
        self._waiting = deque[Alarm]()
        self._changed, self._ends = threading.Condition(), threading.Event()
        self.trouble = ""
        """Why the newest attempt failed; nothing if it did not."""
        self._thread = threading.Thread(target=self._run, name=f"courier to {name}", daemon=True)
        self._thread.start()

    @property
    def waiting_count(self) -> int:
        """How many alarms are not delivered yet."""
        return len(self._waiting)

    def send(self, alarms: Sequence[Alarm]) -> None:
        """Have alarms delivered; it never waits."""
        with self._changed:
            self._waiting.extend(alarms)
            too_many = len(self._waiting) - self._kept_count
            for _ in range(too_many):
                self._waiting.popleft()
            self._changed.notify_all()
        if too_many > 0:
            self._drop(too_many, f"more than {self._kept_count} wait")

    def close(self, limit: timedelta) -> None:
        """Try once more to deliver what waits, no longer than `limit`, and end; what is left is said."""
        with self._changed:
            self._ends.set()
            self._changed.notify_all()
        self._thread.join(limit.total_seconds())
        if left := self.waiting_count:
            self._drop(left, "the validator ends")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ends.is_set())
                batch = [*self._waiting]
            if not batch or not self._carry(batch):
                return

    def _carry(self, batch: Sequence[Alarm]) -> bool:
        """Deliver a batch, or drop it after its last attempt; say whether to go on."""
        pause_s, attempt = self._first_pause_s, 0
        while True:
            last, attempt = self._ends.is_set(), attempt + 1
            try:
                self._receiver.deliver(batch)
            except FreshetError as error:
                self._fail(error)
                if last:
                    return False
                if attempt == self._attempts_count:
                    count = self._take(batch)
                    self._drop(count, f"{attempt} attempts failed")
                    return True
                self._ends.wait(random.uniform(pause_s / 2, pause_s))  # noqa: S311  # no secret
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            else:
                self._take(batch)
                if self.trouble:
                    LOG.info("findings reach the %s again", self.name)
                self.trouble = ""
                return True

    def _take(self, batch: Sequence[Alarm]) -> int:
        """Let go of a batch, of which the oldest may have been dropped meanwhile; return how many were left."""
        gone = set(map(id, batch))
        with self._changed:
            left = [alarm for alarm in self._waiting if id(alarm) not in gone]
            count = len(self._waiting) - len(left)
            self._waiting = deque(left)
        return count

    def _fail(self, error: FreshetError) -> None:
        self._on_failure()
        if str(error) != self.trouble:
            LOG.warning("findings wait for the %s: %s", self.name, error)
        self.trouble = str(error)

    def _drop(self, count: int, why: str) -> None:
        self._on_drop(count)
        LOG.error("%d findings were not told to the %s: %s; %s", count, self.name, why, self.trouble or "no failure")
