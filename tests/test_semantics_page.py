"""docs/semantics.md says what is so: every example on it is run."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AwareDatetime

from freshet.flows.testing import Given, microseconds
from freshet.schemas.event import EVENT_TIME, Event, Stream

PAGE = (Path(__file__).parent.parent / "docs" / "semantics.md").read_text(encoding="utf-8")
DAY = "2026-03-01T{}Z"
LATENESS = timedelta(minutes=10)
EXAMPLE = re.compile(
    r"```yaml\n(?P<declared>[^`]*)```\n\n(?P<events>(?:\|.*\n)+)\n(?P<what>Rows|Every version) until `(?P<until>.*)`:\n\n"
    r"(?P<rows>(?:\|.*\n)+)"
)


class Click(Event):
    stream = Stream("clicks", key="user", event_time="at", event_id="id", lateness=LATENESS)

    at: AwareDatetime
    user: str
    page: str | None = None
    amount: float | None = None
    id: str | None = None


class Refund(Event):
    stream = Stream("refunds", key="user", event_time="at", lateness=LATENESS)

    at: AwareDatetime
    user: str
    amount: float


STREAMS: Mapping[str, type[Event]] = {"clicks": Click, "refunds": Refund}


@dataclass(frozen=True)
class Example:
    title: str
    declared: list[dict[str, Any]]
    events: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    until: str
    every_version: bool


def table(text: str) -> list[dict[str, Any]]:
    """A table of the page: cells are JSON where they can be, times of the day, or text; an empty cell is not there."""
    lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines()]
    names, _, *rows = lines
    return [{name: value(cell) for name, cell in zip(names, row, strict=True) if cell} for row in rows]


def value(cell: str) -> Any:
    if re.fullmatch(r"\d\d:\d\d:\d\d(\.\d+)?", cell):
        return DAY.format(cell)
    try:
        return None if cell == "NULL" else json.loads(cell)
    except json.JSONDecodeError:
        return cell


def examples() -> Iterator[Example]:
    for section in PAGE.split("\n## ")[1:]:
        for number, found in enumerate(EXAMPLE.finditer(section)):
            yield Example(
                section.splitlines()[0] + f" {number + 1}" * (number > 0),
                yaml.safe_load(found["declared"]),
                table(found["events"]),
                table(found["rows"]),
                DAY.format(found["until"]),
                found["what"] == "Every version",
            )


EXAMPLES = [*examples()]


def test_every_declaration_on_the_page_is_part_of_an_example() -> None:
    assert PAGE.count("```yaml") == len(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_the_example_is_so(example: Example) -> None:
    sources = [made["source"] for made in example.declared]
    names = dict.fromkeys(name for source in sources for name in ([source] if isinstance(source, str) else source))
    text = yaml.safe_dump({"featureDefinitions": example.declared, "servingRequirements": {}})
    given = Given.declared(text, {name: STREAMS[name] for name in names})
    view, run = given.pipeline.views[0], given.start()
    offsets = dict.fromkeys(names, 0)
    for event in example.events:
        stream = event.get("stream", "clicks")
        keys = {key: event[key] for key in event if key not in ("stream", "becomes")}
        before = (run.events(stream).num_rows, len(run.rejects), run.duplicates_count)
        run.take(*given.polls(stream, [keys], first_offset=offsets[stream]))
        offsets[stream] += 1
        after = (run.events(stream).num_rows, len(run.rejects), run.duplicates_count)
        became = [now - then for now, then in zip(after, before, strict=True)]
        assert [int(event.get("becomes", "accepted") == word) for word in ("accepted", "late", "duplicate")] == became
    run.pass_time(microseconds(example.until))

    run.check(view.name)
    made = run.versions(view.name) if example.every_version else run.final(view.name)
    shown = [{name: row[name] for name in example.rows[0]} for row in made.to_pylist()]
    told = [{**row, EVENT_TIME: microseconds(row[EVENT_TIME])} for row in example.rows]
    assert told == [{**row, EVENT_TIME: microseconds(row[EVENT_TIME])} for row in shown]
