"""Pages on disk: the newest so many of each view, and an index of them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from freshet.flows.edges.data_docs import DataDocs
from freshet.schemas.errors import Unavailable
from freshet.schemas.finding import Outcome

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_newest_pages_of_each_view_are_kept_and_listed(tmp_path: Path) -> None:
    docs = DataDocs(tmp_path / "docs", kept_count=3)

    for minutes in range(5):
        docs.write("by_user", AT + timedelta(minutes=minutes), Outcome.VIOLATED, f"page {minutes}")
    docs.write("by_page", AT, Outcome.OK, "other page")

    pages = sorted((tmp_path / "docs" / "by_user").iterdir())
    assert ["page 2", "page 3", "page 4"] == [page.read_text() for page in pages]
    index = (tmp_path / "docs" / "index.html").read_text()
    linked = re.findall(r'href="([^"]+)"', index)
    assert 4 == len(linked)
    assert all((tmp_path / "docs" / link).is_file() for link in linked)
    assert linked.index(f"by_user/{pages[2].name}") < linked.index(f"by_user/{pages[0].name}")
    assert "violated" in index


def test_only_pages_are_let_go(tmp_path: Path) -> None:
    docs = DataDocs(tmp_path, kept_count=1)
    docs.write("by_user", AT, Outcome.OK, "page")
    (tmp_path / "by_user" / "notes.html").write_text("mine")

    docs.write("by_user", AT + timedelta(seconds=1), Outcome.OK, "page")

    assert {"notes.html", "20260301T120001.000000Z-ok.html"} == {page.name for page in (tmp_path / "by_user").iterdir()}


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "docs").write_text("a file")

    with pytest.raises(Unavailable, match="data docs at .*docs/by_user cannot be written: .+"):
        DataDocs(tmp_path / "docs").write("by_user", AT, Outcome.OK, "page")
