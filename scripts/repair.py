"""Write each entity's newest offline row to the online store again, where it is not older than what is there.

`freshet run materializer` does so by itself when the online store lost what was written; by hand it is needed where
somebody else deleted or overwrote rows, or where they have no expiry, or another, since the view had no ttl before, or
another. It may run beside a materializer: no older row ever replaces a newer one. Rows that have outlived their ttl are
not brought back.
"""

import argparse
import json
import time

from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.refill import refill
from freshet.flows.settings import Settings
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import listed
from freshet.scripts.cli import wrong_use


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("views", nargs="*", metavar="VIEW", help="feature views (all)")
    words.add_argument("--json", action="store_true", help="print what was done as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Refill, and say how many rows."""
    workspace = Workspace.applied(settings)
    views = {view.name: view for view in workspace.pipeline.views}
    for name in words.views:
        if name not in views:
            raise wrong_use(name, "is no feature view", f"there is {listed([*views])}")
    chosen = [views[name] for name in words.views or views]
    ledger, online = LedgerFile(workspace.offline_root).read(), workspace.online()
    counts = refill(online, workspace.offline(), chosen, ledger, time.time_ns() // 1000)
    if ledger is not None and not words.views:  # all that was committed when this began is online again
        online.catch_up(ledger.online_writes_count)
    if words.json:
        print(json.dumps({"rows": counts}))
    else:
        for name, count in counts.items():
            print(f"{name}: {count} newest rows written online")
    return 0
