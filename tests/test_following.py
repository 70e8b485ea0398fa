"""A server that runs while another declaration comes into force: readers at full speed lose no answer and no connection."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from changing import edited, put_in_force, with_feature, without_feature
from servers import READ, Client, begun, fill, numbered, serving, view_of
from stack import LIMIT_S, Server, Stack, prepared, until

from freshet.flows.edges.broker import Broker
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.workspace import Workspace

BY_NAMESPACE, DECLARED_URL = "wiki_edits_by_namespace", "redis://localhost:6379/0"
BY_USER, KEPT, DROPPED, ADDED = "wiki_edits_by_user", "user_edits_1h", "user_edits_10m", "user_edits_2h"
HOURS_2 = "count(*) OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '2 hours' PRECEDING AND CURRENT ROW)"
READERS = 4


@pytest.fixture
def stack(broker: Broker, server: Server, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(broker.address, server.url, tmp_path)
    view = view_of(made, BY_USER)
    fill(made, view, numbered(view, [("ada",)], 7))
    yield made
    made.close()


class Reader(threading.Thread):
    """Asks the same again and again over one connection, which it does not open anew."""

    def __init__(self, client: Client, features: list[str]) -> None:
        super().__init__(daemon=True)
        self._address, self._ends = client.address, threading.Event()
        self._body = json.dumps({"features": features, "entities": {"user": ["ada"]}}).encode()
        self.answers = Counter[tuple[int, str]]()
        self.trouble: Exception | None = None

    def run(self) -> None:
        try:
            with closing(http.client.HTTPConnection(self._address, timeout=LIMIT_S)) as connection:
                connection.connect()
                connection.auto_open = 0
                while not self._ends.is_set():
                    connection.request("POST", READ, self._body, {"content-type": "application/json"})
                    answer = connection.getresponse()
                    told = json.loads(answer.read())
                    said = "" if answer.status == 200 else told["detail"]
                    self.answers[answer.status, said] += 1
        except (OSError, http.client.HTTPException) as error:
            self.trouble = error

    def end(self) -> None:
        self._ends.set()
        self.join(LIMIT_S)
        assert not self.is_alive()


@contextmanager
def readers(client: Client, features: list[str]) -> Iterator[list[Reader]]:
    """Those who read all the while; none of them may have lost its connection."""
    reading = [Reader(client, features) for _ in range(READERS)]
    for one in reading:
        one.start()
    until(lambda: all(one.answers for one in reading))
    try:
        yield reading
    finally:
        for one in reading:
            one.end()
    assert [one.trouble for one in reading] == [None] * READERS


def values(client: Client, *features: str, **entities: Any) -> Any:
    """Return the values of an entity, or the status and why there are none."""
    answer = client.read([f"{BY_USER}:{name}" if ":" not in name else name for name in features], **entities)
    return [one["values"][0] for one in answer.told["results"][1:]] if answer.status == 200 else answer.status


def written(workspace: Workspace, view_name: str, entity: str, number: int) -> None:
    """Let rows of a declaration that comes into force be online, as its apply does first."""
    view = workspace.pipeline.plan(view_name).view
    with closing(OnlineStore(workspace.online_url, workspace.pipeline.project, workspace.pipeline.views)) as store:
        store.write(view, numbered(view, [(entity,)], number), overwrite=True)


def changed(text: str) -> str:
    """Add a feature and a view, and drop a feature."""
    added = with_feature(f'name: {ADDED}, dtype: int64, source: wiki_edits, transformation: "{HOURS_2}"')
    of_namespace = HOURS_2.replace("PARTITION BY user", "PARTITION BY namespace")
    view = with_feature(f'name: space_edits_2h, dtype: int64, source: wiki_edits, transformation: "{of_namespace}"')
    return view(added(without_feature(DROPPED)(text)))


@pytest.mark.parametrize("workers", [1, 2])
def test_readers_lose_no_answer_and_no_connection_while_another_declaration_comes_into_force(
    stack: Stack, workers: int
) -> None:
    with serving(stack, workers_count=workers) as client:
        until(lambda: values(client, KEPT, user=["ada"]) == [7])
        with readers(client, [f"{BY_USER}:{KEPT}"]) as reading, readers(client, [f"{BY_USER}:{DROPPED}"]) as losing:
            after = edited(stack, changed)
            written(after, BY_USER, "ada", 8)
            written(after, BY_NAMESPACE, "talk", 9)
            put_in_force(after)

            until(lambda: all(len(one.answers) == 2 for one in losing))
            until(lambda: stack.log.read_text().count(f"serving declaration {after.declared.id}") == workers)
            assert values(client, ADDED, user=["ada"]) == [8]

        assert {key for one in reading for key in one.answers} == {(200, "")}
        assert values(client, f"{BY_NAMESPACE}:space_edits_2h", namespace=["talk"]) == [9]
        gone, unknown = (client.read([f"{BY_USER}:{name}"], user=["ada"]) for name in (DROPPED, "user_edits_10s"))
        assert (gone.status, gone.detail.replace(DROPPED, "…")) == (404, unknown.detail.replace("user_edits_10s", "…"))
        assert {key for one in losing for key in one.answers} == {(200, ""), (404, gone.detail)}


def test_values_of_a_view_that_came_later_are_counted_and_so_are_those_of_before(stack: Stack) -> None:
    running = begun(stack)
    assert values(running.client, KEPT, user=["ada"]) == [7]
    after = edited(stack, lambda text: changed(text).replace("p99 < 10ms", "p99 < 12ms"))
    written(after, BY_NAMESPACE, "talk", 9)
    put_in_force(after)

    asked = f"{BY_NAMESPACE}:space_edits_2h"
    until(lambda: values(running.client, asked, namespace=["talk"]) == [9])

    told = stack.asked("metrics")
    for view in (BY_USER, BY_NAMESPACE):
        assert f'freshet_served_values_total{{feature_view="{view}",status="present"}} 1.0' in told
    assert 'freshet_request_duration_seconds_bucket{endpoint="get-online-features",le="0.012"} 1.0' in told
    running.stop()


def test_a_declaration_that_cannot_be_served_is_an_error_in_the_log_and_the_one_before_is_served_on(
    stack: Stack,
) -> None:
    contract = stack.workspace.project.root / "schemas" / "events" / "wiki_edits.py"
    before = contract.read_text()
    with serving(stack) as client:
        after = edited(
            stack, with_feature("name: user_newest_added, dtype: int64, source: wiki_edits, transformation: added")
        )
        contract.write_text(before.replace("    added:", "    adds:"))
        put_in_force(after)

        until(lambda: "cannot be gone on by, the one before still is" in stack.said())
        assert values(client, KEPT, user=["ada"]) == [7]
        assert client.ask("GET", "/healthz").status == 200

        contract.write_text(before)

        until(lambda: f"serving declaration {after.declared.id}" in stack.said())
        assert values(client, KEPT, user=["ada"]) == [7]


def test_another_online_store_is_read_from_once_it_is_declared(broker: Broker, server: Server, tmp_path: Path) -> None:
    """Those who read meanwhile are answered by one of both stores."""
    other = Server(tmp_path / "other")
    stack = prepared(broker.address, "", tmp_path, lambda text: text.replace(DECLARED_URL, server.url))
    try:
        view = view_of(stack, BY_USER)
        fill(stack, view, numbered(view, [("ada",)], 7))
        with serving(stack) as client, readers(client, [f"{BY_USER}:{KEPT}"]) as reading:
            after = edited(stack, lambda text: text.replace(server.url, other.url))
            written(after, BY_USER, "ada", 8)
            put_in_force(after)

            until(lambda: values(client, KEPT, user=["ada"]) == [8])
            until(lambda: not server.client().client_list(_type="normal")[1:])  # but for who asks this

        assert {key for one in reading for key in one.answers} == {(200, "")}
    finally:
        stack.close()
        other.stop()


def test_a_materializer_says_once_when_it_starts_what_is_in_force_and_that_an_edit_was_not_applied(
    stack: Stack,
) -> None:
    edited(stack, changed)

    stack.done()

    said = [line for line in stack.log.read_text().splitlines() if "in force since" in line]
    assert len(said) == 1
    assert stack.workspace.declared.id in said[0]
    assert said[0].endswith("; feature_repo/features.yaml edited, not applied: `freshet plan`")
