"""A deployment on real parts changes while events flow and readers read: no reader's error, no wrong value, no lost event.

After every step the final rows are what DuckDB makes by the declaration in force, both stores agree, and Feast reads both.
"""

import contextlib
import json
import logging
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from stack import FRESHET, REPO, STREAM, Stack, check, free_ports, prepared, until

from freshet.flows.edges import feast
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.store_config import store_config
from freshet.flows.workspace import Workspace
from freshet.schemas.event import archive_name
from freshet.schemas.part import DECLARED
from freshet.scripts.made_edits import edits

pytestmark = pytest.mark.kafka

LOG = logging.getLogger(__name__)

USER = "user_edits_10m"


@dataclass
class Reader:
    """Somebody who reads a feature of one entity all the time, and notes what is no answer."""

    url: str
    asked: dict[str, Any]
    answers_count: int = 0
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        body = json.dumps(self.asked).encode()
        while not self.stop.wait(0.01):
            request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})  # loopback
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found = json.loads(answer.read())
            except OSError as error:
                self.wrong.append(repr(error))
                continue
            self.answers_count += 1
            if found["results"][-1]["values"] == [None]:
                self.wrong.append(str(found))


@contextlib.contextmanager
def reading(url: str, asked: dict[str, Any]) -> Iterator[Reader]:
    reader = Reader(url, asked)
    thread = threading.Thread(target=reader.run)
    thread.start()
    try:
        yield reader
    finally:
        reader.stop.set()
        thread.join()


@dataclass
class Story:
    stack: Stack

    @property
    def declared(self) -> Path:
        return self.stack.workspace.project.root / "feature_repo" / "features.yaml"

    def edit(self, old: str, new: str) -> None:
        text = self.declared.read_text()
        assert old in text, old
        self.declared.write_text(text.replace(old, new))

    def add(self, *definitions: dict[str, str]) -> None:
        text = self.declared.read_text()
        more = "".join("  - " + json.dumps(one) + "\n" for one in definitions)
        self.declared.write_text(text.replace("featureDefinitions:\n", "featureDefinitions:\n" + more))

    def apply(self, *words: str, code: int = 0) -> str:
        """Apply as a process while events flow; every event that was sent by then is materialized after it."""
        self.stack.produce(40)
        told = self.freshet("apply", *words, code=code)
        self.stack.produce(40)
        until(self.is_visible)
        self.stack.workspace = Workspace.applied(self.stack.workspace.settings)
        return told

    def is_visible(self) -> bool:
        """Say whether all events are committed, and the parts of the last commit can be seen."""
        offline, ledger = self.stack.workspace.offline(), self.stack.ledger()
        is_seen = all({*parts} <= {*offline.visible_parts(name)} for name, parts in ledger.parts.items())
        return is_seen and self.stack.is_done() and self.stack.ledger() == ledger

    def check(self) -> None:
        """All is as DuckDB says; and Feast serves it, online and for trainers.

        Values fall while the flow runs, so two stores are seen at one moment only between two ticks.
        """
        until(self.agrees)

    def agrees(self) -> bool:
        """Say whether all held in one look."""
        try:
            self.look()
        except AssertionError as difference:
            LOG.warning("%s", difference)  # shown if it never comes to hold
            return False
        return True

    def look(self) -> None:
        workspace = self.stack.workspace
        check(workspace, self.stack.sent_count)
        config = store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry)
        store = feast.open_store(config)
        for view in workspace.pipeline.views:
            newest = workspace.offline().newest(view).to_pylist()[:20]
            keys = [tuple(row[name] for name in view.entity_names) for row in newest]
            asked = pd.DataFrame([dict(zip(view.entity_names, key, strict=True)) for key in keys])
            history = feast.read_history(
                store, view, asked.assign(event_timestamp=[row["event_timestamp"] for row in newest])
            )
            assert len(history) == len(newest)
            for key, row in zip(keys, newest, strict=True):
                line = history[(history[list(view.entity_names)] == list(key)).all(axis=1)].iloc[0]
                for feature in view.features:
                    assert (
                        pd.isna(line[feature.name])
                        if row[feature.name] is None
                        else line[feature.name] == row[feature.name]
                    )

    def stamps(self, view: str) -> set[bytes]:
        """Return by what the rows of a view's current folder were made."""
        folder = self.stack.workspace.offline().path(view)
        parts = [pq.ParquetFile(part) for part in folder.glob("part-*.parquet")]
        return {(part.schema_arrow.metadata or {})[DECLARED] for part in parts if part.metadata.num_rows}

    @property
    def contract(self) -> Path:
        return self.stack.workspace.project.root / "schemas" / "events" / f"{STREAM}.py"

    def evolve(self, version: int, *edits: tuple[str, str], **more: object) -> None:
        """Write the next version of the event contract, which the checker and samples of all versions agree with."""
        text = self.contract.read_text()
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new)
        self.contract.write_text(text)
        samples = self.contract.parents[1] / "samples" / STREAM
        shutil.copytree(samples, samples / str(version - 1), ignore=shutil.ignore_patterns("[0-9]*"))
        for good in samples.glob("good-*.json"):
            good.write_text(json.dumps({**json.loads(good.read_text()), **more}))
        for deed in ("snapshot", "check"):
            self.freshet("schema", deed)

    def freshet(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*FRESHET, *words], env=self.stack.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def story(real_kafka: str, valkey_url: str, tmp_path: Path) -> Iterator[Story]:
    stack = prepared(real_kafka, valkey_url, tmp_path)
    try:
        yield Story(stack)
    finally:
        stack.close()


