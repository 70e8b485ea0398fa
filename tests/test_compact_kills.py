"""Kill -9 of compactions at random moments, beside a running materializer, on a real Kafka, Redis server and disk.

All along one reader lists and opens the folder to which Feast's registry points, and another asks Feast itself. CI kills
a few times, `scripts/soak` as often as it is told. The seed decides when; what a kill meets depends on the machine.
"""

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stack import FRESHET, LIMIT_S, SEED, Stack, check, prepared, until
from test_kills import Sender

from freshet.flows.edges import feast
from freshet.flows.edges.store_config import store_config
from freshet.flows.workspace import Workspace
from freshet.schemas.finding import Cause
from freshet.schemas.view import View

pytestmark = pytest.mark.kafka

KILLS = 6 * int(os.environ.get("FRESHET_SOAK", "1"))
Key = tuple[object, ...]
SEEN_OFFLINE = (
    Cause.LOST_OFFLINE_WRITE, Cause.DUPLICATE_OFFLINE, Cause.PARTIAL_BATCH, Cause.SCHEMA_DRIFT, Cause.VALUE_MISMATCH,
)  # fmt: skip
"""What a validator would find that takes a compaction for a loss."""


@dataclass(eq=False)
class Reader(threading.Thread):
    """Reads a view's rows again and again, as Feast's readers do; keeps what it finds wrong."""

    workspace: Workspace
    view: View
    wrong: list[str] = field(default_factory=list)
    looks_count: int = 0
    paths: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.ends = threading.Event()
        self._known: dict[int, list[Key]] = {}
        self.seen: set[Key] = set()

    def run(self) -> None:
        while not self.ends.wait(0.05):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # whatever it is, a reader must not meet it
                self.wrong.append(f"{type(error).__name__}: {error}")
            self.looks_count += 1

    def store(self) -> "feast.FeatureStore":
        pipeline, project = self.workspace.pipeline, self.workspace.project
        return feast.open_store(store_config(pipeline.project, self.workspace.online_url, project.registry))

    def look(self) -> None:
        path = Path(self.store().get_feature_view(self.view.name).batch_source.path)
        self.paths.add(path.name)
        found = [key for file in sorted(path.glob("part-*.parquet")) for key in self._keys(file)]
        if len(found) > len({*found}):
            self.wrong.append(f"{path} has {len(found) - len({*found})} rows twice")
        if missing := self.seen - {*found}:
            self.wrong.append(f"{path} lacks {len(missing)} rows")
        self.seen = {*found}

    def _keys(self, file: Path) -> list[Key]:
        number = file.stat().st_ino
        if number not in self._known:
            names = [*self.view.entity_names, "event_timestamp", "_version"]
            table = pq.read_table(pa.OSFile(str(file)), columns=names)
            self._known[number] = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        return self._known[number]


class Trainer(Reader):
    """Asks Feast for rows that it has seen: each must be there, once, in no older version."""

    def look(self) -> None:
        offline = self.workspace.offline().final(self.view)
        rows = offline.slice(max(0, offline.num_rows - 20)).to_pylist()
        if not rows:
            return
        asked = pd.DataFrame(
            [{name: row[name] for name in (*self.view.entity_names, "event_timestamp")} for row in rows]
        )
        answer = feast.read_history(self.store(), self.view, asked)
        if len(answer) != len(rows):
            self.wrong.append(f"Feast gives {len(answer)} rows for {len(rows)}")
        features = [feature.name for feature in self.view.features]
        empty = [row for row in answer[features].to_dict("records") if all(pd.isna(value) for value in row.values())]
        if empty:
            self.wrong.append(f"Feast finds nothing of {len(empty)} rows")


@pytest.fixture
def stack(real_kafka: str, valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(real_kafka, valkey_url, tmp_path)
    yield made
    made.close()


def compacted(stack: Stack, *words: str) -> None:
    stack.ended(stack.spawn([*FRESHET, "compact", "--target", "40kB", *words]), 0)


@pytest.mark.timeout(3600)
def test_compactions_that_are_killed_cost_no_reader_a_row_and_the_next_one_completes(stack: Stack) -> None:
    chance, view = random.Random(SEED), stack.workspace.pipeline.views[0]
    sender = Sender(stack.workspace, SEED)
    sender.start()
    running = stack.start()
    until(lambda: stack.ledger().rows_counts.get(view.name, 0) > 0)
    readers = [Reader(stack.workspace, view), Trainer(stack.workspace, view)]
    for reader in readers:
        reader.start()
    validator = stack.spawn([*FRESHET, "run", "validator"], FRESHET_ROUND="1s", FRESHET_LAG_EXPORT="off")
    for number in range(KILLS):
        killed = stack.spawn([*FRESHET, "compact", "--target", "40kB"])
        time.sleep(chance.uniform(1.0, 6.0))
        if number % 3 == 2:
            running.kill()
            running.wait(LIMIT_S)
            killed.kill()
            running = stack.start()
        killed.send_signal(signal.SIGKILL)
        killed.wait(LIMIT_S)
    compacted(stack)
    until(lambda: all(reader.looks_count > 3 for reader in readers))
    for reader in readers:
        reader.ends.set()
        reader.join(LIMIT_S)
    compacted(stack, "--versions", "final", "--grace", "1us", "--wait")
    sender.ends.set()
    sender.join(LIMIT_S)
    stack.stop(running)
    stack.stop(validator)
    stack.done()
    compacted(stack, "--versions", "final", "--grace", "1us", "--wait")
    checked = subprocess.run([*FRESHET, "check"], env=stack.environment, capture_output=True, text=True, check=False)

    assert [reader.wrong for reader in readers] == [[], []]
    assert len(readers[0].paths) > 1
    found = re.findall("|".join(SEEN_OFFLINE), stack.log.read_text(errors="replace"))
    assert found == []
    assert checked.returncode == 0, checked.stdout
    folders = [path.name for path in stack.workspace.offline_root.iterdir() if path.name.startswith(view.name)]
    assert len(folders) == 1
    check(stack.workspace, sender.sent_count)
