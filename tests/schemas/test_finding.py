"""What is published of a finding: always the same keys, plain values, and both rows."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from freshet.schemas.finding import Alarm, Cause, Finding, Outcome, Status, Verdict

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DOCS = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
ROW = {
    "type": ["object", "null"],
    "required": ["event_timestamp", "version", "value"],
    "properties": {"event_timestamp": {"type": "string", "format": "date-time"}, "version": {"type": "integer"}, "value": {}},
    "additionalProperties": False,
}  # fmt: skip
FINDING: dict[str, Any] = {
    "feature_view": {"type": "string"},
    "features": {"type": "array", "items": {"type": "string"}},
    "check": {"type": "string"},
    "cause": {"enum": [cause.value for cause in Cause]},
    "severity": {"enum": ["critical", "warning", "info"]},
    "message": {"type": "string"},
    "lines_count": {"type": "integer", "minimum": 1},
    "entity": {"type": ["string", "null"]},
    "online": ROW,
    "offline": ROW,
    "source": {"type": ["object", "null"], "required": ["stream", "partition", "offset"]},
    "evidence": {"type": "array", "items": {"type": "object"}, "maxItems": 10},
}
OWN = {
    "project": {"type": "string"},
    "status": {"enum": ["opened", "resolved"]},
    "since": {"type": "string", "format": "date-time"},
    "at": {"type": "string", "format": "date-time"},
}
SCHEMA = {
    "type": "object", "required": [*OWN, *FINDING], "properties": {**OWN, **FINDING}, "additionalProperties": False
}  # fmt: skip
LINE: dict[str, Any] = {
    "entity": "ann", "event_timestamp": "2026-03-01T11:00:00.000000+00:00", "version": 3,
    "online_at": "2026-03-01T11:00:00.000000+00:00 version 0000000000000000003", "offline_part": "part-0.parquet",
    "source_partition": 4, "source_offset": 77, "on_edits": 7, "off_edits": 6,
}  # fmt: skip


def finding(*evidence: dict[str, Any], features: tuple[str, ...] = ("edits",)) -> Finding:
    return Finding(
        "by_user", "by_user.edits.online_equals_offline", Cause.VALUE_MISMATCH, features, evidence, "not so", 9
    )


def told(made: Finding) -> dict[str, Any]:
    return Alarm(Status.OPENED, made, AT, AT + timedelta(seconds=5)).as_json("shop")


@pytest.mark.parametrize(
    "made",
    [
        finding(LINE),
        finding(LINE, {**LINE, "entity": "bob"}),
        finding(),
        finding({"part": "all", "committed": 5, "visible": 6}, features=()),
        finding({"stream": "edits", "partition": 1, "lag_seconds": 9.5}, features=("a", "b")),
        finding({"entity": "ann", "offline_at": LINE["online_at"]}, features=()),
        finding({**LINE, "on_edits": float("inf"), "off_edits": float("nan"), "entity": "<\ud800>" * 400}),
    ],
)
def test_an_alarm_has_every_key_and_no_other_and_is_json(made: Finding) -> None:
    text = json.dumps(told(made), allow_nan=False)

    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


def test_an_alarm_of_a_compared_row_tells_both_values_versions_and_where_its_newest_event_stands() -> None:
    alarm = told(finding(LINE))

    row = {"event_timestamp": "2026-03-01T11:00:00.000000+00:00", "version": 3}
    assert ("ann", {**row, "value": 7}, {**row, "value": 6}) == (alarm["entity"], alarm["online"], alarm["offline"])
    assert {"stream": None, "partition": 4, "offset": 77} == alarm["source"]
    assert ("2026-03-01T12:00:00.000+00:00", "2026-03-01T12:00:05.000+00:00") == (alarm["since"], alarm["at"])


def test_an_alarm_of_a_lost_row_tells_the_two_different_versions() -> None:
    line = {"entity": "ann", "event_timestamp": "2026-03-01T11:00:00.000000+00:00", "version": 3}
    alarm = told(finding({**line, "offline_at": "2026-03-01T11:30:00.000000+00:00 version 0000000000000000012"}))

    assert (3, 12) == (alarm["online"]["version"], alarm["offline"]["version"])
    assert "2026-03-01T11:30:00.000000+00:00" == alarm["offline"]["event_timestamp"]


def test_an_alarm_of_an_entity_that_is_not_online_has_no_online_row() -> None:
    alarm = told(
        finding({"entity": "ann", "offline_at": "2026-03-01T11:30:00.000000+00:00 version 0000000000000000012"})
    )

    assert alarm["online"] is None
    assert 12 == alarm["offline"]["version"]


def test_times_are_told_in_utc() -> None:
    local = datetime(2026, 3, 1, 17, 45, tzinfo=timezone(timedelta(hours=5, minutes=45)))

    alarm = Alarm(Status.RESOLVED, finding(LINE), local, local).as_json("shop")

    assert ("resolved", "2026-03-01T12:00:00.000+00:00") == (alarm["status"], alarm["since"])


def test_a_verdict_is_told_with_its_findings_and_reasons() -> None:
    verdict = Verdict("by_user", Outcome.VIOLATED, 40, (finding(LINE),), ("of 3 rows nothing is known",))

    said = verdict.as_json()

    assert {"feature_view", "outcome", "compared_count", "findings", "reasons"} == said.keys()
    assert ("violated", 40, ["of 3 rows nothing is known"]) == (
        said["outcome"],
        said["compared_count"],
        said["reasons"],
    )
    assert [finding(LINE).as_json()] == said["findings"]
    assert FINDING.keys() == said["findings"][0].keys()


@pytest.mark.parametrize("key", [*OWN, *FINDING])
def test_every_key_is_explained_beside_the_code_and_in_the_documentation(key: str) -> None:
    assert Alarm.as_json.__doc__ is not None
    assert f"`{key}`" in Alarm.as_json.__doc__
    assert f"`{key}`" in DOCS


def test_the_causes_explained_in_the_documentation_are_the_ones_there_are() -> None:
    section = DOCS.split("## Causes")[1].split("## ")[0]

    assert {cause.value for cause in Cause} == set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
