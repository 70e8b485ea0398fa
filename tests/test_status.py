"""Which parts a status screen has: all that there must be, and a server where there is one."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from stack import free_ports

from freshet.flows import settings as settings_
from freshet.flows.edges.metrics import Server
from freshet.flows.live import Workspace
from freshet.flows.settings import Settings
from freshet.flows.status import StatusReader
from freshet.flows.steps.status import Part, Report

NOBODY = "127.0.0.1:1"
OTHERS = ["kafka", "online store", "offline store", "materializer", "validator"]


def looked(project: Path, **changes: str | None) -> Report:
    places = dict.fromkeys(("brokers", "materializer_address", "validator_address"), NOBODY)
    settings = Settings(project=project, online_store=f"redis://{NOBODY}/0", **{**places, **changes})  # type: ignore[arg-type]
    return StatusReader(Workspace.open(settings)).look()


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
        assert looked(project).parts[-1] == Part("server", server.address, "redis is away")
    finally:
        server.close()
