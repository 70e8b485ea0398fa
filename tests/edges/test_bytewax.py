"""The runner: what comes out of it when something goes wrong inside."""

import sys
from datetime import timedelta

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource

from freshet.flows.edges import bytewax
from freshet.schemas.errors import Unavailable


def test_panics_that_follow_the_first_failure_are_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error))
    failure = bytewax.Failure()

    def fail(items: list[int]) -> list[int]:
        follows = RuntimeError(f"MergeQueue poisoned by {items}.")
        sys.excepthook(RuntimeError, follows, None)  # as Bytewax does, from a thread that moves data
        raise Unavailable("the store is away")

    flow = Dataflow("fails")
    moved = op.input("source", flow, TestingSource([1]))
    op.output("sink", op.flat_map_batch("step", moved, failure.noting(fail)), TestingSink([]))
    with pytest.raises(Unavailable, match="the store is away"):
        bytewax.run(flow, failure, epoch=timedelta(seconds=1))

    assert told == []
    assert "MergeQueue poisoned" in capsys.readouterr().err
    sys.excepthook(KeyError, KeyError("gone"), None)
    assert len(told) == 1  # what listened before listens again
