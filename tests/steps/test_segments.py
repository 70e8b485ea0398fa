"""Segments keep each entity's events in order, whatever moves meanwhile, and take no more room than some times what they hold."""

import os
import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.flows.steps.windows.segments import OFFSET, PARTITION, TIME, Column, Columns, Ints, Segments, ranges

SOAK = int(os.environ.get("FRESHET_SOAK") or 1)
SUMS = [f"sum{number}" for number in range(9)]


def made() -> Segments:
    return Segments({"what": np.dtype(object), "half": np.dtype(np.float64)}, SUMS)


def inserted(segments: Segments, events: list[tuple[str, int, int]]) -> None:
    """Put in events of entities, with their times, numbered as they come."""
    columns: dict[str, Column] = {
        TIME: np.array([time for _, time, _ in events]),
        PARTITION: np.zeros(len(events), np.int32),
        OFFSET: np.array([number for _, _, number in events]),
        "what": np.array([f"{entity} {number}" for entity, _, number in events], object),
        "half": np.array([number / 2 for _, _, number in events]),
        **{name: np.full(len(events), times, np.int64) for times, name in enumerate(SUMS, 1)},
    }
    segments.insert(segments.slots_of([entity for entity, _, _ in events]), columns)


def first_half_of_each(columns: Columns, firsts: Ints) -> Mapping[str, Column]:
    return {"half": columns["half"][firsts]}


def swept(segments: Segments, most: int, since: int) -> bool:
    """Sweep some segments: of the events before a time all go but the last, which counts them; say whether it is over."""
    slots = segments.next_swept(most)
    if not len(slots):
        return True
    lengths = segments.end[slots] - segments.start[slots]
    at, owners = ranges(segments.start[slots], lengths), np.repeat(slots, lengths)
    old = segments.time[at] < since
    begins = np.append(True, owners[1:] != owners[:-1]) | ~old | np.append(False, ~old[:-1])  # numpy takes values
    segments.replace(slots, at, owners, np.flatnonzero(begins), first_half_of_each)
    return False


@given(
    times=st.lists(st.integers(0, 50), min_size=1, max_size=60).map(sorted),
    asked=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(-1, 51)), min_size=1, max_size=8),
    times_asked=st.sampled_from([1, 40]),
)
def test_a_search_finds_where_a_target_would_stand_however_many_are_searched(
    times: list[int], asked: list[tuple[int, int, int]], times_asked: int
) -> None:
    segments, queries = made(), asked * times_asked
    inserted(segments, [("ada", time, number) for number, time in enumerate(times)])
    bounds = [sorted((min(one, len(times)), min(other, len(times)))) for one, other, _ in queries]
    low, high = (np.array(column) for column in zip(*bounds, strict=True))

    found = segments.search(TIME, low, high, np.array([target for _, _, target in queries]))

    for at, (start, end), (_, _, target) in zip(found.tolist(), bounds, queries, strict=True):
        assert start <= at <= end
        assert all(time < target for time in times[start:at])
        assert all(time >= target for time in times[at:end])


def held(segments: Segments) -> dict[object, list[tuple[int, str, float, *tuple[int, ...]]]]:
    found = {}
    for key, slot in segments.slots.items():
        at = np.arange(segments.start[slot], segments.end[slot])
        columns = segments.elements(at, np.full(len(at), slot))
        found[key] = [*zip(*(columns[name].tolist() for name in (TIME, "what", "half", *SUMS)), strict=True)]
    return found


@settings(max_examples=100 * SOAK)
@given(st.data())
def test_whatever_is_inserted_while_sweeps_go_on_stands_in_order_and_nothing_is_lost(data: st.DataObject) -> None:
    segments, events, told, since = (
        made(),
        dict[str, list[tuple[int, int]]](),
        0,
        0,
    )
    for _ in range(data.draw(st.integers(1, 12))):
        new = data.draw(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5)), max_size=40))
        batch = [(entity, since + ahead, told + number) for number, (entity, ahead) in enumerate(new)]
        told += len(batch)
        if batch:
            inserted(segments, batch)
        for entity, time, number in batch:
            events.setdefault(entity, []).append((time, number))
        for most in data.draw(st.lists(st.integers(1, 50), max_size=4)):
            swept(segments, most, since)
        since += data.draw(st.integers(0, 3))

    found = held(segments)

    assert found.keys() == events.keys()
    for entity, own in events.items():
        own.sort()
        elements = found[entity]
        counts = np.array([count for _, _, _, count, *_ in elements])
        ends = np.cumsum(counts).tolist()
        assert ends[-1] == len(own)
        assert elements == [
            (own[end - 1][0], f"{entity} {own[end - 1][1]}", own[end - count][1] / 2, *(count * times for times in range(1, 10)))
            for end, count in zip(ends, counts.tolist(), strict=True)
        ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 64, 5000])
