"""Data Docs on disk: pages of what was found, for people with a browser.

::

    DIR/index.html                       every page that is kept, newest first
    DIR/<view>/<time>-<outcome>.html     what one round said of a view

A page is there as a whole or not at all. Of each view the last so many are kept.
"""

import html
import re
from datetime import UTC, datetime
from pathlib import Path

from freshet.flows.edges import disk
from freshet.schemas.errors import Unavailable
from freshet.schemas.finding import Outcome

KEPT_COUNT = 50
_PAGE = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-(\w+)\.html")


class DataDocs:
    """Pages below one folder, `kept_count` of each view."""

    def __init__(self, folder: Path, kept_count: int = KEPT_COUNT) -> None:
        self._folder, self._kept_count = folder, kept_count

    def write(self, view_name: str, at: datetime, outcome: Outcome, page: str) -> Path:
        """Add a page of a view, let go of its oldest ones, and return where it is; raises `Unavailable`."""
        path = self._folder / view_name / f"{at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}-{outcome}.html"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.replace(path, lambda file: file.write(page.encode(errors="replace")))
            for old in self._pages(path.parent)[self._kept_count :]:
                old.unlink(missing_ok=True)
            disk.replace(self._folder / "index.html", lambda file: file.write(self._index().encode()))
        except OSError as error:
            raise Unavailable(f"data docs at {path.parent} cannot be written: {error.strerror or error}") from error
        return path

    def _pages(self, folder: Path) -> list[Path]:
        """Return the pages of a view, newest first."""
        return sorted((page for page in folder.glob("*.html") if _PAGE.fullmatch(page.name)), reverse=True)

    def _index(self) -> str:
        sections = []
        for folder in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            name, lines = html.escape(folder.name), []
            for page in self._pages(folder):
                time, outcome = page.stem.rsplit("-", 1)
                at = datetime.strptime(time, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).isoformat(timespec="seconds")
                lines.append(f'<li><a href="{name}/{html.escape(page.name)}">{at}</a> {html.escape(outcome)}</li>')
            sections.append(f"<h2>{name}</h2>\n<ul>\n" + "\n".join(lines) + "\n</ul>")
        return _INDEX.format(sections="\n".join(sections))


_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>What the validator found</title>
<style>body {{ font-family: sans-serif; max-width: 75em; margin: 2em auto; }}</style>
</head>
<body>
<h1>What the validator found</h1>
{sections}
</body>
</html>
"""
