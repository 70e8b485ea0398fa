"""A shadow says how rows would differ as the rows of two flows do, over the end of the archive, however long it is."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_changes_law import edits
from test_semantics_law import CHECKS, DAY_US, SOAK, Logs, cases, message, play, span, streams

from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.shadow import Shadow, Shadowed
from freshet.flows.steps.changes import Change, Compiled, changes_between
from freshet.flows.testing import Given, Run, microseconds
from freshet.schemas.declaration import read
from freshet.schemas.event import EVENT_TIME, Event, archive_name

pytestmark = pytest.mark.timeout(3_000)  # many examples, each of several runs


def counting(length_us: int, *more: Mapping[str, Any], entity: str = "device", **keys: Any) -> str:
    """`hits` counts the readings of a device, or something else, in a sliding window without ticks."""
    frame = f"RANGE BETWEEN {span(length_us)} PRECEDING AND CURRENT ROW"
    sql = f"count(*) OVER (PARTITION BY {entity} ORDER BY event_timestamp {frame})"
    one = {"name": "hits", "dtype": "int64", "source": "readings", "transformation": sql, "decay": "off", "view": "v"}
    return json.dumps({"featureDefinitions": [one | keys, *more], "servingRequirements": {}})


class Recording(MemoryOfflineStore):
    """An archive that knows which of its parts were read."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        chosen = [*parts]
        self.opened += chosen
        return super().read_parts(name, chosen, columns)


def archived(features: Given, *parts: Sequence[bytes]) -> Recording:
    """An archive, with a part for each of these lists of messages."""
    store = Recording()
    for name, known in features.contracts.items():
        store.prepare(archive_name(name), known.schema)
    for messages in parts:
        run = play(features, {("readings", 0): messages}, (1, []), 0)
        store.append(archive_name("readings"), run.events("readings"))
    return store


def shadows(
    before: str, after: str, store: MemoryOfflineStore, length_us: int, events_max: int = 10_000
) -> list[tuple[str, Shadowed | None]]:
    models = {"readings": streams(DAY_US, None, None)["readings"]}
    old, new = Given.declared(before, models), Given.declared(after, models)
    found = changes(before, old, after, new)
    return [*Shadow(old.pipeline, new.pipeline, new.contracts, store, length_us, events_max).look(found)]


def changes(before: str, old: Given, after: str, new: Given) -> tuple[Change, ...]:
    return changes_between(
        Compiled(read(before).declaration, old.pipeline), Compiled(read(after).declaration, new.pipeline)
    )


READINGS = {"readings": streams(DAY_US, None, None)["readings"]}
HITS = Given.declared(counting(5), READINGS)


def test_values_are_compared_in_the_span_alone_and_know_what_was_before_it() -> None:
    store = archived(HITS, [message(at) for at in (0, 4, 8)], [message(at) for at in (10, 12)])

    [(view, found)] = shadows(counting(5), counting(9), store, length_us=3)

    assert view == "v"
    assert found is not None
    assert found.differences is not None
    assert (found.start_us, found.end_us, found.events_count, found.differences.rows_count) == (9, 12, 2, 2)
    [hits] = found.differences.features
    assert [(one.before, one.after) for one in hits.examples] == [(2, 3), (3, 4)]
    assert found.before is not None
    assert found.before.rows_per_event == found.after.rows_per_event == 1.0


def test_a_view_that_does_not_change_is_not_looked_at() -> None:
    store = archived(HITS, [message(0)])

    assert shadows(counting(5), counting(5, description="hits!"), store, 10) == []


def test_a_view_that_is_new_has_nothing_to_be_compared_with() -> None:
    store = archived(HITS, [message(0), message(2)])
    other = {"name": "last", "dtype": "string", "source": "readings", "transformation": "word", "view": "other"}

    [(view, found)] = shadows(counting(5), counting(5, other), store, 10)

    assert view == "other"
    assert found is not None
    assert (found.before, found.differences, found.after.rows_per_event, found.oldest_us) == (None, None, 1.0, 0)


def test_another_entity_is_costed_and_not_compared() -> None:
    store = archived(HITS, [message(0, site="x"), message(2, site="y")])

    [(_, found)] = shadows(counting(5), counting(5, entity="site"), store, 10)

    assert found is not None
    assert found.before is not None
    assert found.differences is None


