"""Whether the peers that Freshet is measured against do the work they are measured by, on a few events."""

import doctest
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peer_push
import peers
import peers_results
import peers_rig
import pytest
from peer_meter import HOPS, LENGTHS_MS
from peers import arguments
from peers_results import report, turns
from peers_rig import PEERS, Peer, are_alike, checked, expected, last_hopping, longest_hopping, missing, sliding
from pipeline_work import ENTITY, FEATURES, Visits

EVENTS = 1500
QUIX = ("quix-hopping", "quix-sliding")


@pytest.mark.parametrize("module", [peer_push, peers_results, peers_rig], ids=lambda module: module.__name__)
def test_examples_are_so(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)

    assert attempted > 0
    assert failed == 0


# --- the page ---------------------------------------------------------------------------------------------------------


def done(system: str, cpu_s: float, **more: Any) -> dict[str, Any]:
    own = {"kind": "done", "system": system, "repeat": 0, "events_count": 10_000, "seconds": 2.0, "cpu_s": cpu_s}
    spent = {
        "redis_cpu_s": 0.1,
        "peak_mb": 300.0,
        "rows_count": 5000,
        "offline_count": 10_000,
        "start_cpu_s": 4.0,
        "load": 1.0,
    }
    return {**own, **spent, **more}


def test_a_page_holds_each_system_beside_ours() -> None:
    checks = {"batch": 1000, "asked_count": 200, "wrong_count": 1, "first_wrong": "u1.amount_sum_10m: 1, not 2"}
    lines = [
        {"kind": "tried", "system": "feast-push", "batch": 100, "events_count": 100, "cpu_s": 1.0},
        {"kind": "tried", "system": "feast-push", "batch": 1000, "events_count": 100, "cpu_s": 0.5},
        done("freshet", 0.5, start_cpu_s=0.1),
        done("feast-push", 1.0, **checks),
        done("feast-push", 2.0, repeat=1, **checks),
        done("bytewax-fold", 4.0, batch=1000, late_count=7, asked_count=200, wrong_count=0),
    ]

    page = report(lines)

    loop = "a loop, windows in Python, `FeatureStore.push` of the newest rows, parquet"
    assert (
        "| Freshet, `run materializer --until-end` | 10,000 | 5,000 | 20,000 | 50.0 | 1.00 | 300 | 0.500 | 1.00 | - |\n"
        in page
    )
    # The second has nothing of ours beside it.
    assert (
        f"| {loop} | 10,000 | 5,000 | 7,500 (5,000-10,000) | 150 (100-200) | 0.500 | 300 | 0.500 | 1.00 | 2 of 400 |\n"
        in page
    )
    assert "0.100 s of CPU before its first row was online, counted; without them 25,000 events/s a core.\n" in page
    assert f"- {loop}, batches of 1,000: Redis took 10.0 s of CPU a million; 4.00 s" in page
    assert "; wrong: u1.amount_sum_10m: 1, not 2.\n" in page
    assert "; 7 events late.\n" in page
    assert f"| {loop} | 100 | 200 |\n" in page


def test_systems_take_turns_and_another_one_begins_each_time() -> None:
    assert [system for _, system in turns(["a", "b", "c"], 2)] == [*"abc", *"bca"]


def test_an_unknown_system_is_answered_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments().parse_args(["--systems", "freshet,flink"])

    assert "there is no flink; there is freshet, feast-push, " in capsys.readouterr().err


def test_every_peer_has_a_title() -> None:
    assert {peers_results.OURS, *PEERS} == set(peers_results.SYSTEMS)


# --- whether a peer is right ------------------------------------------------------------------------------------------


def test_the_windows_of_the_loop_are_what_their_definition_says_after_every_event_however_many_have_left_them() -> None:
    visits = Visits(400, entities_count=1, step_ms=45_000)
    [columns] = visits.columns()
    users = peer_push.Users()
    made = list(users.rows([value for _, value, _ in visits.messages()]))

    for number, (user, (ms, values)) in enumerate(made, 1):
        wanted = peers_rig.features({name: column[:number] for name, column in columns.items()}, sliding)
        assert user == "u1"
        assert ms == columns["at_ms"][number - 1]
        got = [None if value != value else value for value in values]  # noqa: PLR0124  # not a number: null
        assert len(got) == len(FEATURES)
        for value, feature in zip(got, FEATURES, strict=True):
            assert are_alike(value, wanted[feature.name]), (number, feature.name, value, wanted[feature.name])
    assert made[-1][1][1][3] == 81  # an hour of them, both ends


