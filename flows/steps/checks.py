"""What the validator looks at, and what must hold of it: pure.

`checks_of` turns a view's declaration into checks; the functions below it make the frames that the checks are about. Of
an entity the frame compares one version in both stores: the key is (entity, event_timestamp, `_version`), since a
version never changes and only its becoming visible is a race (`watch`).
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from freshet.flows.steps.canaries import CanaryLine, CanaryState
from freshet.flows.steps.conservation import Conserved
from freshet.flows.steps.freshness import Line, State
from freshet.flows.steps.statistics import DISTRIBUTION_VALUES_COUNT, alpha_of
from freshet.flows.steps.watch import PART, Found, Judgeable, Place, Ticket, place
from freshet.schemas.dtypes import Dtype
from freshet.schemas.event import EVENT_TIME, OFFSET, PARTITION
from freshet.schemas.expected import Distribution, Reference
from freshet.schemas.finding import Cause, Check, Frame
from freshet.schemas.registration import Entry
from freshet.schemas.units import Objective, Rate
from freshet.schemas.view import VERSION, Feature, StoredRow, View

RELATIVE_TOLERANCE = 1e-9
"""Both stores are given the same float; this leaves room for another reader's last digit, not for another value."""

ALPHA = alpha_of(100, timedelta(seconds=5))
"""How likely one judgement of a tolerated rate or a distribution may be a false alarm: of a hundred of them, judged as
often as the validator looks, one in 30 days."""

CLOCK_TOLERANCE = timedelta(seconds=5)
"""How far two machines' clocks may be apart before a row counts as one of the future, or as kept for too long."""

_NEVER = "never"
"""What is later than any instant, in words as in order."""
_LAST = datetime.max.replace(tzinfo=UTC)


# --- what must hold ---------------------------------------------------------------------------------------------------


def checks_of(view: View, freshness_target: Objective) -> tuple[Check, ...]:
    """Return every check that a view's declaration implies; names are stable, `<view>[.<feature>].<property>`."""
    features = (check for feature in view.features for check in _feature_checks(view, feature))
    return (
        *_folder_checks(view),
        *_archive_checks(view),
        *_row_checks(view),
        *features,
        *_recomputed_checks(view),
        *_served_checks(view),
        *_freshness_checks(view, freshness_target),
        *_canary_checks(view),
    )


def _folder_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.offline_schema_is_declared",
        "every part of the offline store has the declared columns and types",
        Frame.SCHEMA,
        "ExpectColumnPairValuesToBeEqual",
        {"column_A": "declared", "column_B": "found", "ignore_row_if": "neither"},
        Cause.SCHEMA_DRIFT,
    )
    yield Check(
        f"{view.name}.offline_parts_are_there",
        "a part that was committed is there",
        Frame.PARTS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "visible"},
        Cause.LOST_OFFLINE_WRITE,
    )
    yield _pair_check(
        f"{view.name}.offline_parts_are_whole",
        "all rows that were committed are there",
        Frame.PARTS,
        ("visible", "committed"),
        Cause.PARTIAL_BATCH,
    )
    yield _pair_check(
        f"{view.name}.offline_parts_are_the_flow_s",
        "there are no more rows than were committed",
        Frame.PARTS,
        ("committed", "visible"),
        Cause.DUPLICATE_OFFLINE,
    )
    yield _pair_check(
        f"{view.name}.online_store_is_the_same",
        "the online store counts as many writes as were committed",
        Frame.STORE,
        ("counted", "committed"),
        Cause.STALE_ONLINE,
    )


