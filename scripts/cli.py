"""The `freshet` command.

Exit codes: 0 success, 1 a finding, 2 wrong use or declaration, 3 inconclusive, 4 the validator itself failed, 5 an
outside system is unavailable; 130 and 141 as shells have them. A user's mistake never shows a traceback.
"""

import argparse
import atexit
import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from freshet.flows.edges import collector, log
from freshet.schemas.errors import FreshetError, Problem, Refused, RejectLimit, Unavailable

if TYPE_CHECKING:
    from freshet.flows.settings import Settings

LOG = logging.getLogger("freshet")

_CUT_OFF = 141
"""What a shell says of a command that SIGPIPE ended: its reader wanted no more, so what it had found is not known."""

VERBS = {
    "init": "make a new project: declaration, event contract, samples",
    "plan": "read the declaration and print the deployment it becomes",
    "apply": "make it so: topics, Feast registry, stores, deploy/ files",
    "backfill": "make rows of features in force anew from the archived events",
    "run": "run a long process: materializer, validator, server",
    "check": "compare both stores and the freshness once",
    "explain": "say why a feature has its value: the events in its frame, and those left out",
    "status": "say how the deployment does: lag, freshness, findings",
    "produce": "publish events, checked against their contract",
    "repair": "write the newest offline rows to the online store again",
    "compact": "merge small parquet files while everything goes on; drop what is old",
    "purge": "erase an entity from stores, archive and state; say what Kafka still holds",
    "dlq": "list the events that were not accepted; send them again",
    "replay": "run the same dataflow over a file of events, without broker and store",
    "schema": "check how event contracts evolved; write their snapshots; export them",
    "demo": "everything at once on embedded parts",
}


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the command's parser; the verb that is asked for brings its arguments, and `run`, which takes them."""
    top = argparse.ArgumentParser(prog="freshet", description="Declare features in SQL; keep them fresh.")
    top.add_argument("-C", dest="project", metavar="DIR", help="the project's folder (default: FRESHET_PROJECT, or .)")
    top.add_argument(
        "--set",
        dest="settings",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting, in place of its variable or the settings file: --set epoch=2s, --set kafka.linger.ms=5",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        words = verbs.add_parser(verb, help=summary)
        if verb in argv:  # what they import is slow
            module = importlib.import_module(f"freshet.scripts.{verb}")
            words.description = module.__doc__
            module.arguments(words)
            words.set_defaults(act=module.act)
    return top


def command() -> NoReturn:
    """Run one verb as this process.

    Once what was imported for it has tidied up, it ends at once: Python's own end takes a quarter of a second to take
    apart what there is.
    """
    code: object = 1  # of an exception that nobody catches
    atexit.register(lambda: end(code if isinstance(code, int) else 1))  # the first to ask is the last to be called
    try:
        with collector.undisturbed_by_imports():
            words = read(sys.argv[1:])
        code = run(words)
    except SystemExit as ending:
        code = ending.code or 0
        raise
    except KeyboardInterrupt:  # while it imports
        code = 130
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    return run(read(argv))


def read(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command's words, and import what its verb needs; a mistake in them ends the process with exit code 2."""
    if "run" in argv:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)  # until the flow listens itself: nothing is begun yet
    return parser(argv).parse_args(argv)


def run(words: argparse.Namespace) -> int:
    """Run the verb of a command that was read; returns the exit code."""
    from freshet.flows import settings as settings_  # noqa: PLC0415  # slow, and --help needs none

    act: Callable[[argparse.Namespace, Settings], int] = words.act
    process = getattr(words, "process", words.verb)
    log.begin(os.environ.get("FRESHET_LOG", "text"), process)  # what is wrong with the settings is an event, too
    code = _CUT_OFF
    try:
        settings = settings_.read(os.environ, _flags(words))
        log.begin(settings.log, process)
        code = act(words, settings)
        if sys.stdout is not None:  # it is None where it was closed before
            sys.stdout.flush()
    except FreshetError as error:
        return complain(error)
    except BrokenPipeError:  # the reader of our output went away, before the verb was done or after
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return code


def end(code: int) -> NoReturn:
    """End this process at once.

    Python's own end would let DuckDB print, after all that we said, what an exception or a thread still holds; and
    abort where threads of Bytewax's wait for processes that are gone. What cannot be written any more, nobody reads.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)


def _flags(words: argparse.Namespace) -> dict[str, str]:
    """Return the settings that stand among the command's words."""
    flags = {} if words.project is None else {"project": words.project}
    for said in words.settings:
        name, is_, value = said.partition("=")
        if not is_:
            raise wrong_use("--set", f"is given {name}", "write --set NAME=VALUE")
        flags[name] = value
    return flags


def _leave(*_: object) -> None:
    """End at once, and well. An exception would be DuckDB's to make something else of, if it is at work."""
    os._exit(0)


def complain(error: FreshetError) -> int:
    """Say what is wrong, and return the exit code that says it to scripts."""
    code = _exit_code(error)
    for line in str(error).splitlines():
        LOG.error("%s", line, extra={"exit_code": code})
    return code


def _exit_code(error: FreshetError) -> int:
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


def time_of(flag: str, text: str) -> datetime:
    """Read the time that a flag is given; one without a zone is in UTC. Raises `Refused`."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise wrong_use(flag, f"is {text}", "write a time such as 2026-03-01T12:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


if __name__ == "__main__":
    command()