def test_columns_are_no_longer_than_some_times_what_stands_in_them(most: int) -> None:
    segments, chance, told = (
        made(),
        np.random.default_rng(7),
        0,
    )
    for since in range(120):
        entities = (chance.zipf(1.3, 150) % 500).tolist()
        inserted(segments, [(f"{entity}", since, told + number) for number, entity in enumerate(entities)])
        told += len(entities)
        for _ in range(max(1, 600 // most) if segments.sweeps or segments.taken > 2 * segments.settled else 0):
            swept(segments, most, since)
        assert segments.used < 12 * (segments.live + 500)


@pytest.mark.parametrize("most", [64, 5000])
def test_columns_are_cut_once_most_of_what_was_in_them_is_forgotten(most: int) -> None:
    segments = made()
    inserted(segments, [(f"{number % 100}", number, number) for number in range(50_000)])
    for _ in range(4):
        while not swept(segments, most, 50_000):
            pass
        inserted(segments, [("new", 50_000, 50_000)])

    assert segments.live < 300
    assert segments.used < 3000
    assert all(len(column) < 10_000 for column in segments.columns.values())


def test_no_more_than_the_columns_of_one_block_grow_before_they_must() -> None:
    segments = made()
    for number in range(20_000):
        before = {name: len(column) for name, column in segments.columns.items()}
        inserted(segments, [(f"{number}", number, number)])
        grown = [name for name, column in segments.columns.items() if len(column) > before[name] >= segments.used]
        assert {*grown} <= {*SUMS[:8]} or len(grown) <= 1


def test_columns_of_numbers_grow_where_they_lie() -> None:
    segments = made()
    inserted(segments, [(f"{number}", number, number) for number in range(20_000)])
    tracemalloc.start()
    copied_bytes = []
    for number in range(20_000, 24_000):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        length = len(segments.columns[SUMS[0]])
        inserted(segments, [(f"{number}", number, number)])
        after, peak = tracemalloc.get_traced_memory()
        if len(segments.columns[SUMS[0]]) > length:
            copied_bytes.append(peak - max(before, after))
    tracemalloc.stop()

    assert copied_bytes
    assert max(copied_bytes) < 8 * 20_000


def test_a_column_that_somebody_looks_at_stays_as_it_was_while_there_come_to_be_more_events() -> None:
    segments = made()
    inserted(segments, [("ada", 7, 0)])
    looked_at = {name: column[:1] for name, column in segments.columns.items()}

    inserted(segments, [(f"{number}", number, number) for number in range(1, 10_000)])

    assert (looked_at[TIME].tolist(), looked_at["what"].tolist(), looked_at["sum3"].tolist()) == ([7], ["ada 0"], [4])
    assert held(segments)["ada"] == [(7, "ada 0", 0.0, *range(1, 10))]


def test_entities_with_nothing_left_make_room_for_others() -> None:
    segments = made()
    inserted(segments, [(f"{number}", number, number) for number in range(100)])
    slots = segments.next_swept(1000)
    assert len(slots) == 100
    nothing = np.zeros(0, np.int64)

    segments.replace(slots, nothing, nothing, nothing, first_half_of_each)

    assert swept(segments, 1, 0)
    assert (len(segments.slots), segments.live, segments.used) == (0, 0, 0)
    inserted(segments, [("new", 1, 1)])
    assert held(segments) == {"new": [(1, "new 1", 0.5, *range(1, 10))]}
    assert len(segments.keys) == 100


def test_what_was_forgotten_is_referred_to_by_nothing() -> None:
    segments = made()
    inserted(segments, [(name, time, time) for time in range(1000) for name in ("ada", "bob", "eve")])
    left = {f"{name} 999" for name in ("ada", "bob", "eve")}

    for _ in range(2):
        while not swept(segments, 1, 1000):
            pass

    assert {what for of in held(segments).values() for _, what, *_ in of} == left
    assert {what for what in segments.columns["what"].tolist() if what} == left
