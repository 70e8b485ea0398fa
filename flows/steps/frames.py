"""What the validator looks at, as frames: pure.

Of an entity a frame compares one version in both stores: the key is (entity, event_timestamp, `_version`), since a
version never changes and only its becoming visible is a race (`watch`). What must hold of a frame is said in `checks`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa

from freshet.flows.steps.canaries import CanaryLine
from freshet.flows.steps.conservation import Conserved
from freshet.flows.steps.freshness import Line
from freshet.flows.steps.watch import PART, Found, Judgeable, Place, Ticket, place
from freshet.schemas.dtypes import Dtype
from freshet.schemas.event import EVENT_TIME, OFFSET, PARTITION
from freshet.schemas.registration import Entry
from freshet.schemas.view import VERSION, Feature, StoredRow, View

RELATIVE_TOLERANCE = 1e-9
"""Both stores are given the same float; this leaves room for another reader's last digit, not for another value."""

CLOCK_TOLERANCE = timedelta(seconds=5)
"""How far two machines' clocks may be apart before a row counts as one of the future, or as kept for too long."""

_NEVER = "never"
"""What is later than any instant, in words as in order."""
_LAST = datetime.max.replace(tzinfo=UTC)


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
            line[f"within_{feature.name}"] = _distance(api, pit, tolerance_of(feature))
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


def tolerance_of(feature: Feature) -> float:
    """Return how far apart, relatively, two readings of a feature may be."""
    if not feature.dtype.is_float:
        return 0.0
    return RELATIVE_TOLERANCE if feature.expected.tolerance is None else feature.expected.tolerance


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


def types_of(dtype: Dtype) -> tuple[str, ...]:
    """Return what `type_of` may say of values of a declared type."""
    if dtype.element:
        return (f"array({types_of(dtype.element)[0]})", "array()")
    return (dtype.name.rstrip("0123456789"),)
