"""Files of events: whatever the form, the same events at the same places."""

import gzip
import io
import json
import sys
from collections import Counter
from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime

from freshet.flows.edges.event_file import lines, polls
from freshet.flows.steps.decode import Decoder
from freshet.schemas.errors import Refused
from freshet.schemas.event import Event, Stream, as_is, contract
from freshet.schemas.poll import Poll

EVENTS: list[dict[str, Any]] = [{"n": number, "user": f"user {number}"} for number in range(7)]
TEXT = "".join(json.dumps(event) + "\n" for event in EVENTS).encode()


def read(path: Path, batch_events: int = 3) -> list[Poll]:
    return list(polls(str(path), "t", batch_events=batch_events))


def values(found: list[Poll]) -> list[Any]:
    return [json.loads(value) for poll in found for value in poll.values if value is not None]


def test_a_file_of_lines_is_one_partition_at_the_offsets_of_its_lines(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(TEXT)

    found = read(tmp_path / "e.jsonl")

    assert values(found) == EVENTS
    assert [len(poll.values) for poll in found] == [3, 3, 1]
    assert [offset for poll in found for offset in poll.offsets] == list(range(7))
    assert {(poll.topic, poll.partition, poll.partitions_count) for poll in found} == {("t", 0, 1)}
    assert {int(time) for poll in found for time in poll.timestamps_ms} == {-1}


def test_gzip_is_told_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(gzip.compress(TEXT))
    (tmp_path / "plain.gz").write_bytes(TEXT)

    assert values(read(tmp_path / "e.jsonl")) == EVENTS
    assert values(read(tmp_path / "plain.gz")) == EVENTS


@pytest.mark.parametrize("text", [TEXT.replace(b"\n", b"\r\n"), TEXT.rstrip(), b"  " + TEXT])
def test_line_ends_and_spaces_are_no_part_of_an_event(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "e.jsonl").write_bytes(text)

    assert values(read(tmp_path / "e.jsonl")) == EVENTS


def test_an_offset_is_the_number_of_its_line_whatever_empty_lines_are_before(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"\n\n{}\n\n{}\n")

    assert [offset for poll in read(tmp_path / "e.jsonl") for offset in poll.offsets] == [2, 4]


def test_a_line_that_is_not_json_is_passed_on_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"{}\n\xff{\n")

    assert [value for poll in read(tmp_path / "e.jsonl") for value in poll.values] == [b"{}", b"\xff{"]


def test_an_empty_file_has_no_events(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"")
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "e.parquet")

    assert read(tmp_path / "e.jsonl") == []
    assert read(tmp_path / "e.parquet") == []


def test_parquet_is_read_as_the_same_json(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(EVENTS), tmp_path / "e.parquet")

    found = read(tmp_path / "e.parquet")

    assert values(found) == EVENTS
    assert [offset for poll in found for offset in poll.offsets] == list(range(7))


def test_parquet_keeps_the_places_that_its_events_name(tmp_path: Path) -> None:
    placed = [{**event, "_partition": index % 2, "_offset": 100 + index // 2} for index, event in enumerate(EVENTS)]
    schema = pa.schema([("n", pa.int64()), ("user", pa.string()), ("_partition", pa.int32()), ("_offset", pa.int64())])
    pq.write_table(pa.Table.from_pylist(placed, schema), tmp_path / "e.parquet")

    found = [
        (poll.partition, int(offset), json.loads(value)["n"], poll.partitions_count)
        for poll in read(tmp_path / "e.parquet")
        for offset, value in zip(poll.offsets, poll.values, strict=True)
        if value is not None
    ]

    assert sorted(found) == sorted((row["_partition"], row["_offset"], row["n"], 2) for row in placed)


def test_times_and_decimals_of_parquet_are_written_as_contracts_read_them(tmp_path: Path) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    table = pa.table({"at": pa.array([noon], pa.timestamp("us", "UTC")), "cost": pa.array([Decimal("1.50")])})
    pq.write_table(table, tmp_path / "e.parquet")

    assert values(read(tmp_path / "e.parquet")) == [{"at": "2026-03-01T12:00:00+00:00", "cost": "1.50"}]


class Trip(Event):
    stream = Stream(topic="trips", key="rider", event_time="at", version=2, upcasts={1: as_is})
    at: AwareDatetime
    rider: str
    metres: float | None = None
    stops: list[str]
    cash: bool = False


TRIPS, _ = contract("trips", Trip)
assert TRIPS is not None
PLACED = st.tuples(
    st.fixed_dictionaries(
        {
            "at": st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)).map(str),  # noqa: DTZ001  # the zone is drawn apart
            "rider": st.text(max_size=3),
            "metres": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "stops": st.lists(st.text(max_size=2), max_size=2),
            "cash": st.booleans(),
        }
    ),
    st.integers(0, 2),
)


