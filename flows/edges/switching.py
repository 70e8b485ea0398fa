"""Python's threads: how soon one that has to wait for another is let run."""

import contextlib
import sys
from collections.abc import Iterator

_INTERVAL_S = 0.0005
"""A write of some hundred rows is sixteen answers to read; Python's own five milliseconds for each would add up."""


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """Have a thread that computes let another run that has just been answered, though it is not done."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
