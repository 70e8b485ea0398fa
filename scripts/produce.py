"""Publish events from a file or standard input (-), one JSON document a line or parquet, each checked.

SIGTERM and SIGINT end it once what was sent is confirmed. An event that breaks its contract is not sent: it is named,
with its line and what is wrong, and the exit code is 1.
"""

import argparse
import sys
import time

from freshet.flows.edges import event_file, kafka
from freshet.flows.edges.bytewax import Stop
from freshet.flows.settings import Settings
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Refused
from freshet.scripts.cli import wrong_use
from freshet.scripts.replay import chosen_stream

_NAMED_MAX = 20


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("events", help="the file, or - for standard input")
    words.add_argument("--stream", help="whose events these are, if the declaration has several streams")
    words.add_argument("--rate", type=float, metavar="N", help="events a second; as fast as they go if not given")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Publish, wait until the cluster has confirmed everything, and say how many."""
    if words.rate is not None and not words.rate > 0:
        raise wrong_use("--rate", f"is {words.rate}", "write a number above 0")
    workspace = Workspace.open(settings)
    contract = workspace.contracts[chosen_stream(workspace, words.stream)]
    kafka.partitions_count(workspace.kafka, contract.stream.topic)
    refused = 0
    stop = Stop()
    with stop.on_signals(), kafka.Producer(workspace.kafka, contract) as producer:
        started = time.monotonic()
        for count, (number, line) in enumerate(event_file.lines(words.events), start=1):
            if stop:
                break
            try:
                producer.send(line)
            except Refused as refusal:
                refused += 1
                if refused <= _NAMED_MAX:
                    print(f"line {number}: {refusal.problems[0]}", file=sys.stderr)
            if words.rate and count / words.rate > time.monotonic() - started:
                producer.poll(count / words.rate - (time.monotonic() - started))
        delivered = producer.flush()
    print(f"{delivered.count} events in {contract.stream.topic}, {refused} refused")
    return 1 if refused else 0