def archived(placed: list[tuple[dict[str, Any], int]]) -> pa.Table:
    """Return events as the archive has them, of partitions that take turns."""
    assert TRIPS is not None
    tables, counts = [TRIPS.schema.empty_table()], Counter[int]()
    for event, partition in placed:
        poll = Poll(
            "trips", partition, 3, [json.dumps(event).encode()], [None], [None], np.array([-1]),
            np.array([counts[partition]]), counts[partition] + 1, at_end=False,
        )  # fmt: skip
        counts[partition] += 1
        tables.append(Decoder(TRIPS).decode(poll).events)
    return pa.concat_tables(tables).combine_chunks()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(placed=st.lists(PLACED, max_size=12), batch_events=st.integers(1, 5))
def test_an_archives_events_are_the_same_as_they_stand_and_as_json(
    tmp_path: Path, placed: list[tuple[dict[str, Any], int]], batch_events: int
) -> None:
    assert TRIPS is not None
    path = tmp_path / "e.parquet"
    pq.write_table(archived(placed), path)
    decoder = Decoder(TRIPS)

    def by_partition(found: list[Poll]) -> dict[int, list[Any]]:
        of = dict[int, list[Any]]()
        for poll in found:
            events = decoder.decode(poll).events if poll.events is None else poll.events
            assert events["_offset"].to_pylist() == poll.offsets.tolist()
            of.setdefault(poll.partition, []).extend(events.to_pylist())
        return of

    as_they_stand = list(polls(str(path), "trips", batch_events=batch_events, form=TRIPS.schema))

    assert all(poll.events is not None and len(poll.values) <= batch_events for poll in as_they_stand)
    assert {poll.partitions_count for poll in as_they_stand} == {poll.partitions_count for poll in read(path)}
    assert by_partition(as_they_stand) == by_partition(read(path))


@pytest.mark.parametrize("which", ["another version's", "without a version", "said to be of another", "without places"])
def test_what_is_no_archive_of_the_newest_version_is_read_as_json(tmp_path: Path, which: str) -> None:
    assert TRIPS is not None
    table = archived([({"at": "2026-03-01T12:00:00Z", "rider": "ada", "stops": []}, 0)])
    told = {"another version's": {"freshet.version": "1"}, "without a version": {}}.get(which, table.schema.metadata)
    table = table.replace_schema_metadata(told)
    if which == "without places":
        table = table.drop(["_partition"])
    pq.write_table(table, tmp_path / "e.parquet")

    version = 1 if which == "said to be of another" else None
    (found,) = polls(str(tmp_path / "e.parquet"), "trips", version=version, form=TRIPS.schema)

    assert found.events is None
    assert [json.loads(value or b"")["rider"] for value in found.values] == ["ada"]


@pytest.mark.parametrize("value", [b"\xff", time(1)])
def test_parquet_with_values_that_json_cannot_say_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    pq.write_table(pa.table({"x": pa.array([value])}), tmp_path / "e.parquet")

    with pytest.raises(Refused, match=f'file "{tmp_path / "e.parquet"}" cannot be read: '):
        read(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("torn.jsonl", gzip.compress(TEXT)[:-9]),
        ("bad.jsonl", gzip.compress(TEXT)[:12] + b"\x00\x01\x02" + gzip.compress(TEXT)[15:]),
        ("torn.parquet", b"PAR1"),
        ("none.parquet", b""),
    ],
    ids=["cut off", "other bytes", "a parquet file's beginning", "nothing"],
)
def test_a_file_that_is_torn_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(Refused, match=f'file "{path}" cannot be read: .+ Hint: give newline-delimited JSON'):
        read(path)


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "folder/none.jsonl"])
def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=f'file "{tmp_path / name}" is not there'):
        read(tmp_path / name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read(tmp_path)


def test_standard_input_is_read_to_its_end_and_each_event_has_its_line() -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"\n\n" + TEXT))
    sys.stdin, before = piped, sys.stdin
    try:
        found = [*lines("-")]
    finally:
        sys.stdin = before

    assert [(number, json.loads(line)) for number, line in found] == [*enumerate(EVENTS, start=3)]
