"""Logs of processes in JSON: every line of a materializer and a validator is an object, through an outage to the end."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stack import FRESHET, Server, prepared, until

from freshet.flows.edges.broker import Broker


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "valkey")
    yield made
    made.stop()


def events(log: Path) -> list[dict[str, Any]]:
    """Return what stands in a log; each line must be an object with all that every event has."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    for event in found:
        assert {"time", "level", "logger", "process", "message"} <= event.keys()
    return found


def test_every_line_is_an_event_through_an_outage_to_the_end(server: Server, tmp_path: Path) -> None:
    with Broker.start() as broker:
        stack = prepared(broker.address, server.url, tmp_path, FRESHET_LOG="json", FRESHET_ROUND="1s")
        print(time.time(), "begin")
        stack.produce(300)
        running = stack.start(FRESHET_PATIENCE="2s")
        until(stack.is_done)
        materializer_log, stack.log = stack.log, tmp_path / "validator"
        print(time.time(), "done")
        validator = stack.spawn([*FRESHET, "run", "validator"])
        until(lambda: any(" rows compared" in event["message"] for event in events(stack.log)))

        server.stop()

        print(time.time(), "stopped")
        assert running.wait(60) == 5
        print(time.time(), "ended")
        until(lambda: any("validator_error" in event["message"] for event in events(stack.log)))
        stack.stop(validator)
        said = events(materializer_log)
        print(materializer_log.read_text(), stack.log.read_text())
        stack.close()
