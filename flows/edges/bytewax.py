"""Bytewax as a runner: sources, steps and sinks of ours in the shape it calls.

Nothing is decided here. Of Bytewax only `input`, `flat_map_batch`, `stateful_batch` and `output` are used; its windows,
its Kafka connectors and its dynamic sinks lose data silently. All sinks are fixed-partitioned: only those take part in
an epoch, so an epoch that closed is in every store.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.run import cli_main

from freshet.schemas.errors import FreshetError

X = TypeVar("X")
Y = TypeVar("Y")


class Stop:
    """A flag that ends every source, so that the flow closes its last epoch and returns."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def request(self, *_: object) -> None:
        """Ask the flow to end; also a signal handler."""
        self._event.set()

    def wait(self, limit: timedelta) -> bool:
        """Wait until the end is asked for, at most so long; say whether it was."""
        return self._event.wait(limit.total_seconds())

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """End the flow on SIGTERM and SIGINT. Bytewax by itself dies of the first without closing anything."""
        before = {number: signal.signal(number, self.request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Reader(Protocol[X]):  # type: ignore[misc]  # X only comes out
    """What a source partition reads from."""

    def poll(self) -> X | None:
        """Return what came since, or None if nothing did."""

    def finished(self) -> bool:
        """Say whether nothing will come any more."""

    def position(self) -> int:
        """Return where the next poll reads on."""

    def durable(self, position: int) -> None:
        """Learn that everything before `position` is in every store."""

    def close(self) -> None:
        """Let go of the source."""


class _SourcePart(StatefulSourcePartition[tuple[str, X], int], Generic[X]):
    def __init__(self, key: str, reader: Reader[X], stop: Stop, idle: timedelta) -> None:
        self._key, self._reader, self._stop, self._idle = key, reader, stop, idle
        self._closed_epoch: int | None = None
        self._awake: datetime | None = None

    def next_batch(self) -> list[tuple[str, X]]:
        if self._closed_epoch is not None:
            # Bytewax asks for more after a snapshot only once that epoch's sinks have written.
            self._reader.durable(self._closed_epoch)
            self._closed_epoch = None
        if self._stop or self._reader.finished():
            raise StopIteration
        polled = self._reader.poll()
        self._awake = None if polled is not None else datetime.now(UTC) + self._idle
        return [] if polled is None else [(self._key, polled)]

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> int:
        self._closed_epoch = self._reader.position()
        return self._closed_epoch

    def close(self) -> None:
        self._reader.close()


class PollSource(FixedPartitionedSource[tuple[str, X], int], Generic[X]):
    """A source of the given partitions; `open_reader` opens one by its key, at a position or at its start."""

    def __init__(
        self,
        keys: Sequence[str],
        open_reader: Callable[[str, int | None], Reader[X]],
        stop: Stop,
        idle: timedelta = timedelta(milliseconds=2),
    ) -> None:
        self._keys, self._open, self._stop, self._idle = list(keys), open_reader, stop, idle

    def list_parts(self) -> list[str]:
        """Return the keys."""
        return self._keys

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _SourcePart[X]:
        """Open one partition."""
        del step_id
        return _SourcePart(for_part, self._open(for_part, resume_state), self._stop, self._idle)


class BatchLogic(StatefulBatchLogic[X, Y, None], Generic[X, Y]):
    """A step with state: all items of one key that wait, in; a list, out. Kept as long as the flow runs."""

    def __init__(self, step: Callable[[list[X]], list[Y]]) -> None:
        self._step = step

    def on_batch(self, values: list[X]) -> tuple[list[Y], bool]:
        """Run the step."""
        return self._step(values), StatefulBatchLogic.RETAIN

    def snapshot(self) -> None:
        """Keep nothing: a run starts from the beginning of the topic."""


class Writer(Protocol[X]):
    """What a sink partition writes to."""

    def write(self, items: list[X]) -> None:
        """Take items of the open epoch."""

    def flush(self) -> None:
        """Make durable all that was written; the epoch closes."""


class _SinkPart(StatefulSinkPartition[X, None], Generic[X]):
    def __init__(self, writer: Writer[X]) -> None:
        self._writer = writer

    def write_batch(self, values: list[X]) -> None:
        self._writer.write(values)

    def snapshot(self) -> None:
        self._writer.flush()


class KeyedSink(FixedPartitionedSink[X, None], Generic[X]):
    """A sink with one writer for each part; `part_of` says which part a key belongs to."""

    def __init__(
        self, parts_count: int, part_of: Callable[[str], int], open_writer: Callable[[int], Writer[X]]
    ) -> None:
        self._count, self.part_fn, self._open = parts_count, part_of, open_writer

    def list_parts(self) -> list[str]:
        """Return the parts' names, which sort like their numbers: Bytewax picks a part by its place in that order."""
        return [f"{part:06d}" for part in range(self._count)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _SinkPart[X]:
        """Open one part."""
        del step_id, resume_state
        return _SinkPart(self._open(int(for_part)))


def run(flow: Dataflow, *, epoch: timedelta) -> None:
    """Run a dataflow in this thread until its sources end.

    Bytewax wraps what a step raises in exceptions of its own; an error of ours comes out as it was raised.
    """
    os.environ["RUST_BACKTRACE"] = "0"  # an exception crosses Bytewax as a panic; its Rust frames help nobody
    try:
        cli_main(flow, epoch_interval=epoch)
    except Exception as error:  # whatever Bytewax makes of it: looked into, and raised again
        ours = next((cause for cause in _chain(error) if isinstance(cause, FreshetError)), None)
        if ours is None:
            raise
        raise ours from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


__all__ = ["BatchLogic", "KeyedSink", "PollSource", "Reader", "Stop", "Writer", "run"]
