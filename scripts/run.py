"""Run a long process: `freshet run materializer`. SIGTERM and SIGINT end it after its last epoch, with exit 0."""

import argparse
import dataclasses

from freshet.flows.edges.bytewax import root_cause
from freshet.flows.live import Workspace, open_live
from freshet.flows.settings import Settings
from freshet.schemas.errors import FreshetError


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("process", choices=["materializer"])
    words.add_argument("--until-end", action="store_true", help="end once everything that is in Kafka by now is done")
    words.add_argument("--workers", type=int, default=1, metavar="N", help="threads of the dataflow")
    words.add_argument("--metrics", metavar="HOST:PORT", help="where /metrics and /healthz listen")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Run until stopped."""
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    live = open_live(Workspace.open(settings), until_end=words.until_end)
    try:
        live.run(workers_count=words.workers)
    except Exception as error:
        cause = root_cause(error)  # Bytewax wraps what a step raises, more than once
        if isinstance(cause, FreshetError):
            raise cause from error
        raise
    return 0