def test_a_renamed_feature_is_compared_with_the_one_it_was() -> None:
    store = archived(HITS, [message(0), message(2)])

    [(_, found)] = shadows(counting(5), counting(5, name="visits"), store, 10)

    assert found is not None
    assert found.differences is not None
    assert [(one.feature, one.was, one.differing_count) for one in found.differences.features] == [
        ("visits", "hits", 0)
    ]


def test_of_an_empty_archive_nothing_can_be_said() -> None:
    assert shadows(counting(5), counting(6), archived(HITS), 10) == [("v", None)]


def test_of_many_events_only_those_of_some_entities_are_taken_and_all_of_theirs() -> None:
    devices = [f"d{number}" for number in range(64)]
    store = archived(HITS, [message(at, device=device) for at in (0, 2) for device in devices])

    [(_, found)] = shadows(counting(5), counting(1), store, 10, events_max=32)

    assert found is not None
    assert found.differences is not None
    assert found.share == 4
    assert 0 < found.events_count < 128
    assert found.events_count % 2 == 0
    [hits] = found.differences.features
    assert (hits.rows_count, hits.differing_count) == (found.events_count, found.events_count // 2)


def test_a_part_that_is_older_than_all_that_matters_is_not_read() -> None:
    store = archived(HITS, [message(0)], [message(1_000)])

    shadows(counting(5), counting(6), store, 10)

    assert store.opened == store.visible_parts(archive_name("readings"))[-1:]


def test_events_on_which_the_new_declaration_fails_are_counted_and_left_out() -> None:
    store = archived(HITS, [message(0, word="7"), message(1, word="seven"), message(2, word="8")])
    cast = {
        "name": "number",
        "dtype": "int64",
        "source": "readings",
        "transformation": "CAST(word AS BIGINT)",
        "view": "v",
    }

    [(_, found)] = shadows(counting(5), counting(5, cast), store, 10)

    assert found is not None
    assert found.after.failed_count == 1
    assert "number" in found.after.failure
    assert "seven" in found.after.failure


@settings(max_examples=20 if SOAK == 1 else 40 * SOAK, suppress_health_check=CHECKS)
@given(cases(), st.data(), st.integers(1, 30))
def test_a_shadow_says_what_the_rows_of_two_flows_say(
    case: tuple[str, dict[str, type[Event]], int, list[Logs]], data: st.DataObject, length: int
) -> None:
    before, models, scale, found = case
    after = data.draw(edits(before))
    old, new = Given.declared(before, models), Given.declared(after, models)
    edited = changes(before, old, after, new)
    for messages in found:
        times = [microseconds(json.loads(value)["at"]) for values in messages.values() for value in values]
        runs = [play(features, messages, (1, []), max(times, default=0), scale) for features in (old, new)]
        events = {name: runs[0].events(name) for name in models}
        if any(events[name] != runs[1].events(name) for name in models) or not any(map(len, events.values())):
            event("an expression rejects events of one, or all are")
            continue
        store = MemoryOfflineStore()
        for name, table in events.items():
            store.prepare(archive_name(name), table.schema)
            store.append(archive_name(name), table)
        shadow = Shadow(old.pipeline, new.pipeline, new.contracts, store, length * scale)
        for view, told in shadow.look(edited):
            assert told is not None
            event("a view is compared" if told.differences else "a view is not compared")
            if told.differences:
                _same(told, *(_rows(run, view, told) for run in runs), entity=new.pipeline.plan(view).view.entity_names)


def _rows(run: Run, view: str, told: Shadowed) -> list[dict[str, Any]]:
    rows = run.final(view).to_pylist()
    return [row for row in rows if told.start_us <= microseconds(row[EVENT_TIME]) <= told.end_us]


def _same(told: Shadowed, old: list[dict[str, Any]], new: list[dict[str, Any]], *, entity: tuple[str, ...]) -> None:
    def by_key(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {(*(row[name] for name in entity), row[EVENT_TIME]): row for row in rows}

    made, were, now = told.differences, by_key(old), by_key(new)
    assert made is not None
    both = were.keys() & now.keys()
    assert (len(both), len(were) - len(both), len(now) - len(both)) == (
        made.rows_count, made.gone_count, made.come_count,
    )  # fmt: skip
    for one in made.features:
        differing = [key for key in both if were[key][one.was] != now[key][one.feature]]
        nulls = [key for key in differing if now[key][one.feature] is None]
        assert (len(differing), len(nulls)) == (one.differing_count, one.nulls_count)
