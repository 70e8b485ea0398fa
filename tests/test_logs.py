"""Logs of processes in JSON: every line of a materializer and a validator is an object, through an outage to the end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stack import FRESHET, REPO, Server, prepared, until

from freshet.flows.edges import log
from freshet.flows.edges.broker import Broker


def events(file: Path) -> list[dict[str, Any]]:
    """Return what stands in a log; each line must be an object with all that every event has."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    for event in found:
        assert {"time", "level", "logger", "process", "message"} <= event.keys()
    return found


def test_every_line_is_an_event_through_an_outage_to_the_end(server: Server, tmp_path: Path) -> None:
    with Broker.start() as broker:
        stack = prepared(broker.address, server.url, tmp_path, FRESHET_LOG="json", FRESHET_ROUND="1s")
        materializer, told = stack.start(FRESHET_PATIENCE="2s"), stack.log
        validated = tmp_path / "validator"
        stack.log = validated
        validator = stack.spawn([*FRESHET, "run", "validator"])
        stack.log = told
        until(lambda: stack.asked("readyz") == "ok\n")
        stack.log = validated
        until(lambda: stack.asked("readyz") == "ok\n")

        server.stop()

        assert 5 == materializer.wait(60)
        until(lambda: any("validator_error" in event["message"] for event in events(stack.log)))
        assert f"Redis at 127.0.0.1:{server.port} cannot be used" in stack.asked("readyz")
        stack.stop(validator)
        stack.close()

    *_, last = events(told)
    assert (5, "materializer", "ERROR") == (last["exit_code"], last["process"], last["level"])
    assert f"Redis at 127.0.0.1:{server.port} cannot be used: ConnectionError: " in last["message"]
    assert any(event["logger"] == "stderr" and "panicked" in event["message"] for event in events(told))
    assert "stopped" == events(stack.log)[-1]["message"]
    for file in (told, stack.log):
        assert [] == [event for event in events(file) if event["logger"] == "py.warnings"], (
            "libraries warn who builds on them"
        )


def ended(program: str, form: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "FRESHET_LOG": form}
    return subprocess.run(
        [sys.executable, "-c", program, REPO], env=environment, capture_output=True, text=True, check=False
    )


DIES = """
import sys
import duckdb
from freshet.scripts import cli, run

def fail(*_):
    held = duckdb.connect(":memory:")  # DuckDB tells of objects that are alive when the interpreter ends
    raise KeyError("gone")

run._run = fail
cli.main(["-C", sys.argv[1], "run", "materializer"])
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_defect_is_the_last_that_is_said(form: str) -> None:
    done = ended(DIES, form)

    *_, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert log.ending(last.encode()).startswith("KeyError: 'gone'. Hint: a defect of Freshet's")


PANICS = """
import sys
import threading
from freshet.schemas.errors import Unavailable
from freshet.scripts import cli, run

def fail(*_):  # after the flow has failed, Bytewax's threads tell of panics until the process ends
    panic = RuntimeError, RuntimeError("MergeQueue poisoned."), None
    thread = threading.Thread(target=sys.excepthook, args=panic)
    thread.start()
    thread.join()
    raise Unavailable("the store is away")

run._run = fail
cli.main(["-C", sys.argv[1], "run", "materializer"])
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_panic_in_a_librarys_thread_is_not_why_the_process_ends(form: str) -> None:
    done = ended(PANICS, form)

    lines = done.stderr.splitlines()
    assert form == "text" or all(line.startswith("{") for line in lines)
    endings = [said for line in lines if (said := log.ending(line.encode()))]
    assert endings == ["the store is away"]
    assert done.returncode == 5
    assert "MergeQueue poisoned" in done.stderr
