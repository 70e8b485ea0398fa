"""The laws of changes, over generated declarations and edits of them.

A view's digest and its changes say the same; and what is carried from an earlier form of a view is, at every instant
that both have, what the view computes itself.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_semantics_law import CHECKS, DAY_US, SOAK, Logs, cases, declarations, play, streams

from freshet.flows.steps.changes import Change, Compiled, Needs, carried, changes_between
from freshet.flows.testing import Given, microseconds
from freshet.schemas.declaration import read
from freshet.schemas.event import EVENT_TIME, Event

pytestmark = pytest.mark.timeout(3_000)  # many examples, each of several runs

TYPES = {"int64": "float64"}
RESPELLED = {"count(": "COUNT( ", " OVER ": "  over ", "PARTITION BY": "partition   by", " + ": "+"}


def respelled(sql: str) -> str:
    for word, other in RESPELLED.items():
        sql = sql.replace(word, other)
    return sql


def made_of(one: dict[str, Any], edit: str) -> dict[str, Any]:
    """A definition with an edit."""
    match edit:
        case "rename":
            return {**one, "name": f"{one['name']}x"}
        case "respell":
            return {**one, "transformation": respelled(one["transformation"])}
        case "type":
            return {**one, "dtype": TYPES.get(one["dtype"], one["dtype"])}
        case "decay" if "OVER" in one["transformation"]:
            return {**one, "decay": "5us"}
        case "approximate":
            sql = one["transformation"].replace("count(DISTINCT ", "approx_count_distinct(")
            return {**one, "transformation": sql}
        case "view":
            return {**one, "view": "other"}
    return one


@st.composite
def edits(draw: st.DrawFn, declared: str) -> str:
    """The declaration with up to three edits; one that cannot be made leaves it as it is."""
    text = json.loads(declared)
    made = text["featureDefinitions"]
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(made) - 1))
        edit = draw(
            st.sampled_from(
                ["rename", "respell", "type", "decay", "view", "drop", "copy", "order", "column", "approximate"]
            )
        )
        made[index] = made_of(made[index], edit)
        if edit == "drop" and len(made) > 1:
            del made[index]
        elif edit == "copy" and len(made) < 5:
            made.append({**made[index], "name": f"{made[index]['name']}y"})
        elif edit == "order":
            made.reverse()
        elif edit == "column":
            text["columns"]["size"] = "length(word) + 1"
    names = [definition["name"] for definition in made]
    return json.dumps(text) if len(names) == len({*names}) else declared


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two declarations: one and an edit of it, or two of which one has nothing from the other."""
    before = draw(declarations(1))
    return before, draw(st.one_of(edits(before), edits(before), edits(before), declarations(1)))


def compiled(declared: str, models: Mapping[str, type[Event]]) -> Compiled:
    return Compiled(read(declared).declaration, Given.declared(declared, models).pipeline)


@settings(max_examples=50 if SOAK == 1 else 100 * SOAK, suppress_health_check=CHECKS)
@given(pairs())
def test_a_digest_differs_exactly_where_a_change_needs_more_than_nothing(pair: tuple[str, str]) -> None:
    models = streams(DAY_US, None, None)
    before, after = (compiled(declared, models) for declared in pair)

    changes = changes_between(before, after)

    for name in before.plans.keys() & after.plans.keys():
        own = [change for change in changes if change.view == name]
        if before.plans[name].digest == after.plans[name].digest:
            event("the same digest")
            assert [change for change in own if change.needs is Needs.HISTORY] == []
        else:
            event("another digest")
            assert [change for change in own if change.needs is not Needs.NOTHING] != []
    for name in before.plans.keys() ^ after.plans.keys():
        assert _whole(changes, name)
    assert changes_between(before, before) == changes_between(after, after) == ()


def _whole(changes: tuple[Change, ...], view: str) -> list[Change]:
    return [change for change in changes if change.view == view and change.feature is None]


@settings(max_examples=30 if SOAK == 1 else 60 * SOAK, suppress_health_check=CHECKS)
@given(cases(), st.data())
def test_what_is_carried_is_what_the_view_computes_itself(
    case: tuple[str, dict[str, type[Event]], int, list[Logs]], data: st.DataObject
) -> None:
    declared, models, scale, found = case
    edited = data.draw(edits(declared))
    before, after = (Given.declared(text, models) for text in (declared, edited))
    for messages in found:
        times = [microseconds(json.loads(value)["at"]) for values in messages.values() for value in values]
        runs = [
            play(features, messages, (1, []), max(times, default=0) + 9 * scale, scale) for features in (before, after)
        ]
        if any(run.rejects for run in runs):
            event("an expression rejects events of one, and maybe not of the other")
            continue
        for view in {view.name for view in before.pipeline.views} & {view.name for view in after.pipeline.views}:
            same = carried(before.pipeline.plan(view), after.pipeline.plan(view))
            keys = [*after.pipeline.plan(view).view.entity_names, EVENT_TIME]
            old, new = ({_key(row, keys): row for row in run.final(view).to_pylist()} for run in runs)
            event(f"{min(len(same), 2)} carried")
            for key in old.keys() & new.keys():
                assert {name: repr(old[key][was]) for name, was in same.items()} == {
                    name: repr(new[key][name]) for name in same
                }


def _key(row: Mapping[str, Any], keys: list[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in keys)
