"""How fast the whole pipeline is, from Kafka to both stores; what its parts can do; and what makes it slower.

    ./scripts/bench pipeline                                        all of it, three times: some hours
    ./scripts/bench pipeline --only end-to-end --events 200000      a smaller backlog
    ./scripts/bench pipeline --only end-to-end,limits --repeat 1 --append
    ./scripts/bench pipeline --only freshness --rate 20000          of this rate as the saturated one

Visits (tests/bench/pipeline_work.py): 8 partitions, users by a Zipf law over --entities, one event a millisecond of event time;
eight windowed features of 10 minutes and an hour. A real Kafka: --kafka HOST:PORT, or FRESHET_TEST_KAFKA, or else one of our own
(`scripts/kafka`); --embedded for the embedded broker, which holds few events. `redis-server` if it is on the PATH, else
the embedded Valkey. Each case has a project and a Redis of its own, with nothing in it, and recovery on.

- end-to-end: `freshet run materializer --until-end` over a backlog of --events, decay as it is by default and off. Each event
  must have been accepted.
- limits: consuming, decoding, SQL, windows, encoding, Redis, parquet, each alone, on the same events, with the functions that the
  flow calls; and how much of that the whole reaches.
- growth: entities, features, windows, processes, a user who has half of all events; a backlog of --growth-events. Where
  windows grow, so does the event time of the backlog, which is two windows long; elsewhere few windows fill up.
- freshness: visits as they happen, at 10, 50 and 70 % of what end-to-end does (or --rate), for --seconds; from produced, or due
  by time alone, until Redis answers with the row. Corrections: events late by half a second to five. Rows by time alone: of
  one more feature, with a window of five seconds that decays each second, in runs of their own. A first run, at the highest
  rate, is not counted: a broker that has just started is busy compiling itself.
- start: from the start of the process to its first row, with nothing to restore, and with the state of --restored entities.
- replay: `freshet replay` of what a run over --growth-events archived, as parquet, and of the same events as JSON.

Only ratios travel between machines. Writes a table to tests/bench/results-pipeline.md, and each case as a line of JSON beside it.
"""

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pipeline_limits import TRIP_COMMANDS
from pipeline_pace import CORRECTION, DECAY, DECAY_EVERY_S, DECAY_WINDOW_S, EVENT
from pipeline_results import KINDS, report
from pipeline_rig import Cluster, Project, rounded
from pipeline_work import ENTITIES_COUNT, FEATURES, START, STREAM, Feature, Visits, features_of
from recording import Note, among, numbers, record, versions
from serving_rig import Child

from freshet.flows.edges.parquet import OfflineStore
from freshet.schemas.errors import Unavailable
from freshet.schemas.event import archive_name
from freshet.schemas.units import duration

RESULTS = Path(__file__).with_name("results-pipeline.md")


def visits(words: argparse.Namespace, **more: Any) -> Visits:
    """Return the events that are asked for."""
    return Visits(**{"count": words.events, "entities_count": words.entities, **more})


@contextlib.contextmanager
def child_of(module: str) -> Iterator[Child]:
    """Give a process of the bench, and end it."""
    child = Child(module)
    try:
        yield child
    finally:
        child.end()


def end_to_end(cluster: Cluster, words: argparse.Namespace, note: Note) -> None:
    """Materialize a backlog, with rows by time alone and without."""
    topic = cluster.backlog(visits(words))
    for repeat in range(words.repeat):
        for decay in ("on", "off") if repeat % 2 == 0 else ("off", "on"):
            with Project.made(cluster, topic, decay=None if decay == "on" else decay) as project:
                found = project.materialize(words.events)
            note({"kind": "end-to-end", "decay": decay, "repeat": repeat, **found})


def limits(cluster: Cluster, words: argparse.Namespace, note: Note) -> None:
    """Measure the parts, given as much at once as the flow gives them."""
    topic = cluster.backlog(visits(words))
    for repeat in range(words.repeat):
        with Project.made(cluster, topic) as project:
            whole = project.materialize(words.events)
            full_trips = whole["online_count"] / TRIP_COMMANDS
            turns_count = max(1.0, 2 * (whole["trips_count"] - full_trips))  # the last trip of each is half full
            sizes = {"turn_events": words.events / turns_count, "commit_events": words.events / whole["commits_count"]}
        with Project.made(cluster, topic) as project, child_of("pipeline_limits") as child:
            found = child.ask(environment=project.environment, topic=topic, **sizes)
        note({"kind": "limits", "decay": "on", "repeat": repeat, **found})


# --- growth -----------------------------------------------------------------------------------------------------------