def _archive_checks(view: View) -> Iterator[Check]:
    yield _pair_check(
        f"{view.name}.accepted_events_are_archived",
        "every event that was accepted is in the archive",
        Frame.ARCHIVE,
        ("archived", "accepted"),
        Cause.PARTIAL_BATCH,
    )
    yield _pair_check(
        f"{view.name}.archived_events_are_the_flow_s",
        "no more events are in the archive than were accepted",
        Frame.ARCHIVE,
        ("accepted", "archived"),
        Cause.DUPLICATE_OFFLINE,
    )
    yield _pair_check(
        f"{view.name}.committed_offsets_are_durable",
        "Kafka has no offset as committed that is not durable in both stores",
        Frame.ARCHIVE,
        ("durable", "committed"),
        Cause.LOST_OFFLINE_WRITE,
    )


def _pair_check(
    name: str, description: str, frame: Frame, columns: tuple[str, str], cause: Cause, given: str | None = None
) -> Check:
    """The first column's value is not below the second's, where both are there."""
    words = {"column_A": columns[0], "column_B": columns[1], "or_equal": True}
    arguments = {**words, "ignore_row_if": "either_value_is_missing"}
    return Check(name, description, frame, "ExpectColumnPairValuesAToBeGreaterThanB", arguments, cause, given=given)


def _row_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.entity_is_online",
        "an entity that was online has an online row",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "online_at"},
        Cause.MISSING_ENTITY,
        given="known_at",
    )
    yield Check(
        f"{view.name}.first_row_is_online",
        "an entity that has an offline row was written online",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "online_at"},
        Cause.LOST_ONLINE_WRITE,
        given="due_at",
    )
    if view.ttl:
        yield _pair_check(
            f"{view.name}.online_row_expires",
            "the online store forgets a row once its ttl has passed",
            Frame.ROWS,
            ("may_last_until", "expires_at"),
            Cause.EXPIRED_TTL,
        )
    yield _pair_check(
        f"{view.name}.online_follows_offline",
        "an offline row was online first, or a newer one is",
        Frame.ROWS,
        ("seen_at", "offline_at"),
        Cause.LOST_ONLINE_WRITE,
        given="online_at",
    )
    yield _pair_check(
        f"{view.name}.online_does_not_go_back",
        "an online row is never replaced by an older one",
        Frame.ROWS,
        ("online_at", "seen_at"),
        Cause.OUT_OF_ORDER_OVERWRITE,
    )
    yield Check(
        f"{view.name}.online_row_is_offline",
        "an online row is offline once all is committed that it was made of",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeInSet",
        {"column": "settled_row", "value_set": ["absent"]},
        Cause.LOST_OFFLINE_WRITE,
    )
    yield Check(
        f"{view.name}.online_row_is_settled",
        "whether the online row is in the offline store is known",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeInSet",
        {"column": "offline_row", "value_set": ["pending"]},
        None,
        "warning",
    )
    yield Check(
        f"{view.name}.offline_rows_are_single",
        "each version of a row stands once in the offline store",
        Frame.ROWS,
        "ExpectColumnValuesToBeBetween",
        {"column": "offline_copies", "max_value": 1},
        Cause.DUPLICATE_OFFLINE,
    )
    yield Check(
        f"{view.name}.online_row_is_of_the_past",
        "the time of an online row has come",
        Frame.ROWS,
        "ExpectColumnValuesToBeBetween",
        {"column": "ahead_s", "max_value": CLOCK_TOLERANCE.total_seconds()},
        Cause.CLOCK_SKEW,
    )


def _feature_checks(view: View, feature: Feature) -> Iterator[Check]:
    name, online, offline = f"{view.name}.{feature.name}", f"on_{feature.name}", f"off_{feature.name}"
    tolerated = feature.expected.mismatches
    pair: dict[str, Any] = {"column_A": online, "column_B": offline, "relative_tolerance": _tolerance(feature)}
    if tolerated:
        yield Check(
            f"{name}.mismatches_are_few",
            f"the online value equals the offline value of the same version but for {Rate(tolerated)}",
            Frame.POOL,
            "ExpectMismatchesToBeFew",
            {**pair, "rate": tolerated, "alpha": ALPHA},
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
        )
    else:
        yield Check(
            f"{name}.online_equals_offline",
            "the online value equals the offline value of the same version",
            Frame.ROWS,
            "ExpectOnlineToEqualOffline",
            pair,
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
        )
    yield Check(
        f"{name}.online_is_not_null",
        "the online value is there if the offline value of the same version is",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": online},
        Cause.NULL_ONLINE,
        features=(feature.name,),
        given=offline,
    )
    yield Check(
        f"{name}.online_has_dtype",
        f"the online value is a {feature.dtype.name}",
        Frame.ROWS,
        "ExpectColumnValuesToBeInSet",
        {"column": f"type_{feature.name}", "value_set": list(_types(feature.dtype))},
        Cause.DTYPE,
        features=(feature.name,),
    )
    yield from _expected_checks(name, feature)


