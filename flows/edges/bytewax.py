"""Bytewax as a runner: sources, steps and sinks of ours in the shape it calls.

Nothing is decided here. Of Bytewax only `input`, `flat_map_batch` and `output` are used; its windows, its Kafka
connectors and its dynamic sinks lose data silently. All sinks are fixed-partitioned: only those take part in an epoch,
so an epoch that closed is in every store. Which worker an item of a stateful step goes to is a matter of its key's
hash; a sink's part is where it is listed, so what is to be one worker's is a sink (`WorkerSink`).
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.run import cli_main

from freshet.schemas.errors import FreshetError, PeerLost

_LOOK_AGAIN_S = 0.1

X = TypeVar("X")
Y = TypeVar("Y")


class Stop:
    """A flag that ends every source, so that the flow closes its last epoch and returns.

    Processes of one flow share a file: there, it asks all of them. Where one alone were stopped, it would wait for ever
    for the others' sources to end.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._event, self._shared = threading.Event(), shared
        self._look_at = 0.0
        self.is_signalled = False
        """Whether a signal asked for it: then nothing is to begin again."""

    def __bool__(self) -> bool:
        if self._shared is not None and not self._event.is_set() and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_AGAIN_S
            if self._shared.exists():
                self._event.set()
        return self._event.is_set()

    def request(self) -> None:
        """Ask the flow to end."""
        self._event.set()
        if self._shared is not None:
            self._shared.touch()

    def end(self) -> None:
        """Say that this process has ended, whatever the others do."""
        self._event.set()

    def wait(self, limit: timedelta) -> bool:
        """Wait until the end is asked for, at most so long; say whether it was."""
        return self._event.wait(limit.total_seconds())

    def _heed(self, *_: object) -> None:
        self.is_signalled = True
        self.request()

    def listen(self) -> dict[signal.Signals, Any]:
        """End the flow on SIGTERM and SIGINT, from now on; return what listened before.

        Bytewax by itself dies of the first without closing anything. Raises ValueError outside of the main thread.
        """
        return {number: signal.signal(number, self._heed) for number in (signal.SIGTERM, signal.SIGINT)}

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """End the flow on SIGTERM and SIGINT while this lasts."""
        before = self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Failure:
    """What went wrong first in any step of this process: between processes Bytewax loses it."""

    def __init__(self) -> None:
        self.first: BaseException | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is raised inside, and raise it on."""
        try:
            yield
        except StopIteration:  # how a source says that it has ended
            raise
        except BaseException as error:  # whatever it is, it is raised on
            if self.first is None:
                self.first = error
            raise

    def noting(self, step: Callable[[list[X]], Iterable[Y]]) -> Callable[[list[X]], list[Y]]:
        """Return a step that notes what it raises."""

        def run(items: list[X]) -> list[Y]:
            with self.noted():
                return list(step(items))

        return run


class Reader(Protocol[X]):  # type: ignore[misc]  # X only comes out
    """What a source partition reads from."""

    def poll(self) -> X | None:
        """Return what came since, or None if nothing did."""

    def finished(self) -> bool:
        """Say whether nothing will come any more."""

    def close_epoch(self) -> None:
        """Learn that the epoch ends here: what was polled since the last end belongs to it."""

    def epoch_durable(self) -> None:
        """Learn that all parts of the flow have done their work on the epoch that closed last."""

    def close(self) -> None:
        """Let go of the source."""


class _SourcePart(StatefulSourcePartition[tuple[str, X], None], Generic[X]):
    def __init__(self, key: str, reader: Reader[X], stop: Stop, idle: timedelta, failure: Failure) -> None:
        self._key, self._reader, self._stop, self._idle, self._failure = key, reader, stop, idle, failure
        self._waits = False
        self._awake: datetime | None = None

    def next_batch(self) -> list[tuple[str, X]]:
        with self._failure.noted():
            self._learn()
            if self._stop or self._reader.finished():
                raise StopIteration
            polled = self._reader.poll()
            self._awake = None if polled is not None else datetime.now(UTC) + self._idle
            return [] if polled is None else [(self._key, polled)]

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> None:
        with self._failure.noted():
            self._learn()
            self._reader.close_epoch()
            self._waits = True

    def _learn(self) -> None:
        """Bytewax asks a source for anything after a snapshot only once all sinks have closed that epoch.

        Source: `!probe.less_than(&epoch)` in Bytewax 0.21.1's inputs.rs; the probe covers every fixed-partitioned sink,
        which closes an epoch after its own snapshot (outputs.rs). No sink can close the next one before this returns.
        """
        if self._waits:
            self._waits = False
            self._reader.epoch_durable()

    def close(self) -> None:
        self._reader.close()


class PollSource(FixedPartitionedSource[tuple[str, X], None], Generic[X]):
    """A source of the given partitions; `open_reader` opens one by its key, where it is to be read on."""

    def __init__(
        self,
        keys: Sequence[str],
        open_reader: Callable[[str], Reader[X]],
        stop: Stop,
        failure: Failure,
        idle: timedelta,
    ) -> None:
        self._keys, self._open, self._stop, self._failure, self._idle = list(keys), open_reader, stop, failure, idle

    def list_parts(self) -> list[str]:
        """Return the keys."""
        return self._keys

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _SourcePart[X]:
        """Open one partition. Where a run goes on from, Bytewax does not know."""
        del step_id, resume_state
        with self._failure.noted():
            return _SourcePart(for_part, self._open(for_part), self._stop, self._idle, self._failure)


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of one flow: its number, all their addresses, its worker threads."""

    process: int = 0
    addresses: tuple[str, ...] = ()
    workers_count: int = 1

    @property
    def workers_in_all(self) -> int:
        """How many workers the flow has."""
        return max(1, len(self.addresses)) * self.workers_count

    @property
    def first_worker(self) -> int:
        """The number of this process's first worker among all of the flow's."""
        return self.process * self.workers_count


