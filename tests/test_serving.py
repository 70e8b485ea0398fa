"""Serving, as a user meets it: a project of one's own, its materializer and its server, and what README shows of them."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from stack import FRESHET, free_ports, until

from freshet.flows.edges.broker import Broker

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SHOWN = next(block for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) if "run server &" in block)
ASKED = re.findall(r"^\$ curl -s localhost:6566(\S+) -d '(.*)'\n(.*)$", SHOWN, re.MULTILINE)


@pytest.fixture
def shop(broker: Broker, valkey_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a new project, applied, whose materializer runs."""
    broker.create_topic("page_views", 8)
    broker.create_topic("page_views.dlq", 8)
    (port,) = free_ports(1)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")},
        "FRESHET_BROKERS": broker.address,
        "FRESHET_ONLINE_STORE": valkey_url,
        "FRESHET_METRICS_ADDRESS": "127.0.0.1:0",
        "FRESHET_SERVER_ADDRESS": f"127.0.0.1:{port}",
        "FRESHET_SERVED_SHARE": "1",
    }
    freshet(tmp_path, environment, "init", "shop").wait()
    assert freshet(tmp_path, environment, "-C", "shop", "apply").wait() == 0
    with ExitStack() as running:
        for name in ("materializer", "server"):
            process = freshet(tmp_path, environment, "-C", "shop", "run", name)
            running.callback(process.wait)
            running.callback(process.terminate)
        yield environment


def freshet(folder: Path, environment: dict[str, str], *words: str) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([*FRESHET, *words], cwd=folder, env=environment, stdout=log, stderr=log)


def asked(address: str, path: str, body: str) -> str:
    """Return what is answered, or nothing if nobody is there yet."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    raw = body.replace("'$(date -u +%FT%TZ)'", now).encode()
    try:
        with urllib.request.urlopen(f"http://{address}{path}", data=raw, timeout=20) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error
    except OSError:
        return ""


def shape(answer: str) -> Any:
    """Return an answer without what is another one each time: places in Kafka, and when it was."""
    answer = re.sub(r'"(partition|offset)":\d+', r'"\1":0', answer)
    return json.loads(re.sub(r'"(?!1970)\d{4}-\d\d-\d\dT[\d:.]+Z"', '"TIME"', answer))


def test_what_readme_shows_of_the_server_is_what_it_answers(shop: dict[str, str], tmp_path: Path) -> None:
    (publish, event, published), (read, question, answered) = ASKED
    address = shop["FRESHET_SERVER_ADDRESS"]

    until(lambda: shape(asked(address, publish, event) or "{}") == shape(published))
    until(lambda: shape(asked(address, read, question) or "{}") == shape(answered))

    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log
