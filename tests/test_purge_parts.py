"""`freshet purge` on a real Kafka, Redis server and disk, of events that views by other entities are made of, too."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from confluent_kafka import Producer
from stack import FRESHET, LIMIT_S, STREAM, Stack, prepared, until
from test_compact import difference

from freshet.flows.edges import feast
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.store_config import store_config
from freshet.flows.steps.oracle import compare
from freshet.schemas.event import archive_name
from freshet.schemas.rejects import dead_letter_topic

pytestmark = pytest.mark.kafka


@pytest.fixture
def stack(real_kafka: str, valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(real_kafka, valkey_url, tmp_path)
    yield made
    made.close()


def purged(stack: Stack, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*FRESHET, "purge", *words]
    return subprocess.run(command, env=stack.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def without(table: pa.Table, user: str) -> pa.Table:
    return table.filter(pc.not_equal(table["user"], user)) if "user" in table.column_names else table


@pytest.mark.timeout(1800)
def test_an_entity_is_erased_and_the_receipt_says_what_kafka_has_still(stack: Stack) -> None:
    workspace = stack.workspace
    topic, views = workspace.contracts[STREAM].stream.topic, workspace.pipeline.views
    plans = {plan.view.name: plan for plan in workspace.pipeline.plans}
    stack.produce(600)
    stack.done()
    offline, online = workspace.offline(), OnlineStore(workspace.online_url, workspace.pipeline.project, views)
    (by_user,) = [view for view in views if view.entity_names == ("user",)]
    events = offline.read(archive_name(STREAM))
    counts = {one["values"]: one["counts"] for one in events["user"].value_counts().to_pylist()}
    user = max(counts, key=lambda name: counts[name])
    letter = Producer({"bootstrap.servers": workspace.kafka.brokers})
    letter.produce(topic, json.dumps({"user": user}).encode(), key=user.encode())
    letter.flush()
    running = stack.start()
    until(lambda: sum(stack.ledger().offsets.values()) == 601)
    assert "is being written by a materializer" in purged(stack, f"user={user}").stderr
    stack.stop(running)
    before: dict[str, Any] = {view.name: without(offline.read(view.name), user) for view in views}

    done = purged(stack, f"user={user}", "--json")

    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert receipt["removed"]["events"] == {STREAM: counts[user]}
    assert [(one["topic"], one["until"] > receipt["at"]) for one in receipt["dead_letters"]] == [
        (dead_letter_topic(topic), True)
    ]
    assert {topic, dead_letter_topic(topic), "freshet.findings"} == {one["topic"] for one in receipt["kept"]}
    assert online.read(by_user, [(user,)]) == [None]
    for view in views:
        assert difference(before[view.name], offline.read(view.name)) == 0
    store = feast.open_store(store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry))
    assert Path(store.get_feature_view(by_user.name).batch_source.path) == offline.path(by_user.name)
    again = purged(stack, f"user={user}")
    assert (again.returncode, "is not known" in again.stderr) == (0, False)  # the dead letter is there still

    stack.produce(300)
    stack.done()

    archived = offline.read(archive_name(STREAM))
    kept_aside = pa.concat_tables([events.filter(pc.equal(events["user"], user)), archived])
    for view in views:
        clocks = {mark.clock_us for key, mark in stack.ledger().shards.items() if key.startswith(f"{view.name}/")}
        made_of = archived if view is by_user else kept_aside
        answer = compare(plans[view.name], made_of, offline.final(view), clocks.pop())
        assert answer.differing == (), (view.name, answer.differing[:3])
    checked = subprocess.run([*FRESHET, "check"], env=stack.environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
