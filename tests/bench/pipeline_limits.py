"""How fast each part of the pipeline is by itself, on the same events, with the functions that the flow itself uses.

Runs as a process of its own (`serving_rig.Child`): nothing else is in it, and nothing of it is measured elsewhere.
"""

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import numpy as np
import pyarrow as pa
import redis
from pipeline_work import PARTITIONS, PROJECT, STEP_MS, STREAM, VIEW

from freshet.flows import settings
from freshet.flows.edges import kafka
from freshet.flows.edges.collector import undisturbed
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.partitions import PartitionReader, Partitions
from freshet.flows.edges.redis import _REPLACE, OnlineStore
from freshet.flows.live_reader import wanted_count
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.decode import Decoded, Decoder
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.shards import split
from freshet.flows.steps.sql import Finisher, Projector
from freshet.flows.steps.windows.shard import WindowedRows
from freshet.flows.workspace import Workspace
from freshet.schemas.event import archive_name
from freshet.schemas.online_layout import layouts
from freshet.schemas.poll import Poll

POLL_MESSAGES = wanted_count(np.array([0, PARTITIONS * STEP_MS]))
"""As many as the flow's reader asks for at once."""
TRIP_COMMANDS = 1000
"""As many as the store is sent, and counts, as one write."""
_WAIT_S = 0.1

ALONE = ("consume", "redis")
"""What is done twice: by somebody else alone, and then by us."""
PARTS = {
    "consume": "librdkafka, messages let go of",
    "poll": "read: the same, as columns",
    "decode": "decode and check",
    "judge": "judge: late, future, duplicate",
    "project": "row-level SQL (DuckDB)",
    "route": "route to shards",
    "fold": "windows",
    "finish": "features from windows (DuckDB)",
    "encode": "online rows as commands",
    "redis": "Redis alone, commands as bytes",
    "send": "send by redis-py, and Redis",
    "rows": "parquet of rows",
    "archive": "parquet of events",
}
"""All parts in their order: those that are a part of another's are in `ALONE`."""


