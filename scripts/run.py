"""Run a long process: `freshet run materializer`. SIGTERM and SIGINT end it after its last epoch, with exit 0."""

import argparse
import dataclasses

from freshet.flows.live import Workspace, open_live
from freshet.flows.settings import Settings


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("process", choices=["materializer"])
    words.add_argument("--until-end", action="store_true", help="end once everything that is in Kafka by now is done")
    words.add_argument("--metrics", metavar="HOST:PORT", help="where /metrics and /healthz listen")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Run until stopped."""
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    open_live(Workspace.open(settings), until_end=words.until_end).run()
    return 0
