"""Run the same dataflow over a file of events, with no broker and no store, and write the rows as parquet.

The file is newline-delimited JSON, gzipped or not, or parquet. Rows of each view land in OUT/<view>/.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from freshet.flows.live import Workspace
from freshet.flows.replay import replay
from freshet.flows.settings import Settings
from freshet.scripts.cli import wrong_use


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("events", help="the file")
    words.add_argument("--out", required=True, type=Path, metavar="DIR", help="an empty or new folder for the rows")
    words.add_argument("--stream", help="whose events these are, if the declaration has several streams")
    words.add_argument("--json", action="store_true", help="print the summary as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Replay; exits 1 if events were rejected, 0 if all were taken."""
    workspace = Workspace.open(settings)
    stream = chosen_stream(workspace, words.stream)
    if words.out.exists() and (not words.out.is_dir() or any(words.out.iterdir())):
        raise wrong_use("--out", f"names {words.out}, which is not an empty folder", "name a new one")
    views = [view for view in workspace.pipeline.views if view.source == stream]
    started = time.monotonic()
    done = replay(
        workspace.pipeline,
        workspace.contracts,
        {stream: words.events},
        words.out,
        now_us=lambda: time.time_ns() // 1000,
    )
    count = {
        outcome: int(done.metrics.value("freshet_events_total", stream=stream, outcome=outcome))
        for outcome in _OUTCOMES
    }
    rows = {
        view.name: int(done.metrics.value("freshet_rows_total", feature_view=view.name, store="offline"))
        for view in views
    }
    reasons = Counter(reject.reason.value for reject in done.rejects)
    summary = {"events": count, "rows": rows, "rejects": dict(reasons), "out": str(words.out)}
    if words.json:
        print(json.dumps(summary, indent=2))
        return 1 if done.rejects else 0
    print(f"{count['accepted']} events of {stream} in {time.monotonic() - started:.1f} s")
    for view, number in rows.items():
        print(f"  {view}: {number} rows in {words.out / view}")
    for reason, number in reasons.most_common():
        first = next(reject for reject in done.rejects if reject.reason == reason)
        print(f"  {number} rejected as {reason}, the first in line {first.offset + 1}: {first.detail}")
    return 1 if done.rejects else 0


_OUTCOMES = ("accepted", "rejected", "duplicate")


def chosen_stream(workspace: Workspace, named: str | None) -> str:
    """Return the stream that the user means; the only one there is needs no naming."""
    streams = sorted(workspace.contracts)
    if named is None and len(streams) == 1:
        return streams[0]
    if named not in streams:
        raise wrong_use("--stream", f"is {named or 'not given'}", f"name one of {', '.join(streams)}")
    return named
