"""The fold of a monoid over any runs of a segment.

Two mechanisms serve every monoid. Where it has an inverse (integers under addition), the fold of [l, r) is the
difference of two prefixes, exact because integers are. Where it has none (minimum, maximum), it is folded over panes: a
pane of level k holds the fold of 32**k neighbouring positions, so a range is at most 62 positions a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from freshet.flows.steps.windows.segments import Changed, Column, Ints, Segments, ranges

_PANE = 32
_SHORT = 2 * _PANE


@dataclass(frozen=True)
class Spans:
    """The positions that each frame holds: one run [low, high) a frame, or several, in order of time."""

    segments: Segments
    runs: tuple[tuple[Ints, Ints], ...]

    def __len__(self) -> int:
        return len(self.runs[0][0])

    @cached_property
    def bounds(self) -> list[tuple[Ints, Ints, npt.NDArray[np.bool_]]]:
        """The first and the last position of each run, and whether it has any; some position where it has none."""
        lasts = [np.maximum(high - 1, 0) for _, high in self.runs]
        return [(np.minimum(low, last), last, high > low) for (low, high), last in zip(self.runs, lasts, strict=True)]


class PrefixFold:
    """Sums of one integer column of the segments, modulo 2**64.

    A sum that lies in int64 is exact whatever the prefixes did on the way, since arithmetic modulo 2**64 is.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self.prefix_column = f"{column}.prefix"

    def columns(self) -> dict[str, np.dtype[np.generic]]:
        """The columns this fold keeps in the segments: the values and, before each, the sum of those before it."""
        return dict.fromkeys((self.column, self.prefix_column), np.dtype(np.int64))

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring the prefixes up to date after an insert."""
        column, prefix = self._of(segments)
        values = column[changed.at]
        base = np.where(changed.continues, prefix[changed.before] + column[changed.before], 0)
        running = np.cumsum(values) - values
        prefix[changed.at] = running + np.repeat(base - running[changed.firsts], changed.lengths)

    def _of(self, segments: Segments) -> tuple[Ints, Ints]:
        """Return the column, and the sums before each value."""
        return segments.columns[self.column], segments.columns[self.prefix_column]  # type: ignore[return-value]  # so declared

    def fold(self, spans: Spans) -> Ints:
        """Return the sum over each frame; 0 for an empty one."""
        column, prefix = self._of(spans.segments)
        (total, *more) = [(prefix[last] - prefix[first] + column[last]) * some for first, last, some in spans.bounds]
        for sums in more:
            total += sums
        return total

    def first(self, spans: Spans) -> Ints:
        """Return the first position of each frame whose value is not 0, values being counts; -1 if there is none."""
        found = np.full(len(spans), -1)
        for low, high in reversed(spans.runs):
            found = np.where(self._some(spans, low, high), self._search(spans, low, high, low, 1), found)
        return found

    def last(self, spans: Spans) -> Ints:
        """Return the last such position."""
        found = np.full(len(spans), -1)
        for low, high in spans.runs:
            found = np.where(self._some(spans, low, high), self._search(spans, low, high, high, 0), found)
        return found

    def _some(self, spans: Spans, low: Ints, high: Ints) -> npt.NDArray[np.bool_]:
        return self.fold(Spans(spans.segments, ((low, high),))) > 0

    def _search(self, spans: Spans, low: Ints, high: Ints, edge: Ints, more: int) -> Ints:
        """Return the last position in [low, high) with less before it than before `edge`, and `more`."""
        column, prefix = self._of(spans.segments)
        last = np.maximum(edge - 1, 0)
        target = np.where(edge > low, prefix[last] + column[last], prefix[np.minimum(low, len(prefix) - 1)])
        return spans.segments.search(self.prefix_column, low, high, target + more) - 1


class PaneFold:
    """Folds of one column of the segments under `combine`, an associative ufunc with `identity`."""

    def __init__(self, column: str, combine: np.ufunc, identity: object) -> None:
        self.column = column
        self.combine = combine
        self.identity = identity
        self.panes: list[Column] = []

    def columns(self, dtype: npt.DTypeLike) -> dict[str, np.dtype[np.generic]]:
        """The column this fold keeps in the segments."""
        return {self.column: np.dtype(dtype)}

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring the panes that hold changed positions up to date.

        A pane that reaches over the end of a segment holds nonsense; no range ever asks for it.
        """
        below, low, high = segments.columns[self.column], changed.written, changed.ends
        for level in range(64):
            if len(below) <= _SHORT:
                del self.panes[level:]
                return
            size = -(-len(below) // _PANE)
            if level == len(self.panes):
                self.panes.append(np.full(0, self.identity, below.dtype))
            panes = self.panes[level]
            if len(panes) != size:
                panes = np.full(size, self.identity, below.dtype)
                panes[: min(size, len(self.panes[level]))] = self.panes[level][:size]
                self.panes[level] = panes
            low, high = low // _PANE, -(-high // _PANE)
            at = np.unique(ranges(low, high - low))
            members = np.minimum(at[:, None] * _PANE + np.arange(_PANE), len(below) - 1)
            panes[at] = self.combine.reduce(below[members], axis=1)
            below = panes

    def fold(self, spans: Spans) -> Column:
        """Return the fold over each frame; the identity for an empty one."""
        levels = [spans.segments.columns[self.column], *self.panes]
        folded = self._fold(levels, *spans.runs[0])
        for low, high in spans.runs[1:]:
            folded = self.combine(folded, self._fold(levels, low, high))
        return folded

    def _fold(self, levels: Sequence[Column], low: Ints, high: Ints) -> Column:
        values = levels[0]
        long = high - low > _SHORT if len(levels) > 1 else np.zeros(len(low), np.bool_)
        if not long.any():
            return self._reduce(values, low, high)
        folded = np.full(len(low), self.identity, values.dtype)
        folded[~long] = self._reduce(values, low[~long], high[~long])
        low, high = low[long], high[long]
        first, last = -(-low // _PANE), high // _PANE
        left = self._reduce(values, low, first * _PANE)
        middle = self._fold(levels[1:], first, last)
        right = self._reduce(values, last * _PANE, high)
        folded[long] = self.combine(self.combine(left, middle), right)
        return folded

    def _reduce(self, values: Column, low: Ints, high: Ints) -> Column:
        """Fold each range position by position."""
        folded = np.full(len(low), self.identity, values.dtype)
        lengths = high - low
        some = lengths > 0
        if some.any():
            lengths = lengths[some]
            folded[some] = self.combine.reduceat(values[ranges(low[some], lengths)], np.cumsum(lengths) - lengths)
        return folded
