"""The log: an event is one line, and in JSON one object, whatever is in it and whoever printed it."""

import json
import subprocess
import sys
from typing import Any

import pytest

BEGIN = "from freshet.flows.edges import log; import logging; log.begin('json', 'test'); LOG = log.LOG\n"


def events(program: str, form: str = "json") -> list[dict[str, Any]]:
    done = said(program, form)
    return [json.loads(line) for line in done.splitlines()]


def said(program: str, form: str = "json") -> str:
    command = [sys.executable, "-c", BEGIN.replace("json", form) + program]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stderr


EVENTS = {
    r"LOG.info('two\nlines')": {"level": "INFO", "logger": "freshet", "message": "two\nlines"},
    "LOG.info('%s ü', 1, extra={'stream': 'clicks', 'at': None})": {"message": "1 ü", "stream": "clicks", "at": None},
    "import warnings; warnings.warn('odd')": {"level": "WARNING", "logger": "py.warnings"},
    "import os\nwith log.strays(): os.write(2, b'panicked')": {"logger": "stderr", "message": "panicked"},
    "import logging; logging.getLogger('lib').error('bad')": {"level": "ERROR", "logger": "lib", "message": "bad"},
}


@pytest.mark.parametrize("program", EVENTS)
def test_an_event_is_one_object_on_one_line(program: str) -> None:
    (event,) = events(program)

    assert EVENTS[program].items() <= event.items()
    assert event["time"].endswith("Z")
    assert event["process"] == "test"


DEFECTS = {
    "in the main thread": "raise_()",
    "in another thread": "import threading; thread = threading.Thread(target=raise_); thread.start(); thread.join()",
    "caught and told": "try: raise_()\nexcept ValueError: LOG.exception('it failed')",
}


@pytest.mark.parametrize("where", DEFECTS)
def test_an_exception_is_one_line_with_the_root_of_it(where: str) -> None:
    raising = "def raise_():\n  try: 1 / 0\n  except ArithmeticError as error: raise ValueError('outer') from error\n"

    (event,) = events(raising + DEFECTS[where])

    assert event["cause"] == "ZeroDivisionError: division by zero"
    assert event["trace"].startswith("Traceback")
    assert event["level"] in {"ERROR", "CRITICAL"}


WARNS = """import json, pydantic, warnings
warnings.simplefilter("always")  # as Feast does when it is imported
for file in FILES: exec(compile("import warnings; warnings.warn('odd', DeprecationWarning)", file, "exec"))
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_warnings_about_our_code_and_a_projects_are_told_and_those_about_libraries_are_not(form: str) -> None:
    ours = said(WARNS.replace("FILES", "(log.__file__, '/shop/events.py')"), form)
    of_libraries = said(WARNS.replace("FILES", "(json.__file__, pydantic.__file__, 'sys')"), form)

    assert ours.count("DeprecationWarning: odd") == 2
    assert of_libraries == ""


def test_our_own_events_do_not_wait_behind_what_others_print() -> None:
    program = "import os\nwith log.strays():\n  os.write(2, b'stray')\n  LOG.info('ours'); os._exit(0)"

    assert {"message": "ours"}.items() <= events(program)[0].items()


def test_why_a_process_ends_is_known_by_either_form() -> None:
    program = "LOG.error('it is down', extra={'exit_code': 5})"

    assert said(program, "text") == "freshet: it is down\n"
    for form in ("text", "json"):
        heard = f"from sys import stderr; stderr.write(log.ending({said(program, form)!r}.encode()))"
        assert "it is down" == said(heard)
    assert "" == said("from sys import stderr; stderr.write(log.ending(b'2026 INFO x'))")
