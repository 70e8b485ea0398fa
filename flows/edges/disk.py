"""The disk: files replaced as a whole and durably, for the edges that keep files."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

_LOOK_AGAIN_S = 0.02


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


def lock(path: Path, wait_s: float = 0.0) -> IO[bytes] | None:
    """Hold a lock file until it is closed, or its process ends; None if another process holds it for so long.

    Raises OSError.
    """
    held = path.open("ab")
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                held.close()
                return None
            time.sleep(_LOOK_AGAIN_S)
        else:
            return held
