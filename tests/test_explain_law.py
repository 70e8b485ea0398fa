"""What `freshet explain` says of events is true of every row of the law's generated cases: its events are the frame's.

The frame is computed anew, from the text of the declaration and by definition, event by event; nothing of ours is used
for that, nor DuckDB.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_semantics_law import ARRANGEMENTS, CHECKS, SOAK, Logs, Move, cases, play

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.recovery import MemoryLedger
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.explain import Explainer, Outside
from freshet.flows.steps import oracle
from freshet.flows.steps.explain import Explanation, Why, explain
from freshet.flows.testing import Given, Run, microseconds
from freshet.schemas.event import EVENT_TIME, Event, archive_name
from freshet.schemas.ledger import Ledger, ShardMark, source_key
from freshet.schemas.rejects import Origin, dead_letter_topic
from freshet.schemas.units import duration, spell

pytestmark = pytest.mark.timeout(3_000)  # many examples, each of several runs

Row = Mapping[str, Any]
Place = tuple[str, int, int]


# The frame by definition


@dataclass(frozen=True)
class Window:
    """One window as it is written: which condition FILTER has, and what stands between the brackets after OVER."""

    condition: str
    call: str
    body: str

    def members(self, events: Sequence[Row], at_us: int, definition: Row, over_us: int | None) -> tuple[list[int], ...]:
        """Return which events, by index, are between the frame's ends at an instant, which of them EXCLUDE leaves, and
        which of these FILTER lets through; `events` are in their order."""
        times = [microseconds(event[EVENT_TIME]) for event in events]
        current = sum(time <= at_us for time in times) - 1
        between = [index for index in self._between(times, current, at_us, definition, over_us) if index <= current]
        excluded = re.search(r"EXCLUDE (CURRENT ROW|TIES|GROUP)", self.body)
        gone = {
            "": set[int](),
            "CURRENT ROW": {current},
            "TIES": {index for index in between if times[index] == times[current] and index != current},
            "GROUP": {index for index in between if times[index] == times[current]},
        }[excluded[1] if excluded else ""]
        members = [index for index in between if index not in gone]
        return between, members, [index for index in members if CONDITIONS[self.condition](events, index)]

    def _between(
        self, times: Sequence[int], current: int, at_us: int, definition: Row, over_us: int | None
    ) -> Iterator[int]:
        if lagging := re.search(r"lag\(\w+(?:, (\d+))?", self.call):
            yield from (index for index in [current - int(lagging[1] or 1)] if index >= 0)
            return
        if bucket := re.search(r"time_bucket\(INTERVAL '(\d+) microseconds', event_timestamp(.*?)\) ORDER", self.body):
            width, origin = int(bucket[1]), microseconds("2000-01-03T00:00:00Z")
            if moved := re.search(r"INTERVAL '(\d+) microseconds'", bucket[2]):
                origin += int(moved[1])
            elif bucket[2]:
                origin = microseconds("2000-01-01T00:00:00.000001Z")
            begins = at_us - (at_us - origin) % width
            yield from (index for index, time in enumerate(times) if begins <= time <= at_us)
            return
        if rows := re.search(r"ROWS BETWEEN (\d+|UNBOUNDED) PRECEDING AND (CURRENT ROW|\d+)", self.body):
            first = 0 if rows[1] == "UNBOUNDED" else current - int(rows[1])
            last = current - (0 if rows[2] == "CURRENT ROW" else int(rows[2]))
            yield from range(max(0, first), last + 1)
            return
        frame = re.search(r"RANGE BETWEEN (.*?) PRECEDING AND (CURRENT ROW|INTERVAL '(\d+) microseconds')", self.body)
        length = over_us
        if frame and frame[1] != "UNBOUNDED":
            length = int(frame[1].split("'")[1].split()[0])
        ends = at_us - int((frame and frame[3]) or 0)
        step = int(definition.get("resolution", "1us")[:-2])
        begins = min(times, default=0) if length is None else (at_us - length) // step * step
        yield from (index for index, time in enumerate(times) if begins <= time <= ends)


def _gap(events: Sequence[Row], index: int) -> int | None:
    pair = [events[index].get("n"), events[index - 1].get("n") if index else None]
    return None if None in pair else pair[0] - pair[1]


CONDITIONS: dict[str, Callable[[Sequence[Row], int], bool]] = {
    "": lambda *_: True,
    "flag": lambda events, index: bool(events[index].get("flag")),
    "n > 0": lambda events, index: (events[index].get("n") or 0) > 0,
    "word IS NOT NULL": lambda events, index: events[index].get("word") is not None,
    "gap > 0": lambda events, index: (_gap(events, index) or 0) > 0,
}


def windows_in(sql: str) -> list[Window]:
    """Return the windows of a definition, each distinct one once, in the order in which they are written."""
    found = dict[Window, None]()
    for over in re.finditer(r" OVER \(", sql):
        depth, end = 1, over.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(sql[end], 0)
            end += 1
        before = sql[: over.start()]
        condition = re.search(r" FILTER \(WHERE ([^()]*)\)$", before)
        before = before[: condition.start()] if condition else before
        call = re.search(r"\w+\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)$", before)
        assert call is not None, before
        found.setdefault(Window(condition[1] if condition else "", call[0], sql[over.end() : end]))
    return list(found)


def ordered(run: Run, view: Any) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return each entity's accepted events in the stated order, and where each stands in Kafka as `place`."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    ranks: dict[Place, tuple[Any, ...]] = {}
    for number, name in enumerate(view.sources):
        told_by = run.given.contracts[name].stream.event_id
        for event in run.events(name).to_pylist():
            entity = tuple(event.get(column) for column in view.entity_names)
            place = (name, event["_partition"], event["_offset"])
            known = event.get(told_by) if told_by else None
            ranks[place] = (event[EVENT_TIME], known is None, (known or "").encode(), number, *place[1:])
            if None not in entity:
                found.setdefault(entity, []).append({**event, "place": place})
    return {entity: sorted(events, key=lambda one: ranks[one["place"]]) for entity, events in found.items()}


def declared(text: str) -> dict[str, tuple[Row, int | None]]:
    """Return each feature's definition, and the length that `over` gives it."""
    found: dict[str, tuple[Row, int | None]] = {}
    for one in json.loads(text)["featureDefinitions"]:
        for length in one.get("over", [None]):
            name = one["name"] if length is None else f"{one['name']}_{spell(duration(length))}"
            found[name] = one, None if length is None else int(length[:-2])
    return found


