"""The disk: files replaced as a whole and durably, for the edges that keep files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def replace(path: Path, write: Callable[[IO[bytes]], object], owner: str = "") -> None:
    """Make `path` hold what `write` writes: all of it, on the disk, or what was there before.

    Half-written files are named `.<name>.<owner>.inprogress`, and deleted where that is possible. Raises OSError.
    """
    unfinished = path.with_name(f".{path.name.removeprefix('.')}.{owner}.inprogress")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make renames in a folder survive a loss of power. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