def _tolerance(feature: Feature) -> float:
    """Return how far apart, relatively, two readings of a feature may be."""
    if not feature.dtype.is_float:
        return 0.0
    return RELATIVE_TOLERANCE if feature.expected.tolerance is None else feature.expected.tolerance


def _expected_checks(name: str, feature: Feature) -> Iterator[Check]:
    """Of what the user expects: of every single value, or, where a rate is tolerated, of many."""
    expected, online, features = feature.expected, f"on_{feature.name}", (feature.name,)
    low, high = _stored(feature, expected.minimum), _stored(feature, expected.maximum)
    if low is not None or high is not None:
        words = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        yield Check(
            f"{name}.value_is_in_range",
            f"the value is {' and '.join(words)}",
            Frame.ROWS,
            "ExpectNumbersToBeBetween",
            {"column": online, "minimum": low, "maximum": high},
            Cause.VALUE_MISMATCH,
            features=features,
        )
    if expected.allowed is not None:
        yield Check(
            f"{name}.value_is_allowed",
            f"the value is one of {', '.join(map(str, expected.allowed))}",
            Frame.ROWS,
            "ExpectColumnValuesToBeInSet",
            {"column": online, "value_set": list(expected.allowed)},
            Cause.VALUE_MISMATCH,
            features=features,
        )
    if expected.nulls == 0:
        yield Check(
            f"{name}.value_is_not_null",
            "the value is there",
            Frame.ROWS,
            "ExpectColumnValuesToNotBeNull",
            {"column": online},
            Cause.NULL_ONLINE,
            features=features,
            given="offline_part",
        )
    elif expected.nulls is not None:
        yield Check(
            f"{name}.nulls_are_few",
            f"the value is there but for {Rate(expected.nulls)}",
            Frame.POOL,
            "ExpectNullsToBeFew",
            {"column": online, "rate": expected.nulls, "alpha": ALPHA},
            Cause.NULL_ONLINE,
            features=features,
        )
    if expected.distribution is not None:
        yield _distribution_check(name, feature, expected.distribution)


def _distribution_check(name: str, feature: Feature, expected: Distribution) -> Check:
    reference = expected.reference
    arguments: dict[str, Any] = {
        "column": f"on_{feature.name}",
        "distance": expected.distance.value,
        "limit": expected.limit,
        "alpha": ALPHA,
        "least_count": DISTRIBUTION_VALUES_COUNT,
    }
    if isinstance(reference, Reference):
        own = {"bins": [*reference.bins], "categories": [*reference.categories], "weights": [*reference.weights]}
        arguments["reference"] = {**own, "count": reference.count}
    return Check(
        f"{name}.distribution_is_expected",
        f"the values' distribution is within a {expected.distance} distance of {expected.limit:g} from its reference",
        Frame.VALUES,
        "ExpectDistributionToBeNear",
        arguments,
        Cause.VALUE_MISMATCH,
        "warning",
        features=(feature.name,),
        given=f"on_{feature.name}",
        rounds=3,
        of_rounds=5,
    )


def _stored(feature: Feature, bound: float | None) -> float | None:
    """Return a bound as the store would hold it: 0.1 is a little more in 32 bits."""
    return float(np.float32(bound)) if bound is not None and feature.dtype.name == "float32" else bound


