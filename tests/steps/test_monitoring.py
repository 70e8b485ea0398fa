"""Prometheus and Grafana find one another, our processes and the generated files."""

import subprocess
from pathlib import Path

import yaml

from freshet.flows.steps.alerts import RULES
from freshet.flows.steps.dashboards import DASHBOARDS
from freshet.flows.steps.deploy_files import monitoring_files
from freshet.flows.steps.monitoring import (
    MATERIALIZER_JOB,
    PROMETHEUS_CONFIG,
    PROVISIONING,
    SERVER_JOB,
    VALIDATOR_JOB,
    Deployed,
)

FILES = {path: yaml.safe_load(text) for path, text in monitoring_files().items()}


def test_promtool_takes_prometheus_configuration(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(monitoring_files()[PROMETHEUS_CONFIG])
    (tmp_path / Path(RULES).name).write_text("groups: []\n")

    done = subprocess.run(
        [promtool, "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout


def test_prometheus_asks_every_process_by_the_names_that_alerts_and_dashboards_know() -> None:
    jobs = {one["job_name"]: one["static_configs"][0]["targets"] for one in FILES[PROMETHEUS_CONFIG]["scrape_configs"]}

    assert {
        MATERIALIZER_JOB: ["materializer:9308"],
        VALIDATOR_JOB: ["validator:9307"],
        SERVER_JOB: ["server:9306"],
    } == jobs


def test_grafana_is_told_where_the_dashboards_are_seen_from_its_own_folder() -> None:
    (provider,) = FILES[f"{PROVISIONING}/dashboards/freshet.yml"]["providers"]
    path = provider["options"]["path"].replace("${GF_PATHS_PROVISIONING}", PROVISIONING)

    assert Path("/", DASHBOARDS) == Path("/", path).resolve()


def test_grafana_knows_alertmanager_by_the_name_that_its_prometheus_has_for_it() -> None:
    sources = {one["type"]: one for one in FILES[f"{PROVISIONING}/datasources/freshet.yml"]["datasources"]}

    assert sources["prometheus"]["isDefault"]
    assert sources["alertmanager"]["uid"] == sources["prometheus"]["jsonData"]["alertmanagerUid"]


def test_each_process_is_asked_and_none_that_there_is_not() -> None:
    said = yaml.safe_load(monitoring_files(Deployed(3, 2, has_validator=False))[PROMETHEUS_CONFIG])

    assert {one["job_name"]: one["static_configs"][0]["targets"] for one in said["scrape_configs"]} == {
        MATERIALIZER_JOB: ["materializer:9308", "materializer:9309", "materializer:9310"],
        SERVER_JOB: ["server:9306", "server:9307"],
    }
