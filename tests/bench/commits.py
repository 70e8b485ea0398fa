"""What a commit writes, and how long it takes: with 1 k, 100 k and 1 M entities of state, 1 k of them touched.

    ./scripts/bench commits

The whole flow on real files, an in-memory topic and online store: every epoch takes a thousand events. A snapshot is
written now and then, beside the flow; it is counted apart, and shared out over the epochs since the one before.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.metrics import Metrics
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.recovery import LedgerFile, RecoveryFolder
from freshet.flows.live import Outside, Run, assemble
from freshet.flows.testing import Given
from freshet.schemas.event import Event, Stream

TOUCHED, MEASURED = 1_000, 30
START = datetime(2026, 3, 1, tzinfo=UTC)
WINDOW = "OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '7 days' PRECEDING AND CURRENT ROW)"


class Click(Event):
    stream = Stream("clicks", "user", "at", lateness=timedelta(minutes=1), partitions=1)

    at: AwareDatetime
    user: str
    cost: int


DECLARED = {
    "project": "bench",
    "featureDefinitions": [
        {
            "name": "clicks_7d",
            "dtype": "int64",
            "source": "clicks",
            "transformation": f"count(*) {WINDOW}",
            "decay": "off",
        },
        {
            "name": "cost_7d",
            "dtype": "int64",
            "source": "clicks",
            "transformation": f"sum(cost) {WINDOW}",
            "decay": "off",
        },
    ],
    "servingRequirements": {},
}
GIVEN = Given.declared(json.dumps(DECLARED), {"clicks": Click})


@dataclass
class Cost:
    """What was written, and the time that it took, since the last look."""

    kinds: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, kind: str, part: Any, method: str, size: Callable[[Any], float]) -> None:
        """Count every call of a method."""
        call = getattr(part, method)

        def counted(*words: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            answer = call(*words, **named)
            known = self.kinds.setdefault(kind, [0.0, 0.0])
            known[0] += size(answer)
            known[1] += time.perf_counter() - begun
            return answer

        setattr(part, method, counted)

    def take(self) -> dict[str, list[float]]:
        """Return what was counted, and begin anew."""
        found, self.kinds = self.kinds, {}
        return found


class NoStore:
    """Serves nobody."""

    writes_count, trouble = 0, ""

    def ping(self) -> None:
        """Answer."""

    def expect(self, writes_count: int) -> None:
        """Nothing is lost."""

    def catch_up(self, writes_count: int) -> None:
        """Count nothing."""

    def write_progress(self, progress: Any) -> None:
        """Keep nothing."""

    def write(self, view: Any, rows: Any) -> int:
        """Write nothing."""
        del view, rows
        return 0


def measure(entities_count: int, root: Path) -> str:
    """Return one line of the table."""
    log = MemoryLog()
    log.create_topics({"clicks": 1, "clicks.dlq": 1})
    total = max(entities_count, TOUCHED) + (MEASURED + 1) * TOUCHED
    for number in range(total):
        at = START + timedelta(milliseconds=number)
        user = number if number < entities_count else (number * 7919) % entities_count
        log.append(
            "clicks",
            0,
            json.dumps({"at": at.isoformat(), "user": f"user {user}", "cost": 1}).encode(),
            timestamp_ms=int(at.timestamp() * 1000),
        )
    cost, commits = Cost(), list[dict[str, list[float]]]()
    offline, ledger, states = (
        OfflineStore(root / "offline"),
        LedgerFile(root / "offline"),
        RecoveryFolder(root / "recovery"),
    )

    class Batched:
        """Gives a thousand messages at a time."""

        def __init__(self, part: Any) -> None:
            self._part = part

        def __getattr__(self, name: str) -> Any:
            return getattr(self._part, name)

        def poll(self, _count: int, _wait_s: float = 0.0) -> Any:
            return self._part.poll(TOUCHED)

    outside = Outside(
        partitions_count=log.partitions_count,
        open_partition=lambda topic, part, _, start: Batched(log.reader(topic, part, start)),  # type: ignore[return-value,arg-type]  # it has all that a partition has
        offsets=log.offsets("bench"),
        dead_letters=log.dead_letters("bench"),
        online=NoStore(),  # type: ignore[arg-type]  # as above
        offline=offline,
        ledger=ledger,
        states=states,
        now_us=lambda: time.time_ns() // 1000,
    )
    metrics = Metrics(["clicks"], ["clicks_by_user"])
    live = assemble(GIVEN.pipeline, GIVEN.contracts, outside, Run(epoch=timedelta(0), until_end=True), metrics)
    for name in ("clicks_by_user", "_events/clicks"):
        (root / "offline" / name).mkdir(parents=True, exist_ok=True)

    def size_of_staged(part: str | None) -> float:
        found = next((root / "offline").rglob(f".{part}.staged"), None)
        return 0.0 if found is None else float(found.stat().st_size)

    cost.timed("parts", offline, "stage", size_of_staged)
    cost.timed("parts", offline, "publish", lambda _: 0.0)
    cost.timed("ledger", ledger, "write", float)
    cost.timed("snapshots", states, "write", lambda name: float((root / "recovery" / name).stat().st_size))
    cost.timed("telling", live.journal, "folded", lambda _: 0.0)
    told = live.journal.on_commit

    def on_commit(committed: Any) -> None:
        told(committed)
        commits.append(cost.take())

    live.journal.on_commit = on_commit
    live.run()

    def median(kind: str, which: int) -> float:
        return statistics.median(made.get(kind, [0.0, 0.0])[which] for made in commits[-MEASURED:])

    snapshots = [made["snapshots"] for made in commits if "snapshots" in made]
    shared_kb = sum(found[0] for found in snapshots) / len(commits) / 1e3
    events_kb = sum(made.get("parts", [0.0])[0] for made in commits) / len(commits) / 1e3
    longest_ms = 1e3 * max(made.get("telling", [0.0, 0.0])[1] for made in commits)
    milliseconds = 1e3 * sum(median(kind, 1) for kind in ("parts", "ledger", "telling"))
    return (
        f"{entities_count:>9,} | {median('parts', 0) / 1e3:8.1f} | {median('ledger', 0) / 1e3:6.2f} | {milliseconds:7.1f} |"
        f" {shared_kb:8.1f} | {shared_kb / events_kb:5.2f} | {longest_ms:7.1f}"
    )


def main() -> None:
    """Print the table."""
    print(f"{TOUCHED:,} entities touched a commit; kB and ms, medians of the last {MEASURED} commits")
    print(" entities | parts kB | ledger | time ms | snapshots kB a commit | to parts | longest copy ms")
    for entities_count in map(int, sys.argv[1:] or (1_000, 100_000, 1_000_000)):
        root = Path(tempfile.mkdtemp(prefix="freshet-bench-"))
        try:
            print(measure(entities_count, root), flush=True)
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
