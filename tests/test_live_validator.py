"""The validator as a process, on an embedded broker and a Valkey server of its own: what it says, whom it tells, what it outlives."""

import json
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmh3
import pytest
from changing import edited, with_feature, without_feature
from listener import SECRET, Listener
from stack import FRESHET, Server, Stack, free_ports, prepared, until

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.partitions import records
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.workspace import Workspace
from freshet.schemas.event import CANARY_HEADER
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.schemas.record import header
from freshet.schemas.view import View
from freshet.scripts.apply import apply

ROUNDS = {"FRESHET_ROUND": "500ms", "FRESHET_QUIET": "4s", "FRESHET_PARITY_EVERY": "off"}
VIEW = "wiki_edits_by_channel"


def channels_alone(declaration: str) -> str:
    """Leave one view: Great Expectations takes its time for each feature."""
    features = re.sub(r"(?s)(?<=featureDefinitions:\n).*(?=  # the channel)", "", declaration)
    return re.sub(r"  wiki_edits_by_(user|page):.*\n", "", features)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


@pytest.fixture
def stack(broker: Broker, server: Server, tmp_path: Path) -> Iterator[Stack]:
    """Both stores hold the features of 300 events, and nothing writes to them any more."""
    made = prepared(broker.address, server.url, tmp_path, channels_alone)
    made.produce(300)
    made.done()
    yield made
    made.close()


def validate(stack: Stack, **environment: str) -> Any:
    return stack.spawn([*FRESHET, "run", "validator"], **{**ROUNDS, **environment})


