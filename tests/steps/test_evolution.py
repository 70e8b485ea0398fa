"""How contracts evolve: each mode wants what it says, an upcast mends, and each finding says what to do."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import AwareDatetime, create_model

from freshet.flows.steps.evolution import Finding, Samples, findings, incompatible, json_schema, unread
from freshet.schemas.event import Compatibility, Contract, Document, Event, Stream, as_is, contract

Mode = Compatibility
REQUIRED: Any = ...


def version(number: int, upcasts: Mapping[int, Any] | None = None, **fields: tuple[Any, Any]) -> Contract:
    """Make a version of a contract, with some fields beside its time and user."""
    all_fields: dict[str, Any] = {"at": (AwareDatetime, REQUIRED), "user": (str, REQUIRED), **fields}
    model = create_model("Visit", __base__=Event, **all_fields)
    known = dict.fromkeys(range(1, number), as_is) if upcasts is None else upcasts
    model.stream = Stream("visits", "user", "at", version=number, upcasts=known)
    made, problems = contract("visits", model)
    assert made is not None, problems
    return made


def snapshots(*contracts: Contract) -> dict[int, Any]:
    return {made.stream.version: json_schema(made) for made in contracts}


def between(old: Contract, new: Contract, mode: Mode) -> list[tuple[str, str]]:
    return [(one.path, one.rule) for one in incompatible(new, snapshots(old), mode)]


PLAIN = version(1, seconds=(float, REQUIRED))
CHANGES: dict[str, tuple[Contract, str, str]] = {
    "an optional field more": (version(2, seconds=(float, REQUIRED), device=(str | None, None)), "", ""),
    "a required field more": (version(2, seconds=(float, REQUIRED), device=(str, REQUIRED)), "$.device field_required", ""),
    "a field less": (version(2), "", "$.seconds field_required"),
    "a field that may be left out": (version(2, seconds=(float, 0.0)), "", "$.seconds field_required"),
    "a narrower type": (version(2, seconds=(int, REQUIRED)), "$.seconds type_narrowed", ""),
    "a wider type": (version(2, seconds=(float | None, REQUIRED)), "", "$.seconds type_narrowed"),
    "another type": (version(2, seconds=(str, REQUIRED)), "$.seconds type_narrowed", "$.seconds type_narrowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_mode_wants_what_it_says(name: str) -> None:
    new, backward, forward = CHANGES[name]

    def told(mode: Mode) -> str:
        return ", ".join(f"{path} {rule}" for path, rule in between(PLAIN, new, mode))

    assert told(Mode.BACKWARD) == backward
    assert told(Mode.FORWARD) == forward
    assert told(Mode.FULL) == ", ".join(filter(None, [backward, forward]))
    assert told(Mode.NONE) == ""


def test_only_transitive_modes_look_past_the_version_before() -> None:
    kept = snapshots(version(1, code=(int, REQUIRED)), version(2))
    third = version(3, code=(str | None, None))

    assert incompatible(third, kept, Mode.BACKWARD) == []
    assert [one.path for one in incompatible(third, kept, Mode.BACKWARD_TRANSITIVE)] == ["$.code"]


def in_seconds(event: Document) -> Document:
    return {**event, "seconds": event["milliseconds"] / 1000}


FIRST = version(1, milliseconds=(int, REQUIRED))
UPCAST = version(2, {1: in_seconds}, seconds=(float, REQUIRED))
NEW = b'{"at": "2026-03-01T12:00:00Z", "user": "ada", "seconds": 1.5}'
OLD = b'{"at": "2026-03-01T12:00:00Z", "user": "ada", "milliseconds": 1500}'
EMPTY = b"{}"


def found(new: Contract, samples: Samples, *kept: Contract) -> list[Finding]:
    return findings(new, snapshots(*kept, new), samples)


def test_what_an_upcast_mends_a_sample_has_to_show() -> None:
    (lacking,) = found(UPCAST, {2: {"good-new.json": NEW}}, FIRST)

    assert (lacking.path, lacking.rule) == ("schemas/samples/visits/1", "no_sample")
    assert found(UPCAST, {2: {"good-new.json": NEW}, 1: {"good-old.json": OLD, "bad-empty.json": EMPTY}}, FIRST) == []


def test_the_newest_version_of_several_is_compared_past_an_upcast() -> None:
    third = version(3, {1: in_seconds, 2: as_is}, seconds=(int, REQUIRED))
    samples = {1: {"good-whole.json": b'{"at": "2026-03-01T12:00:00Z", "user": "a", "milliseconds": 0}'}}

    told = {(one.path, one.rule) for one in found(third, samples, FIRST, UPCAST)}

    assert ("$.seconds", "type_narrowed") in told


@pytest.mark.parametrize(
    ("new", "samples", "kept", "said"),
    [
        (
            version(2, {}, device=(str, REQUIRED)), {}, [version(1)],
            ("visits upcasts: version 2 does not read events of version 1, which becomes `unknown_version` [version_not_read]. "
            "Hint: write `upcasts` from version 1 on, {1: as_is} if version 2 reads it as it is"),
        ),
        (
            version(2, device=(str, REQUIRED)), {}, [version(1)],
            ("visits $.device: version 2 needs it, and version 1 may leave it out [field_required]. "
            "Hint: give the field a default, or write an upcast from version 1 that makes it so"),
        ),
        (
            version(2, {1: lambda event: event | {"device": "web"}}, device=(str, REQUIRED)), {1: {"good-a.json": EMPTY}}, [version(1)],
            ("visits schemas/samples/visits/1/good-a.json: a good sample of version 1 is rejected: contract: at: Field required "
            "[sample_rejected]. Hint: mend the upcasts from version 1 on"),
        ),
        (
            version(1), {1: {"bad-a.json": NEW}}, [],
            ("visits schemas/samples/visits/bad-a.json: a bad sample of version 1 is accepted [sample_accepted]. "
            "Hint: have the contract refuse it, or give the sample a name that begins with good-"),
        ),
        (
            version(2), {}, [],
            ("visits schemas/snapshots/visits/1.json: version 1 has an upcast and no snapshot [no_snapshot]. "
            "Hint: bring it back from version control: what nobody knows cannot be checked"),
        ),
        (
            version(1), {}, [version(2)],
            ("visits schemas/snapshots/visits/2.json: there is a snapshot of version 2, and the contract is version 1 [newer_snapshot]. "
            "Hint: set `version` to it, or delete the snapshot"),
        ),
    ],
)  # fmt: skip
def test_a_finding_says_where_and_by_which_rule_and_what_to_do(
    new: Contract, samples: Samples, kept: list[Contract], said: str
) -> None:
    assert said in [str(one) for one in found(new, samples, *kept)]


def test_a_contract_that_was_changed_in_place_is_found() -> None:
    (changed,) = findings(version(1, device=(str | None, None)), snapshots(version(1)), {})

    assert (changed.path, changed.rule) == ("schemas/snapshots/visits/1.json", "changed_in_place")
    assert changed.fact == "version 1 is not what its snapshot says; it differs in $.device"
    assert "set `version=2`, and `upcasts` with one from 1 (`as_is`" in changed.fix


def test_what_old_producers_send_is_read_or_told() -> None:
    needs, takes = version(2, device=(str, REQUIRED)), version(2, device=(str, "web"))
    in_place = version(1, device=(str, REQUIRED))

    assert unread(takes, snapshots(version(1))) == []
    assert [(one.path, one.rule) for one in unread(needs, snapshots(version(1)))] == [("$.device", "field_required")]
    (changed,) = unread(in_place, snapshots(version(1)))
    assert changed.fact == "version 1 as it is now needs it, and as its snapshot has it, it may leave it out"
    assert "set `version=2`" in changed.fix
    needs.model.stream = dataclasses.replace(needs.stream, compatibility=Mode.FORWARD)
    assert unread(needs, snapshots(version(1))) == []


def test_another_default_is_a_change_and_other_words_for_people_are_none() -> None:
    old = snapshots(version(1, device=(str, "web")))
    other = {1: {**old[1], "title": "Look", "description": "One look at one page."}}

    assert [one.rule for one in findings(version(1, device=(str, "app")), old, {})] == ["changed_in_place"]
    assert findings(version(1, device=(str, "web")), other, {}) == []


def test_a_version_without_a_snapshot_is_found() -> None:
    (lacking,) = findings(version(1), {}, {})

    assert (lacking.rule, lacking.fix) == (
        "no_snapshot", "run `freshet schema snapshot --stream visits`, and commit what it writes",
    )  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_checker_agrees_with_sample_events(name: str) -> None:
    """What old producers may send, the new contract accepts exactly where the schemas say so."""
    new, backward, _ = CHANGES[name]
    samples = {1: {"good-fraction.json": NEW}}

    rejected = [one.rule for one in findings(new, snapshots(PLAIN, new), samples) if one.rule == "sample_rejected"]

    assert bool(rejected) == bool(backward)
