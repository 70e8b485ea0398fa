"""Python's garbage collector, kept from looking through what never goes."""

import contextlib
import gc
from collections.abc import Iterator

_NEW_OBJECTS = 50_000
"""A poll of thousands of messages makes tens of thousands of objects, which all go at once, without the collector."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Have the collector leave alone what there is by now, and look less often at what is new.

    To look through all that libraries have made, of which nothing ever goes, is a pause of 50 ms, and takes a tenth of
    what a batch costs.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()  # else the interpreter ends with DuckDB's objects alive


@contextlib.contextmanager
def undisturbed_by_imports() -> Iterator[None]:
    """Have the collector look at nothing meanwhile, and never at what there is then: a fifth of an import's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
