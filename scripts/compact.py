"""Merge small parquet parts into large ones, while materializer and readers go on.

No reader ever sees a row twice or misses one. What is merged stands in a new folder, to which Feast's registry points
then; the former one stays for readers that know its path, for --grace, and is removed by the next run, or by this one
with --wait. One that was killed is taken up by the next.

With `--versions final` only the final version of each row stays, and with --keep only rows of that age, and of each
entity the row that held then: so what was the case at any later time is answered as before.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from freshet.flows.compact import Choice, Compacted, Compactor, Outside
from freshet.flows.edges.compaction import CompactionFolder
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.store_config import store_config
from freshet.flows.settings import Settings
from freshet.flows.workspace import Workspace
from freshet.schemas import units
from freshet.schemas.errors import listed
from freshet.schemas.view import View
from freshet.scripts.cli import wrong_use

_WAIT_S = 1.0


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("views", nargs="*", metavar="VIEW", help="feature views (all)")
    words.add_argument("--target", type=_size, default=128 * 10**6, metavar="SIZE", help="of a merged part (128MB)")
    words.add_argument("--versions", choices=["all", "final"], default="all", help="which versions of a row stay (all)")
    words.add_argument("--keep", type=_duration, metavar="AGE", help="drop rows that are older, as 90d (none)")
    words.add_argument(
        "--grace", type=_duration, default=timedelta(minutes=10), metavar="TIME",
        help="how long former folders stay: longer than clients keep Feast's registry (10m)",
    )  # fmt: skip
    words.add_argument("--wait", action="store_true", help="wait for the grace, and remove the former folders")
    words.add_argument("--json", action="store_true", help="print what was done as JSON")


def _size(text: str) -> int:
    try:
        return units.size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not {error}") from None


def _duration(text: str) -> timedelta:
    try:
        return units.duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not {error}") from None


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Compact, and say what was done."""
    workspace = Workspace.applied(settings)
    views = {view.name: view for view in workspace.pipeline.views}
    for name in words.views:
        if name not in views:
            raise wrong_use(name, "is no feature view", f"there is {listed([*views])}")
    chosen = [views[name] for name in words.views or views]
    choice = Choice(
        target_bytes=words.target,
        final=words.versions == "final",
        keep=words.keep,
        grace=words.grace,
        patience_s=settings.patience.total_seconds(),
    )
    done = Compactor(outside_of(workspace), choice).run(chosen)
    if not words.json:
        _print(done)
    while words.wait and any(one.left_until for one in done):
        time.sleep(_WAIT_S)
        done = [_joined(*pair) for pair in zip(done, _retired(workspace, choice, chosen), strict=True)]
    if words.json:
        print(json.dumps({"views": [_as_json(one) for one in done]}, indent=2))
    elif words.wait:
        print("the former folders are removed")
    return 0


def _retired(workspace: Workspace, choice: Choice, views: list[View]) -> list[Compacted]:
    return Compactor(outside_of(workspace), choice).retire_all(views)


def _joined(before: Compacted, after: Compacted) -> Compacted:
    removed_count = before.removed_count + after.removed_count
    return replace(before, removed_count=removed_count, left_until=after.left_until)


def outside_of(workspace: Workspace) -> Outside:
    """Return what a project's compaction works on."""

    def point(views: list[View]) -> set[str]:
        from freshet.flows.edges import feast  # noqa: PLC0415  # slow, and only if there is a registry

        config = store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry)
        return feast.point(config, offline, views)

    offline = workspace.offline()
    return Outside(
        store=CompactionFolder(offline),
        parts=offline,
        ledger=LedgerFile(offline.root),
        point=lambda views: point([*views]),
        now_us=lambda: time.time_ns() // 1000,
        sleep=time.sleep,
    )


def _print(done: list[Compacted]) -> None:
    for one in done:
        if one.parts_before:
            dropped = f", {one.dropped_count:,} of {one.rows_count:,} rows dropped" if one.dropped_count else ""
            print(f"{one.view}: {one.parts_before:,} parts became {one.parts_after:,}{dropped}")
        else:
            print(f"{one.view}: nothing to merge")
        if one.removed_count:
            print(f"  {one.removed_count} former folders removed")
        if one.left_until:
            print(f"  its former folder stays until {one.left_until:%H:%M:%S} UTC; a later run removes it")


def _as_json(one: Compacted) -> dict[str, Any]:
    return {**asdict(one), "left_until": one.left_until and one.left_until.isoformat()}
