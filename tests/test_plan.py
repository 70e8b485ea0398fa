"""`freshet plan`, as a person meets it: what an edit changes, and how values would differ, before anything is applied."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freshet.flows import settings
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.live import prepare
from freshet.flows.replay import replay
from freshet.flows.workspace import Workspace
from freshet.schemas.applied import Applied
from freshet.schemas.event import archive_name
from freshet.schemas.ledger import Ledger
from freshet.scripts import cli
from freshet.scripts.plan import planned_deployment

Plan = Callable[..., list[str]]


@pytest.fixture
def root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    root = tmp_path / "shop"
    assert cli.main(["init", str(root)]) == 0
    capsys.readouterr()
    return root


@pytest.fixture
def plan(root: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Plans, and gives the lines from what is to be applied on."""

    def planned(*words: str) -> list[str]:
        assert cli.main(["-C", str(root), "plan", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return lines[next(index for index, line in enumerate(lines) if "to apply" in line) :]

    return planned


def workspace(root: Path) -> Workspace:
    return Workspace.open(settings.read({"FRESHET_PROJECT": str(root)}))


def put_in_force(root: Path) -> None:
    """Have the declaration as it stands in force, and the topics known."""
    opened = workspace(root)
    AppliedFile(opened.offline_root).write(Applied(declared=opened.declared))
    (root / ".freshet").mkdir(exist_ok=True)
    topics = [{"name": "page_views"}]
    made = json.dumps({"topics": topics, "featureViews": []})
    (root / ".freshet" / "applied.json").write_text(made)


def test_what_apply_refuses_for_the_events_that_the_archive_has_dropped_is_refused(
    root: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_force(root)
    opened = workspace(root)
    plans = opened.pipeline.plans
    opened.offline_root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(
        id="a", shards_count=1, views={one.view.name: one.digest for one in plans}, expired={"page_views": 1}
    )
    LedgerFile(opened.offline_root).write(ledger)
    plan()  # of what is in force nothing is refused
    edit(root, "INTERVAL '10 minutes'", "INTERVAL '1 minute'")

    assert cli.main(["-C", str(root), "plan"]) == 2

    told = capsys.readouterr()
    assert "to apply:" in told.out
    assert "needs all events from the beginning, and the archive has dropped some" in told.err


def archive(root: Path, out: Path) -> None:
    """Archive the project's own examples."""
    opened = workspace(root)
    offline = opened.offline()
    prepare(offline, opened.pipeline, opened.contracts)
    files = {"page_views": str(root / "events.jsonl")}
    now_us = time.time_ns() // 1000
    done = replay(opened.pipeline, opened.contracts, files, out, now_us=lambda: now_us, keep_events=True)
    for events in done.events["page_views"]:
        offline.append(archive_name("page_views"), events)


def edit(root: Path, before: str, after: str) -> None:
    path = root / "feature_repo" / "features.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_with_nothing_in_force_all_is_new(plan: Plan) -> None:
    lines = plan()

    assert lines[0] == "to apply:"
    assert "  feature view page_views_by_visitor" in lines
    assert any(line.startswith("    + view added: visitor_views_10m, ") for line in lines)


def test_an_edit_is_said_as_a_person_thinks_of_it_with_what_it_does(root: Path, plan: Plan) -> None:
    put_in_force(root)
    edit(root, "INTERVAL '10 minutes'", "INTERVAL '20 minutes'")
    edit(root, "visitor_last_section", "visitor_section")
    edit(root, "ttl: 1 day", "ttl: 2 days")

    lines = plan()

    view = lines.index("  feature view page_views_by_visitor")
    assert lines[view + 1 : view + 7] == [
        "    ~ visitor_views_10m: window changed, from last 10m to last 20m",
        "    ~ visitor_mean_seconds_10m: window changed, from last 10m to last 20m",
        "    ~ visitor_bounce_share_10m: window changed, from last 10m to last 20m",
        "    ~ visitor_last_section is renamed to visitor_section",
        "    ~ ttl changed, from 1d to 2d",
        "    safe in place: the view is made anew from the event archive, and handed over at one commit",
    ]
    told = "\n".join(lines[view + 7 :])
    assert "state: is made anew from the event archive" in told
    assert "offline store: its rows are made anew from the archived events" in told
    assert "online store: each entity's newest row is written anew at the hand-over; a row has the new ttl" in told
    assert "readers of visitor_section: ask for it by its new name" in told


def test_what_is_refused_in_place_has_its_hint(root: Path, plan: Plan) -> None:
    put_in_force(root)
    edit(root, "visitor_views_10m, dtype: int64", "visitor_views_10m, dtype: float64")

    lines = plan()

    place = lines.index("    ~ visitor_views_10m: type changed, from int64 to float64")
    assert "`view: page_views_by_visitor_v2`" in lines[place + 1]
    assert lines[place + 2] == "    refused in place: needs a new version of the view"


def test_what_is_in_force_needs_nothing(root: Path, plan: Plan) -> None:
    put_in_force(root)
    (root / ".freshet" / "applied.json").write_text(json.dumps(_planned(root)))

    assert plan() == ["nothing to apply: this is what was applied last"]


def test_an_edit_of_words_alone_is_said_to_be_one(root: Path, plan: Plan) -> None:
    put_in_force(root)
    (root / ".freshet" / "applied.json").write_text(json.dumps(_planned(root)))
    edit(root, "featureDefinitions:", "# features\nfeatureDefinitions:")

    assert plan() == ["to apply:", "  the declaration's text alone: no view and no target changes"]


def _planned(root: Path) -> object:
    return planned_deployment(workspace(root)).model_dump(mode="json")


def test_json_is_the_deployment_and_nothing_else_whatever_is_in_force(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_force(root)
    edit(root, "ttl: 1 day", "ttl: 2 days")

    assert cli.main(["-C", str(root), "plan", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == _planned(root)


def test_no_password_is_printed_where_the_online_store_is_another_one(root: Path, plan: Plan) -> None:
    put_in_force(root)
    edit(root, "redis://localhost:6379/0", "redis://:hunter2@cache:6379/0")

    lines = plan()

    assert "    ~ online store changed" in lines
    assert "hunter2" not in "\n".join(lines)


def test_what_is_in_force_and_cannot_be_read_any_more_is_said_to_be_so(root: Path, plan: Plan) -> None:
    put_in_force(root)
    for path in (root / "feature_repo" / "features.yaml", root / "schemas" / "events" / "page_views.py"):
        path.write_text(path.read_text().replace("seconds", "length"))

    lines = plan("--shadow", "10m")

    assert lines[0] == "to apply: what is in force cannot be compared, since it is read no more:"
    assert "seconds" in lines[1]
    assert any("nothing is in force to compare with" in line for line in lines)


# --- shadow -----------------------------------------------------------------------------------------------------------


def test_a_shadow_shows_by_feature_how_values_would_differ_and_what_it_costs(
    root: Path, plan: Plan, tmp_path: Path
) -> None:
    put_in_force(root)
    archive(root, tmp_path / "rows")
    edit(root, "WHERE seconds < 5)", "WHERE seconds < 50)")

    lines = plan("--shadow", "1h")

    at = lines.index("shadow of the last 1h of archived events:")
    told = [line.strip() for line in lines[at:]]
    assert told[1] == "feature view page_views_by_visitor: 4 events from 2026-03-01T11:03:00Z to 2026-03-01T12:03:00Z"
    assert "4 rows compared, 0 in force alone, 0 new" in told
    differs = told.index("visitor_bounce_share_10m: 3 differ (75.0%), by 0.666667 in the median and 1 at most")
    assert told[differs + 1] == "visitor=ada at 2026-03-01T12:00:00Z: 0.0, would be 1.0"
    assert "the same in every row: visitor_views_10m, visitor_mean_seconds_10m, visitor_last_section" in told
    for side in ("in force:", "new:"):
        [line] = [line for line in told if line.startswith(side)]
        assert "s of CPU, 1.00 rows an event" in line
        assert "elements of state" in line


def test_a_shadow_says_what_apply_would_refuse(root: Path, plan: Plan, tmp_path: Path) -> None:
    put_in_force(root)
    archive(root, tmp_path / "rows")
    edit(root, "split_part(path, '/', 2)", "CAST(CAST(path AS INTEGER) AS VARCHAR)")

    assert any("it fails on 4 of the events" in line for line in plan("--shadow", "1h"))


@pytest.mark.parametrize("is_applied", [True, False])
def test_a_shadow_without_anything_to_compare_says_so(root: Path, plan: Plan, *, is_applied: bool) -> None:
    if is_applied:
        put_in_force(root)
    edit(root, "INTERVAL '10 minutes'", "INTERVAL '20 minutes'")

    said = plan("--shadow", "10m")[-1].strip()

    assert said == (
        "feature view page_views_by_visitor: none of its events is archived yet"
        if is_applied
        else "nothing is in force to compare with. Hint: `freshet apply` puts the declaration in force"
    )


def test_a_shadow_of_no_change_says_so(root: Path, plan: Plan) -> None:
    put_in_force(root)

    assert plan("--shadow", "10m")[-1] == "  no view would have other rows"


@pytest.mark.parametrize("words", [["--shadow", "soon"], ["--shadow", "10m", "--json"]])
def test_a_shadow_that_cannot_be_is_wrong_use(words: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-C", str(root), "plan", *words]) == 2

    assert 'argument "--shadow"' in capsys.readouterr().err
