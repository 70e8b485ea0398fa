"""Kafka is told how far the flow is durable, beside it: no outage of Kafka's own bookkeeping holds up rows."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from freshet.schemas.errors import Unavailable

_COMMIT_PAUSE_S = 1.0


class Offsets(Protocol):
    """Where progress is committed, as `kafka.GroupOffsets` does."""

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit offsets by topic and partition."""

    def end_offsets(self, topic: str, count: int) -> dict[int, int]:
        """Return the offset after each partition's last message."""


class OffsetCommitter:
    """Commits offsets to Kafka beside the flow, so that an outage of the group's coordinator holds up nobody.

    One that lasts longer than `patience_s` is handed to `fail`.
    """

    def __init__(
        self,
        offsets: Offsets,
        places: Mapping[str, tuple[str, int]],
        patience_s: float,
        fail: Callable[[Exception], None],
    ) -> None:
        self._offsets, self._places, self._patience_s, self._fail = offsets, places, patience_s, fail
        self._changed, self._wanted, self._committed = threading.Condition(), dict[str, int](), dict[str, int]()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="commits to Kafka", daemon=True)
        self._thread.start()

    def durable(self, offsets: Mapping[str, int]) -> None:
        """Have offsets committed, by source partition."""
        with self._changed:
            self._wanted = dict(offsets)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all are committed, or the patience ends."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ends or self._wanted != self._committed)
                wanted = self._wanted
            if wanted == self._committed:
                return
            new = {self._places[key]: offset for key, offset in wanted.items() - self._committed.items()}
            error = self._commit(new)
            if error is not None:
                self._fail(error)
                return
            self._committed = wanted

    def _commit(self, offsets: Mapping[tuple[str, int], int]) -> Unavailable | None:
        """Commit, again after each pause, until the patience ends; then return what is wrong."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                self._offsets.commit(offsets)
            except Unavailable as error:
                if time.monotonic() > deadline:
                    return error
                time.sleep(_COMMIT_PAUSE_S)
            else:
                return None