def _recomputed_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.sql_gives_the_row",
        "the declared SQL over the archived events gives a row where the offline store has one",
        Frame.RECOMPUTED,
        "ExpectColumnValuesToNotBeNull",
        {"column": "sql_version"},
        Cause.VALUE_MISMATCH,
    )
    yield _pair_check(
        f"{view.name}.no_correction_is_lost",
        "an offline row counts all archived events in its reach",
        Frame.RECOMPUTED,
        ("version", "sql_version"),
        Cause.LOST_OFFLINE_WRITE,
    )
    yield _pair_check(
        f"{view.name}.no_event_is_lost",
        "all events that an offline row counts are archived",
        Frame.RECOMPUTED,
        ("sql_version", "version"),
        Cause.PARTIAL_BATCH,
    )
    for feature in view.features:
        yield Check(
            f"{view.name}.{feature.name}.offline_equals_sql",
            "the offline value is what the declared SQL makes of the archived events",
            Frame.RECOMPUTED,
            "ExpectToAgreeWithin",
            {"column_list": [f"off_{feature.name}", f"sql_{feature.name}", f"within_{feature.name}"]},
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
            given="same_version",
        )


def _served_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.registry_is_declared",
        "Feast's registry has the view as it is declared, or `freshet apply` must be run",
        Frame.REGISTRY,
        "ExpectColumnPairValuesToBeEqual",
        {"column_A": "declared", "column_B": "registered", "ignore_row_if": "neither"},
        Cause.SCHEMA_DRIFT,
    )
    yield Check(
        f"{view.name}.online_api_serves_the_row",
        "Feast's online API serves a row that is in the online store",
        Frame.SERVED,
        "ExpectColumnValuesToNotBeNull",
        {"column": "served_at"},
        Cause.MISSING_ENTITY,
    )
    yield _pair_check(
        f"{view.name}.online_api_serves_the_newest",
        "Feast's online API serves no older row than is in the online store",
        Frame.SERVED,
        ("served_at", "event_timestamp"),
        Cause.STALE_ONLINE,
    )
    yield Check(
        f"{view.name}.history_gives_the_row",
        "Feast's historical retrieval gives a row that is in the offline store and within its ttl",
        Frame.SERVED,
        "ExpectColumnValuesToNotBeNull",
        {"column": "given_at"},
        Cause.LOST_OFFLINE_WRITE,
    )
    for feature in view.features:
        yield Check(
            f"{view.name}.{feature.name}.online_api_equals_historical",
            "what Feast's online API serves is what its historical retrieval gives for that time",
            Frame.SERVED,
            "ExpectToAgreeWithin",
            {"column_list": [f"api_{feature.name}", f"pit_{feature.name}", f"within_{feature.name}"]},
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
            given="both_at",
        )


def _freshness_checks(view: View, freshness_target: Objective) -> Iterator[Check]:
    yield _state_check(
        f"{view.name}.freshness_is_known",
        "how every partition of the source keeps up is known",
        State.UNKNOWN,
        None,
        view,
    )
    yield _state_check(
        f"{view.name}.no_partition_is_stalled",
        "the flow goes on with every partition in which events wait",
        State.STALLED,
        Cause.STALE_ONLINE,
        view,
    )
    yield _state_check(
        f"{view.name}.freshness_is_within_objective",
        f"events are online within the freshness target, {freshness_target}",
        State.BREACHED,
        Cause.STALE_ONLINE,
        view,
    )


def _state_check(name: str, description: str, state: State, cause: Cause | None, view: View) -> Check:
    """No partition is in a state."""
    features = tuple(feature.name for feature in view.features) if cause else ()
    arguments = {"column": "state", "value_set": [state.value]}
    expectation, severity = "ExpectColumnValuesToNotBeInSet", "critical" if cause else "warning"
    return Check(name, description, Frame.FRESHNESS, expectation, arguments, cause, severity, features)


