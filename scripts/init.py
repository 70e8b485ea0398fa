"""Make a new project in DIR: a declaration, an event contract with its snapshot, example events.

It runs as it stands: `freshet -C DIR plan`, `freshet -C DIR replay DIR/events.jsonl --out rows`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from freshet.flows.edges.project import PACKAGED
from freshet.flows.settings import Settings
from freshet.flows.steps.evolution import json_schema
from freshet.flows.workspace import Workspace
from freshet.schemas.declaration import NAME
from freshet.scripts.apply import write_store_config
from freshet.scripts.cli import wrong_use

_FEATURES = """\
# The whole input of Freshet: what to compute, and how fast, how much and how fresh it must be.
project: {project}

windows:
  visitor_10m: >-
    PARTITION BY visitor ORDER BY event_timestamp
    RANGE BETWEEN INTERVAL '10 minutes' PRECEDING AND CURRENT ROW

views:
  page_views_by_visitor: {{ttl: 1 day}}

featureDefinitions:
  - {{name: visitor_views_10m, dtype: int64, source: page_views, transformation: count(*) OVER visitor_10m}}
  - name: visitor_mean_seconds_10m
    dtype: float64
    source: page_views
    transformation: avg(seconds) OVER visitor_10m
  - name: visitor_bounce_share_10m
    dtype: float64
    source: page_views
    transformation: count(*) FILTER (WHERE seconds < 5) OVER visitor_10m / count(*) OVER visitor_10m
  - {{name: visitor_last_section, dtype: string, source: page_views, transformation: "split_part(path, '/', 2)"}}

servingRequirements: {{onlineLatency: p99 < 10ms, offlineVolume: 1GB/day, freshnessTarget: p99 < 2s}}

infrastructure: {{onlineStore: "redis://localhost:6379/0", offlineStore: data/offline, computeEngine: bytewax}}
"""

_CONTRACT = '''\
"""Views of pages: one event each time somebody leaves a page."""

from pydantic import AwareDatetime

from freshet.schemas.event import Event, Stream


class PageView(Event):
    """One look at one page."""

    stream = Stream(topic="page_views", key="visitor", event_time="left_at")

    left_at: AwareDatetime
    visitor: str
    path: str
    seconds: float
    referrer: str | None = None
'''

_GOOD = {
    "left_at": "2026-03-01T12:00:00Z",
    "visitor": "ada",
    "path": "/docs/windows",
    "seconds": 41.5,
    "referrer": None,
}


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    words.add_argument("--name", help="the project's name (default: the folder's)")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Make the project, and say what to do next."""
    root: Path = words.directory
    name = words.name or root.resolve().name.lower().replace("-", "_")
    if not NAME.fullmatch(name):
        raise wrong_use("--name", f"is {name!r}", "use small letters, digits and _, such as page_features")
    try:
        if root.exists() and any(root.iterdir()):
            raise wrong_use("DIR", f"{root} is not empty", "name a new folder")
        for path, text in _texts(name).items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise wrong_use("DIR", f"{root} cannot be written: {error.strerror}", "name another folder") from error
    workspace = Workspace.open(dataclasses.replace(settings, project=root))
    write_store_config(workspace)
    for stream, contract in workspace.contracts.items():
        workspace.project.write_snapshot(stream, contract.stream.version, json_schema(contract))
    print(f"made {name} in {root}. Next:")
    print(f"  freshet -C {root} plan")
    print(f"  freshet -C {root} replay {root}/events.jsonl --out rows")
    return 0


def _texts(project: str) -> dict[str, str]:
    """Return every file of a new project."""
    definitions = (PACKAGED / "feature_repo" / "definitions.py").read_text(encoding="utf-8")
    events = [
        {**_GOOD, "left_at": f"2026-03-01T12:{minute:02d}:00Z", "visitor": visitor, "path": path, "seconds": seconds}
        for minute, (visitor, path, seconds) in enumerate(
            [
                ("ada", "/docs/windows", 41.5),
                ("bob", "/", 2.0),
                ("ada", "/blog/late-events", 3.5),
                ("ada", "/docs", 12.0),
            ]
        )
    ]
    samples = "schemas/samples/page_views"
    return {
        "feature_repo/features.yaml": _FEATURES.format(project=project),
        "feature_repo/definitions.py": definitions,
        "schemas/events/page_views.py": _CONTRACT,
        f"{samples}/good-view.json": json.dumps(_GOOD, indent=2) + "\n",
        f"{samples}/bad-seconds-in-quotes.json": json.dumps({**_GOOD, "seconds": "41.5"}, indent=2) + "\n",
        "events.jsonl": "".join(json.dumps(event) + "\n" for event in events),
        ".gitignore": ".freshet/\ndata/\n",
    }