SPAN_WINDOWS = 2
"""How many windows long a backlog is that measures them: so that events leave them again."""
WINDOWS = ("1 minute", "10 minutes", "1 hour", "1 day", "7 days", "30 days")


def axes(words: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any], Sequence[Feature], Sequence[str]]]:
    """Give each case of growth: what grows, how far, of which events, which features, and words of the command."""
    for entities in (1_000, 100_000, 1_000_000):
        yield "entities", f"{entities:,}", {"entities_count": entities}, FEATURES, ()
    for count in (1, 4, 16, 64):
        yield "features", str(count), {}, features_of(count, ("10 minutes", "1 hour")), ()
    for window in WINDOWS:
        step_ms = SPAN_WINDOWS * duration(window).total_seconds() * 1000 / words.growth_events
        yield "window", window, {"step_ms": step_ms}, features_of(8, (window,)), ()
    for processes in (1, 2):
        yield "processes", str(processes), {}, FEATURES, ("--processes", str(processes))
    for share in (0.0, 0.5):
        yield "share of one user", f"{share:.0%}", {"hot_share": share}, FEATURES, ()


def growth(cluster: Cluster, words: argparse.Namespace, note: Note) -> None:
    """Let one thing grow at a time."""
    for repeat in range(words.repeat):
        for axis, value, of_visits, features, more in axes(words):
            if words.axes and axis not in words.axes:
                continue
            topic = cluster.backlog(visits(words, **{"count": words.growth_events, **of_visits}))
            with Project.made(cluster, topic, features) as project:
                found = project.materialize(words.growth_events, *more)
            note({"kind": "growth", "axis": axis, "value": value, "repeat": repeat, **found})


# --- freshness, start, replay -----------------------------------------------------------------------------------------

DECAYING = Feature(
    "visits_count_soon", "int64", "count(*) OVER {window}", f"{DECAY_WINDOW_S} seconds", f"{DECAY_EVERY_S} s"
)
"""What makes rows by time alone while one waits; only where these are measured."""


def saturated(cluster: Cluster, words: argparse.Namespace) -> float:
    """Return the rate that is taken for the saturated one: that of a backlog."""
    if words.rate is None:
        with Project.made(cluster, cluster.backlog(visits(words))) as project:
            words.rate = project.materialize(words.events)["events_per_s"]
    return float(words.rate)


def freshness(cluster: Cluster, words: argparse.Namespace, note: Note) -> None:
    """Send visits as they happen, and see how soon their rows can be read; of each kind of row by itself."""
    rate = saturated(cluster, words)
    # For nothing: a broker that has just started is busy compiling itself.
    paced(cluster, max(words.shares) * rate, words.seconds, [EVENT])
    for repeat in range(words.repeat):
        for share in words.shares:
            for kinds, more in (([EVENT, CORRECTION], ()), ([DECAY], (DECAYING,))):
                found = paced(cluster, share * rate, words.seconds, kinds, more, repeat)
                shared = {"share": share, "repeat": repeat, "rate": found["rate"], "turn_p99_ms": found["turn_p99_ms"]}
                for of, told_of in found["kinds"].items():
                    note({"kind": "freshness", **shared, "of": of, **told_of, "peak_mb": found["peak_mb"]})


def paced(
    cluster: Cluster, rate: float, seconds: float, kinds: Sequence[str], more: Sequence[Feature] = (), seed: int = 0
) -> dict[str, Any]:
    """Send visits at a rate for so long, to a flow of their own; return how soon rows of these kinds could be read."""
    topic = cluster.new_topic()
    with Project.made(cluster, topic, (*FEATURES, *more)) as project, child_of("pipeline_pace") as child:
        process = project.start()
        try:
            task = {"rate": rate, "warm_s": seconds / 4, "seconds": seconds, "kinds": kinds}
            found = child.ask(environment=project.environment, topic=topic, seed=seed, **task)
            if process.has_ended():
                raise Unavailable(f"the materializer has ended:\n{process.said()}")
        finally:
            process.end()
    return {**found, "peak_mb": process.peak_mb}


def start(cluster: Cluster, words: argparse.Namespace, note: Note) -> None:
    """Start with nothing to restore, and with the state of many entities."""
    few = 100
    for repeat in range(words.repeat):
        for restored in (0, words.restored):
            topic = cluster.new_topic()
            with Project.made(cluster, topic) as project:
                if restored:
                    cluster.produce(topic, Visits(restored, restored, in_turn=True).messages())
                    project.materialize(restored)
                later = Visits(few, few, seed=2, start=START + timedelta(milliseconds=restored))
                cluster.produce(topic, later.messages())
                found = project.materialize(restored + few)
            note({"kind": "start", "restored_count": restored, "repeat": repeat, **found})