@dataclass
class Clock:
    """What each part took: wall and CPU seconds of this process, and how many things it was given."""

    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, part: str, things_count: int) -> Iterator[None]:
        """Count what is done inside as a part's."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        taken = self.spent.setdefault(part, [0.0, 0.0, 0.0])
        for place, value in enumerate((time.perf_counter() - wall_s, time.process_time() - cpu_s, things_count)):
            taken[place] += value


@contextlib.contextmanager
def readers(cluster: kafka.Kafka, topic: str) -> Iterator[list[PartitionReader]]:
    """Open all partitions, as the flow does."""
    partitions = Partitions(cluster)
    opened = [partitions.open(topic, partition, PARTITIONS) for partition in range(PARTITIONS)]
    try:
        yield opened
    finally:
        for reader in opened:
            reader.close()


def consume(opened: Sequence[PartitionReader], clock: Clock) -> int:
    """Consume into nothing, with the client that the flow has; return how many messages there were."""
    count, events_count = 0, sum(reader.end_offset for reader in opened)
    with clock.on("consume", events_count):
        while count < events_count:
            count += sum(message.error() is None for message in opened[0].client.consumer.consume(POLL_MESSAGES, 0.1))
    assert count == events_count, "each was read once"
    return count


def polled(opened: Sequence[PartitionReader], events_count: int, clock: Clock) -> list[Poll]:
    """Read as the flow does, all partitions in turns."""
    found: list[Poll] = []
    with clock.on("poll", events_count):
        while not all(reader.at_end for reader in opened):
            found += [poll for reader in opened if (poll := reader.poll(POLL_MESSAGES)) is not None]
    return found


def turns(polls: Sequence[Poll], events_count: int) -> Iterator[list[Poll]]:
    """Cut into what the flow takes at once: about so many events, of one poll at least."""
    turn: list[Poll] = []
    for poll in polls:
        turn.append(poll)
        if sum(len(each.values) for each in turn) >= events_count:
            yield turn
            turn = []
    if turn:
        yield turn


class Parts:
    """The flow, part by part: each has all of a turn's work before the next one begins."""

    def __init__(self, workspace: Workspace, clock: Clock, events_a_commit: int) -> None:
        self._clock, self._events_a_commit = clock, events_a_commit
        self._contract = workspace.contracts[STREAM]
        [self._plan] = workspace.pipeline.plans
        self._shards_count = workspace.settings.shards or 1  # as a flow of one worker has
        self._decoder, self._projector = Decoder(self._contract), Projector(self._plan, STREAM)
        self._judges = [PartitionJudge(self._contract.stream) for _ in range(PARTITIONS)]
        self._folds = [ShardFold.of(self._plan, workspace.contracts) for _ in range(self._shards_count)]
        self._finisher = Finisher(self._plan)
        self._store = OnlineStore(workspace.online_url, PROJECT, workspace.pipeline.views)
        self._layout = layouts(PROJECT, workspace.pipeline.views)[VIEW]
        self._offline = OfflineStore(workspace.offline_root)
        self._rows: list[pa.Table] = []
        self._events: list[pa.Table] = []
        self.trips: list[list[tuple[bytes, ...]]] = []
        self.rows_count = self.online_count = 0

    def take(self, turn: Sequence[Poll]) -> None:
        """Do all that is done with what is read at once."""
        count, clock = sum(len(poll.values) for poll in turn), self._clock
        with clock.on("decode", count):
            decoded: list[Decoded] = self._decoder.decode_together(turn)
        accepted: list[pa.Table] = []
        with clock.on("judge", count):
            for poll, found in zip(turn, decoded, strict=True):
                judged = self._judges[poll.partition].judge(found.events)
                accepted.append(found.events.take(pa.array(judged.accepted)))
        with clock.on("project", count):
            inputs = [self._projector.project(events)[0] for events in accepted]
        with clock.on("route", count):
            shards = [split(table, self._plan.view, self._shards_count) for table in inputs]
        with clock.on("fold", count):
            windowed = [self._fold(shard, turn, shards) for shard in range(self._shards_count)]
        with clock.on("finish", count):
            finished = self._finish([rows for own in windowed for rows in own])
        self._write_online(windowed, finished, count)
        self._rows += finished
        self._events += accepted
        self.rows_count += sum(table.num_rows for table in finished)
        if sum(table.num_rows for table in self._events) >= self._events_a_commit:
            self.commit()

    def _fold(self, shard: int, turn: Sequence[Poll], inputs: Sequence[dict[int, pa.Table]]) -> list[WindowedRows]:
        items = [
            ShardInput(VIEW, shard, 1, STREAM, poll.partition, PARTITIONS, newest_us, None, own.get(shard))
            for poll, own in zip(turn, inputs, strict=True)
            for newest_us in [self._judges[poll.partition].newest_us]
        ]
        return list(self._folds[shard].fold(items, time.time_ns() // 1000))

    def _finish(self, parts: Sequence[WindowedRows]) -> list[pa.Table]:
        if not parts:
            return []
        table = self._finisher.finish(pa.concat_tables([rows.table for rows in parts], promote_options="permissive"))
        made, start = [], 0
        for rows in parts:
            made.append(table.slice(start, rows.table.num_rows))
            start += rows.table.num_rows
        return made

    def _write_online(self, windowed: Sequence[Sequence[WindowedRows]], finished: list[pa.Table], count: int) -> None:
        rest = iter(finished)
        trips: list[list[tuple[bytes, ...]]] = []
        with self._clock.on("encode", count):
            for own in windowed:
                if own:
                    rows = pa.concat_tables([next(rest).filter(rows.newest) for rows in own])
                    commands = list(self._layout.commands(rows))
                    trips += [
                        commands[start : start + TRIP_COMMANDS] for start in range(0, len(commands), TRIP_COMMANDS)
                    ]
        with self._clock.on("send", count):
            for trip in trips:
                self._store.expect(self._store.writes_count)
                self._store._replaced(trip, _REPLACE)  # noqa: SLF001  # what `write` does once it has the commands
        self.online_count += sum(map(len, trips))
        self.trips += trips

    def commit(self) -> None:
        """Write what waits for the end of an epoch."""
        if not self._events:
            return
        events = pa.concat_tables(self._events)
        with self._clock.on("rows", events.num_rows):
            part = self._offline.stage(VIEW, pa.concat_tables(self._rows)) if self._rows else None
            if part is not None:
                self._offline.publish({VIEW: [part]})
        with self._clock.on("archive", events.num_rows):
            name = archive_name(STREAM)
            part = self._offline.stage(name, events, 1)
            assert part is not None, "there are events"
            self._offline.publish({name: [part]})
        self._rows, self._events = [], []

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()


def redis_alone(url: str, trips: Sequence[Sequence[tuple[bytes, ...]]], clock: Clock, events_count: int) -> None:
    """Have an emptied Redis do the very same commands, given as bytes: no client of Python's is in the way."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
        script = client.script_load(_REPLACE)
        options = client.connection_pool.connection_kwargs
        before_s = _cpu_s(client)
    packed = [
        b"".join(hiredis.pack_command(("EVALSHA", script, 1, *command)) for command in trip)
        + hiredis.pack_command(("INCR", "counted"))
        for trip in trips
    ]
    asked = hiredis.pack_command(("GET", "counted"))
    with socket.create_connection((options["host"], options["port"])) as connection, clock.on("redis", events_count):
        reader = hiredis.Reader()
        for trip, content in zip(trips, packed, strict=True):
            for bytes_, answers_count in ((asked, 1), (content, len(trip) + 1)):
                connection.sendall(bytes_)
                left = answers_count
                while left:
                    reader.feed(connection.recv(1 << 16))
                    while left and (answer := reader.gets()) is not False:
                        if isinstance(answer, hiredis.ReplyError):
                            raise answer
                        left -= 1
    with redis.Redis.from_url(url) as client:
        clock.spent["redis"][1] = _cpu_s(client) - before_s  # its own, where that of others is this process's


def _cpu_s(client: redis.Redis) -> float:
    told = client.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


def measure(workspace: Workspace, topic: str, turn_events: int, commit_events: int) -> dict[str, Any]:
    """Measure all parts; return what each took."""
    clock, cluster = Clock(), workspace.kafka
    with readers(cluster, topic) as opened:
        count = consume(opened, clock)
    with readers(cluster, topic) as opened:
        polls = polled(opened, count, clock)
    parts = Parts(workspace, clock, commit_events)
    for turn in turns(polls, turn_events):
        parts.take(turn)
    parts.commit()
    parts.close()
    redis_alone(workspace.online_url, parts.trips, clock, count)
    return {
        "events_count": count,
        "rows_count": parts.rows_count,
        "online_count": parts.online_count,
        "turn_events": turn_events,
        "commit_events": commit_events,
        "parts": {
            name: {"seconds": spent[0], "cpu_s": spent[1], "count": spent[2]} for name, spent in clock.spent.items()
        },
    }


def main() -> None:
    """Do what each line of the input asks for."""
    for line in sys.stdin:
        task = json.loads(line)
        workspace = Workspace.open(settings.read(task.pop("environment")))
        with undisturbed():
            found = measure(workspace, **task)
        print(json.dumps(found), flush=True)
