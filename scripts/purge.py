"""Erase an entity: from both stores, the event archive, the flow's state and the log of what was served.

KEY is a join key and its value, `user=alice`; of several, with commas. Every view whose entity has these is purged. The
materializer must be stopped: events wait in Kafka. A purge that was killed is completed by running it again. Kafka
deletes no single messages: which dead letters there are, and until when topics keep what they have, the receipt says.
It holds no values; it is printed, and kept in .freshet/purges.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from freshet.flows.edges.compaction import CompactionFolder
from freshet.flows.edges.partitions import Log
from freshet.flows.edges.recovery import LedgerFile, RecoveryFolder
from freshet.flows.edges.served import ServedFiles
from freshet.flows.edges.standings import Standings
from freshet.flows.edges.store_config import store_config
from freshet.flows.purge import Outside, Purger, lines_of
from freshet.flows.settings import Settings
from freshet.flows.steps.explain import asked_entity
from freshet.flows.steps.purge import asked_key
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.purge import Receipt
from freshet.schemas.view import View
from freshet.scripts.cli import wrong_use


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("key", metavar="KEY", help="the entity: NAME=VALUE, of several join keys with commas")
    words.add_argument("--hash-key", action="store_true", help="name the key in the receipt by its SHA-256 digest")
    words.add_argument("--json", action="store_true", help="print the receipt as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Purge, and say what was done and what remains."""
    workspace = Workspace.applied(settings)
    key = _typed(workspace.pipeline.views, asked_key(words.key), words.key)
    path = workspace.project.root / ".freshet" / "purges" / f"{time.time_ns() // 10**6}.json"

    def keep(receipt: Receipt) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(_text(receipt) + "\n", encoding="utf-8")

    purger = Purger(workspace.pipeline, workspace.contracts, outside_of(workspace, keep))
    receipt = purger.run(key, hashed=words.hash_key)
    if words.json:
        print(_text(receipt))
    else:
        print("\n".join(lines_of(receipt)))
        print(f"receipt {path}")
    return 0


def _text(receipt: Receipt) -> str:
    return json.dumps(receipt.model_dump(mode="json"), indent=2)


def _typed(views: Sequence[View], named: dict[str, str], text: str) -> dict[str, Any]:
    """Give values the types of their join keys."""
    if not named:
        raise wrong_use("KEY", f"is {text}", "write NAME=VALUE, of several join keys NAME=VALUE,NAME=VALUE")
    key: dict[str, Any] = dict(named)
    for view in views:
        for column in view.entity:
            if column.name in named:
                one = View(view.name, view.sources, (pa.field(column.name, column.type),), view.features)
                (key[column.name],) = asked_entity(one, [named[column.name]])
    return key


def outside_of(workspace: Workspace, keep: Callable[[Receipt], None]) -> Outside:
    """Return what a project's purge works on."""

    def point(views: Sequence[View]) -> set[str]:
        from freshet.flows.edges import feast  # noqa: PLC0415  # slow, and only here

        config = store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry)
        return feast.point(config, offline, views)

    if workspace.online_url.startswith("sqlite:"):
        fact, hint = "cannot be purged: Feast deletes no entity", "use Redis as onlineStore"
        raise Refused([Problem("online store", "sqlite", fact, hint)])
    offline, retention = workspace.offline(), Standings(workspace.kafka, workspace.group)
    return Outside(
        store=CompactionFolder(offline),
        offline=offline,
        ledger=LedgerFile(offline.root, purges=True),
        states=RecoveryFolder(workspace.recovery_root),
        online=workspace.online(),
        served=ServedFiles(offline.root),
        log=Log(workspace.kafka),
        retention_s=retention.retention_s,
        point=point,
        keep=keep,
        now=lambda: datetime.now(UTC),
    )
