"""The runner: what comes out of it when something goes wrong inside, and which worker has what."""

import contextlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from freshet.flows.edges.bytewax import Place, Workers

FAILS = """
import os, sys
from datetime import timedelta
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from freshet.flows.edges import bytewax
from freshet.schemas.errors import Unavailable

sys.excepthook = lambda *told: os._exit(7)  # ends the process at once, as that of `freshet run` does
failure = bytewax.Failure()

def fail(items):
    sys.excepthook(RuntimeError, RuntimeError("MergeQueue poisoned."), None)  # as Bytewax does, from another thread
    raise Unavailable("the store is away")

flow = Dataflow("fails")
moved = op.input("source", flow, TestingSource([1]))
op.output("sink", op.flat_map_batch("step", moved, failure.noting(fail)), TestingSink([]))
try:
    bytewax.run(flow, failure, epoch=timedelta(seconds=1))
except Unavailable as error:
    print(error, flush=True)
raise KeyError("gone")  # what listened before listens again
"""


def test_panics_that_follow_the_first_failure_are_not_taken_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, check=False)

    assert done.stdout == "the store is away\n"
    assert "MergeQueue poisoned" in done.stderr
    assert done.returncode == 7


DEALT = """
import os, sys, threading
from datetime import timedelta
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from freshet.flows.edges.bytewax import Failure, Place, PollSource, Stop, Workers, WorkerSink, run

addresses = tuple(sys.argv[2:])
place = Place(int(sys.argv[1]), addresses, 2)
workers, failure, lock = Workers(place), Failure(), threading.Lock()

class Numbers:
    def __init__(self):
        self.left = list(range(100))
    def poll(self):
        return self.left.pop() if self.left else None
    def finished(self):
        return not self.left
    def close_epoch(self): pass
    def epoch_durable(self): pass
    def close(self): pass

class Told:
    def write(self, items):
        with lock:
            for own, wanted in items:
                print("told", os.getpid(), threading.get_ident(), workers.own(), own, wanted, flush=True)
    def flush(self): pass

def dealt(items):
    own = workers.own()
    for key, number in items:
        yield workers.key(number % workers.count), (own, number % workers.count)
        yield workers.key(own), (own, own)

flow = Dataflow("dealt")
polled = op.input("poll", flow, PollSource(list("abcdef"), lambda _: Numbers(), Stop(), failure, timedelta(0)))
op.output("told", op.flat_map_batch("deal", polled, failure.noting(dealt)), WorkerSink(workers, Told, failure))
run(flow, failure, epoch=timedelta(seconds=1), place=place)
"""


@pytest.mark.parametrize("processes_count", [1, 2])
def test_a_worker_is_given_what_is_for_it_by_number_and_keeps_what_is_its_own(processes_count: int) -> None:
    with contextlib.ExitStack() as held:
        frees = [held.enter_context(socket.socket()) for _ in range(processes_count)]
        for free in frees:
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in frees] if processes_count > 1 else []
    processes = [
        subprocess.Popen([sys.executable, "-c", DEALT, str(number), *addresses], stdout=subprocess.PIPE, text=True)
        for number in range(processes_count)
    ]
    said = [process.communicate()[0] for process in processes]

    assert [process.returncode for process in processes] == [0] * processes_count
    items = [
        tuple(map(int, line.split()[1:])) for told in said for line in told.splitlines() if line.startswith("told ")
    ]
    workers_count = 2 * processes_count
    assert len(items) == 2 * 6 * 100
    assert all(writer == wanted for _, _, writer, _, wanted in items)
    assert {(writer, own) for _, _, writer, own, _ in items} == {
        (writer, own) for writer in range(workers_count) for own in range(workers_count)
    }, "every worker polls, and gives to each"
    assert len({(process, thread) for process, thread, *_ in items}) == workers_count
    assert len({(process, thread, writer) for process, thread, writer, _, _ in items}) == workers_count


def test_threads_are_numbered_as_they_come_after_those_of_earlier_processes() -> None:
    workers = Workers(Place(process=2, addresses=("a:1", "b:2", "c:3"), workers_count=2))
    with ThreadPoolExecutor(1) as second, ThreadPoolExecutor(1) as third:  # both are there until the end
        assert workers.own() == 4
        assert second.submit(workers.own).result() == 5
        assert workers.own() == 4
        with pytest.raises(AssertionError, match="a thread more than 2 workers"):
            third.submit(workers.own).result()

    assert workers.count == 6
    assert sorted(map(workers.key, range(11))) == [workers.key(number) for number in range(11)]
