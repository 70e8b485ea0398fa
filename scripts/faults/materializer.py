"""A materializer whose offline sink is faulty on command.

`python -m freshet.scripts.faults.materializer ORDER`: it does as `freshet run materializer` does, but while the file
ORDER is there, JSON as `order` makes it; then it breaks what that says, and notes what it did.
"""

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from freshet.flows import settings
from freshet.flows.edges import log
from freshet.flows.journal import States
from freshet.flows.live import Outside, Run, connect, open_live
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import FreshetError
from freshet.schemas.finding import Cause
from freshet.scripts.cli import complain
from freshet.scripts.faults.deeds import Choice, Deeds
from freshet.scripts.faults.sink import FaultyLedger, FaultyOffline, Sink

_LOOK_AGAIN_S = 0.1


def order(cause: Cause, choice: Choice, deeds: Deeds) -> str:
    """Return what is to be written to ORDER: what to break, and where to note it."""
    entities = None if choice.entities is None else sorted(choice.entities)
    what = {"cause": cause.value, "rate": choice.rate, "seed": choice.seed, "entities": entities}
    return json.dumps({**what, "deeds": str(deeds.path)})


def main() -> int:
    """Run until stopped."""
    (path,) = map(Path, sys.argv[1:])
    try:
        known = settings.read(os.environ)
        log.begin(known.log, "materializer")
        workspace = Workspace.open(known)
        views = {view.name: view for view in workspace.pipeline.views}
        sink = Sink(Cause.LOST_OFFLINE_WRITE, Choice(0.0), Deeds(path), views)

        def reach(workspace: Workspace, run: Run, states: States) -> Outside:
            outside = connect(workspace, run, states)
            offline, ledger = FaultyOffline(outside.offline, sink), FaultyLedger(outside.ledger, sink)
            return replace(outside, offline=offline, ledger=ledger)

        opened = open_live(workspace, reach=reach)
        threading.Thread(target=_listen, args=(path, sink), name="order", daemon=True).start()
        opened.run()
    except FreshetError as error:
        return complain(error)
    return 0


def obey(text: str, sink: Sink) -> None:
    """Break what an order says; nothing without one."""
    if text:
        told = json.loads(text)
        entities = None if told["entities"] is None else frozenset(told["entities"])
        sink.cause, sink.choice = Cause(told["cause"]), Choice(told["rate"], told["seed"], entities)
        sink.deeds = Deeds(Path(told["deeds"]))
    sink.begun = bool(text)


def _listen(path: Path, sink: Sink) -> None:
    """Obey whatever order is there by now."""
    pause, known = threading.Event(), ""
    while not pause.wait(_LOOK_AGAIN_S):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        if text != known:
            obey(text, sink)
            known = text


if __name__ == "__main__":
    sys.exit(main())
