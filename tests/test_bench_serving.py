"""What the bench of serving makes of what it recorded, and whether its load measures what it says."""

import contextlib
import doctest
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import load
import pyarrow as pa
import pytest
import serving_results
from serving import arguments, paced_s
from serving_results import Case, cases_of, report, turns
from serving_rig import CONTRACT, ENTITY, FEATURES, STREAM, Child, declaration, filled, numbered, tree_cpu_s, wrong

from freshet.flows import settings
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Unavailable
from freshet.schemas.view import View

LIMIT_S = 60.0
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
TASK: dict[str, Any] = {"features": ["v:a_int64"], "entity": ENTITY, "entities": 1, "entities_count": 5, "seed": 1}


# --- the page ---------------------------------------------------------------------------------------------------------


def part(count: int = 10_000, cpu_s: float = 1.0, p99_ms: float = 1.5, **more: Any) -> dict[str, Any]:
    found = {"count": count, "seconds": 5.0, "per_s": count / 5, "cpu_s": cpu_s, "redis_cpu_s": 0.5, "own_cpu_s": 0.1}
    found |= {"p50_ms": 0.5, "p99_ms": p99_ms, "p99.9_ms": 4.0, "p100_ms": 9.0, "late_p99_ms": 0.02}
    return {**found, "errors_count": 0, "first_error": "", "broken_count": 0, "reopened_count": 0, **more}