def _canary_checks(view: View) -> Iterator[Check]:
    """Of a frame that is there only if the user agreed to canaries."""
    for name, description, column, unwanted, cause in (
        (
            "canaries_are_under_way",
            "into every partition a canary was sent that the flow can accept",
            "state",
            (CanaryState.UNSENT, CanaryState.LATE),
            None,
        ),
        (
            "no_canary_is_stalled",
            "the flow goes on with every partition that has a canary in it",
            "state",
            (CanaryState.STALLED,),
            Cause.STALE_ONLINE,
        ),
        (
            "canaries_are_online",
            "of a canary whose offset is committed, the online row is as new",
            "online_row",
            ("older", "absent"),
            Cause.LOST_ONLINE_WRITE,
        ),
        (
            "canaries_are_offline",
            "of a canary whose offset is committed, there is a row offline",
            "offline_row",
            ("absent",),
            Cause.LOST_OFFLINE_WRITE,
        ),
    ):
        arguments = {"column": column, "value_set": [str(value) for value in unwanted]}
        severity = "critical" if cause else "warning"
        expectation = "ExpectColumnValuesToNotBeInSet"
        yield Check(f"{view.name}.{name}", description, Frame.CANARIES, expectation, arguments, cause, severity)


# --- what is looked at ------------------------------------------------------------------------------------------------


_SETTLED = frozenset({Found.FOUND, Found.ABSENT, Found.SUPERSEDED})


def joined(view: View, looked: Iterable[Judgeable]) -> pd.DataFrame:
    """Return one line for each entity that can be judged: one version of its row, in both stores.

    | column | meaning |
    | --- | --- |
    | `entity`, `event_timestamp`, `version` | the online row of the first look, null where there was none |
    | `online_at` | where the online row stands at the look at which it is older, null if at one there is none |
    | `seen_at` | the newest place where it was ever seen until the first look, or must have been |
    | `known_at` | the newest place of all that is known of it, unless it was never online, or its ttl may be over |
    | `due_at` | the offline row that it was chosen by, unless it was online and is gone, or its ttl may be over |
    | `expires_at` | when the online store forgets the row of the first look, or `never`; null if it may last for ever |
    | `may_last_until` | when it must be forgotten: the longest ttl of its hash after its time, or after that look |
    | `offline_at` | the offline row that the entity was chosen by |
    | `offline_row` | what became of the online row: `Found` |
    | `settled_row` | the same, if it can be told |
    | `offline_copies`, `offline_part` | how often the found row stands offline, and in which part |
    | `source_partition`, `source_offset` | the newest event in the found row's reach |
    | `ahead_s` | how far the online row's time lies ahead of the clock, in seconds; below 0 if it has come |
    | `on_<feature>`, `off_<feature>` | the values of a row that was found, as `comparable` makes them |
    | `type_<feature>` | the online value's own type |

    All columns hold Python objects: pandas would turn integers beside nulls into floats.
    """
    lines = [_line(view, one) for one in looked]
    return pd.DataFrame(lines, columns=_columns(view), dtype=object)


def _line(view: View, one: Judgeable) -> dict[str, Any]:
    ticket, row = one.ticket, one.ticket.first
    found = one.offline.row if one.offline else None
    seen, floor = ticket.known, ticket.floor
    known = max(filter(None, (seen, floor)), default=None)
    places = (place(row), place(ticket.second))
    expired = known is not None and _may_have_gone(view, ticket, known)
    lost, gone = (ticket.is_absent and was is one.was_online for was in (False, True))
    line: dict[str, Any] = {
        "entity": " / ".join(map(str, ticket.entity)),
        "event_timestamp": row and _instant(row.event_timestamp),
        "version": row and row.version,
        "online_at": None if None in places else _spelled(min(filter(None, places))),
        "seen_at": _spelled(known if ticket.is_behind and one.was_online else seen),
        "known_at": None if expired or lost else _spelled(known),
        "due_at": None if expired or gone else _spelled(floor),
        "offline_at": _spelled(floor),
        "offline_row": one.found and one.found.value,
        "settled_row": one.found.value if one.found in _SETTLED else None,
        "offline_copies": one.offline and one.offline.copies_count,
        "offline_part": found and found[PART],
        "source_partition": found and found[PARTITION],
        "source_offset": found and found[OFFSET],
        "ahead_s": row and (row.event_timestamp - ticket.first_at).total_seconds(),
        **_expiry(ticket),
    }
    stored: Mapping[str, Any] = row.features if row else {}
    for feature in view.features:
        name, value = feature.name, stored.get(feature.name)
        line[f"on_{name}"] = comparable(value) if found else None
        line[f"off_{name}"] = comparable(found[name]) if found else None
        line[f"type_{name}"] = type_of(value)
    return line


