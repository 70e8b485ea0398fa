"""How the programs that watch find what they watch, and one another.

Addresses are those of docker-compose.yml. Programs elsewhere need other ones, and the same names of jobs and rules.
"""

import zlib
from dataclasses import dataclass
from typing import Any

PROMETHEUS_CONFIG = "deploy/prometheus/prometheus.yml"
PROVISIONING = "deploy/grafana/provisioning"
MATERIALIZER_JOB, VALIDATOR_JOB, SERVER_JOB = "freshet-materializer", "freshet-validator", "freshet-server"
"""The names by which alert rules and dashboards know our processes."""

RUNBOOKS = "deploy/runbooks"
"""Where runbooks stand, seen from the project."""

_SCRAPE_INTERVAL = "5s"
_TARGETS = {MATERIALIZER_JOB: "materializer:9308", VALIDATOR_JOB: "validator:9307", SERVER_JOB: "server:9306"}
_PROMETHEUS, _ALERTMANAGER = "prometheus:9090", "alertmanager:9093"
_UID_LENGTH = 40
"""Grafana refuses a longer one."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What is deployed that the declaration does not say, and how whoever is told of an alert reaches its pages.

    Without a validator nothing is said of what only it sees, nor that it is missing.
    """

    processes_count: int = 1
    workers_count: int = 1
    has_validator: bool = True
    runbook_url: str = RUNBOOKS
    grafana_url: str = ""

    def runbook(self, name: str) -> str:
        """Return where the runbook of an alert is."""
        return f"{self.runbook_url.rstrip('/')}/{name}.md"

    def dashboard(self, uid: str) -> str:
        """Return where a dashboard is.

        >>> Deployed().dashboard("lag"), Deployed(grafana_url="https://grafana.example/").dashboard("lag")
        ('/d/lag', 'https://grafana.example/d/lag')
        """
        return f"{self.grafana_url.rstrip('/')}/d/{uid}"


USUAL = Deployed()


def dashboard_uid(*words: str) -> str:
    """Return the uid of a dashboard: always the same, and never longer than Grafana allows.

    >>> dashboard_uid("lag"), dashboard_uid("view", "wiki_edits_by_user"), dashboard_uid("view", "of_edits_" * 4)
    ('freshet-lag', 'freshet-view-wiki_edits_by_user', 'freshet-view-of_edits_of_edits__8d0e175b')
    """
    whole = "-".join(("freshet", *words))
    return whole if len(whole) <= _UID_LENGTH else f"{whole[: _UID_LENGTH - 9]}_{zlib.crc32(whole.encode()):08x}"


def prometheus_config(rules: str, deployed: Deployed = USUAL) -> dict[str, Any]:
    """Return the content of prometheus.yml: whom it asks, whom it tells. `rules` is a file beside it.

    The processes of the materializer, and the server's workers, are at one port after the other.
    """
    counts = {
        MATERIALIZER_JOB: deployed.processes_count,
        VALIDATOR_JOB: int(deployed.has_validator),
        SERVER_JOB: deployed.workers_count,
    }
    return {
        "global": {
            "scrape_interval": _SCRAPE_INTERVAL,
            "scrape_timeout": "4s",
            "evaluation_interval": _SCRAPE_INTERVAL,
        },
        "rule_files": [rules],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [_ALERTMANAGER]}]}]},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": _places(_TARGETS[job], count)}]}
            for job, count in counts.items()
            if count
        ],
    }


def _places(first: str, count: int) -> list[str]:
    host, _, port = first.partition(":")
    return [f"{host}:{int(port) + number}" for number in range(count)]


def provisioning() -> dict[str, dict[str, Any]]:
    """Return what Grafana reads when it starts, by path: where Prometheus, Alertmanager and the dashboards are.

    Grafana itself fills in ${GF_PATHS_PROVISIONING}, so the two folders may lie anywhere, side by side.
    """
    sources = [
        {
            "name": "Prometheus",
            "uid": "freshet-prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": f"http://{_PROMETHEUS}",
            "isDefault": True,
            "editable": False,
            "jsonData": {"timeInterval": _SCRAPE_INTERVAL, "alertmanagerUid": "freshet-alertmanager"},
        },
        {
            "name": "Alertmanager",
            "uid": "freshet-alertmanager",
            "type": "alertmanager",
            "access": "proxy",
            "url": f"http://{_ALERTMANAGER}",
            "editable": False,
            "jsonData": {"implementation": "prometheus"},
        },
    ]
    provider = {
        "name": "freshet",
        "folder": "Freshet",
        "type": "file",
        "disableDeletion": False,
        "allowUiUpdates": False,
        "updateIntervalSeconds": 10,
        "options": {"path": "${GF_PATHS_PROVISIONING}/../dashboards"},
    }
    return {
        f"{PROVISIONING}/datasources/freshet.yml": {"apiVersion": 1, "datasources": sources},
        f"{PROVISIONING}/dashboards/freshet.yml": {"apiVersion": 1, "providers": [provider]},
    }