# What explain says


def deployed(run: Run, messages: Logs, until_us: int) -> Outside:
    """Return a deployment on twins in which a run has ended: all is committed."""
    given_, offline, ledger, log = run.given, MemoryOfflineStore(), MemoryLedger(), MemoryLog()
    online = MemoryOnlineStore("t", given_.pipeline.views)
    for name, contract in given_.contracts.items():
        offline.prepare(archive_name(name), contract.schema)
        offline.append(archive_name(name), run.events(name))
        count = max((place[1] for place in messages if place[0] == name), default=0) + 1
        log.create_topics({contract.stream.topic: count, dead_letter_topic(contract.stream.topic): count})
    for view in given_.pipeline.views:
        offline.prepare(view.name, view.row_schema)
        offline.append(view.name, run.versions(view.name))
        online.write(view, offline.newest(view))
    for (name, partition), values in messages.items():
        for value in values:
            log.append(run.given.contracts[name].stream.topic, partition, value)
    letters = log.dead_letters("g")
    letters.put(run.rejects)
    letters.flush()
    shards = {f"{view.name}/0": ShardMark(clock_us=until_us) for view in given_.pipeline.views}
    ends = {source_key(*place): len(values) for place, values in messages.items()}
    ledger.write(Ledger(id="a", epoch=1, shards_count=1, shards=shards, offsets=ends))
    return Outside(lambda: online, offline, ledger, lambda: log, lambda: datetime(2027, 1, 1, tzinfo=UTC))


