"""Records what Burrow says of consumers that do well and badly: tests/steps/burrow.json, against which ours is held.

    python tests/record_burrow.py 127.0.0.1:9092

Needs Burrow, and a Kafka that scripts/kafka has started; takes a minute. Each case is a group with one partition, and
moves once in a step: messages come, Burrow looks at the partition's end, the group commits, Burrow is asked.
"""

import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from monitors import Burrow, burrow, kafka_jars

from freshet.flows.edges import kafka

RECORDED = Path(__file__).parent / "steps" / "burrow.json"
STEP_S, BEFORE_COMMIT_S = 3.0, 1.6
"""Burrow looks at ends once a second, and at commits as they come."""

Move = tuple[int, int | None]
"""So many messages come; then this offset is committed, or none."""


def steady(count: int, comes: int, done: int, first: int = 0) -> Iterator[Move]:
    """Return moves of a consumer that does so much of what comes in each step."""
    return ((comes, first + done * (step + 1)) for step in range(count))


CASES: dict[str, list[Move]] = {
    "idle, everything committed": [(10, 10), *[(0, None)] * 15],
    "everything is done in each step": list(steady(16, 10, 10)),
    "falls behind": [(20, 5), *((20, 5 + 10 * step) for step in range(1, 16))],
    "catches up slowly": [(300, 5), *((5, 5 + 15 * step) for step in range(1, 16))],
    "falls behind, then catches up": [
        (30, 5), *((30, 5 + 10 * step) for step in range(1, 8)), *((0, 75 + 20 * step) for step in range(1, 9)),
    ],
    "the same offset again and again": [(20, 5), *[(10, 5)] * 15],
    "the same offset again and again, and nothing comes": [(20, 5), *[(0, 5)] * 15],
    "stops behind": [(20, 5), (10, 10), (10, 15), *[(10, None)] * 13],
    "stops behind, and nothing comes": [(20, 5), (10, 10), (10, 15), *[(0, None)] * 13],
    "stops after it had everything": [(10, 10), (10, 20), (10, 30), *[(10, None)] * 13],
    "stops, and goes on": [(20, 5), (10, 10), (10, 15), *[(10, None)] * 6, *((10, 40 + 10 * s) for s in range(7))],
    "goes back": [(50, 30), (10, 40), (10, 10), *((10, 15 + 5 * step) for step in range(13))],
    "goes back, and has everything again": [(50, 30), (10, 40), (10, 10), *((0, 70) for _ in range(13))],
    "had everything once, then falls behind": [(10, 10), *((20, 15 + 5 * step) for step in range(15))],
    "does not go on with the last of a lot": [(500, 100), (0, 300), (0, 499), *[(0, 499)] * 13],
}  # fmt: skip


def record(brokers: str) -> dict[str, Any]:
    """Play all cases side by side; return what was done, when, and what Burrow said."""
    cluster, run = kafka.Kafka(brokers), uuid.uuid4().hex[:8]
    names = {case: f"burrow-{run}-{number}" for number, case in enumerate(CASES)}
    kafka.create_topics(cluster, dict.fromkeys(names.values(), 1))
    jars = kafka_jars()
    assert jars is not None, "scripts/kafka has fetched no ZooKeeper"
    producer = Producer(cluster.config())
    groups = {case: Consumer(cluster.config(group_id=name, enable_auto_commit=False)) for case, name in names.items()}
    steps: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    ends = dict.fromkeys(CASES, 0)
    with tempfile.TemporaryDirectory() as folder, burrow(brokers, jars, Path(folder)) as url:
        begun = time.time()
        for number in range(max(map(len, CASES.values()))):
            at_s = begun + STEP_S * number
            _wait_until(at_s)
            for case, moves in CASES.items():
                for _ in range(moves[number][0]):
                    producer.produce(names[case], b"", partition=0)
                ends[case] += moves[number][0]
            producer.flush()
            _wait_until(at_s + BEFORE_COMMIT_S)
            for case, moves in CASES.items():
                offset, committed_at = moves[number][1], time.time()
                if offset is not None:
                    groups[case].commit(offsets=[TopicPartition(names[case], 0, offset)], asynchronous=False)
                steps[case].append(
                    {
                        "came_at": at_s - begun,
                        "end": ends[case],
                        "committed_at": committed_at - begun,
                        "committed": offset,
                    }
                )
            _wait_until(at_s + STEP_S - 0.2)
            for case, name in names.items():
                group, partitions, _ = Burrow(url, name, name).status()
                asked_at = time.time() - begun
                steps[case][-1] |= {"asked_at": asked_at, "status": partitions.get(0, group)}
    for group in groups.values():
        group.close()
    return {"burrow": "Debian's 1.2.1, intervals 10, offsets looked at once a second", "cases": steps}


def _wait_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.time()))


if __name__ == "__main__":
    found = record(sys.argv[1])
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 2))
    lines = [
        f"  {json.dumps(case)}: [\n" + ",\n".join(f"    {json.dumps(step)}" for step in steps) + "\n  ]"
        for case, steps in rounded["cases"].items()
    ]
    RECORDED.write_text(
        f'{{"burrow": {json.dumps(rounded["burrow"])}, "cases": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8"
    )