def replay(cluster: Cluster, words: argparse.Namespace, note: Note) -> None:
    """Replay what a run archived, as parquet and as JSON."""
    topic, count = cluster.backlog(visits(words, count=words.growth_events)), words.growth_events
    with Project.made(cluster, topic) as project:
        project.materialize(count)
        archived = OfflineStore(project.workspace.offline_root).read(archive_name(STREAM))
        files = {kind: project.root / f"visits.{kind}" for kind in ("parquet", "ndjson")}
        one = project.root / "one.ndjson"
        pq.write_table(archived, files["parquet"])
        with files["ndjson"].open("wb") as file:
            file.writelines(value + b"\n" for _, value, _ in visits(words, count=count).messages())
        one.write_bytes(next(visits(words).messages())[1] + b"\n")
        for repeat in range(words.repeat):
            begun = project.replay(one)
            for kind, path in files.items():
                found = project.replay(path)
                found |= {"seconds": found["whole_s"] - begun["whole_s"], "cpu_s": found["cpu_s"] - begun["cpu_s"]}
                found |= {name: math.nan for name in ("seconds", "cpu_s") if found[name] <= 0}  # too few events to tell
                note({"kind": "replay", "file": kind, "repeat": repeat, "events_count": count, **found})


MEASURES: dict[str, Callable[[Cluster, argparse.Namespace, Note], None]] = {
    "end-to-end": end_to_end,
    "limits": limits,
    "replay": replay,
    "growth": growth,
    "start": start,
    "freshness": freshness,
}


# --- the command ------------------------------------------------------------------------------------------------------


def host(cluster: Cluster, words: argparse.Namespace) -> dict[str, Any]:
    """Return where, with what and on what this runs."""
    packages = ("bytewax", "confluent-kafka", "duckdb", "numpy", "pyarrow", "redis", "hiredis")
    return {
        "kind": "run",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before it began",
        "versions": versions(packages, cluster.kind, cluster.redis_version()),
        "settings": f"{', '.join(words.only)}; {words.events:,} events of {words.entities:,} users, {words.repeat} times",
    }


def kinds(text: str) -> list[str]:
    """Read what is to be measured."""
    found = among(MEASURES)(text)
    return [kind for kind in KINDS if kind in found]


def arguments() -> argparse.ArgumentParser:
    """Return the arguments."""
    words = argparse.ArgumentParser(
        "bench pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--only", type=kinds, default=list(MEASURES), help=f"only these of {','.join(MEASURES)}")
    words.add_argument("--events", type=int, default=1_000_000, metavar="N", help="how many Kafka holds (1000000)")
    words.add_argument("--entities", type=int, default=ENTITIES_COUNT, metavar="N", help="of how many users (100000)")
    words.add_argument("--growth-events", type=int, default=300_000, metavar="N", help="the same for growth (300000)")
    words.add_argument("--axes", type=lambda text: text.split(","), help="only these of growth: entities,features,…")
    words.add_argument(
        "--rate", type=float, metavar="N", help="events a second taken as saturated (that of end-to-end)"
    )
    words.add_argument(
        "--shares", type=numbers(float), default=[0.1, 0.5, 0.7], help="of which shares of it (0.1,0.5,0.7)"
    )
    words.add_argument("--seconds", type=float, default=30.0, metavar="N", help="how long freshness is looked at (30)")
    words.add_argument(
        "--restored", type=int, default=1_000_000, metavar="N", help="how many entities a start restores"
    )
    words.add_argument("--repeat", type=int, default=3, help="how often each is measured (3)")
    words.add_argument("--kafka", metavar="HOST:PORT", default=os.environ.get("FRESHET_TEST_KAFKA"), help="a Kafka")
    words.add_argument("--embedded", action="store_true", help="the embedded broker, for few events")
    words.add_argument("--append", action="store_true", help="add to the results that are there")
    words.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where the table goes")
    return words


def run(words: argparse.Namespace, note: Note) -> None:
    """Measure what is asked for."""
    with contextlib.ExitStack() as parts:
        cluster = Cluster(parts, words.kafka, is_embedded=words.embedded)
        note(host(cluster, words))
        for kind in words.only:
            MEASURES[kind](cluster, words, note)


def main() -> int:
    """Run what is asked for."""
    words = arguments().parse_args()

    def measured(note: Note) -> None:
        def tell(line: dict[str, Any]) -> None:
            line = rounded({**line, "load": round(os.getloadavg()[0], 1)})
            note(line)
            print(json.dumps(line), file=sys.stderr, flush=True)

        run(words, tell)

    return record(words, report, measured)


if __name__ == "__main__":
    sys.exit(main())