def frames_are_the_definition_s(run: Run, text: str, until_us: int) -> None:
    """Of every row of every feature, the judge's lists are the frame by definition."""
    for plan in run.given.pipeline.plans:
        view, definitions = plan.view, declared(text)
        events = oracle.union_of([run.events(name) for name in view.sources])
        connection, _ = oracle._answered(plan, events, run.final(view.name), until_us)  # noqa: SLF001  # all rows at once
        by_entity = ordered(run, view)
        rows = run.final(view.name).to_pylist()
        for feature in view.features:
            definition, over_us = definitions[feature.name]
            seen = oracle._windows(connection, plan, plan.oracle.traces[feature.name], "true")  # noqa: SLF001
            windows = windows_in(definition["transformation"])
            assert len(seen) == len(rows)
            for row in rows:
                entity, at_us = tuple(row[name] for name in view.entity_names), microseconds(row[EVENT_TIME])
                newest, found = seen[*entity, at_us]
                own = by_entity[entity]
                assert newest == sum(microseconds(event[EVENT_TIME]) <= at_us for event in own)
                lists = [(one.between, one.members, one.counted) for one in found]
                expected = [window.members(own, at_us, definition, over_us) for window in windows]
                assert [tuple(tuple(index + 1 for index in part) for part in one) for one in expected] == lists, (
                    definition, entity, at_us
                )  # fmt: skip


def explanation_is_true(run: Run, told: Explanation, text: str) -> None:
    """The stores agree; events that count, and those that do not, are the ones by definition."""
    plan = run.given.pipeline.plan(told.view)
    definition, over_us = declared(text)[told.feature]
    entity, at_us = tuple(told.entity.values()), microseconds(told.at)
    own = ordered(run, plan.view)[entity]

    def origins(indices: Sequence[int]) -> list[Origin]:
        return [origin(run, own[index]["place"]) for index in indices]

    assert (told.findings, told.reasons, told.troubles, told.exit_code) == ((), (), {}, 0)
    assert told.offline is not None
    assert told.is_decay == (at_us not in {microseconds(event[EVENT_TIME]) for event in own})
    windows = windows_in(definition["transformation"])
    assert len(windows) == len(told.windows)
    for number, (window, seen) in enumerate(zip(windows, told.windows, strict=True), start=1):
        between, members, counted = window.members(own, at_us, definition, over_us)
        assert origins(counted) == [event.origin for event in seen.events]
        for why, indices in (
            (Why.EXCLUDED, set(between) - set(members)),
            (Why.FILTERED, set(members) - set(counted)),
        ):
            assert origins(sorted(indices)) == [
                one.origin for one in told.left if (one.why, one.window) == (why, number)
            ]
    accepted = {origin(run, event["place"]) for events in ordered(run, plan.view).values() for event in events}
    reasons = {reject.origin: reject.reason.value for reject in run.rejects}
    for one in told.left:
        is_repeated = one.origin not in accepted and one.origin not in reasons
        assert (one.why == Why.DUPLICATE) == is_repeated
        assert one.why == reasons.get(one.origin, one.why)
        assert one.why not in {Why.MISSING, Why.WAITING}


def origin(run: Run, place: Place) -> Origin:
    name, partition, offset = place
    return Origin(run.given.contracts[name].stream.topic, partition, offset)


@settings(max_examples=20 if SOAK == 1 else 100 * SOAK, suppress_health_check=CHECKS)
@given(cases(), ARRANGEMENTS, st.integers(0, 60), st.randoms(use_true_random=False))
def test_the_events_of_every_row_are_the_frame_s(
    case: tuple[str, dict[str, type[Event]], int, list[Logs]],
    arrangement: tuple[int, list[Move]],
    after: int,
    chance: Any,
) -> None:
    text, models, scale, found = case
    features = Given.declared(text, models)
    for messages in found:
        times = [microseconds(json.loads(value)["at"]) for values in messages.values() for value in values]
        until_us = max(times, default=0) + after * scale
        run = play(features, messages, (1, arrangement[1]), until_us, scale)

        frames_are_the_definition_s(run, text, run.clock_us(features.pipeline.views[0].name))
        outside = deployed(run, messages, run.clock_us(features.pipeline.views[0].name))
        for plan in features.pipeline.plans:
            rows = run.final(plan.view.name).to_pylist()
            for row in chance.sample(rows, min(2, len(rows))):
                feature = chance.choice(plan.view.features).name
                entity = tuple(row[name] for name in plan.view.entity_names)
                explainer = Explainer("t", plan, features.contracts, outside)
                told = explain(explainer.gather(feature, entity, row[EVENT_TIME]))

                assert told.at == row[EVENT_TIME]
                explanation_is_true(run, told, text)
