"""A materializer whose offline sink is faulty from a command on.

`python -m freshet.scripts.faults.materializer ORDER DEEDS`: it does as `freshet run materializer` does until the file
ORDER is there, JSON with `cause`, `rate` and `seed`; then it breaks what that says, and notes in DEEDS what it did.
"""

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from freshet.flows import settings
from freshet.flows.journal import States
from freshet.flows.live import Outside, Run, Workspace, connect, open_live
from freshet.schemas.errors import FreshetError
from freshet.schemas.finding import Cause
from freshet.scripts.cli import complain
from freshet.scripts.faults.deeds import Choice, Deeds
from freshet.scripts.faults.sink import FaultyLedger, FaultyOffline, Sink

_LOOK_AGAIN_S = 0.1


def main() -> int:
    """Run until stopped."""
    order, deeds = map(Path, sys.argv[1:])
    try:
        workspace = Workspace.open(settings.read(os.environ))
        views = {view.name: view for view in workspace.pipeline.views}
        sink = Sink(Cause.LOST_OFFLINE_WRITE, Choice(0.0), Deeds(deeds), views)

        def reach(workspace: Workspace, run: Run, states: States) -> Outside:
            outside = connect(workspace, run, states)
            offline, ledger = FaultyOffline(outside.offline, sink), FaultyLedger(outside.ledger, sink)
            return replace(outside, offline=offline, ledger=ledger)

        opened = open_live(workspace, reach=reach)
        threading.Thread(target=_obey, args=(order, sink), name="order", daemon=True).start()
        opened.run()
    except FreshetError as error:
        return complain(error)
    return 0


def _obey(order: Path, sink: Sink) -> None:
    """Wait for the command."""
    pause = threading.Event()
    while not order.exists():
        pause.wait(_LOOK_AGAIN_S)
    told = json.loads(order.read_text(encoding="utf-8"))
    sink.cause, sink.choice = Cause(told["cause"]), Choice(told["rate"], told["seed"])
    sink.begun = True


if __name__ == "__main__":
    sys.exit(main())