@contextlib.contextmanager
def running(story: Story) -> Iterator[str]:
    """Run flow and server, and read a value all the time; gives the server's URL. No reader meets an error."""
    stack = story.stack
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    flow = stack.start()
    server = stack.spawn([*FRESHET, "run", "server"], FRESHET_SERVER_ADDRESS=url.removeprefix("http://"))
    stack.produce(600)
    until(story.is_visible)
    view = stack.workspace.pipeline.plan("wiki_edits_by_user").view
    user = stack.workspace.offline().newest(view).to_pylist()[0]["user"]
    asked = {"features": [f"{view.name}:{USER}"], "entities": {"user": [user]}}
    with reading(f"{url}/get-online-features", asked) as reader:
        until(lambda: reader.answers_count > 5)
        reader.wrong.clear()  # before the server listened
        yield url
    assert reader.answers_count > 50
    assert not reader.wrong, (reader.wrong[0], len(reader.wrong))
    stack.stop(flow)
    stack.stop(server)


def test_a_deployment_changes_while_events_flow_and_readers_read(story: Story) -> None:
    stack = story.stack
    with running(story):
        window = (
            "OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '{}' PRECEDING AND CURRENT ROW)"
        )
        story.add(
            {
                "name": "user_added_5m",
                "dtype": "int64",
                "source": STREAM,
                "transformation": f"sum(added) {window.format('5 minutes')}",
            }
        )
        told = story.apply()
        assert "of wiki_edits_by_user from the archived events" in told
        story.check()

        story.edit("INTERVAL '5 minutes'", "INTERVAL '20 minutes'")
        story.apply()
        story.check()

        story.edit("user_added_5m", "user_added_20m")
        story.apply()
        story.check()

        story.edit('"user_added_20m", "dtype": "int64"', '"user_added_20m", "dtype": "float64"')
        told = story.apply(code=2)
        assert 'feature "user_added_20m" would change its type in place, from int64; got float64' in told
        assert "wiki_edits_by_user_v2" in told
        story.edit(
            '"user_added_20m", "dtype": "float64"',
            '"user_added_20m", "view": "wiki_edits_by_user_v2", "dtype": "float64"',
        )
        story.apply()
        assert "wiki_edits_by_user_v2" in {each.name for each in stack.workspace.pipeline.views}
        story.check()

        lines = [line for line in story.declared.read_text().splitlines() if "user_added_20m" not in line]
        story.declared.write_text("\n".join(lines) + "\n")
        story.apply("--again")
        assert "wiki_edits_by_user_v2" not in {each.name for each in stack.workspace.pipeline.views}
        story.check()


SIZED = """

def with_size(event: Document) -> Document:
    return {**event, "size": event["added"] + event["deleted"]}


class WikiEdit("""


