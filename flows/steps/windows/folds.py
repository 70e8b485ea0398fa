"""The fold of a monoid over any runs of a segment.

Two mechanisms serve every monoid. Where it has an inverse (integers under addition), the fold of a run is the
difference of two running sums, exact because integers are. Where it has none (minimum, maximum), it is folded over
panes: a pane of level k holds the fold of 32**k neighbouring positions, so a range is at most 62 positions a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from freshet.flows.steps.windows.segments import Changed, Column, Ints, Segments, distinct, ranges, running_before

_PANE = 32
_SHORT = 2 * _PANE


@dataclass(frozen=True)
class Spans:
    """The positions that each frame holds: one run [low, high) a frame, or several, in order of time.

    `starts` is where each frame's segment starts.
    """

    segments: Segments
    starts: Ints
    runs: tuple[tuple[Ints, Ints], ...]
    _sums: dict[str, Ints] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.starts)

    def sum(self, column: str) -> Ints:
        """Return the sum over each frame; what stands beside the column is summed with it, and kept."""
        if column not in self._sums:
            names, running = self.segments.summed(column)
            (total, *more) = (self._over(running, low, high) for low, high in self.runs)
            for others in more:
                total += others
            total.flags.writeable = False  # each column is given to whoever asks for it
            self._sums.update(zip(names, total.T, strict=True))
        return self._sums[column]

    def _over(self, running: npt.NDArray[np.int64], low: Ints, high: Ints) -> npt.NDArray[np.int64]:
        total = running.take(np.maximum(high - 1, 0), axis=0)
        total -= running_before(running, low, self.starts)
        total[high <= low] = 0
        return total


class SumFold:
    """Sums of one column of whole numbers, of which the segments keep the running sums."""

    def __init__(self, column: str) -> None:
        self.column = column

    def fold(self, spans: Spans) -> Ints:
        """Return the sum over each frame, if that lies in int64; 0 for an empty one."""
        return spans.sum(self.column)

    def first(self, spans: Spans) -> Ints:
        """Return the first position of each frame whose value is not 0, values being counts; -1 if there is none."""
        found = np.full(len(spans), -1)
        for low, high in reversed(spans.runs):
            target = self._before(spans, low) + 1
            found = np.where(self._some(spans, low, high), self._search(spans, low, high, target), found)
        return found

    def last(self, spans: Spans) -> Ints:
        """Return the last such position."""
        found = np.full(len(spans), -1)
        for low, high in spans.runs:
            target = self._before(spans, high)
            found = np.where(self._some(spans, low, high), self._search(spans, low, high, target), found)
        return found

    def _before(self, spans: Spans, positions: Ints) -> Ints:
        return running_before(spans.segments.columns[self.column], positions, spans.starts)

    def _some(self, spans: Spans, low: Ints, high: Ints) -> npt.NDArray[np.bool_]:
        return (high > low) & (self._before(spans, high) > self._before(spans, low))

    def _search(self, spans: Spans, low: Ints, high: Ints, target: Ints) -> Ints:
        return spans.segments.search(self.column, low, high, target)


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
            at = distinct(ranges(low, high - low))
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
