"""Garbage among events, through a real Kafka: each message is accepted or a dead letter with a right reason.

CI sends a hundred thousand, `scripts/soak` as many times more as it is told.
"""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer
from stack import LIMIT_S, PARTITIONS, REPO, SEED, STREAM, Stack, prepared

from freshet.flows.edges.partitions import records
from freshet.flows.steps.oracle import compare
from freshet.schemas.event import archive_name
from freshet.schemas.record import header
from freshet.schemas.rejects import Reason, dead_letter_topic, reject_of
from freshet.scripts.made_edits import edits

pytestmark = pytest.mark.kafka

COUNT = min(1_000_000, 100_000 * int(os.environ.get("FRESHET_SOAK", "1")))
GOOD_EVERY = 50
EVENT = json.loads((REPO / "schemas/samples/wiki_edits/good-edit.json").read_text())


def changed(**fields: object) -> bytes:
    return json.dumps({**EVENT, **fields}).encode()


def noise(chance: random.Random) -> bytes:
    return b"\xff" + chance.randbytes(chance.randint(0, 300))


def truncated(chance: random.Random) -> bytes:
    whole = changed()
    return whole[: chance.randint(1, len(whole) - 1)]


def mistyped(chance: random.Random) -> bytes:
    return changed(**{chance.choice(["added", "user", "isNew", "time"]): chance.choice([[], {}, 1.5, {"a": [1]}])})


def nested(chance: random.Random) -> bytes:
    depth = chance.choice([300, 20_000])
    return b"[" * depth + b"]" * depth


def huge(chance: random.Random) -> bytes:
    number = chance.choice(["9" * 400, "9" * 5_000, str(2**63), "1e999", "-1e400"])
    return changed(added="HUGE").replace(b'"HUGE"', number.encode())


def surrogate(_: random.Random) -> bytes:
    return changed(user="HALF").replace(b"HALF", rb"\ud800 alone")


def empty(_: random.Random) -> bytes:
    return b""


def null(_: random.Random) -> None:
    return None


UNDECODABLE, CONTRACT = {Reason.UNDECODABLE}, {Reason.CONTRACT}
KINDS: dict[str, tuple[Callable[[random.Random], bytes | None], set[Reason]]] = {
    "noise": (noise, UNDECODABLE),
    "truncated": (truncated, UNDECODABLE),
    "mistyped": (mistyped, CONTRACT),
    "nested": (nested, UNDECODABLE | CONTRACT),  # too deep to be read, or no object
    "huge": (huge, UNDECODABLE | CONTRACT),  # no number that is known, or none that fits
    "surrogate": (surrogate, UNDECODABLE | CONTRACT),  # no text in Unicode
    "empty": (empty, UNDECODABLE),
    "null": (null, UNDECODABLE),
}


@pytest.fixture
def stack(real_kafka: str, valkey_url: str, tmp_path: Path) -> Stack:
    return prepared(real_kafka, valkey_url, tmp_path)


@pytest.mark.timeout(3600)
def test_every_piece_of_garbage_is_a_dead_letter_with_a_right_reason(stack: Stack) -> None:
    chance = random.Random(SEED)
    workspace = stack.workspace
    topic = workspace.contracts[STREAM].stream.topic
    sent = send(stack, chance)
    offline = workspace.offline()

    peaks_mb = peaks(stack.start("--until-end"))

    letters: Counter[tuple[str, Reason]] = Counter()
    for poll in records(workspace.kafka, dead_letter_topic(topic)):
        assert poll.headers is not None
        for key, value, headers in zip(poll.keys, poll.values, poll.headers, strict=True):
            found = reject_of(key, value, headers, 0)
            assert found is not None
            kind = header(headers, "kind")
            assert kind is not None
            letters[kind.decode(), found.reason] += 1
    by_kind: Counter[str] = Counter()
    for (kind, reason), count in letters.items():
        assert reason in KINDS[kind][1], (kind, reason)
        by_kind[kind] += count
    assert by_kind == sent["garbage"]
    events = offline.read(archive_name(STREAM))
    assert events.num_rows == sent["good"].total()
    until_us = int(events["event_timestamp"].cast("int64").to_numpy().max())
    for plan in workspace.pipeline.plans:
        answer = compare(plan, events, offline.final(plan.view), until_us)
        assert answer.differing == ()
    early, late = max(peaks_mb[: len(peaks_mb) // 2]), max(peaks_mb[len(peaks_mb) // 2 :])
    assert late < 1.5 * early, f"memory grew: {peaks_mb}"


def send(stack: Stack, chance: random.Random) -> dict[str, Counter[str]]:
    """Publish garbage with a good event now and then; return how many of each kind."""
    workspace = stack.workspace
    topic = workspace.contracts[STREAM].stream.topic
    raw = Producer(
        {"bootstrap.servers": workspace.kafka.brokers, "linger.ms": 20, "queue.buffering.max.kbytes": 200_000}
    )
    sent: dict[str, Counter[str]] = {"garbage": Counter(), "good": Counter()}
    good = edits(SEED)
    names = list(KINDS)
    for number in range(COUNT):
        kind = names[number % len(names)]
        value = KINDS[kind][0](chance)
        while True:
            try:
                raw.produce(topic, value, partition=chance.randrange(PARTITIONS), headers={"kind": kind})
                break
            except BufferError:
                raw.poll(0.1)
        sent["garbage"][kind] += 1
        if number % GOOD_EVERY == 0:
            raw.produce(topic, json.dumps(next(good)).encode(), partition=chance.randrange(PARTITIONS))
            sent["good"]["edit"] += 1
    assert raw.flush(LIMIT_S) == 0
    return sent


def peaks(running: "subprocess.Popen[bytes]") -> list[float]:
    """Return what memory a process took, from time to time until it ended well."""
    process, found = psutil.Process(running.pid), [0.0]
    deadline = time.monotonic() + 10 * LIMIT_S
    while running.poll() is None:
        assert time.monotonic() < deadline
        try:
            found.append(process.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    assert running.wait(LIMIT_S) == 0
    return [peak for peak in found if peak > max(found) / 3]  # without what it took while it started