@pytest.mark.parametrize("length_ms", LENGTHS_MS.values())
def test_hopping_windows_begin_at_steps_and_hold_their_event(length_ms: int) -> None:
    for at_ms in np.random.default_rng(1).integers(10**12, 2 * 10**12, 200).tolist():
        longest, last = longest_hopping(at_ms, length_ms), last_hopping(at_ms, length_ms)

        assert longest % (length_ms // HOPS) == last % (length_ms // HOPS) == 0
        assert longest <= last <= at_ms < longest + length_ms <= at_ms + length_ms
        assert longest + length_ms - length_ms // HOPS <= at_ms


class Answers:
    """A feature store that answers with what it is given."""

    def __init__(self, rows: dict[str, dict[str, float | None]]) -> None:
        self._rows = rows

    def get_online_features(self, features: Sequence[str], entity_rows: Sequence[dict[str, str]]) -> "Answers":
        self._asked = [name.partition(":")[2] for name in features], [row[ENTITY] for row in entity_rows]
        return self

    def to_dict(self) -> dict[str, list[float | None]]:
        names, users = self._asked
        return {name: [self._rows[user][name] for user in users] for name in names}


def test_one_wrong_value_of_one_user_is_noticed() -> None:
    visits = Visits(500)
    rows = dict(expected(visits, sliding))
    right = checked(Answers(rows), Peer("peer_push"), visits)  # type: ignore[arg-type]  # all that is asked of one
    user = next(iter(rows))
    wrong_rows = {**rows, user: {**rows[user], "amount_max_1h": 1001}}

    wrong = checked(Answers(wrong_rows), Peer("peer_push"), visits)  # type: ignore[arg-type]

    assert right["wrong_count"] == 0
    assert right["asked_count"] > 100
    assert wrong["wrong_count"] == 1
    assert wrong["first_wrong"].startswith(f"{user}.amount_max_1h: 1001, not ")


# --- on a few events --------------------------------------------------------------------------------------------------


def measured(
    systems: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> list[dict[str, Any]]:
    """Run the bench; return what it recorded of each."""
    results = folder / "results.md"
    own = ["peers", "--systems", ",".join(systems), "--events", str(EVENTS), "--repeat", "1", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [*own, *words])
    assert peers.main() == 0
    lines = [json.loads(line) for line in results.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["kind"] == "run"
    assert report(lines) == results.read_text(encoding="utf-8")
    found = [line for line in lines if line["kind"] == "done"]
    assert [line["system"] for line in found] == list(systems)
    return found


def test_a_loop_around_push_and_bytewax_do_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed, folded = measured(["feast-push", "bytewax-fold"], tmp_path, monkeypatch, "--embedded", "--batches", "400")

    for line in (pushed, folded):
        assert line["wrong_count"] == 0, line["first_wrong"]
        assert line["asked_count"] > 100
        assert line["seconds"] > 0
        assert line["cpu_s"] > 0
    assert pushed["offline_count"] == EVENTS
    assert len({key for key, _, _ in Visits(EVENTS).messages()}) <= pushed["rows_count"] < EVENTS
    assert folded["late_count"] == 0


def test_rows_alone_are_pushed_in_batches_of_the_size_that_took_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [alone] = measured(["push-alone"], tmp_path, monkeypatch, "--embedded", "--batches", "300,1500")

    assert alone["rows_count"] == EVENTS
    assert alone["batch"] in {300, 1500}


@pytest.mark.kafka
def test_quix_streams_does_the_work(real_kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing(QUIX):
        pytest.skip("Quix Streams has no environment here. Hint: `./scripts/bench peers` makes it")

    found = measured(QUIX, tmp_path, monkeypatch, "--kafka", real_kafka, "--batches", "400")

    for line in found:
        assert line["wrong_count"] == 0, line["first_wrong"]
        assert line["rows_count"] > 0