def _may_have_gone(view: View, ticket: Ticket, known: Place) -> bool:
    """Say whether what was known of an entity may have been forgotten by the second look, its ttl having passed."""
    if not view.ttl:
        return False
    row, looked_at = ticket.first, (ticket.second_at or ticket.first_at) + CLOCK_TOLERANCE
    if row is not None and row.expires_at is not None and place(row) == known:
        return looked_at >= row.expires_at
    return looked_at - known[0] >= view.ttl


def _expiry(ticket: Ticket) -> dict[str, Any]:
    """Of a row of long ago no more can be said than that it is kept for its ttl from now: it may be of a replay."""
    row = ticket.first
    if row is None or row.kept_for is None:
        return {"expires_at": None, "may_last_until": None}
    begun_at = max(row.event_timestamp, ticket.first_at) + CLOCK_TOLERANCE
    return {
        "expires_at": _NEVER if row.expires_at is None else _instant(row.expires_at),
        "may_last_until": _instant(begun_at + min(row.kept_for, _LAST - begun_at)),
    }


def recomputed(view: View, rows: Sequence[Mapping[str, Any]], answers: pa.Table) -> pd.DataFrame:
    """Return one line for each offline row, beside DuckDB's answer to the declared SQL at its instant.

    `rows` are offline rows, each with its part as `_part`; `answers` is what `oracle.answers` says of them.

    | column | meaning |
    | --- | --- |
    | `entity`, `event_timestamp`, `version` | the offline row |
    | `sql_version` | DuckDB's version; null where it has no such row |
    | `same_version` | the version, where both have the same: only then may values be compared |
    | `offline_part`, `source_partition`, `source_offset` | where the row stands, and the newest event in its reach |
    | `off_<feature>`, `sql_<feature>` | both values, as `comparable` makes them |
    | `within_<feature>` | how far apart they may be |
    """
    names = [*view.entity_names, EVENT_TIME]
    told = {tuple(line[name] for name in names): line for line in answers.to_pylist()}
    lines = []
    for row in rows:
        answer = told.get(tuple(row[name] for name in names), {})
        version = answer.get(VERSION)
        line: dict[str, Any] = {
            "entity": " / ".join(str(row[name]) for name in view.entity_names),
            "event_timestamp": _instant(row[EVENT_TIME]),
            "version": row[VERSION],
            "sql_version": version,
            "same_version": version if version == row[VERSION] else None,
            "offline_part": row[PART],
            "source_partition": row[PARTITION],
            "source_offset": row[OFFSET],
        }
        for feature in view.features:
            line[f"off_{feature.name}"] = comparable(row[feature.name])
            line[f"sql_{feature.name}"] = comparable(answer.get(feature.name))
            line[f"within_{feature.name}"] = answer.get(f"_t_{feature.name}") or 0.0
        lines.append(line)
    own = ["entity", "event_timestamp", "version", "sql_version", "same_version"]
    own += ["offline_part", "source_partition", "source_offset"]
    own += [f"{prefix}_{feature.name}" for feature in view.features for prefix in ("off", "sql", "within")]
    return pd.DataFrame(lines, columns=own, dtype=object)