def metric(stack: Stack, name: str, **labels: str) -> float:
    """Return a metric's value, summed up over all labels that are not given; 0 while nobody answers."""
    found = re.findall(r"metrics at (http://\S+)", stack.log.read_text(errors="replace"))
    try:
        with urllib.request.urlopen(found[-1], timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except (IndexError, OSError):
        return 0.0
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    own = [line for line in lines if re.match(rf"{name}[{{ ]", line) and all(pair in line for pair in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in own)


def news(stack: Stack) -> list[dict[str, Any]]:
    """Return what was published of this project's findings."""
    project = stack.workspace.pipeline.project
    polled = list(records(stack.workspace.kafka, FINDINGS_TOPIC))
    pairs = [pair for poll in polled for pair in zip(poll.keys, poll.values, strict=True)]
    told = [(key.decode(), json.loads(value)) for key, value in pairs if key and value]
    assert all(key == f"{alarm['project']}/{alarm['check']}" for key, alarm in told)
    return [alarm for _, alarm in told if alarm["project"] == project]


def rounds(stack: Stack) -> float:
    return metric(stack, "freshet_validator_round_duration_seconds_count")


def errors(stack: Stack) -> float:
    return metric(stack, "freshet_validator_errors_total", feature_view=VIEW)


def view_of(stack: Stack) -> View:
    return stack.workspace.pipeline.plan(VIEW).view


def test_a_row_altered_online_is_told_with_its_cause_and_again_when_it_is_repaired(
    stack: Stack, server: Server, listener: Listener
) -> None:
    running = validate(stack, FRESHET_WEBHOOK=listener.url.replace(SECRET, "${HOOK_SECRET}"), HOOK_SECRET=SECRET)
    until(lambda: metric(stack, "freshet_skew_compared_total", feature_view=VIEW) > 0)
    assert stack.health() == "ok\n"
    assert metric(stack, "freshet_skew_confirmed_total") == 0
    view = view_of(stack)
    online = OnlineStore(server.url, stack.workspace.pipeline.project, stack.workspace.pipeline.views)
    (entity, *_) = online.sample(view, 1, seed=1)
    (key,) = online._layouts[VIEW].keys_of([entity])  # noqa: SLF001  # where the row stands
    field = mmh3.hash(f"{VIEW}:chan_edits_1m", signed=False).to_bytes(4, "little")
    before = server.client().hget(key, field)
    assert isinstance(before, bytes)

    server.client().hset(key, field, b"\x20\x97\x08")  # an int64, 1047

    until(lambda: news(stack))
    (opened,) = news(stack)
    assert ("opened", "value_mismatch", VIEW) == (opened["status"], opened["cause"], opened["feature_view"])
    assert ["chan_edits_1m"] == opened["features"]
    assert entity[0] == opened["entity"]
    assert 1047 == opened["online"]["value"] != opened["offline"]["value"]
    assert opened["online"]["version"] == opened["offline"]["version"]
    assert opened["source"]["offset"] is not None
    assert metric(stack, "freshet_validator_findings", feature_view=VIEW, cause="value_mismatch") == 1
    assert metric(stack, "freshet_skew_confirmed_total", feature_view=VIEW, feature="chan_edits_1m") > 0

    server.client().hset(key, field, before)

    until(lambda: len(news(stack)) == 2)
    resolved = news(stack)[1]
    assert ("resolved", opened["check"], opened["since"]) == (resolved["status"], resolved["check"], resolved["since"])
    assert metric(stack, "freshet_validator_findings") == 0
    stack.stop(running)
    assert [opened, resolved] == [alarm for body in listener.bodies for alarm in json.loads(body)]
    assert all(SECRET in path for _, path, _, _ in listener.requests)
    assert SECRET not in stack.log.read_text()
    pages = [path.read_text() for path in sorted((stack.workspace.data_docs_root / VIEW).glob("*-*.html"))]
    assert any("chan_edits_1m.online_equals_offline" in page and entity[0] in page for page in pages)


def test_a_redis_that_dies_is_an_error_of_every_round_and_of_none_after_it_is_back(
    stack: Stack, server: Server
) -> None:
    running = validate(stack)
    until(lambda: metric(stack, "freshet_skew_compared_total", feature_view=VIEW) > 0)

    server.stop()
    before = rounds(stack)  # one may have begun before
    until(lambda: rounds(stack) >= before + 2)

    assert errors(stack) >= 1
    assert f"Redis at 127.0.0.1:{server.port} cannot be used" in stack.health()
    succeeded_at = metric(stack, "freshet_validator_last_success_timestamp_seconds")
    until(lambda: errors(stack) >= 3)
    assert succeeded_at == metric(stack, "freshet_validator_last_success_timestamp_seconds")

    server.start()
    until(lambda: stack.health() == "ok\n")
    until(lambda: metric(stack, "freshet_validator_last_success_timestamp_seconds") > succeeded_at)
    assert [] == news(stack)
    stack.stop(running)


def test_a_torn_part_is_an_error_of_its_view_until_it_is_mended(stack: Stack) -> None:
    part = max((stack.workspace.offline_root / VIEW).glob("part-*.parquet"), key=lambda path: path.stat().st_size)
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])

    running = validate(stack)
    until(lambda: rounds(stack) >= 2)

    assert errors(stack) >= 2
    assert part.name in stack.health()
    assert metric(stack, "freshet_validator_last_success_timestamp_seconds") == 0
    assert metric(stack, "freshet_skew_compared_total", feature_view=VIEW) == 0

    part.write_bytes(whole)
    until(lambda: metric(stack, "freshet_skew_compared_total", feature_view=VIEW) > 0)
    until(lambda: stack.health() == "ok\n")
    stack.stop(running, signal.SIGINT)


ADDED, WEEK = (
    "chan_edits_1w",
    "(PARTITION BY channel ORDER BY event_timestamp RANGE BETWEEN INTERVAL '7 days' PRECEDING AND CURRENT ROW)",
)


def test_a_validator_follows_what_is_applied_finds_nothing_in_it_and_goes_on_with_what_it_had_found(
    stack: Stack, server: Server
) -> None:
    """Feast, which hears of it last, is asked all the while."""
    running = validate(stack, FRESHET_PARITY_EVERY="100ms")
    until(lambda: metric(stack, "freshet_skew_compared_total", feature_view=VIEW) > 0)
    places = re.findall(r"metrics at (\S+)", stack.said())
    rewritten = edited(
        stack,
        lambda text: with_feature(
            f'name: {ADDED}, dtype: int64, source: wiki_edits, transformation: "count(*) OVER {WEEK}"'
        )(text.replace("sum(added) OVER channel_1h", "sum(added) OVER channel_1h + 1")),
    )

    apply(rewritten)

    until(lambda: metric(stack, "freshet_skew_compared_total", feature_view=VIEW, feature=ADDED) > 0)
    before = rounds(stack)
    until(lambda: rounds(stack) >= before + 3)
    assert f"validating by declaration {rewritten.declared.id}" in stack.said()
    assert news(stack) == []
    assert metric(stack, "freshet_skew_inconclusive_total", feature_view=VIEW) > 0, "no look was in between"
    assert places == re.findall(r"metrics at (\S+)", stack.said())

    altered(stack, server, ADDED)
    until(lambda: news(stack))
    dropped = edited(stack, without_feature(ADDED))
    apply(dropped)

    until(lambda: len(news(stack)) == 2)
    opened, resolved = news(stack)
    assert ("opened", [ADDED]) == (opened["status"], opened["features"])
    assert ("resolved", opened["check"], opened["since"]) == (resolved["status"], resolved["check"], resolved["since"])
    until(lambda: metric(stack, "freshet_validator_findings") == 0)
    stack.stop(running)


