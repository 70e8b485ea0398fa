"""Tables that share their memory with others: cut off without a copy, pickled without what they were cut from."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa


class Sliced:
    """A record with tables; pickled, for another process, each leaves behind what it shares its memory with.

    A dataclass with this base has the tables in its fields, or in mappings there.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the same record is made, of copies."""
        return type(self), tuple(_alone(getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]  # one is


def _alone(value: Any) -> Any:
    """Return a table by itself: a slice, pickled as it is, takes all rows along."""
    if isinstance(value, pa.Table):
        return value.take(pa.array(np.arange(value.num_rows)))
    return {name: _alone(own) for name, own in value.items()} if isinstance(value, Mapping) else value