def registry(entries: Iterable[Entry]) -> pd.DataFrame:
    """Return one line for each thing that Feast's registry says or should say of a view."""
    lines = [dataclasses.astuple(entry) for entry in entries]
    return pd.DataFrame(lines, columns=["entry", "declared", "registered"], dtype=object)


Answers = tuple[Mapping[str, Any], StoredRow | None, Mapping[str, Any]]


def served(view: View, at: datetime, answers: Iterable[Answers]) -> pd.DataFrame:
    """Return one line for each row that Feast was asked for at a time: what it serves, and what it gives to a trainer.

    `answers` are offline rows, each with its part as `_part`, what the online API served for its entity, and the
    features that historical retrieval gave.

    | column | meaning |
    | --- | --- |
    | `entity`, `event_timestamp`, `version` | the row, by our own readers the entity's newest in both stores |
    | `asked_at` | when Feast was asked, and the time for which it was asked for history |
    | `served_at` | the time of the row that the online API served; null where it served none |
    | `given_at` | the row's time, if history gave a value of a row that has one |
    | `both_at` | the row's time, if both gave it: only then may values be compared |
    | `offline_part`, `source_partition`, `source_offset` | where the row stands, and the newest event in its reach |
    | `api_<feature>`, `pit_<feature>` | both values, as `comparable` makes them |
    | `within_<feature>` | how far apart they may be |
    """
    lines = []
    for row, stored, given in answers:
        event_timestamp = _instant(row[EVENT_TIME])
        names = [feature.name for feature in view.features]
        is_null = all(comparable(row[name]) is None for name in names)  # then history gives nothing that could be seen
        is_given = is_null or any(comparable(given[name]) is not None for name in names)
        given_at = event_timestamp if is_given else None
        served_at = stored and _instant(stored.event_timestamp)
        line: dict[str, Any] = {
            "entity": " / ".join(str(row[name]) for name in view.entity_names),
            "event_timestamp": event_timestamp,
            "version": row[VERSION],
            "asked_at": _instant(at),
            "served_at": served_at,
            "given_at": given_at,
            "both_at": given_at if served_at == event_timestamp else None,
            "offline_part": row[PART],
            "source_partition": row[PARTITION],
            "source_offset": row[OFFSET],
        }
        for feature in view.features:
            api, pit = comparable(stored and stored.features[feature.name]), comparable(given[feature.name])
            line[f"api_{feature.name}"], line[f"pit_{feature.name}"] = api, pit
            line[f"within_{feature.name}"] = _distance(api, pit, _tolerance(feature))
        lines.append(line)
    own = ["entity", "event_timestamp", "version", "asked_at", "served_at", "given_at", "both_at"]
    own += ["offline_part", "source_partition", "source_offset"]
    own += [f"{prefix}_{feature.name}" for feature in view.features for prefix in ("api", "pit", "within")]
    return pd.DataFrame(lines, columns=own, dtype=object)


def _distance(one: Any, other: Any, tolerance: float) -> float:
    """Return how far apart two values may be, by a relative tolerance."""
    largest = max((abs(value) for value in (one, other) if isinstance(value, float)), default=0.0)
    return tolerance * largest if math.isfinite(largest) else 0.0


def schemas(view: View, found: Mapping[str, pa.Schema]) -> pd.DataFrame:
    """Return one line for each column that a part has or should have: `part`, `column`, `declared`, `found`."""
    declared = {field.name: field.type for field in view.row_schema}
    lines = []
    for part, schema in found.items():
        own = {field.name: field.type for field in schema}
        for name in {**declared, **own}:
            ours, theirs = declared.get(name), own.get(name)
            # Arrow does not compare the names of list elements, but it writes them, and parquet has its own.
            lines.append((part, name, str(ours), str(ours if ours == theirs else theirs)))
    return pd.DataFrame(lines, columns=["part", "column", "declared", "found"], dtype=object)


