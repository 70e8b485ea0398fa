"""Visits at a given rate as they happen, and how soon their rows can be read: a process of its own (`serving_rig.Child`).

One loop gives due events to the producer and asks Redis for the rows that are waited for, some hundred times a second; how long
a turn of it took is told, too: by so much an answer may be seen late.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis
from confluent_kafka import Producer
from pipeline_work import PARTITIONER, PROJECT, SECTIONS, VIEW, Visits

from freshet.flows import settings
from freshet.flows.workspace import Workspace
from freshet.schemas import feast_bytes
from freshet.schemas.errors import FreshetError, Unavailable
from freshet.schemas.online_layout import Layout, layouts, version_of

EVENT, CORRECTION, DECAY = "event", "correction", "decay"
DECAY_WINDOW_S, DECAY_EVERY_S = 5, 1
"""A window so short that rows by time alone come while one waits."""
SAMPLES_PER_S = 100.0
LINGER_MS = 5
"""So long an event waits for others to be sent with: as by Freshet's own `Producer`, and by librdkafka's default."""
LATE_S = (0.5, 5.0)
"""By how much events are late that correct a row."""
_PAUSE_S, _READABLE_LIMIT_S = 0.002, 120.0


@dataclass
class Awaited:
    """A row that is waited for: of which kind, since when (seconds since the epoch), and what shows that it is there."""

    of: str
    since: float
    key: bytes
    at_ms: int
    version: int = 0
    then: "Late | None" = None


@dataclass(frozen=True)
class Late:
    """An event that is sent once a row can be read, and corrects it."""

    user: str
    at_ms: int


@dataclass
class Load:
    """Sends, waits, and notes how long each row took."""

    workspace: Workspace
    topic: str
    kinds: frozenset[str]
    seed: int
    seen: dict[str, list[float]] = field(default_factory=dict)
    turns_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._layout: Layout = layouts(PROJECT, self.workspace.pipeline.views)[VIEW]
        self._redis = redis.Redis.from_url(self.workspace.online_url)
        self._producer = self.workspace.kafka.client(
            Producer,
            {"linger.ms": LINGER_MS, "queue.buffering.max.messages": 1_000_000},
            partitioner=PARTITIONER,
            enable_idempotence=True,
        )
        self._chance = np.random.default_rng(self.seed)
        self._waiting: list[Awaited] = []
        self._number = 0
        self.sent_count = 0

    def _visits(self) -> Iterator[tuple[int, float, int, int]]:
        """Give users and values without end."""
        seed = self.seed
        while True:
            for columns in Visits(1_000_000, seed=seed).columns():
                yield from zip(
                    *(columns[name].tolist() for name in ("user", "seconds", "amount", "section")), strict=True
                )
            seed += 1

    def _send(self, user: str, at_ms: int, visit: tuple[int, float, int, int]) -> None:
        _, seconds, amount, section = visit
        self._number += 1
        at = f"{np.datetime64(at_ms, 'ms')}Z"
        value = (
            f'{{"at": "{at}", "id": "p{self.seed}-{self._number}", "user": "{user}", "seconds": {seconds},'
            f' "amount": {amount}, "section": "{SECTIONS[section]}"}}'
        )
        self._producer.produce(self.topic, value.encode(), user.encode())

    def _key(self, user: str) -> bytes:
        return self._layout.keys_of([(user,)])[0]

    def run(self, rate: float, seconds: float) -> float:
        """Send so many events a second for so long, and wait for all sampled rows; return how many were sent a second."""
        visits = self._visits()
        sample_every = max(1, round(rate / SAMPLES_PER_S))
        begun, sent = time.time(), 0
        while (now := time.time()) < begun + seconds or self._waiting:
            if now > begun + seconds + _READABLE_LIMIT_S:
                raise Unavailable(f"{len(self._waiting)} rows cannot be read after {_READABLE_LIMIT_S:g} s")
            due = min(int((now - begun) * rate), int(seconds * rate))
            for _ in range(due - sent):
                visit, at = next(visits), time.time()
                at_ms, sampled = int(at * 1000), sent % sample_every == 0
                user = f"u{visit[0]}"
                if sampled and self.kinds != {EVENT}:
                    user = self._special(sent // sample_every, at, at_ms, user)
                elif sampled:
                    self._waiting.append(Awaited(EVENT, at, self._key(user), at_ms))
                self._send(user, at_ms, visit)
                sent += 1
            self._producer.poll(0)
            self._look(visits)
            self.turns_s.append(time.time() - now)
            time.sleep(_PAUSE_S)
        if self._producer.flush(_READABLE_LIMIT_S):
            raise Unavailable("not all events came to Kafka")
        self.sent_count += sent
        return sent / seconds

    def _special(self, number: int, at: float, at_ms: int, user: str) -> str:
        """Choose what to watch of an event that is about to be sent; return whose it is."""
        of = sorted(self.kinds)[number % len(self.kinds)]
        if of == EVENT:
            self._waiting.append(Awaited(EVENT, at, self._key(user), at_ms))
            return user
        user = f"{of}{self.seed}-{number}"  # of whom there is no other event
        if of == CORRECTION:
            late = Late(user, at_ms - int(1000 * self._chance.uniform(*LATE_S)))
            self._waiting.append(Awaited("", at, self._key(user), at_ms, then=late))
        else:
            due_s = math.floor((at_ms / 1000 + DECAY_WINDOW_S) / DECAY_EVERY_S + 1) * DECAY_EVERY_S
            self._waiting.append(Awaited(DECAY, due_s, self._key(user), due_s * 1000))
        return user

    def _look(self, visits: Iterator[tuple[int, float, int, int]]) -> None:
        """Ask for all rows that are waited for."""
        asked = [one for one in self._waiting if one.since <= time.time()]
        if not asked:
            return
        with self._redis.pipeline(transaction=False) as pipeline:
            for one in asked:
                pipeline.hmget(one.key, self._layout.fields[0], self._layout.fields[1])
            answers = pipeline.execute()
        now, there = time.time(), set[int]()
        for one, (stamp, version) in zip(asked, answers, strict=True):
            if stamp is None:
                continue
            seconds, nanos = feast_bytes.decode_time(stamp)
            stored_ms = seconds * 1000 + nanos // 1_000_000
            if stored_ms < one.at_ms or (stored_ms == one.at_ms and version_of(stamp, version) < one.version):
                continue
            there.add(id(one))
            if one.of:
                self.seen.setdefault(one.of, []).append(now - one.since)
            if one.then is not None:
                late = one.then
                self._waiting.append(Awaited(CORRECTION, time.time(), one.key, one.at_ms, version=2))
                self._send(late.user, late.at_ms, next(visits))
        self._waiting = [one for one in self._waiting if id(one) not in there]


def measure(
    environment: dict[str, str], topic: str, rate: float, warm_s: float, seconds: float, kinds: list[str], seed: int
) -> dict[str, Any]:
    """Send for a while, so that everything is warm, and then measure; return how long rows took, by kind."""
    workspace = Workspace.open(settings.read(environment))
    load = Load(workspace, topic, frozenset(kinds), seed)
    load.run(min(rate, 1000.0), 1.0)  # until the first rows are there
    load.run(rate, warm_s)
    load.seen, load.turns_s = {}, []
    rate = load.run(rate, seconds)
    found = {}
    for of, took_s in load.seen.items():
        milliseconds = 1000 * np.array(took_s)
        p50_ms, p99_ms = np.percentile(milliseconds, [50, 99]).tolist()
        found[of] = {"count": len(took_s), "p50_ms": p50_ms, "p99_ms": p99_ms, "max_ms": float(milliseconds.max())}
    turn_ms = float(1000 * np.percentile(load.turns_s, 99))
    return {"rate": rate, "sent_count": load.sent_count, "turn_p99_ms": turn_ms, "kinds": found}


def main() -> None:
    """Do what each line of the input asks for."""
    for line in sys.stdin:
        try:
            answer = measure(**json.loads(line))
        except FreshetError as error:
            sys.exit(f"pace: {error}")
        print(json.dumps(answer), flush=True)
