"""The runner: what comes out of it when something goes wrong inside."""

import subprocess
import sys

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