class Workers:
    """The workers of a flow by number, each one thread: how many there are, and which of them asks."""

    def __init__(self, place: Place) -> None:
        self.count = place.workers_in_all
        self._place, self._threads, self._lock = place, dict[int, int](), threading.Lock()

    def own(self) -> int:
        """Return the number of the worker that asks.

        Not a `threading.local`: Bytewax's threads lose theirs whenever they leave Python.
        """
        with self._lock:
            number = self._threads.setdefault(threading.get_ident(), len(self._threads))
        assert number < self._place.workers_count, f"a thread more than {self._place.workers_count} workers"
        return self._place.first_worker + number

    @staticmethod
    def key(number: int) -> str:
        """Return the key of items that are for a worker; keys sort like numbers."""
        return f"{number:06d}"


class Writer(Protocol[X]):
    """What a sink partition writes to."""

    def write(self, items: list[X]) -> None:
        """Take items of the open epoch."""

    def flush(self) -> None:
        """Make durable all that was written; the epoch closes."""


class _SinkPart(StatefulSinkPartition[X, None], Generic[X]):
    def __init__(self, writer: Writer[X], failure: Failure) -> None:
        self._writer, self._failure = writer, failure

    def write_batch(self, values: list[X]) -> None:
        with self._failure.noted():
            self._writer.write(values)

    def snapshot(self) -> None:
        with self._failure.noted():
            self._writer.flush()


