"""Say how the deployment does: lag, freshness, throughput, last commit, rejects, open findings, view by view.

Every part is asked by itself, so it works while some are down, and says which; one that is UNWELL answers, and says
what is wrong with it. Exits 0 if all is well, 1 if something is late, stopped or found, 5 if a part does not answer,
else 4 if one says that it is unwell. Rates and `p99` are of the last minute with --watch, else of one second: a stream
whose events come in bursts may show none, and `last event` says when one came, as Kafka says, whether or not the flow
is well. `late in` is when the first message passes the declared freshness, as it goes now; `lost in` when Kafka deletes
the first message that waits.
"""

import argparse
import json
import sys
import time

from freshet.flows.following import Following
from freshet.flows.settings import Settings
from freshet.flows.status import StatusReader
from freshet.flows.steps.status import Report, as_json, screen
from freshet.flows.workspace import Workspace
from freshet.scripts.cli import wrong_use

_EVERY_S = 2.0
_CLEAR = "\x1b[2J\x1b[H"


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--watch", action="store_true", help="show it again and again, until Ctrl-C")
    words.add_argument(
        "--every", type=float, default=_EVERY_S, metavar="S", help=f"so many seconds apart ({_EVERY_S:g})"
    )
    words.add_argument("--json", action="store_true", help="print it as JSON; with --watch one line each time")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Look once, or again and again."""
    if not words.every > 0:
        raise wrong_use("--every", f"is {words.every}", "write a number of seconds above 0")
    workspace = Workspace.applied(settings)
    reader, following = StatusReader(workspace), Following(workspace, StatusReader)
    while True:
        reader = following.look() or reader
        report = reader.look()
        if words.json:
            print(json.dumps(as_json(report), indent=None if words.watch else 2, allow_nan=False), flush=True)
        else:
            clear = _CLEAR if words.watch and sys.stdout.isatty() else ""
            print(clear + screen(report), flush=True)
        if not words.watch:
            return exit_code(report)
        time.sleep(words.every)


def exit_code(report: Report) -> int:
    """Return what a report is for scripts."""
    return 5 if report.is_down else 1 if report.is_unwell else 4 if report.is_ailing else 0