def line(system: str, saturated: dict[str, Any], half: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = {"entities": 1, "features": 10, "connections": 16}
    own = {"kind": "case", "system": system, "repeat": 0, "is_pushed": False}
    return {**own, **asked, "saturated": saturated, "half": half, "load": 1.0, **more}


def test_a_page_holds_what_was_measured_against_the_goals() -> None:
    lines = [
        line("freshet", part(20_000), part(p99_ms=1.6)),
        line("freshet", part(20_000, cpu_s=2.0), part(p99_ms=1.8), repeat=1),
        line("freshet", part(20_000), part(p99_ms=1.5), repeat=2),
        line("feast-tuned", part(1000), part(5000)),
        line("feast-tuned", part(1000), part(5000), repeat=1),
        line("feast", part(900), part(2000, errors_count=2, first_error="no", reopened_count=1)),
    ]

    page = report(lines)

    assert "16 connections, at half load: 1.60 (1.50-1.80) ms; to be at most 1.7 ms: **yes**\n" in page
    # Each turn by its own: 20 and 10 times as many.
    assert "`feast serve`, tuned: 15.0 to 15.0 times; at least 10 times in 1 of 1 cases: **yes**\n" in page
    row = "| 1 | 10 | 16 | `freshet run server` | 4,000 | 0.500 | 1.60 (1.50-1.80) | 4.00 |"
    assert f"{row} 50.0 (50.0-100) | 25.0 | 20,000 (10,000-20,000) | 15.0 (10.0-20.0) |\n" in page
    assert "- `feast serve`: 2,900 answers, 2 other than 200 ('no'), 0 connections broken" in page
    assert "pushes" not in page


def test_a_percentile_that_too_few_requests_tell_is_not_told() -> None:
    page = report([line("freshet", part(), part(199))])

    assert "| 0.500 | - | - |" in page
    assert "| 0.500 | 1.50 | - |" in report([line("freshet", part(), part(200))])
    assert "to be at most 1.7 ms: too few requests\n" in page


def test_a_page_says_how_many_answers_mixed_versions_while_rows_were_pushed() -> None:
    pushed = {"is_pushed": True, "rows_per_s": 9000.0}
    sound, mixed = (
        report([line("freshet", part(mixed_count=0), part(p99_ms=2.9, mixed_count=count), **pushed)])
        for count in (0, 1)
    )

    assert "while the pipeline pushes: 2.90 ms; to be at most 3.0 ms: **yes**\n" in sound
    assert "view: 0 of 20,000, at 9,000 rows/s pushed; to be 0: **yes**\n" in sound
    assert "view: 1 of 20,000, at 9,000 rows/s pushed; to be 0: **no**\n" in mixed


def test_a_slow_server_is_paced_for_longer_so_that_its_p99_can_be_told() -> None:
    assert paced_s(5.0, rate=1000.0) == 5.0
    assert paced_s(5.0, rate=20.0) == 10.0
    assert paced_s(5.0, rate=1.0) == 20.0


def test_systems_take_turns_and_another_one_begins_each_time() -> None:
    cases = cases_of([1, 100], [10], [1])

    order = list(turns(["a", "b", "c"], cases, 2))

    assert cases == [Case(1, 10, 1), Case(100, 10, 1)]
    assert [system for _, _, system in order] == [*"abcabc", *"bcabca"]
    assert [repeat for repeat, _, _ in order] == [0] * 6 + [1] * 6


@pytest.mark.parametrize("module", [load, serving_results], ids=lambda module: module.__name__)
def test_examples_are_so(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)

    assert attempted > 0
    assert failed == 0


def test_an_unknown_system_is_answered_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments().parse_args(["--systems", "freshet,tecton"])

    assert "there is no tecton; there is freshet, feast-tuned, feast, sdk" in capsys.readouterr().err


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    root = tmp_path_factory.mktemp("serving")
    for path, text in {
        "feature_repo/features.yaml": declaration("redis://x"),
        f"schemas/events/{STREAM}.py": CONTRACT,
    }.items():
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    [made] = Workspace.open(settings.Settings(project=root)).pipeline.views
    return made


def answer(rows: pa.Table) -> dict[str, Any]:
    times = [at.isoformat() for at in rows["event_timestamp"].to_pylist()]
    columns = [{"values": rows[name].to_pylist(), "event_timestamps": times} for name in (ENTITY, *FEATURES)]
    found: dict[str, Any] = json.loads(
        json.dumps({"metadata": {"feature_names": [ENTITY, *FEATURES]}, "results": columns})
    )
    return found


def test_an_answer_of_whole_rows_is_not_mixed(view: View) -> None:
    for version in (1, 20_000, 5_000_000):  # past what a float32 and an int32 hold
        assert not load.is_mixed(answer(numbered(view, 1000, version)), 1000)


@pytest.mark.parametrize("name", FEATURES[: len(FEATURES) // 5])
def test_one_value_of_another_version_is_mixed(view: View, name: str) -> None:
    one, two = answer(numbered(view, 3, 7)), answer(numbered(view, 3, 8))
    place = one["metadata"]["feature_names"].index(name)

    one["results"][place]["values"][2] = two["results"][place]["values"][2]

    assert load.is_mixed(one, 3)


def test_a_time_of_another_version_or_a_row_of_another_entity_is_mixed(view: View) -> None:
    other_time, other_entity = answer(numbered(view, 3, 7)), answer(numbered(view, 3, 7))
    other_time["results"][5]["event_timestamps"][1] = "2026-03-01T00:00:00Z"
    other_entity["results"][0]["values"] = [0, 2, 1]

    assert load.is_mixed(other_time, 3)
    assert load.is_mixed(other_entity, 3)


def test_what_the_store_is_filled_with_has_nulls_and_is_told_from_anything_else(view: View) -> None:
    rows = filled(view, 0, 400, 0)
    sound = {name: rows[name].to_pylist() for name in FEATURES}

    assert rows.equals(filled(view, 0, 400, 0))
    assert all(0 < rows[name].null_count < 100 for name in FEATURES)
    assert [] == wrong(sound, rows)
    name = FEATURES[7]
    changed = [None if value is not None else 0.0 for value in sound[name]]
    assert [name] == [found.partition(":")[0] for found in wrong({**sound, name: changed}, rows)]


# --- the load ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(answer_one: Callable[[socket.socket], bool]) -> Iterator[int]:
    """Have a server whose every connection answers each request by a function, until it says no."""

    def talk(caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            while caller.recv(1 << 16) and answer_one(caller):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_every_request_is_answered_saturated_and_paced() -> None:
    def at_once(caller: socket.socket) -> bool:
        caller.sendall(ANSWER)
        return True

    with serving(at_once) as port:
        full = load.measure({**TASK, "port": port, "connections": 3, "seconds": 0.2})
        half = load.measure(
            {**TASK, "port": port, "connections": 3, "seconds": 0.5, "rate": 200, "arrivals": "poisson"}
        )

    assert full["count"] > 3
    assert full["errors_count"] == full["broken_count"] == full["reopened_count"] == 0
    assert half["count"] == 100
    assert 0 < half["p50_ms"] <= half["p99_ms"] <= half["p100_ms"]


def test_a_stall_is_charged_to_all_who_would_have_asked_meanwhile() -> None:
    held_s, asked = 0.4, [0]

    def stalls_at_first(caller: socket.socket) -> bool:
        asked[0] += 1
        if asked[0] == 1:
            time.sleep(held_s)
        caller.sendall(ANSWER)
        return True

    with serving(stalls_at_first) as port:
        told = load.measure({**TASK, "port": port, "connections": 1, "seconds": 0.5, "rate": 100, "arrivals": "even"})

    assert told["count"] == 50
    # Due every 10 ms from 10 ms on, none can be answered before 410 ms: 26 of the fifty wait for 150 ms at least.
    assert told["p50_ms"] > 149
    assert told["p100_ms"] > 399


def test_a_connection_that_breaks_is_opened_and_asked_again() -> None:
    asked = [0]

    def breaks_at_first(caller: socket.socket) -> bool:
        asked[0] += 1
        if asked[0] == 1:
            return False
        caller.sendall(ANSWER)
        return True

    with serving(breaks_at_first) as port:
        told = load.measure({**TASK, "port": port, "connections": 1, "seconds": 0.1, "rate": 100, "arrivals": "even"})

    assert told["count"] == 10
    assert told["broken_count"] == 1
    assert asked[0] == 11


def test_a_connection_that_is_closed_after_its_answer_is_no_error() -> None:
    def closes(caller: socket.socket) -> bool:
        caller.sendall(ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return False

    with serving(closes) as port:
        told = load.measure({**TASK, "port": port, "connections": 1, "seconds": 0.1, "rate": 50, "arrivals": "even"})

    assert told["count"] == told["reopened_count"] == 5
    assert told["broken_count"] == told["errors_count"] == 0


def test_an_answer_in_pieces_is_read_whole_and_one_that_is_not_200_is_an_error() -> None:
    content = json.dumps(answer_of_one := {"detail": "no such view"}).encode()
    whole = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)

    def in_pieces(caller: socket.socket) -> bool:
        for piece in (whole[:20], whole[20:50], whole[50:-1], whole[-1:]):
            caller.sendall(piece)
            time.sleep(0.002)
        return True

    with serving(in_pieces) as port:
        told = load.measure({**TASK, "port": port, "connections": 2, "seconds": 0.1})

    assert told["errors_count"] == told["count"] > 0
    assert json.loads(told["first_error"]) == answer_of_one


# --- its processes ----------------------------------------------------------------------------------------------------


def test_the_load_measures_a_server_that_does_nothing_and_both_end() -> None:
    asking, nothing = Child("load"), Child("load", entry="nothing")
    try:
        told = asking.ask(**TASK, **nothing.answer(), connections=2, seconds=0.2)
    finally:
        asking.end()
        nothing.end()

    assert told["count"] > 0
    assert asking.child.returncode is not None
    assert nothing.child.returncode is not None


def test_a_child_that_fails_is_told_of() -> None:
    child = Child("load")
    try:
        with pytest.raises(Unavailable, match=r"load\.main of the bench ended with 1"):
            child.ask(**TASK, port=1)  # no connections
    finally:
        child.end()


def test_the_cpu_of_children_that_have_ended_counts() -> None:
    work = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    started = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print('done', flush=True); input()"
    )
    before_s = tree_cpu_s(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", started], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        spent_s, whole_s = tree_cpu_s(process.pid), tree_cpu_s(os.getpid()) - before_s

    assert spent_s >= 0.25  # counted in hundredths
    assert whole_s >= spent_s - 0.02