def test_an_event_contract_evolves_twice_while_old_producers_publish_and_readers_read(story: Story) -> None:
    stack = story.stack
    first = stack.workspace.contracts[STREAM]
    samples = Path("schemas") / "samples" / STREAM
    shutil.copytree(REPO / samples, stack.workspace.project.root / samples)
    story.freshet("schema", "snapshot")
    with running(story) as url:
        story.evolve(
            2,
            ("import Event, Stream", "import Document, Event, Stream, as_is"),
            ("version=1,", "version=2,\n        upcasts={1: as_is},"),
            ("    metroCode: int | None = None\n", "    metroCode: int | None = None\n    tool: str | None = None\n"),
        )
        assert f"~ contract {STREAM}: version 2" in story.apply()
        second = stack.workspace.contracts[STREAM]
        stack.produce(40, first)
        stack.produce(40, second, tool="web")
        until(story.is_visible)
        story.check()

        story.evolve(
            3,
            ("version=2,", "version=3,"),
            ("upcasts={1: as_is}", "upcasts={1: as_is, 2: with_size}"),
            ("\nclass WikiEdit(", SIZED),
            ("    deleted: int\n", "    deleted: int\n    size: int\n"),
            size=5,
        )
        window = "OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '5 minutes' PRECEDING AND CURRENT ROW)"
        sized = {"name": "user_size_5m", "dtype": "int64", "source": STREAM, "transformation": f"sum(size) {window}"}
        story.add(sized)
        told = story.apply()
        assert f"~ contract {STREAM}: version 3" in told
        assert "of wiki_edits_by_user from the archived events" in told
        third = stack.workspace.contracts[STREAM]
        stack.produce(40, first)
        stack.produce(40, second, tool="app")
        stack.produce(40, third, tool="bot", size=7)
        until(story.is_visible)
        story.check()

        edit = next(edits(0))
        until(lambda: posted(url, edit) == 422)  # the server reads by the third version
        assert posted(url, {**edit, "size": 5}) == 202
        stack.sent_count += 1
        until(story.is_visible)
        story.check()

    events = stack.workspace.offline().read(archive_name(STREAM))
    tools = [tool for tool in events["tool"].to_pylist() if tool is not None]
    assert sorted(tools) == ["app"] * 40 + ["bot"] * 40 + ["web"] * 40
    sizes = zip(*(events[name].to_pylist() for name in ("size", "added", "deleted", "tool")), strict=True)
    assert all(size == added + deleted for size, added, deleted, tool in sizes if tool in ("web", "app"))
    assert events.num_rows == stack.sent_count, "an event of an old producer was not accepted"


def posted(url: str, event: dict[str, Any]) -> int:
    """Return the status with which the server takes an event."""
    body = json.dumps(event).encode()
    request = urllib.request.Request(f"{url}/streams/{STREAM}/events", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_rows_name_what_they_were_made_by_and_it_can_be_read(story: Story) -> None:
    stack, view = story.stack, "wiki_edits_by_user"
    stack.produce(300)
    stack.done()
    before = stack.workspace.pipeline.plan(view).digest
    assert story.stamps(view) == {before.encode()}
    middle = stack.workspace.offline().final(stack.workspace.pipeline.plan(view).view)["event_timestamp"].to_pylist()
    since = sorted(middle)[len(middle) // 2]

    story.edit("name: user_edits_10m", "name: user_edits_of_10m")
    story.freshet("apply", "--from", since.isoformat())

    stack.workspace = Workspace.applied(stack.workspace.settings)
    after = stack.workspace.pipeline.plan(view).digest
    files = AppliedFile(stack.workspace.offline_root)
    applied = files.read()
    assert applied is not None
    kept = [files.declared(one) for one in (*applied.earlier, applied.declared.id)]
    assert story.stamps(view) == {before.encode(), after.encode()}
    assert {one.views[view].digest for one in kept if one is not None} == {before, after}


def test_a_declaration_that_another_one_has_followed_is_refused(story: Story) -> None:
    old = story.declared.read_text()
    story.edit("name: user_edits_10m", "name: user_edits_of_10m")
    story.freshet("apply")
    story.declared.write_text(old)

    assert "was in force already, and another one has followed it" in story.freshet("apply", code=2)
    assert replace(story.stack.workspace).in_force() is not None
