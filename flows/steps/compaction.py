"""What compaction does with a folder's parts: which stay as they are, and which become which new ones. Pure.

New parts do not overlap in event time: all versions of a row are in one, and whoever looks for a time opens one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from freshet.schemas.compaction import Kind, Sized, Slice

_POINTS_COUNT = 8
"""So many points in time stand for a part of the size that is wanted: its rows may lie anywhere between its times."""


@dataclass(frozen=True, slots=True)
class Merges:
    """What is to be done: the parts that stay as they are, and what the rows of all others become."""

    kept: tuple[str, ...]
    slices: tuple[Slice, ...]

    @property
    def are_needed(self) -> bool:
        """Whether that changes anything."""
        return bool(self.slices)


def merges(
    parts: Mapping[str, Sized], target_bytes: int, *, final: bool = False, oldest_kept: datetime | None = None
) -> Merges:
    """Say how to merge parts into some of about `target_bytes`, or nothing where that would change little.

    With `final` only the final versions of rows are to stay, and with `oldest_kept` only rows from that time on, with
    what holds then. A part is kept as it is if it is large enough and nothing is dropped from it.

    >>> from datetime import timedelta
    >>> def part(hour: int, bytes_count: int, kind: Kind | None = None) -> Sized:
    ...     begin = datetime(2026, 1, 1, hour)
    ...     return Sized(10, bytes_count, begin, begin + timedelta(minutes=59), kind)
    >>> some = {"a": part(1, 90, Kind.ALL), "b": part(2, 30), "c": part(3, 40), "d": part(4, 45)}
    >>> merges(some, 100).are_needed  # three would become two
    False
    >>> found = merges({**some, "e": part(5, 20)}, 100)
    >>> found.kept, [(one.begin and one.begin.hour, one.end and one.end.hour, one.parts) for one in found.slices]
    (('a',), [(None, 4, ('b', 'c', 'd')), (4, None, ('d', 'e'))])
    >>> merges({"a": part(1, 90, Kind.ALL), "d": part(4, 45)}, 100).are_needed
    False
    >>> merges({"a": part(1, 90, Kind.ALL), "d": part(4, 45)}, 100, final=True).are_needed
    True
    """
    filled = {name: part for name, part in parts.items() if part.rows_count}
    stay = _stay(filled, target_bytes, final=final, oldest_kept=oldest_kept)
    rest = {name: part for name, part in filled.items() if name not in stay}
    slices = [*_carried(rest, oldest_kept)]
    begin = oldest_kept if slices else None
    young = {name: part for name, part in rest.items() if not _is_before(part, begin)}
    bounds = [begin, *_cuts(young, target_bytes, begin), None]
    slices += [Slice(*span, _within(young, *span)) for span in pairwise(bounds)]
    slices = [one for one in slices if one.parts]
    drops = any(_drops(one, rest, final=final) for one in slices)
    if not drops and 2 * len(slices) > len(rest):  # else the same would be done again and again, for little
        return Merges(tuple(parts), ())
    return Merges(tuple(stay), tuple(slices))


def _drops(one: Slice, parts: Mapping[str, Sized], *, final: bool) -> bool:
    """Say whether it may have fewer rows than what is there."""
    kinds = [parts[name].kind for name in one.parts]
    if one.carried:
        return kinds != [Kind.CARRIED]
    return final and any(kind not in (Kind.FINAL, Kind.CARRIED) for kind in kinds)


def _is_before(part: Sized, bound: datetime | None) -> bool:
    return bound is not None and part.newest is not None and part.newest < bound


def _stay(
    parts: Mapping[str, Sized], target_bytes: int, *, final: bool, oldest_kept: datetime | None
) -> dict[str, Sized]:
    """Return those that are large enough already, and of which nothing is to be dropped."""
    large = {
        name: part
        for name, part in parts.items()
        if 2 * part.bytes_count >= target_bytes
        and (oldest_kept is None or (part.oldest is not None and part.oldest >= oldest_kept))
        and (not final or part.kind is Kind.FINAL)
    }
    alone = _alone(parts) if final else {}
    return {name: part for name, part in large.items() if not final or name in alone}


def _alone(parts: Mapping[str, Sized]) -> set[str]:
    """Return those that share no instant with another."""
    timed = sorted((part.oldest, part.newest, name) for name, part in parts.items() if part.oldest and part.newest)
    if len(timed) < len(parts):
        return set()
    found, until = set(), None
    for place, (oldest, newest, name) in enumerate(timed):
        follows = timed[place + 1][0] if place + 1 < len(timed) else None
        if (until is None or until < oldest) and (follows is None or newest < follows):
            found.add(name)
        until = newest if until is None else max(until, newest)
    return found


def _carried(parts: Mapping[str, Sized], oldest_kept: datetime | None) -> Iterator[Slice]:
    if oldest_kept is None:
        return
    old = tuple(name for name, part in parts.items() if part.oldest is None or part.oldest < oldest_kept)
    if old:
        yield Slice(None, oldest_kept, old, carried=True)


def _cuts(parts: Mapping[str, Sized], target_bytes: int, begin: datetime | None) -> Iterator[datetime]:
    """Give the times between which about as many bytes lie as are wanted."""
    points = sorted(point for part in parts.values() for point in _points(part, target_bytes))
    waiting, last = 0.0, begin
    for at, bytes_count in points:
        if waiting and waiting + bytes_count > target_bytes and (last is None or at > last) and at > points[0][0]:
            yield at
            waiting, last = 0.0, at
        waiting += bytes_count


def _points(part: Sized, target_bytes: int) -> Sequence[tuple[datetime, float]]:
    if part.oldest is None or part.newest is None:
        return []
    count = max(1, -(-part.bytes_count * _POINTS_COUNT // max(target_bytes, 1)))
    step = (part.newest - part.oldest) / count
    return [(part.oldest + step * place, part.bytes_count / count) for place in range(count)]


def _within(parts: Mapping[str, Sized], begin: datetime | None, end: datetime | None) -> tuple[str, ...]:
    """Return the parts that may have rows there."""
    return tuple(
        name
        for name, part in parts.items()
        if not _is_before(part, begin) and (end is None or part.oldest is None or part.oldest < end)
    )
