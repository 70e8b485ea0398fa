"""How fast features are served: our server, `feast serve` and Feast's SDK beside each other, on one Redis.

    ./scripts/bench serving                                        all cases, a million entities, three times: 40 minutes
    ./scripts/bench serving --pushing --append                     the same while the pipeline pushes at full speed
    ./scripts/bench serving --entities 1000 --seconds 1 --repeat 1 to try it
    ./scripts/bench serving --systems freshet,feast-tuned --asked 1 --features 10 --connections 16

A project of its own with one view: an int64 entity, fifty features of six types, one value in twenty null, a ttl of
seven days. `redis-server` if it is on the PATH, else the embedded Valkey; filled by the materializer's own writer.

- `freshet`: `freshet run server --workers 1`. `feast`: `feast serve` as it is. `feast-tuned`: no access log, no restarts,
  keep-alive for an hour, a registry that no request looks after. `sdk`: `FeatureStore.get_online_features(…).to_dict()` with
  the tuned registry; its connections are threads. One worker each; httptools, uvloop and hiredis are installed.
- Each is asked once for all fifty features of two hundred entities, nulls among them, and must answer what is stored.
- A case is how many entities and features a request asks for, on how many connections. For each, systems take turns, and
  another one begins each time, so that a noisy machine hits all alike. The table has medians, and the least and greatest; a
  ratio is of two that were measured in one turn.
- Requests/s: saturated, each connection asks as soon as it has its answer. CPU: user and system seconds of the server's processes
  by the answers then; a core's requests/s is one by that. Of the SDK it is the whole process, its loop too.
- Latency: paced at half of the rate just measured, whole answers, counted from the instant a request is due, whatever came
  before: none is left out. Instants are those of independent callers (Poisson); --arrivals even spaces them. It lasts up to
  four times longer for a server that would answer fewer than 200; a percentile that fewer than two requests pass is not told.
- Entities are drawn by chance from all, with keep-alive. A request whose connection broke is asked again, its latency goes on.
- --pushing: a writer brings new rows of 1000 entities, as fast as it can, and these are the ones read. All features of a row
  carry one number, so an answer that mixes two versions is seen; each answer is looked at, after it was timed.
- Nothing is bound to a core: server, Redis, the load and the writer share all there are. Only ratios travel between machines.

Writes a table to tests/bench/results-serving.md, and each case as a line of JSON beside it.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recording import Note, among, numbers, record, versions
from serving_results import SYSTEMS, Case, cases_of, report, turns
from serving_rig import ENTITY, FEATURES, PUSHED_COUNT, Rig, System

RESULTS = Path(__file__).with_name("results-serving.md")
WARM_SHARE, WARM_S_MIN = 0.2, 0.3
PACED_COUNT, PACED_LONGER = 200, 4.0
"""How many requests a paced load has where it can, and how many times longer than others it may last for them."""


def paced_s(seconds: float, rate: float) -> float:
    """Return how long a load at some rate lasts."""
    return max(seconds, min(PACED_COUNT / rate, PACED_LONGER * seconds))


def measure(
    rig: Rig, system: System, case: Case, words: argparse.Namespace, repeat: int, **more: Any
) -> dict[str, Any]:
    """Saturate, then pace at half of that."""
    count = min(PUSHED_COUNT, words.entities) if words.pushing else words.entities
    task = {
        "entity": ENTITY,
        "features": rig.references(case.features),
        "entities": case.entities,
        "entities_count": count,
        "connections": case.connections,
        "seconds": words.seconds,
        "seed": repeat,
        "arrivals": words.arrivals,
        **more,
    }
    system.measure(rig.redis.pid, **{**task, "seconds": max(WARM_S_MIN, WARM_SHARE * words.seconds)})
    saturated = system.measure(rig.redis.pid, **task)
    rate = saturated["per_s"] / 2
    half = system.measure(rig.redis.pid, **{**task, "rate": rate, "seconds": paced_s(words.seconds, rate)})
    return {"saturated": saturated, "half": half}


def run(rig: Rig, words: argparse.Namespace, note: Callable[[dict[str, Any]], None]) -> None:
    """Measure all systems in all cases."""
    nothing = rig.nothing()
    for connections in words.connections:
        case = Case(1, 10, connections)
        note({"kind": "nothing", "connections": connections, **measure(rig, nothing, case, words, 0)})
    systems = {name: rig.start(name) for name in words.systems}
    cases = cases_of(words.asked, words.features, words.connections)
    count = len(cases) * len(systems) * words.repeat
    for number, (repeat, case, name) in enumerate(turns(list(systems), cases, words.repeat), 1):
        line = {"kind": "case", "system": name, **vars(case), "repeat": repeat, "is_pushed": words.pushing}
        if words.pushing:
            with rig.pushing() as writer:
                before, begun = writer.ask()["rows_count"], time.monotonic()
                found = measure(rig, systems[name], case, words, repeat, pushed_count=min(PUSHED_COUNT, words.entities))
                rows_count = writer.ask()["rows_count"] - before
                line["rows_per_s"] = rows_count / (time.monotonic() - begun)
        else:
            found = measure(rig, systems[name], case, words, repeat)
        note({**line, **found, "load": round(os.getloadavg()[0], 1)})
        told = f"{found['saturated']['per_s']:.0f}/s, p99 {found['half']['p99_ms']:.2f} ms at half"
        print(f"{number}/{count} {name} {case}: {told}", file=sys.stderr, flush=True)


def host(rig: Rig, words: argparse.Namespace, load: float, rows_per_s: float) -> dict[str, Any]:
    """Return where, with what and on what this runs."""
    packages = ("feast", "uvicorn", "uvloop", "httptools", "redis", "hiredis", "numpy")
    info = rig.info()
    bytes_each = info["used_memory"] / words.entities
    return {
        "kind": "run",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{os.cpu_count()} cores that all processes share, load average {load:.1f} before it began",
        "versions": versions(packages, f"{info.get('server_name', 'redis')} server {info['redis_version']}"),
        "settings": f"{words.entities:,} entities of {len(FEATURES)} features, {bytes_each:.0f} bytes each in Redis, filled at"
        f" {rows_per_s:,.0f} rows/s; {words.seconds:g} s a load, {words.repeat} times, {words.arrivals} arrivals"
        f"{', while rows are pushed' if words.pushing else ''}",
    }


def arguments() -> argparse.ArgumentParser:
    """Return the arguments."""
    words = argparse.ArgumentParser(
        "bench serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--systems", type=among(SYSTEMS), help=f"only these of {','.join(SYSTEMS)}, with commas between")
    words.add_argument("--entities", type=int, default=1_000_000, metavar="N", help="how many Redis holds (1000000)")
    words.add_argument(
        "--asked", type=numbers(int), default=[1, 10, 100], help="how many entities a request asks for (1,10,100)"
    )
    words.add_argument("--features", type=numbers(int), default=[10, 50], help="how many features, at most 50 (10,50)")
    words.add_argument("--connections", type=numbers(int), default=[1, 16], help="how many at once (1,16)")
    words.add_argument("--seconds", type=float, default=5.0, help="how long each load lasts (5)")
    words.add_argument("--repeat", type=int, default=3, help="how often each is measured (3)")
    words.add_argument(
        "--arrivals", choices=["poisson", "even"], default="poisson", help="when requests are due (poisson)"
    )
    words.add_argument("--pushing", action="store_true", help="while rows are written; without the SDK")
    words.add_argument("--append", action="store_true", help="add to the results that are there")
    words.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where the table goes")
    return words


def main() -> int:
    """Run what is asked for."""
    words = arguments().parse_args()
    words.systems = words.systems or [name for name in SYSTEMS if not (words.pushing and name == "sdk")]
    if words.pushing and "sdk" in words.systems:
        sys.exit("bench: --pushing looks at answers over HTTP. Hint: leave out sdk")
    if max(words.features) > len(FEATURES):
        sys.exit(f"bench: the view has {len(FEATURES)} features; got {max(words.features)}")
    load = os.getloadavg()[0]

    def measured(note: Note) -> None:
        with contextlib.ExitStack() as parts:
            rig = Rig(parts, words.entities)
            note(host(rig, words, load, rig.fill()))
            run(rig, words, note)

    return record(words, report, measured)


if __name__ == "__main__":
    sys.exit(main())
