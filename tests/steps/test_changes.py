"""What an edit of a declaration changes is said as a person thinks of it, and with what it asks for."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import AwareDatetime

from freshet.flows.steps.changes import Change, Compiled, Kind, Needs, carried, changes_between, said
from freshet.flows.steps.sql import compile_views
from freshet.schemas import declaration
from freshet.schemas.event import Event, Stream, contract


class Click(Event):
    stream = Stream("clicks", "user", "time")

    time: AwareDatetime
    user: str
    page: str
    price: int | None
    seen: bool | None


class Tap(Click):
    stream = Stream("taps", "user", "time")


CONTRACTS = {name: contract(name, model)[0] for name, model in (("clicks", Click), ("taps", Tap))}


def over(frame: str = "RANGE BETWEEN INTERVAL '10 minutes' PRECEDING AND CURRENT ROW", entity: str = "user") -> str:
    return f"OVER (PARTITION BY {entity} ORDER BY event_timestamp {frame})"


HOUR = over("RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW")
DECLARED: Mapping[str, tuple[str, str]] = {
    "clicks_10m": ("int64", f"count(*) {over()}"),
    "spent_10m": ("int64", f"sum(price) {over()}"),
    "last_page": ("string", "lower(page)"),
}


def compiled(features: Mapping[str, Any] = DECLARED, digests: Mapping[str, str] | None = None, **keys: Any) -> Compiled:
    """A declaration of features by name: dtype and SQL, and maybe more keys of the definition."""
    made = [
        {"name": name, "dtype": dtype, "source": "clicks", "transformation": sql, **dict(*more)}
        for name, (dtype, sql, *more) in features.items()
    ]
    source = declaration.read(json.dumps({"featureDefinitions": made, "servingRequirements": {}} | keys))
    contracts = {name: found for name, found in CONTRACTS.items() if found is not None}
    return Compiled(source.declaration, compile_views(source, contracts), digests or {})


def only(before: Compiled, after: Compiled) -> Change:
    [change] = changes_between(before, after)
    return change


def lines(before: Compiled | None, after: Compiled) -> list[tuple[str | None, str, Needs]]:
    return [(change.view, said(change), change.needs) for change in changes_between(before, after)]


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {name: made for name, made in DECLARED.items() if name not in names} | more


def test_the_same_declaration_changes_nothing() -> None:
    assert changes_between(compiled(), compiled()) == ()


def test_with_nothing_in_force_every_view_is_added() -> None:
    assert lines(None, compiled()) == [
        ("clicks_by_user", "+ view added: clicks_10m, spent_10m, last_page", Needs.HISTORY)
    ]


def test_a_feature_is_added() -> None:
    after = compiled(without(clicks_1h=("int64", f"count(*) {HOUR}")))

    change = only(compiled(), after)

    assert (change.kind, change.view, change.feature) == (Kind.ADDED, "clicks_by_user", "clicks_1h")
    assert said(change) == f"+ clicks_1h: int64, count(*) {HOUR}"
    assert change.needs is Needs.HISTORY
    assert "event archive" in change.effects.state
    assert "made anew" in change.effects.offline


def test_a_feature_is_removed() -> None:
    change = only(compiled(), compiled(without("last_page")))

    assert said(change) == "- last_page: it was string, lower(page)"
    assert change.needs is Needs.HISTORY
    assert "not known" in change.effects.readers


def test_a_feature_of_the_same_meaning_under_another_name_is_renamed() -> None:
    spelled = f"sum( PRICE ) {over('RANGE BETWEEN INTERVAL 600 SECONDS PRECEDING AND CURRENT ROW')}"

    change = only(compiled(), compiled(without("spent_10m", spent=("int64", spelled))))

    assert (change.kind, change.before, change.after) == (Kind.RENAMED, "spent_10m", "spent")
    assert said(change) == "~ spent_10m is renamed to spent"
    assert change.needs is Needs.HISTORY


def test_a_new_name_and_another_type_is_no_rename() -> None:
    after = compiled(without("spent_10m", spent=("float64", f"sum(price) {over()}")))

    assert [Kind.REMOVED, Kind.ADDED] == [change.kind for change in changes_between(compiled(), after)]


def test_where_two_could_be_meant_neither_is_renamed() -> None:
    before = compiled({"a": DECLARED["clicks_10m"], "b": DECLARED["clicks_10m"], "c": DECLARED["spent_10m"]})
    after = compiled({"c": DECLARED["spent_10m"], "d": DECLARED["clicks_10m"]})

    assert [("a", Kind.REMOVED), ("b", Kind.REMOVED), ("d", Kind.ADDED)] == [
        (change.feature, change.kind) for change in changes_between(before, after)
    ]
    assert carried(before.plans["clicks_by_user"], after.plans["clicks_by_user"]) == {"c": "c", "d": "a"}


def test_a_changed_transformation_shows_both_texts() -> None:
    change = only(compiled(), compiled(without("last_page", last_page=("string", "upper(page)"))))

    assert said(change) == "~ last_page: transformation changed, from lower(page) to upper(page)"
    assert change.needs is Needs.HISTORY
    assert "a model that learnt the old ones" in change.effects.readers


def test_a_changed_column_is_a_changed_transformation_of_those_who_use_it() -> None:
    features = {"spent_10m": ("int64", f"sum(paid) {over()}")}
    before, after = (compiled(features, columns={"paid": sql}) for sql in ("price", "price * 2"))

    assert said(only(before, after)) == (
        "~ spent_10m: transformation changed, from sum(price) OVER () to sum((price * 2)) OVER ()"
    )


def test_a_column_of_earlier_events_is_looked_into_too() -> None:
    features = {"gaps": ("int64", f"sum(gap) {over()}")}
    order = "OVER (PARTITION BY user ORDER BY event_timestamp)"
    before, after = (compiled(features, columns={"gap": f"price - lag(price, {n}) {order}"}) for n in (1, 2))

    assert only(before, after).kind is Kind.TRANSFORMATION


def test_where_only_the_frame_differs_the_window_changed() -> None:
    after = compiled({**DECLARED, "clicks_10m": ("int64", f"count(*) {HOUR}")})

    change = only(compiled(), after)

    assert said(change) == "~ clicks_10m: window changed, from last 10m to last 1h"
    assert change.needs is Needs.HISTORY


@pytest.mark.parametrize(
    ("sql", "frame"),
    [
        (f"count(*) {over('ROWS 4 PRECEDING')}", "last 5 rows"),
        (f"count(*) {over('')}", "lifetime"),
        (f"count(*) {over('', 'user, time_bucket(INTERVAL 1 HOUR, event_timestamp)')}", "bucket of 1h so far"),
        (
            f"count(*) {over('RANGE BETWEEN INTERVAL 10 MINUTES PRECEDING AND CURRENT ROW EXCLUDE TIES')}",
            "last 10m without the ties",
        ),
    ],
)
def test_any_other_frame_is_a_changed_window(sql: str, frame: str) -> None:
    after = compiled({**DECLARED, "clicks_10m": ("int64", sql)})

    assert said(only(compiled(), after)) == f"~ clicks_10m: window changed, from last 10m to {frame}"


def test_a_changed_named_window_changes_all_that_use_it() -> None:
    features = {name: ("int64", f"{name}(price) OVER w") for name in ("sum", "max")}
    before, after = (
        compiled(
            features,
            windows={"w": f"PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN {span} PRECEDING AND CURRENT ROW"},
        )
        for span in ("INTERVAL 1 HOUR", "INTERVAL 2 HOURS")
    )

    assert [("sum", Kind.WINDOW), ("max", Kind.WINDOW)] == [
        (change.feature, change.kind) for change in changes_between(before, after)
    ]


def test_one_of_two_windows_of_a_feature_may_change() -> None:
    before, after = (
        compiled({"share": ("float64", f"sum(price) {over()} / sum(price) {frame} + sum(price) {over()}")})
        for frame in (HOUR, over("RANGE BETWEEN INTERVAL '2 hours' PRECEDING AND CURRENT ROW"))
    )

    assert said(only(before, after)) == "~ share: window changed, from last 1h to last 2h"


def test_a_changed_resolution_is_a_changed_window() -> None:
    after = compiled({**DECLARED, "clicks_10m": (*DECLARED["clicks_10m"], {"resolution": "1 min"})})

    assert said(only(compiled(), after)) == (
        "~ clicks_10m: window changed, from last 10m to last 10m from a multiple of 1m on"
    )


def test_a_changed_decay_leaves_values_as_they_are() -> None:
    after = compiled({**DECLARED, "clicks_10m": (*DECLARED["clicks_10m"], {"decay": "1 min"})})

    change = only(compiled(), after)

    assert said(change) == "~ clicks_10m: decay changed, from every 6s to every 1m"
    assert change.needs is Needs.HISTORY
    assert "the same values at the same instants" in change.effects.readers


def test_a_decay_that_moves_no_row_of_the_view_is_in_place_at_once() -> None:
    before, after = (
        compiled(
            {
                "a": (*DECLARED["clicks_10m"], {"decay": "1 min"}),
                "b": (*DECLARED["spent_10m"], {"decay": decay}),
                "c": ("int64", f"max(price) {over()}", {"decay": "5 min"}),
            }
        )
        for decay in ("1 min", "5 min")
    )

    change = only(before, after)

    assert (change.kind, change.feature, change.needs) == (Kind.DECAY, "b", Needs.NOTHING)


def test_another_freshness_target_changes_the_decay_that_follows_it() -> None:
    after = compiled(servingRequirements={"freshnessTarget": "p99 < 30s"})

    assert lines(compiled(), after) == [
        ("clicks_by_user", "~ clicks_10m: decay changed, from every 6s to every 30s", Needs.HISTORY),
        ("clicks_by_user", "~ spent_10m: decay changed, from every 6s to every 30s", Needs.HISTORY),
        (None, "~ freshnessTarget: target changed, from p99 < 2s to p99 < 30s", Needs.NOTHING),
    ]


def test_a_changed_type_is_refused_in_place_with_the_way_to_do_it() -> None:
    change = only(compiled(), compiled({**DECLARED, "spent_10m": ("float64", f"sum(price) {over()}")}))

    assert said(change) == "~ spent_10m: type changed, from int64 to float64"
    assert change.needs is Needs.NEW_VIEW
    assert change.hint == (
        "add it as spent_10m_v2 with `view: clicks_by_user_v2` and its new type; let readers move, then drop spent_10m"
    )


def test_what_the_hint_says_can_be_declared() -> None:
    added = {"spent_10m_v2": ("float64", f"sum(price) {over()}", {"view": "clicks_by_user_v2"})}

    assert lines(compiled(), compiled({**DECLARED, **added})) == [
        ("clicks_by_user_v2", "+ view added: spent_10m_v2", Needs.HISTORY)
    ]


def test_the_next_version_of_a_view_is_one_that_is_not_there() -> None:
    def versions(dtype: str) -> Compiled:
        names = {"a": "seen_v2", "b": "seen_v3"}
        return compiled({name: (dtype, f"count(*) {over()}", {"view": view}) for name, view in names.items()})

    assert ["`view: seen_v4`"] * 2 == [
        change.hint[change.hint.index("`") : change.hint.rindex("`") + 1]
        for change in changes_between(versions("int64"), versions("float64"))
    ]


def test_another_entity_of_a_view_is_refused_in_place() -> None:
    before, after = (
        compiled({"clicks": ("int64", f"count(*) {over(entity=entity)}", {"view": "clicks"})})
        for entity in ("user", "page")
    )

    change = only(before, after)

    assert said(change) == "~ entity changed, from user string to page string"
    assert change.needs is Needs.NEW_VIEW
    assert "`view: clicks_v2`" in change.hint


def test_another_entity_of_one_feature_moves_it_to_that_entity_s_view() -> None:
    after = compiled({**DECLARED, "clicks_10m": ("int64", f"count(*) {over(entity='page')}")})

    added, arriving, leaving = changes_between(compiled(), after)

    assert (leaving.view, said(leaving)) == ("clicks_by_user", "- clicks_10m moves to view clicks_by_page")
    assert leaving.effects.readers == "ask clicks_by_page for it, by page string instead of user string"
    assert (added.view, added.kind) == ("clicks_by_page", Kind.VIEW_ADDED)
    assert (arriving.view, said(arriving)) == (
        "clicks_by_page",
        "+ clicks_10m moves here from view clicks_by_user",
    )


def test_a_feature_with_another_view_moves() -> None:
    kept = {"other": ("int64", f"max(price) {over()}", {"view": "other"})}
    after = {**DECLARED, **kept, "clicks_10m": (*DECLARED["clicks_10m"], {"view": "other"})}

    assert lines(compiled({**DECLARED, **kept}), compiled(after)) == [
        ("other", "+ clicks_10m moves here from view clicks_by_user", Needs.HISTORY),
        ("clicks_by_user", "- clicks_10m moves to view other", Needs.HISTORY),
    ]


def test_a_feature_that_moves_with_another_type_needs_no_other_version() -> None:
    moved = {"spent_10m": ("float64", f"sum(price) {over()}", {"view": "clicks_by_user_v2"})}

    assert lines(compiled(), compiled(without("spent_10m", **moved))) == [
        ("clicks_by_user", "- spent_10m moves to view clicks_by_user_v2", Needs.HISTORY),
        ("clicks_by_user_v2", "+ view added: spent_10m", Needs.HISTORY),
        ("clicks_by_user_v2", "+ spent_10m moves here from view clicks_by_user", Needs.HISTORY),
        ("clicks_by_user_v2", "~ spent_10m: type changed, from int64 to float64", Needs.HISTORY),
    ]


def test_other_sources_of_a_view_are_other_events() -> None:
    before, after = (
        compiled({"clicks": ("int64", f"count(*) {over()}", {"view": "clicks", "source": source})})
        for source in ("clicks", "taps")
    )

    change = only(before, after)

    assert said(change) == "~ sources changed, from clicks to taps"
    assert change.needs is Needs.HISTORY
    assert carried(before.plans["clicks"], after.plans["clicks"]) == {}


def test_a_view_is_removed() -> None:
    other = {"other": ("int64", f"max(price) {over()}", {"view": "other"})}

    change = only(compiled({**DECLARED, **other}), compiled())

    assert said(change) == "- view removed: other"
    assert change.needs is Needs.NOTHING
    assert "stays where it is" in change.effects.offline
    assert "deleted" in change.effects.online


def test_features_in_another_order_are_made_anew() -> None:
    change = only(compiled(), compiled(dict(reversed(DECLARED.items()))))

    assert (change.kind, change.needs) == (Kind.ORDER, Needs.HISTORY)


def test_sql_that_is_spelled_otherwise_is_no_change_unless_it_is_computed_otherwise() -> None:
    same = {
        **DECLARED,
        "clicks_10m": ("int64", f"COUNT(*)  {over('RANGE BETWEEN INTERVAL 600 SECONDS PRECEDING AND CURRENT ROW')}"),
    }
    bucket = "user, time_bucket(INTERVAL '{}', event_timestamp)"
    before, after = (
        compiled({"n": ("int64", f"count(*) {over('', bucket.format(width))}")}) for width in ("1 hour", "60 minutes")
    )

    assert changes_between(compiled(), compiled(same)) == ()
    assert only(before, after).kind is Kind.SPELLING


def test_what_another_version_computed_is_said_to_be_so() -> None:
    change = only(compiled(digests={"clicks_by_user": "0123456789abcdef"}), compiled())

    assert (change.kind, change.needs) == (Kind.VERSION, Needs.HISTORY)


def test_an_approximate_value_is_not_the_exact_one_that_it_is_judged_by() -> None:
    before, after = (
        compiled({"pages": ("int64", f"{sql} {over()}")})
        for sql in ("count(DISTINCT page)", "approx_count_distinct(page)")
    )

    assert only(before, after).kind is Kind.TRANSFORMATION
    assert before.plans["clicks_by_user"].digest != after.plans["clicks_by_user"].digest


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        ({"views": {"clicks_by_user": {"ttl": "1 day"}}}, "~ ttl changed, from none to 1d"),
        (
            {"servingRequirements": {"onlineLatency": "p99 < 5ms"}},
            "~ onlineLatency: target changed, from p99 < 10ms to p99 < 5ms",
        ),
        (
            {"servingRequirements": {"offlineVolume": "1GB/day"}},
            "~ offlineVolume: target changed, from 10GB/1d to 1GB/1d",
        ),
        ({"infrastructure": {"onlineStore": "redis://:secret@cache:6379"}}, "~ online store changed"),
        ({"project": "shop"}, "~ project renamed, from freshet to shop"),
    ],
)
def test_what_no_row_depends_on_is_in_place_at_once(edit: dict[str, Any], line: str) -> None:
    change = only(compiled(), compiled(**edit))

    assert said(change) == line
    assert change.needs is Needs.NOTHING


def test_descriptions_and_expectations_are_in_place_at_once() -> None:
    told = {"description": "how often", "expect": {"min": 0, "nulls": "< 1%"}}
    after = compiled({**DECLARED, "clicks_10m": (*DECLARED["clicks_10m"], told)})

    assert lines(compiled(), after) == [
        ("clicks_by_user", "~ clicks_10m: description changed, from none to how often", Needs.NOTHING),
        ("clicks_by_user", "~ clicks_10m: expectation changed, from none to minimum 0, nulls 0.01", Needs.NOTHING),
    ]


def test_what_a_renamed_feature_has_else_that_is_new_is_said_too() -> None:
    after = compiled(without("clicks_10m", clicks=(*DECLARED["clicks_10m"], {"decay": "1 min", "description": "!"})))

    assert [Kind.RENAMED, Kind.DECAY, Kind.DESCRIPTION] == [
        change.kind for change in changes_between(compiled(), after)
    ]


def test_what_means_the_same_is_carried_whatever_its_name_and_decay() -> None:
    before = compiled().plans["clicks_by_user"]
    after = compiled(
        {
            "clicks": (*DECLARED["clicks_10m"], {"decay": "off"}),
            "last_page": DECLARED["last_page"],
            "spent_10m": ("int64", f"sum(price) {HOUR}"),
            "spent": ("float64", f"sum(price) {over()}"),
        }
    ).plans["clicks_by_user"]

    assert carried(before, after) == {"clicks": "clicks_10m", "last_page": "last_page"}
