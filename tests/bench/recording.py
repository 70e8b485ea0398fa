"""What benches share: results as lines of JSON, the page beside them, on what they ran, who takes turns, and their words."""

import argparse
import importlib.metadata
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from freshet.schemas.errors import FreshetError

N = TypeVar("N", int, float)
Note = Callable[[dict[str, Any]], None]


def record(
    words: argparse.Namespace, report: Callable[[list[dict[str, Any]]], str], run: Callable[[Note], int | None]
) -> int:
    """Run a bench that notes lines, and make the page of all that is recorded, whatever became of it; return its code.

    `words` has `results`, where the page goes, and `append`, without which what was recorded before is dropped.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this
    recorded: Path = words.results.with_suffix(".jsonl")
    if not words.append:
        recorded.unlink(missing_ok=True)

    def note(line: dict[str, Any]) -> None:
        with recorded.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    try:
        return run(note) or 0
    except FreshetError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if recorded.exists():
            page = report([json.loads(line) for line in recorded.read_text(encoding="utf-8").splitlines()])
            words.results.write_text(page, encoding="utf-8")
            print(page)


def versions(packages: Iterable[str], *parts: str) -> str:
    """Return what is measured: our commit, Python, other parts, packages."""
    asked = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    commit, python = said.stdout.strip() or "unknown", sys.version.split()[0]
    found = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return ", ".join([f"commit {commit}", f"Python {python}", *parts, *found])


def head(title: str, bench: str, runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what a page begins with."""
    told = (f"- {run['date']}, {run['host']}; {run['versions']}; {run['settings']}" for run in runs)
    return [f"# {title}", "", f"By `./scripts/bench {bench}`; its --help says what is measured.", "", *told]


def in_turn(systems: Sequence[str], repeat: int) -> list[str]:
    """Return systems in the order of one repeat: another one begins each time, so that a noisy machine hits all alike.

    >>> [in_turn(["a", "b"], repeat) for repeat in (0, 1, 2)]
    [['a', 'b'], ['b', 'a'], ['a', 'b']]
    """
    first = repeat % len(systems)
    return [*systems[first:], *systems[:first]]


def numbers(kind: type[N]) -> Callable[[str], list[N]]:
    """Return what reads numbers with commas between."""
    return lambda text: [kind(word) for word in text.split(",")]


def among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads names with commas between, each of which is known."""
    all_known = list(known)

    def read(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(all_known):
            there = ", ".join(all_known)
            raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}; there is {there}")
        return found

    return read