class WorkerSink(FixedPartitionedSink[X, None], Generic[X]):
    """A sink with a writer in each worker; an item's key, of `Workers.key`, says whose it is.

    Each worker lists its own part alone, so none but it can be given that (`calc_primaries` in Bytewax 0.21.1's
    timely.rs), and all parts together sort like the workers.
    """

    def __init__(self, workers: Workers, open_writer: Callable[[], Writer[X]], failure: Failure) -> None:
        self._workers, self._open, self._failure = workers, open_writer, failure

    def list_parts(self) -> list[str]:
        """Return the part of the worker that asks."""
        return [self._workers.key(self._workers.own())]

    def part_fn(self, key: str) -> int:
        """Return which part an item belongs to."""
        return int(key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _SinkPart[X]:
        """Open the worker's part."""
        del step_id, resume_state
        assert int(for_part) == self._workers.own(), f"part {for_part} is another worker's"
        return _SinkPart(self._open(), self._failure)


class SingleSink(FixedPartitionedSink[X, None], Generic[X]):
    """A sink with one writer, in one worker of all."""

    def __init__(self, open_writer: Callable[[], Writer[X]], failure: Failure) -> None:
        self._open, self._failure = open_writer, failure

    def list_parts(self) -> list[str]:
        """Return the one part."""
        return ["0"]

    def part_fn(self, key: str) -> int:
        """Return that every item belongs to it."""
        del key
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _SinkPart[X]:
        """Open it."""
        del step_id, for_part, resume_state
        return _SinkPart(self._open(), self._failure)


def place(arguments: Sequence[str], environment: Mapping[str, str]) -> Place:
    """Read the place of this process as Bytewax's own command does: -w, -i, -a, and the variables for them.

    >>> place(["my:flow", "-w2", "-i", "1", "-a", "a:1;b:2"], {})
    Place(process=1, addresses=('a:1', 'b:2'), workers_count=2)
    >>> pod = {"BYTEWAX_POD_NAME": "flow-3", "BYTEWAX_STATEFULSET_NAME": "flow"}
    >>> place([], {**pod, "BYTEWAX_ADDRESSES": "a:1;b:2;c:3;d:4"}).process
    3
    """
    words = argparse.ArgumentParser(add_help=False)
    words.add_argument("-w", "--workers-per-process", default=environment.get("BYTEWAX_WORKERS_PER_PROCESS", "1"))
    words.add_argument("-i", "--process-id", default=environment.get("BYTEWAX_PROCESS_ID"))
    words.add_argument("-a", "--addresses", default=environment.get("BYTEWAX_ADDRESSES"))
    found, _ = words.parse_known_args(list(arguments))
    pod, of = environment.get("BYTEWAX_POD_NAME"), environment.get("BYTEWAX_STATEFULSET_NAME")
    number = found.process_id or (pod.removeprefix(f"{of}-") if pod and of else "0")
    addresses = found.addresses.split(";") if found.addresses else []
    hosts = environment.get("BYTEWAX_HOSTFILE_PATH")
    if hosts and not addresses and number:
        addresses = Path(hosts).read_text(encoding="utf-8").split()
    return Place(int(number), tuple(addresses), int(found.workers_per_process))


def run(flow: Dataflow, failure: Failure, *, epoch: timedelta, place: Place = Place()) -> None:
    """Run a dataflow until its sources end; with a `place`, as one process of several, or in several threads.

    Bytewax wraps what a step raises, and between processes loses it: what was raised first here comes out as it was.
    Raises `PeerLost` where another process failed.
    """
    os.environ["RUST_BACKTRACE"] = "0"  # an exception crosses Bytewax as a panic; its Rust frames help nobody
    hook, sys.excepthook = sys.excepthook, sys.__excepthook__  # Bytewax calls it for panics that only follow the first
    try:
        cli_main(
            flow,
            workers_per_process=place.workers_count if place.workers_count > 1 or place.addresses else None,
            process_id=place.process if place.addresses else None,
            addresses=list(place.addresses) or None,
            epoch_interval=epoch,
        )
    except BaseException as error:  # whatever Bytewax makes of it, a panic too: looked into, and raised again
        if failure.first is not None:
            raise failure.first from error
        ours = next((cause for cause in _chain(error) if isinstance(cause, FreshetError)), None)
        if ours is not None:
            raise ours from error
        if place.addresses and not isinstance(error, KeyboardInterrupt):
            raise PeerLost(f"process {place.process} {PeerLost.FACT}") from error
        raise
    finally:
        sys.excepthook = hook


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


__all__ = [
    "Failure",
    "Place",
    "PollSource",
    "Reader",
    "SingleSink",
    "Stop",
    "WorkerSink",
    "Workers",
    "Writer",
    "place",
    "run",
]
