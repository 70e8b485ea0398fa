"""The log of what was served: typed rows, of a sample of entities, that join back to the offline store."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from freshet.flows.edges.served import FOLDER, ServedLog
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused
from freshet.schemas.serving import ServedRow, Status
from freshet.schemas.view import Feature, View

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
VIEW = View(
    "by_user",
    ("edits",),
    (pa.field("user", pa.string()),),
    (
        Feature("edits", DTYPES["int64"], ""),
        Feature("seen", DTYPES["unix_timestamp"], ""),
        Feature("raw", DTYPES["bytes"], ""),
    ),
)


def test_rows_are_kept_with_their_types_and_versions(tmp_path: Path) -> None:
    log = ServedLog(tmp_path, [VIEW], 1.0)
    there = ServedRow("by_user", ("ada",), NOON_US, 7, Status.PRESENT, {"edits": 3, "seen": NOON})
    gone = ServedRow("by_user", ("bob",), None, 0, Status.NOT_FOUND, {"raw": None})
    log.keep([there, gone], NOON_US + 5)
    log.close()

    found = duckdb.sql(f"FROM '{tmp_path / FOLDER}/by_user/*.parquet'").to_arrow_table().to_pylist()

    stamp = NOON.replace(microsecond=5)
    assert [
        {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in row.items()}
        for row in found
    ] == [
        {
            "user": "ada", "event_timestamp": NOON, "edits": 3, "seen": NOON, "raw": None, "_version": 7,
            "asked": ["edits", "seen"], "status": "PRESENT", "served_at": stamp,
        },
        {
            "user": "bob", "event_timestamp": None, "edits": None, "seen": None, "raw": None, "_version": 0,
            "asked": ["raw"], "status": "NOT_FOUND", "served_at": stamp,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.25, 2_200, 2_800), (1.0, 10_000, 10_000)])
def test_a_share_of_the_entities_is_chosen_and_the_same_ones_by_every_process(
    tmp_path: Path, share: float, least: int, most: int
) -> None:
    one, other = (ServedLog(tmp_path, [VIEW], share) for _ in range(2))
    keys = [f"user{number}".encode() for number in range(10_000)]

    chosen = [key for key in keys if one.is_chosen(key)]

    assert least <= len(chosen) <= most
    assert chosen == [key for key in keys if other.is_chosen(key)]
    one.close()
    other.close()


def test_a_disk_that_takes_nothing_is_said_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = ServedLog(tmp_path, [VIEW], 1.0)
    (tmp_path / FOLDER / "by_user").rmdir()
    log.keep([ServedRow("by_user", ("ada",), NOON_US, 7, Status.PRESENT, {"edits": 3})], NOON_US)

    log.close()

    assert "1 served rows were not logged: offline store at" in caplog.text


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file is in the way")

    with pytest.raises(Refused, match="offline store .* cannot be written"):
        ServedLog(tmp_path, [VIEW], 1.0)