def altered(stack: Stack, server: Server, feature: str) -> None:
    """Have the online store say another value of a feature of somebody's."""
    pipeline = Workspace.applied(stack.workspace.settings).pipeline
    online = OnlineStore(server.url, pipeline.project, pipeline.views)
    (entity, *_) = online.sample(pipeline.plan(VIEW).view, 1, seed=1)
    (key,) = online._layouts[VIEW].keys_of([entity])  # noqa: SLF001  # where the row stands
    server.client().hset(key, mmh3.hash(f"{VIEW}:{feature}", signed=False).to_bytes(4, "little"), b"\x20\x97\x08")


CANARY = """\
wiki_edits:
  user: "canary-{canary}"
  page: "canary-{canary}"
  channel: "canary-{canary}"
  namespace: Main
  added: 0
  deleted: 0
  delta: 0
  isAnonymous: false
  isMinor: true
  isNew: false
  isRobot: true
  isUnpatrolled: false
"""


def test_canaries_that_the_user_agrees_to_are_seen_in_both_stores_of_every_partition(stack: Stack) -> None:
    (stack.workspace.project.root / "canaries.yaml").write_text(CANARY)
    materializer = stack.start()
    until(lambda: "metrics at" in stack.said())

    validator = validate(stack, FRESHET_CANARIES="canaries.yaml")
    topic = stack.workspace.contracts["wiki_edits"].stream.topic
    count = kafka.partitions_count(stack.workspace.kafka, topic)  # the embedded broker has its own idea
    places = [(part, store) for part in range(count) for store in ("online", "offline")]
    until(
        lambda: all(
            metric(stack, "freshet_canary_last_timestamp_seconds", partition=f"wiki_edits/{part}", store=store) > 0
            for part, store in places
        ),
        limit_s=300,  # two processes start, one with Great Expectations
    )

    assert [] == news(stack)
    sent = [poll for poll in records(stack.workspace.kafka, topic) if poll.headers]
    marked = [key for poll in sent for key, own in zip(poll.keys, poll.headers or (), strict=True) if _is_canary(own)]
    assert count == len({*marked})
    assert all(key is not None and key.startswith(b"canary-") for key in marked)
    for process in (validator, materializer):
        stack.stop(process)


def _is_canary(headers: Any) -> bool:
    return header(headers, CANARY_HEADER) is not None


def test_a_validator_that_starts_before_kafka_and_redis_waits_and_says_so(tmp_path: Path) -> None:
    """As a plain Bytewax flow."""
    server = Server(tmp_path / "valkey")
    with Broker.start() as started:
        stack = prepared(started.address, server.url, tmp_path, channels_alone)
    server.stop()
    command = [sys.executable, "-m", "bytewax.run", "freshet.flows.live_validator:flow()"]
    address = f"127.0.0.1:{free_ports(1)[0]}"
    stack.log.write_text(f"metrics at http://{address}/metrics\n")  # Bytewax's command lets nobody set up logging
    running = stack.spawn(command, **ROUNDS, FRESHET_METRICS_ADDRESS=address)
    try:
        until(lambda: errors(stack) >= 2)
        assert f"Redis at 127.0.0.1:{server.port} cannot be used" in stack.health()
        server.start()
        until(lambda: f'kafka "{started.address}" is not available' in stack.health())

        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    finally:
        stack.close()
        server.stop()
