"""What schemathesis makes of the server's OpenAPI document, right and wrong, has only answers that the document names."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Client, fill, numbered, serving, view_of
from stack import SEED, Stack, free_ports, prepared

from freshet.flows.edges.broker import Broker

TOKEN = "s3cret"
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance",
    "ignored_auth",
)  # fmt: skip
"""Not that right data is accepted: no document can say which join keys go with which features."""


@pytest.fixture
def stack(broker: Broker, valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(broker.address, valkey_url, tmp_path)
    view = view_of(made, "wiki_edits_by_user")
    fill(made, view, numbered(view, [("ada",)], 7))
    yield made
    made.close()


def test_schemathesis_finds_nothing_against_the_document(schemathesis: Path, stack: Stack) -> None:
    (port,) = free_ports(1)
    with serving(stack, FRESHET_SERVER_TOKEN=TOKEN, FRESHET_METRICS_ADDRESS=f"127.0.0.1:{port}") as at:
        client = Client(at.address, TOKEN)
        listed = client.ask("GET", "/features").body.decode()
        command = [
            schemathesis, "run", f"http://{at.address}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}",
            "--checks", ",".join(CHECKS), "--mode", "all", "--phases", "examples,coverage,fuzzing",
            "--max-examples", "60", "--seed", str(SEED), "--generation-database", "none",
            "--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off", "--no-color",
        ]  # fmt: skip
        hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent / "oracles")}
        environment = {**os.environ, **hooks, "LISTED": listed}
        done = subprocess.run(
            command, env=environment, cwd=stack.log.parent, capture_output=True, text=True, check=False
        )

        assert done.returncode == 0, done.stdout + done.stderr
        counted = Client(f"127.0.0.1:{port}").ask("GET", "/metrics").body.decode()

    for endpoint in ("get-online-features", "features", "events"):
        for status in ("2xx", "4xx"):  # it came as far as the store and Kafka, and was refused
            assert count(counted, f'freshet_requests_total{{endpoint="{endpoint}",status="{status}"}}') > 0
        assert count(counted, f'freshet_requests_total{{endpoint="{endpoint}",status="5xx"}}') == 0
    of_user = 'freshet_served_values_total{feature_view="wiki_edits_by_user",status='
    assert count(counted, of_user + '"present"}') > 10
    assert count(counted, of_user + '"not_found"}') > 10


def count(metrics: str, series: str) -> float:
    found = re.search(f"^{re.escape(series)} (.+)$", metrics, re.MULTILINE)
    assert found is not None, series
    return float(found[1])
