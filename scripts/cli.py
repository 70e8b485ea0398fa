"""The `freshet` command.

Exit codes: 0 success, 1 a finding, 2 wrong use or declaration, 3 inconclusive, 4 the validator itself failed, 5 an
outside system is unavailable. A user's mistake never shows a traceback.
"""

import argparse
import dataclasses
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from freshet.flows import settings as settings_
from freshet.flows.settings import Settings
from freshet.schemas.errors import FreshetError, Problem, Refused, RejectLimit, Unavailable

VERBS = {
    "init": "make a new project: declaration, event contract, samples",
    "plan": "read the declaration and print the deployment it becomes",
    "apply": "make it so: topics, Feast registry, stores, deploy/ files",
    "run": "run a long process: materializer, validator",
    "check": "compare both stores and the freshness once",
    "status": "say how the deployment does: lag, freshness, findings",
    "produce": "publish events, checked against their contract",
    "repair": "write the newest offline rows to the online store again",
    "dlq": "list the events that were not accepted; send them again",
    "replay": "run the same dataflow over a file of events, without broker and store",
    "demo": "everything at once on embedded parts",
}


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the command's parser; the verb that is asked for brings its arguments, and `run`, which takes them."""
    top = argparse.ArgumentParser(prog="freshet", description="Declare features in SQL; keep them fresh.")
    top.add_argument("-C", dest="project", metavar="DIR", help="the project's folder (default: FRESHET_PROJECT, or .)")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        words = verbs.add_parser(verb, help=summary)
        if verb in argv:  # what they import is slow
            module = importlib.import_module(f"freshet.scripts.{verb}")
            words.description = module.__doc__
            module.arguments(words)
            words.set_defaults(act=module.act)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if "run" in argv:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)  # until the flow listens itself: nothing is begun yet
    words = parser(argv).parse_args(argv)
    act: Callable[[argparse.Namespace, Settings], int] = words.act
    try:
        settings = settings_.read(os.environ)
        if words.project is not None:
            settings = dataclasses.replace(settings, project=Path(words.project))
        _log(settings)
        return act(words, settings)
    except FreshetError as error:
        return complain(error)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _leave(*_: object) -> None:
    """End at once, and well. An exception would be DuckDB's to make something else of, if it is at work."""
    os._exit(0)


def complain(error: FreshetError) -> int:
    """Say what is wrong, and return the exit code that says it to scripts."""
    for line in str(error).splitlines():
        print(f"freshet: {line}", file=sys.stderr)
    match error:
        case Refused():
            return 2
        case Unavailable():
            return 5
        case RejectLimit():
            return 1
    raise AssertionError(f"an error without an exit code: {type(error).__name__}")


def wrong_use(what: str, fact: str, hint: str) -> Refused:
    """Return the refusal of an argument."""
    return Refused([Problem("argument", what, fact, hint=hint)])


def _log(settings: Settings) -> None:
    form = "%(asctime)s %(levelname)-7s %(message)s"
    if settings.log == "json":
        form = '{"time":"%(asctime)s","level":"%(levelname)s","logger":"%(name)s","message":%(message)r}'
    for name, level in (("", logging.ERROR), ("freshet", logging.INFO)):  # libraries talk about themselves below ERROR
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(form))
        handler.setLevel(level)
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