def parts(lines: Iterable[tuple[str, int, int | None]]) -> pd.DataFrame:
    """Return one line for each part whose rows' number is known, `all` for the folder: `part`, `committed`, `visible`.

    `visible` is None where the part is gone.
    """
    return pd.DataFrame(lines, columns=["part", "committed", "visible"], dtype=object)


def store(committed_count: int, counted_count: int) -> pd.DataFrame:
    """Return one line: how many writes the ledger says the online store had, and how many it counts."""
    return pd.DataFrame([(committed_count, counted_count)], columns=["committed", "counted"], dtype=object)


def archive(lines: Iterable[Conserved]) -> pd.DataFrame:
    """Return one line for each partition of a view's sources: what `Conserved` says."""
    columns = [field.name for field in dataclasses.fields(Conserved)]
    return pd.DataFrame([dataclasses.asdict(line) for line in lines], columns=columns, dtype=object)


def freshness(lines: Iterable[Line]) -> pd.DataFrame:
    """Return one line for each partition of a view's sources: what `freshness.Line` says."""
    columns = [field.name for field in dataclasses.fields(Line)]
    rows = [
        {
            **dataclasses.asdict(line),
            "state": line.state.value,
            "lag_seconds": None if line.lag_seconds is None else round(line.lag_seconds, 3),
        }
        for line in lines
    ]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def canaries(lines: Iterable[CanaryLine]) -> pd.DataFrame:
    """Return one line for each partition into which canaries are sent: what `canaries.CanaryLine` says."""
    columns = [field.name for field in dataclasses.fields(CanaryLine)]
    rows = [
        {
            **{name: getattr(line, name) for name in columns},
            "state": line.state.value,
            "event_at": line.event_at and _instant(line.event_at),
            "sent_at": line.sent_at and _instant(line.sent_at),
            "online_at": _spelled(line.online_at),
        }
        for line in lines
    ]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _columns(view: View) -> list[str]:
    own = ["entity", "event_timestamp", "version", "online_at", "seen_at", "known_at", "due_at", "offline_at"]
    own += ["offline_row", "settled_row", "offline_copies", "offline_part", "source_partition", "source_offset"]
    own += ["ahead_s", "expires_at", "may_last_until"]
    return own + [f"{prefix}_{feature.name}" for feature in view.features for prefix in ("on", "off", "type")]


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _spelled(where: Place | None) -> str | None:
    """Write (event_timestamp, version) as text that sorts like it."""
    return None if where is None else f"{_instant(where[0])} version {where[1]:019d}"


# --- values -----------------------------------------------------------------------------------------------------------


def comparable(value: Any) -> Any:
    r"""Return what a value is compared as: NaN is null, instants are whole seconds, lists and bytes are text.

    >>> comparable(float("nan")), comparable([1, 2]), comparable(b"\x00a"), comparable("")
    (None, '[1, 2]', '0061', '')
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(microsecond=0).isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):  # pandas can't hash a list, and Great Expectations has it hash every value
        return json.dumps([comparable(item) for item in value])
    return value


def type_of(value: Any) -> str | None:
    """Return the type that a stored value has by itself; None for null. The width of a number can't be told.

    >>> type_of(3), type_of(3.0), type_of(True), type_of(["a"]), type_of([]), type_of(None)
    ('int', 'float', 'bool', 'array(string)', 'array()', None)
    """
    if isinstance(value, list):
        return f"array({', '.join(sorted({type_of(item) or '' for item in value} - {''}))})"
    return None if value is None else _TYPES.get(type(value), type(value).__name__)


_TYPES = {str: "string", datetime: "unix_timestamp"}  # bool, bytes, float and int are called what Python calls them


def _types(dtype: Dtype) -> tuple[str, ...]:
    """Return what `type_of` may say of values of a declared type."""
    if dtype.element:
        return (f"array({_types(dtype.element)[0]})", "array()")
    return (dtype.name.rstrip("0123456789"),)
