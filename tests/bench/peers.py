"""How fast others do the same work as Freshet: the same backlog in Kafka, the same windows, the same online store.

    ./scripts/bench peers                                                   all of them, three times
    ./scripts/bench peers --kafka 127.0.0.1:9092 --systems feast-push --repeat 1
    ./scripts/bench peers --events 2000 --batches 1000 --repeat 1 --systems feast-push,bytewax-fold --embedded

The work is that of `./scripts/bench pipeline`: visits of users in one topic of eight partitions, eight features over
sliding windows of ten minutes and an hour. Each system has a project, a Redis and a registry of its own for each run, made by
`freshet apply`; one process each; the head of each `peer_*.py` says what it does, and what it leaves out.

- `freshet`: the materializer, to the topic's end: online, offline, archive, commits. Its CPU is that of its whole life.
- `feast-push`: consume, windows in Python, `FeatureStore.push` of each user's newest row in a batch, all rows to parquet;
  `feast-push-all` pushes every event's row. Windows are kept in memory alone.
- `bytewax-fold`: Bytewax's own Kafka source and `fold_window` over windows that hop in tenths, Feast's online write.
- `quix-hopping`, `quix-sliding`: Quix Streams' own, Feast's online write; an environment of its own, from quix.lock. The
  second gets a tenth of the events: what one costs grows with how many its window holds.
- `push-alone`: rows that are there already, an event's each, through `FeatureStore.push` to the online store.

- Events a second: from the first message to the last write. A core's: by the CPU seconds of the process meanwhile. Events
  are one ms apart, so few fall out of a window in so short a backlog: that is cheaper for all.
- What is online at the end is compared with what the windows' own definition says, of the twenty busiest users and 180 others.
- Feast is tuned: no request looks after the registry's file, no write asks what stands there already.
- Sizes of batches are tried first on a fifth of the events; the one with the least CPU is kept. Then systems take turns, and another one
  begins each time, so that a noisy machine hits all alike. The table has medians, and the least and greatest. A share of ours is
  of two that were measured in one turn. Only shares travel between machines.

Writes a table to tests/bench/results-peers.md, and each run as a line of JSON beside it.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers_results import OURS, SYSTEMS, best, per_core, per_s, report, turns
from peers_rig import PEERS, python_of, run
from pipeline_rig import Cluster, Project
from pipeline_work import Visits
from recording import Note, among, numbers, record, versions

RESULTS = Path(__file__).with_name("results-peers.md")
_TRIED_SHARE = 0.2


def events_of(system: str, words: argparse.Namespace) -> int:
    """Return how many events a system gets."""
    return int(words.freshet_events if system == OURS else words.events * PEERS[system].share)


def measured(system: str, cluster: Cluster, events_count: int, batch: int) -> dict[str, Any]:
    """Measure a system once."""
    visits = Visits(events_count)
    if system != OURS:
        return run(system, cluster, visits, batch)
    topic = cluster.backlog(visits)
    with Project.made(cluster, topic) as project:
        found = project.materialize(events_count)
    rows = {"rows_count": found["online_count"], "offline_count": found["rows_count"]}
    return {**found, **rows, "seconds": events_count / found["events_per_s"]}


def measure(cluster: Cluster, words: argparse.Namespace, note: Callable[[dict[str, Any]], None]) -> None:
    """Try sizes of batches, then measure all systems in turns."""
    batches = dict.fromkeys(words.systems, words.batches[0])
    if len(words.batches) > 1:
        for system in [name for name in words.systems if name != OURS]:
            count = max(1, int(events_of(system, words) * _TRIED_SHARE))
            tried = [measured(system, cluster, count, batch) for batch in words.batches]
            for line in tried:
                note({"kind": "tried", "system": system, **line})
            batches[system] = best(tried)
            print(f"{system}: batches of {batches[system]}", file=sys.stderr, flush=True)
    for repeat, system in turns(words.systems, words.repeat):
        line = measured(system, cluster, events_of(system, words), batches[system])
        note({"kind": "done", "system": system, "repeat": repeat, **line, "load": round(os.getloadavg()[0], 1)})
        told = f"{per_s(line):,.0f} events/s, {per_core(line):,.0f} a core"
        print(f"{repeat + 1}/{words.repeat} {system}: {told}", file=sys.stderr, flush=True)


def version(python: str, package: str) -> str:
    """Return the version of a package in an environment."""
    asked = [python, "-c", f"import importlib.metadata as m; print(m.version('{package}'))"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def host(cluster: Cluster, words: argparse.Namespace, load: float) -> dict[str, Any]:
    """Return where, with what and on what this runs."""
    packages = ("bytewax", "confluent-kafka", "feast", "pandas", "pyarrow", "redis", "hiredis")
    found = [versions(packages)]
    for name in sorted({PEERS[one].environment or "" for one in words.systems if one in PEERS} - {""}):
        python = python_of(name)
        assert python is not None
        found += [f"{package} {version(python, package)}" for package in ("quixstreams", "rocksdict")]
        found.append(f"confluent-kafka {version(python, 'confluent-kafka')} beside it")
    return {
        "kind": "run",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{os.cpu_count()} cores that all processes share, load average {load:.1f} before it began",
        "versions": ", ".join(found),
        "settings": f"{cluster.kind}, {words.events:,} events a peer, {words.freshet_events:,} for Freshet, {words.repeat} times",
    }


def arguments() -> argparse.ArgumentParser:
    """Return the arguments."""
    words = argparse.ArgumentParser(
        "bench peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument(
        "--systems",
        type=among(SYSTEMS),
        default=list(SYSTEMS),
        help=f"only these of {','.join(SYSTEMS)}, with commas between",
    )
    words.add_argument("--events", type=int, default=50_000, metavar="N", help="how many a peer gets (50000)")
    words.add_argument(
        "--freshet-events", type=int, default=1_000_000, metavar="N", help="how many Freshet gets (1000000)"
    )
    words.add_argument(
        "--batches", type=numbers(int), default=[100, 1000, 10_000], help="sizes that are tried (100,1000,10000)"
    )
    words.add_argument("--repeat", type=int, default=3, help="how often each is measured (3)")
    words.add_argument("--kafka", metavar="HOST:PORT", help="a Kafka that is there; else one is started")
    words.add_argument("--embedded", action="store_true", help="start the embedded broker, which is in memory alone")
    words.add_argument("--append", action="store_true", help="add to the results that are there")
    words.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where the table goes")
    return words


def main() -> int:
    """Run what is asked for."""
    words = arguments().parse_args()
    load = os.getloadavg()[0]

    def measured(note: Note) -> None:
        with contextlib.ExitStack() as parts:
            cluster = Cluster(parts, words.kafka, is_embedded=words.embedded)
            note(host(cluster, words, load))
            measure(cluster, words, note)

    return record(words, report, measured)


if __name__ == "__main__":
    sys.exit(main())
