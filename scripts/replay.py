"""Run the same dataflow over a file of events, with no broker and no store, and write the rows as parquet.

The file is newline-delimited JSON, gzipped or not, or parquet. Rows of each view land in OUT/<view>/. Time passes with
the events, and with --until further: rows follow their windows though no event comes. With --check DuckDB runs the
declared SQL over the accepted events, and every row is compared.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.replay import Replayed, replay
from freshet.flows.settings import Settings
from freshet.flows.steps.oracle import Compared, compare, union_of
from freshet.flows.workspace import Workspace
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import instant_us
from freshet.scripts.cli import time_of, wrong_use

_OUTCOMES = ("accepted", "rejected", "duplicate")


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("events", nargs="+", metavar="FILE", help="the file; STREAM=FILE for each of several streams")
    words.add_argument("--out", type=Path, metavar="DIR", help="an empty or new folder for the rows")
    words.add_argument("--stream", help="whose events these are, if the declaration has several streams")
    words.add_argument(
        "--until", metavar="TIME", help="let time pass to then after the last event, as 2026-03-01T12:00Z"
    )
    words.add_argument(
        "--version", type=int, metavar="N", help="the events follow this version of their contract, and do not say so"
    )
    words.add_argument("--check", action="store_true", help="compare every row with DuckDB's, and print the SQL it ran")
    words.add_argument("--json", action="store_true", help="print the summary as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Replay; exits 1 if events were rejected or rows differ, 0 if all is well."""
    workspace = Workspace.open(settings)
    until_us = None if words.until is None else instant_us(time_of("--until", words.until))
    files = _files(workspace, words)
    if words.out is None and not words.check:
        raise wrong_use("--out", "is not given", "name a folder for the rows, or ask for --check")
    if words.out is not None and words.out.exists() and (not words.out.is_dir() or any(words.out.iterdir())):
        raise wrong_use("--out", f"names {words.out}, which is not an empty folder", "name a new one")
    plans = [plan for plan in workspace.pipeline.plans if set(plan.view.sources) <= set(files)]
    started = time.monotonic()
    with _folder(words.out) as out:
        done = replay(
            workspace.pipeline,
            workspace.contracts,
            files,
            out,
            now_us=lambda: time.time_ns() // 1000,
            until_us=until_us,
            version=words.version,
            keep_events=words.check,
        )
        took_s = time.monotonic() - started
        checked = _check(workspace, done, plans, out, until_us) if words.check else {}
    summary = _summary(done, files, plans, words.out)
    differing_count = sum(answer.differing_count for answer in checked.values())
    if words.json:
        if words.check:
            summary["checked"] = {
                name: {"rows": answer.rows_count, "values": answer.values_count, "differing": answer.differing_count}
                for name, answer in checked.items()
            }
        print(json.dumps(summary, indent=2))
    else:
        _print(summary, took_s, done, plans, checked)
    return 1 if done.rejects or differing_count else 0


def _files(workspace: Workspace, words: argparse.Namespace) -> dict[str, str]:
    """Return the file of each stream that is replayed."""
    if len(words.events) == 1 and words.events[0].partition("=")[0] not in workspace.contracts:
        return {chosen_stream(workspace, words.stream): words.events[0]}
    files: dict[str, str] = {}
    for pair in words.events:
        stream, _, path = pair.partition("=")
        if stream not in workspace.contracts or not path or stream in files:
            known = ", ".join(sorted(workspace.contracts))
            raise wrong_use("FILE", f"is {pair}", f"write STREAM=FILE, each stream once; there is {known}")
        files[stream] = path
    return files


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Give the folder for the rows; one that goes away if nobody asked for it."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="freshet-replay-") as folder:
        yield Path(folder)


def _check(
    workspace: Workspace, done: Replayed, plans: list[ViewPlan], out: Path, until_us: int | None
) -> dict[str, Compared]:
    """Compare each view's rows with DuckDB's."""
    found: dict[str, Compared] = {}
    for plan in plans:
        tables = [
            pa.concat_tables(done.events.get(stream, [workspace.contracts[stream].schema.empty_table()]))
            for stream in plan.view.sources
        ]
        newest = [pc.max(table.column(EVENT_TIME)).cast(pa.int64()).as_py() for table in tables if table.num_rows]
        clock_us = max([*newest, *([until_us] if until_us is not None else [])], default=0)
        found[plan.view.name] = compare(plan, union_of(tables), OfflineStore(out).final(plan.view), clock_us)
    return found


def _summary(done: Replayed, files: dict[str, str], plans: list[ViewPlan], out: Path | None) -> dict[str, Any]:
    value = done.metrics.value
    events = {
        stream: {name: int(value("freshet_events_total", stream=stream, outcome=name)) for name in _OUTCOMES}
        for stream in files
    }
    rows = {
        plan.view.name: int(value("freshet_rows_total", feature_view=plan.view.name, store="offline")) for plan in plans
    }
    reasons = Counter(reject.reason.value for reject in done.rejects)
    return {"events": events, "rows": rows, "rejects": dict(reasons), "out": None if out is None else str(out)}


def _print(
    summary: dict[str, Any], took_s: float, done: Replayed, plans: list[ViewPlan], checked: dict[str, Compared]
) -> None:
    for stream, counts in summary["events"].items():
        print(f"{counts['accepted']} events of {stream} in {took_s:.1f} s")
    for view, number in summary["rows"].items():
        print(f"  {view}: {number} rows" + (f" in {summary['out']}/{view}" if summary["out"] else ""))
    for reason, number in Counter(summary["rejects"]).most_common():
        first = next(reject for reject in done.rejects if reject.reason == reason)
        print(f"  {number} rejected as {reason}, the first in line {first.offset + 1}: {first.detail}")
    for plan in plans if checked else ():
        answer = checked[plan.view.name]
        print(f"\n{plan.view.name}, as DuckDB computes it from the accepted events:\n{plan.oracle}")
        said = (
            f"{answer.values_count} values of {answer.rows_count} rows compared, {answer.differing_count} rows differ"
        )
        print(f"{plan.view.name}: {said}")
        for row in answer.differing:
            print(f"  {row}")


def chosen_stream(workspace: Workspace, named: str | None) -> str:
    """Return the stream that the user means; the only one there is needs no naming."""
    streams = sorted(workspace.contracts)
    if named is None and len(streams) == 1:
        return streams[0]
    if named not in streams:
        raise wrong_use("--stream", f"is {named or 'not given'}", f"name one of {', '.join(streams)}")
    return named
