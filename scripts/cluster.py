"""Several processes of one thing on this machine: they start and end together, and the first cause is said last."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freshet.flows.edges import log
from freshet.schemas.errors import PeerLost

LOG = logging.getLogger("freshet")

START_AGAIN = 75  # sysexits.h's EX_TEMPFAIL
UNAVAILABLE = 5
GRACE_S, _LOOK_AGAIN_S = 20.0, 0.1


@dataclass
class Cluster:
    """Processes that end together. `said` is what each said last.

    Those of a flow notice by themselves that another one ended; `are_strangers` are told.
    """

    children: list["subprocess.Popen[bytes]"]
    said: list[str]
    are_strangers: bool = False

    @classmethod
    def of_flow(cls, processes_count: int, workers_count: int) -> "Cluster":
        """Start the processes of one flow, each of which knows its place by Bytewax's names."""
        with contextlib.ExitStack() as held:
            addresses = ";".join(f"127.0.0.1:{held.enter_context(_free_port())}" for _ in range(processes_count))
        places = [
            {"PROCESS_ID": process, "ADDRESSES": addresses, "WORKERS_PER_PROCESS": workers_count}
            for process in range(processes_count)
        ]
        return cls.start([([], {f"BYTEWAX_{name}": str(of) for name, of in place.items()}) for place in places])

    @classmethod
    def of_server(cls, workers_count: int, bound: socket.socket) -> "Cluster":
        """Start workers that answer at one socket."""
        descriptor = bound.fileno()
        words = [["--worker", str(number), "--socket", str(descriptor)] for number in range(workers_count)]
        made = cls.start([(more, {}) for more in words], pass_fds=[descriptor])
        made.are_strangers = True
        return made

    @classmethod
    def start(cls, made: Sequence[tuple[Sequence[str], Mapping[str, str]]], pass_fds: Sequence[int] = ()) -> "Cluster":
        """Start this very command so many times, each with words and an environment of its own.

        Each has a session of its own: Ctrl-C is for this process, which then ends them in order.
        """
        command = [sys.executable, "-m", "freshet.scripts.cli", *_alone(sys.argv[1:]), "--leashed"]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
        children = [
            subprocess.Popen([*command, *words], env={**os.environ, **more}, pass_fds=pass_fds, **options)  # noqa: S603  # our own
            for words, more in made
        ]
        return cls(children, [""] * len(children))

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
            if self.are_strangers:
                end()
            codes = [child.returncode if self._ended(child) else 0 for child in self.children]
            if asked.is_set():  # one that was not yet listening was ended by the signal itself
                codes = [0 if code in {-signal.SIGTERM, START_AGAIN} else code for code in codes]
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
            child.wait(GRACE_S)
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
        if START_AGAIN in codes:
            return START_AGAIN
        for place, (code, said) in enumerate(zip(codes, self.said, strict=True)):
            if code and PeerLost.FACT not in said:
                killed = f"process {place} of {len(codes)} was ended by {_name(-code)}"
                ends = UNAVAILABLE if code < 0 else code
                why = killed if code < 0 else said or f"process {place} ended with {code}"
                LOG.error("%s", why, extra={"exit_code": ends})
                return ends
        return UNAVAILABLE


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def _alone(words: Sequence[str]) -> list[str]:
    """Return the words of a command without --processes, and without --workers, which the environment has.

    >>> _alone(["-C", "x", "run", "--processes", "2", "materializer", "--workers=3", "--until-end"])
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
