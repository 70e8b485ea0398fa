"""Run a long process: `freshet run materializer`, `freshet run validator`. SIGTERM and SIGINT end it with exit 0.

The materializer goes on where the last run ended, however that one did, and ends after a last commit. With --processes
its work is shared between processes of this machine; if one of them fails, all end, and what went wrong is said last.

The validator looks at both stores every FRESHET_ROUND and tells what it finds. An outage is an error of its round, not
its end.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from freshet.flows.edges import bytewax, log
from freshet.flows.live import Run, Workspace, open_live
from freshet.flows.settings import Settings
from freshet.schemas.errors import FreshetError, PeerLost, StoreLost
from freshet.scripts.cli import complain, wrong_use

LOG = logging.getLogger("freshet")

_START_AGAIN = 75  # sysexits.h's EX_TEMPFAIL
_UNAVAILABLE = 5
_GRACE_S, _LOOK_AGAIN_S = 20.0, 0.1


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("process", choices=["materializer", "validator"])
    words.add_argument("--workers", type=_positive, metavar="N", help="threads of each process (1)")
    words.add_argument("--processes", type=_positive, metavar="M", help="processes on this machine (1)")
    words.add_argument("--until-end", action="store_true", help="end once everything that is in Kafka by now is done")
    words.add_argument("--rebuild", action="store_true", help="make lost state anew from the event archive")
    words.add_argument("--accept-gap", action="store_true", help="go on though messages to be read next are gone")
    words.add_argument("--metrics", metavar="HOST:PORT", help="where /metrics, /healthz and /readyz listen")
    words.add_argument("--leashed", action="store_true", help=argparse.SUPPRESS)  # end as soon as standard input does


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Run until stopped."""
    if words.process == "validator":
        return _validate(words, settings)
    if words.processes is not None and words.processes > 1:
        Workspace.open(settings)  # what can be refused is refused once
        while (code := _Cluster.start(words.processes, words.workers or 1).wait()) == _START_AGAIN:
            pass
        return code
    if words.leashed:
        threading.Thread(target=_end_with_input, name="leash", daemon=True).start()
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    place = bytewax.place([], os.environ)
    if words.workers is not None:
        place = dataclasses.replace(place, workers_count=words.workers)
    run = Run(place=place, until_end=words.until_end, rebuild=words.rebuild, accept_gap=words.accept_gap)
    try:
        with log.strays():
            code = _run(settings, run)
    except FreshetError as error:
        code = complain(error)
    if code == 0 and not place.addresses:
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own end would let DuckDB print, after the cause, what the exception still holds; and abort where threads
    # of Bytewax's wait for processes that are gone.
    os._exit(code)


def _validate(words: argparse.Namespace, settings: Settings) -> int:
    """Run the validator until stopped."""
    others = ("workers", "processes", "until_end", "rebuild", "accept_gap")
    asked = [f"--{name.replace('_', '-')}" for name in others if getattr(words, name)]
    if asked:
        raise wrong_use(asked[0], "is the materializer's", "the validator is one worker of one process, without an end")
    if words.metrics:
        settings = dataclasses.replace(settings, metrics_address=words.metrics)
    from freshet.flows.live_validator import open_validator  # noqa: PLC0415  # pandas is slow, and only here

    with log.strays():
        open_validator(Workspace.open(settings)).run()
    return 0


def _run(settings: Settings, run: Run) -> int:
    """Run, again whenever the online store has lost its rows: the next run fills it before it goes on."""
    while True:
        try:
            open_live(Workspace.open(settings), run).run()
        except StoreLost as error:
            LOG.warning("%s", error)
            if run.place.addresses:
                return _START_AGAIN
        else:
            return 0


def _end_with_input() -> None:
    """Never outlive the process that holds the other end, however that one ended: end in order, or else by force.

    The others may have ended before they were connected to this one, which would wait for them for ever.
    """
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(_UNAVAILABLE)


@dataclass
class _Cluster:
    """The processes of one flow on this machine. Each runs this very command, and knows its place by Bytewax's names.

    `said` is what each said last.
    """

    children: list["subprocess.Popen[bytes]"]
    said: list[str]

    @classmethod
    def start(cls, processes_count: int, workers_count: int) -> "_Cluster":
        """Start all, each in a session of its own: Ctrl-C is for this process, which then ends them in order."""
        with contextlib.ExitStack() as held:
            addresses = ";".join(f"127.0.0.1:{held.enter_context(_free_port())}" for _ in range(processes_count))
        command = [sys.executable, "-m", "freshet.scripts.cli", *_without_processes(sys.argv[1:]), "--leashed"]
        children = []
        for process in range(processes_count):
            place = {"PROCESS_ID": process, "ADDRESSES": addresses, "WORKERS_PER_PROCESS": workers_count}
            environment = {**os.environ, **{f"BYTEWAX_{name}": str(value) for name, value in place.items()}}
            options: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
            children.append(subprocess.Popen(command, env=environment, **options))  # noqa: S603  # our own
        return cls(children, [""] * processes_count)

    def wait(self) -> int:
        """Wait until all have ended, passing signals on; say what went wrong first, and return its exit code."""
        asked = threading.Event()

        def end(*_: object) -> None:
            asked.set()
            for child in self.children:
                child.terminate()

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        listeners = [threading.Thread(target=self._listen, args=(place,)) for place in range(len(self.children))]
        try:
            for listener in listeners:
                listener.start()
            while all(child.poll() is None for child in self.children):
                time.sleep(_LOOK_AGAIN_S)
            codes = [child.returncode if self._ended(child) else 0 for child in self.children]
            if asked.is_set():  # one that was not yet listening was ended by the signal itself
                codes = [0 if code == -signal.SIGTERM else code for code in codes]
            for listener in listeners:
                listener.join()
        finally:
            for child in self.children:
                child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._verdict(codes)

    def _ended(self, child: "subprocess.Popen[bytes]") -> bool:
        """Wait until a process has ended after another one did; say whether it did so by itself.

        One that is not yet connected to the others would wait for them for ever, and has begun nothing.
        """
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return False
        return True

    def _listen(self, place: int) -> None:
        """Pass on what a process says."""
        stream = self.children[place].stderr
        assert stream is not None
        for line in stream:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
            self.said[place] = log.ending(line) or self.said[place]

    def _verdict(self, codes: Sequence[int]) -> int:
        """Say which process failed by itself, and how: the others ended because it did."""
        if not any(codes):
            return 0
        if _START_AGAIN in codes:
            return _START_AGAIN
        for place, (code, said) in enumerate(zip(codes, self.said, strict=True)):
            if code and PeerLost.FACT not in said:
                killed = f"process {place} of {len(codes)} was ended by {_name(-code)}"
                ends = _UNAVAILABLE if code < 0 else code
                why = killed if code < 0 else said or f"process {place} ended with {code}"
                LOG.error("%s", why, extra={"exit_code": ends})
                return ends
        return _UNAVAILABLE


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def _without_processes(words: Sequence[str]) -> list[str]:
    """Return the words of a command without --processes, and without --workers, which the environment has.

    >>> _without_processes(["-C", "x", "run", "--processes", "2", "materializer", "--workers=3", "--until-end"])
    ['-C', 'x', 'run', 'materializer', '--until-end']
    """
    kept, skip = [], False
    for word in words:
        ours = word.partition("=")[0] in {"--processes", "--workers"}
        if not ours and not skip:
            kept.append(word)
        skip = ours and "=" not in word
    return kept


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
