"""Run a long process: `freshet run materializer`, `… validator`, `… server`. SIGTERM and SIGINT end it with exit 0.

The materializer goes on where the last run ended, however that one did, and ends after a last commit. With --processes
(or FRESHET_MATERIALIZER_PROCESSES) its work is shared between processes of this machine; if one of them fails, all end,
and what went wrong is said last.

The validator looks at both stores every FRESHET_ROUND and tells what it finds. An outage is an error of its round, not
its end.

The server answers reads over HTTP as Feast's does, and takes events; with --workers (or FRESHET_SERVER_WORKERS)
several processes do, at one address.
"""

import argparse
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

from freshet.flows.edges import bytewax, log
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.live import Run, open_live
from freshet.flows.settings import Settings
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import FreshetError, StoreLost
from freshet.scripts.cli import complain, end, wrong_use
from freshet.scripts.cluster import GRACE_S, START_AGAIN, UNAVAILABLE, Cluster

LOG = logging.getLogger("freshet")

_LOOK_AGAIN = timedelta(milliseconds=50)

_OF_MATERIALIZER = ("processes", "until_end", "rebuild", "accept_gap")


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("process", choices=["materializer", "validator", "server"])
    words.add_argument(
        "--workers", type=_positive, metavar="N", help="threads of each process (1), or the server's processes"
    )
    words.add_argument("--processes", type=_positive, metavar="M", help="processes on this machine")
    words.add_argument("--until-end", action="store_true", help="end once everything that is in Kafka by now is done")
    words.add_argument("--rebuild", action="store_true", help="make lost state anew from the event archive")
    words.add_argument("--accept-gap", action="store_true", help="go on though messages to be read next are gone")
    words.add_argument("--metrics", metavar="HOST:PORT", help="where /metrics, /healthz and /readyz listen")
    words.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)  # of a server, at a socket
    words.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    words.add_argument("--leashed", action="store_true", help=argparse.SUPPRESS)  # end as soon as standard input does


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def act(words: argparse.Namespace, settings: Settings) -> NoReturn:
    """Run until stopped, and end this process."""
    _end_at_once_with_defects()
    run = {"materializer": _materialize, "validator": _validate, "server": _serve}[words.process]
    try:
        code = run(words, settings)
    except FreshetError as error:
        code = complain(error)
    end(code)


def _materialize(words: argparse.Namespace, settings: Settings) -> int:
    """Materialize until stopped, or to the end that was asked for."""
    place = bytewax.place([], os.environ)
    alone = words.leashed or place.addresses  # one of several already
    processes_count = words.processes or (1 if alone else settings.materializer_processes)
    if processes_count > 1:
        return _run_all(settings, processes_count, words.workers or 1)
    if words.leashed:
        threading.Thread(target=_end_with_input, name="leash", daemon=True).start()
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    if words.workers is not None:
        place = dataclasses.replace(place, workers_count=words.workers)
    with log.strays():
        return _run(
            settings, Run(place=place, until_end=words.until_end, rebuild=words.rebuild, accept_gap=words.accept_gap)
        )


def _run_all(settings: Settings, processes_count: int, workers_count: int) -> int:
    """Run the processes of one flow until stopped."""
    workspace = Workspace.applied(settings)  # what can be refused is refused once
    while (code := Cluster.of_flow(processes_count, workers_count).wait()) == START_AGAIN:
        if not _applied(workspace):
            return 0
    return code


def _validate(words: argparse.Namespace, settings: Settings) -> int:
    """Run the validator until stopped."""
    asked = [f"--{name.replace('_', '-')}" for name in ("workers", *_OF_MATERIALIZER) if getattr(words, name)]
    if asked:
        raise wrong_use(asked[0], "is the materializer's", "the validator is one worker of one process, without an end")
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    from freshet.flows.live_validator import open_validator  # noqa: PLC0415  # pandas is slow, and only here

    with log.strays():
        open_validator(Workspace.applied(settings)).run()
    return 0


def _serve(words: argparse.Namespace, settings: Settings) -> int:
    """Serve until stopped."""
    asked = [f"--{name.replace('_', '-')}" for name in _OF_MATERIALIZER if getattr(words, name)]
    if asked:
        raise wrong_use(asked[0], "is the materializer's", "the server has --workers")
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    from freshet.flows.live_server import Worker, listen  # noqa: PLC0415  # uvloop is only here

    workspace = Workspace.applied(settings)
    if words.leashed:
        threading.Thread(target=_end_with_input, name="leash", daemon=True).start()
    bound = listen(workspace) if words.socket is None else socket.socket(fileno=words.socket)
    workers_count = words.workers or (1 if words.leashed else settings.server_workers)
    if workers_count > 1:
        return Cluster.of_server(workers_count, bound).wait()
    with log.strays():
        Worker(workspace, words.worker).run(bound)
    return 0


def _run(settings: Settings, run: Run) -> int:
    """Run, again whenever the online store lost its rows, another declaration was applied, or topics have grown."""
    while True:
        opened = open_live(Workspace.applied(settings), run)
        try:
            opened.run()
        except StoreLost as error:
            LOG.warning("%s", error)
        else:
            if not opened.begins_again or opened.live.stop.is_signalled:
                return 0
        if run.place.addresses:
            return START_AGAIN
        if opened.begins_again and not _applied(opened.workspace):
            return 0


def _applied(workspace: Workspace) -> bool:
    """Wait until nobody who applies a declaration needs the ledger; say whether to go on, which a signal may forbid."""
    files, stop = AppliedFile(workspace.offline_root), bytewax.Stop()
    with stop.on_signals():
        while files.is_ledger_asked_for():
            if stop.wait(_LOOK_AGAIN):
                return False
    return True


def _end_at_once_with_defects() -> None:
    """Let nothing be said after what an exception is, that nobody caught."""
    told = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told(kind, error, trace)
        if log.is_ending():
            end(1)

    sys.excepthook = tell


def _end_with_input() -> None:
    """Never outlive the process that holds the other end, however that one ended: end in order, or else by force.

    The others may have ended before they were connected to this one, which would wait for them for ever.
    """
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(UNAVAILABLE)
