"""What a status screen has of each part: all parts that there must be, a server where there is one, streams as Kafka tells."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry
from stack import free_pair, free_ports

from freshet.flows import settings as settings_
from freshet.flows.edges import kafka
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.metrics import Metrics, Server, ValidatorMetrics
from freshet.flows.settings import Settings
from freshet.flows.status import StatusReader
from freshet.flows.steps.status import Part, Report, ViewStatus, as_json, screen
from freshet.flows.workspace import Workspace
from freshet.schemas.applied import Applied
from freshet.schemas.rejects import dead_letter_topic

NOBODY = "127.0.0.1:1"
OTHERS = ["kafka", "online store", "offline store", "materializer", "validator"]


def looked(project: Path, **changes: str | None) -> Report:
    places = dict.fromkeys(("brokers", "materializer_address", "validator_address"), NOBODY)
    settings = Settings(project=project, online_store=f"redis://{NOBODY}/0", **{**places, **changes})  # type: ignore[arg-type]
    return StatusReader(Workspace.applied(settings)).look()


def names(report: Report) -> list[str]:
    return [part.name for part in report.parts]


def test_a_server_is_a_part_only_where_one_is_said_to_be_or_answers(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody, trouble = f"127.0.0.1:{free_ports(1)[0]}", [""]
    server = Server("127.0.0.1:0", CollectorRegistry(), lambda: trouble[0])
    try:
        monkeypatch.setattr(settings_, "SERVER_ADDRESS", nobody)
        assert names(looked(project)) == OTHERS
        asked = looked(project, server_address=nobody).parts[-1]
        assert (asked.name, asked.where) == ("server", nobody)
        assert "does not answer" in asked.trouble

        monkeypatch.setattr(settings_, "SERVER_ADDRESS", server.address)
        assert looked(project).parts[-1] == Part("server", server.address)
        trouble[0] = "redis is away"
        assert looked(project).parts[-1] == Part("server", server.address, complaint="redis is away")
    finally:
        server.close()


TOPIC, VIEW = "wiki_edits", "wiki_edits_by_user"
PARTITIONS = 4


@pytest.fixture
def kafka_of_project() -> Iterator[Broker]:
    with Broker.start() as broker:
        for topic in (TOPIC, dead_letter_topic(TOPIC)):
            broker.create_topic(topic, PARTITIONS)
        yield broker


def test_when_the_last_event_came_is_told_of_an_idle_topic_though_the_flow_is_down(
    project: Path, kafka_of_project: Broker
) -> None:
    brokers = kafka_of_project.address
    (before,) = looked(project, brokers=brokers).streams
    assert before.last_event_age_s is None, "nothing ever came"

    producer = Producer(kafka.Kafka(brokers).config())
    for partition, age_s in ((1, 3600), (2, 7200)):
        producer.produce(TOPIC, b"{}", partition=partition, timestamp=int((time.time() - age_s) * 1000))
    assert producer.flush(30) == 0
    report = looked(project, brokers=brokers)

    (stream,) = report.streams
    assert sorted(stream.last_event_ages_s) == [1, 2]
    assert 3600 <= stream.last_event_ages_s[1] < 7200 <= stream.last_event_ages_s[2]
    assert stream.last_event_age_s == stream.last_event_ages_s[1]
    (told,) = as_json(report)["streams"]
    ages_s = [part["last_event_age_s"] for part in told["partitions"]]
    assert [ages_s[1], ages_s[2]] == [round(stream.last_event_ages_s[part], 3) for part in (1, 2)]
    assert [ages_s[0], ages_s[3]] == [None, None]
    assert " min ago " in screen(report)


def test_partitions_without_a_leader_are_said_beside_kafka(project: Path, kafka_of_project: Broker) -> None:
    kafka_of_project.lead(TOPIC, 3, None)

    found = looked(project, brokers=kafka_of_project.address).parts[0]

    assert (found.name, found.where) == ("kafka", kafka_of_project.address)
    assert found.trouble.endswith(f"no leader for {TOPIC}/3 (1 of {PARTITIONS} partitions)")


def test_a_validator_that_does_not_answer_is_not_said_never_to_have_validated(project: Path) -> None:
    shown = screen(looked(project))

    assert f"last validation unknown: no answer from the validator at {NOBODY};" in shown


def test_a_validator_whose_rounds_fail_is_said_to_with_the_reason_and_since_when(project: Path) -> None:
    metrics = ValidatorMetrics((), {})
    said = ["by_user: Redis at r:1 cannot be used"]
    server = Server("127.0.0.1:0", metrics.registry, lambda: said[0])
    try:
        shown = screen(looked(project, validator_address=server.address))
        assert "\nvalidator      UNWELL  by_user: Redis at r:1 cannot be used\n" in shown
        assert "; not validated yet;" in shown

        metrics.success.set(time.time() - 420)
        shown = screen(looked(project, validator_address=server.address))
        assert "UNWELL  no round has succeeded for 7 min: by_user: Redis at r:1 cannot be used\n" in shown
        assert "; validated 7 min ago;" in shown

        said[0] = ""
        assert f"\nvalidator      ok    {server.address}\n" in screen(looked(project, validator_address=server.address))
    finally:
        server.close()


def test_how_fresh_rows_were_is_told_of_the_looks_and_of_no_time_before(project: Path) -> None:
    metrics = Metrics([TOPIC], [VIEW])
    metrics.freshness.observe(np.full(1000, 1.7), VIEW, "event")
    metrics.rows.labels(VIEW, "online").inc(1000)
    server = Server("127.0.0.1:0", metrics.registry, lambda: "")
    settings = Settings(project=project, brokers=NOBODY, materializer_address=server.address, validator_address=NOBODY)
    reader = StatusReader(Workspace.open(settings), between_s=0.0)

    def view() -> ViewStatus:
        return next(one for one in reader.look().views if one.view == VIEW)

    try:
        assert (view().rows_per_s, view().freshness_p99_s) == (0.0, None)
        metrics.freshness.observe(np.full(3, 0.04), VIEW, "event")
        metrics.rows.labels(VIEW, "online").inc(3)
        assert view().freshness_p99_s == 0.05
        then = view()
        assert then.freshness_p99_s == 0.05, "a burst is told of for as long as looks are kept"
        assert then.rows_per_s
    finally:
        server.close()


def test_each_process_of_the_materializer_is_asked_and_no_validator_where_there_is_none(project: Path) -> None:
    first, trouble = free_pair(), ["", "waits for Redis"]
    servers = []
    for number, entities in enumerate((3, 4)):
        metrics = Metrics([TOPIC], [VIEW])
        metrics.entities.labels(VIEW).set(entities)
        servers.append(Server(f"127.0.0.1:{first + number}", metrics.registry, partial(trouble.__getitem__, number)))
    settings = Settings(
        project=project,
        brokers=NOBODY,
        materializer_address=servers[0].address,
        materializer_processes=2,
        validator_address="off",
    )
    reader = StatusReader(Workspace.open(settings), between_s=0.0)

    try:
        report = reader.look()

        assert next(view.entities_count for view in report.views if view.view == VIEW) == 7
        assert "validator" not in names(report)
        assert Part("materializer", servers[1].address, complaint="waits for Redis") in report.parts

        servers[1].close()
        (found,) = (part for part in reader.look().parts if part.name == "materializer")
        assert f'process "{servers[1].address}" does not answer' in found.trouble
    finally:
        for server in servers:
            server.close()


def test_an_edit_of_the_declaration_that_was_not_applied_is_said(project: Path) -> None:
    written = Workspace.open(Settings(project=project)).declared
    assert f"declaration {written.id} as it is written; none was applied yet" in screen(looked(project))

    AppliedFile(project / "data" / "offline").write(Applied(declared=written, since_us=1_772_366_400_000_000))
    assert f"declaration {written.id} in force since 2026-03-01T12:00:00+00:00\n" in screen(looked(project))

    path = project / "feature_repo" / "features.yaml"
    path.write_text(path.read_text() + "# for a colleague\n")
    report = looked(project)

    assert report.declaration is not None
    assert (report.declaration.id, report.declaration.edited) == (written.id, ("feature_repo/features.yaml",))
    assert "; feature_repo/features.yaml edited, not applied: `freshet plan`" in screen(report)
