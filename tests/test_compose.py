"""docker-compose.yml and Dockerfile, where no Docker is: what they say is run as processes on the embedded parts."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from freshet.flows import settings
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.valkey import Valkey
from freshet.flows.steps.monitoring import MATERIALIZER_JOB, SERVER_JOB, VALIDATOR_JOB

REPO = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((REPO / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("freshet-")]
DOCKERFILE = (REPO / "Dockerfile").read_text(encoding="utf-8")
ENTRYPOINT = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[0])
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n((?:(?!FROM ).*\n)*)", DOCKERFILE, re.MULTILINE))
HEALTHCHECKS = {
    stage: json.loads(found[1])
    for stage, text in STAGES.items()
    if (found := re.search(r"HEALTHCHECK .+\n\s+CMD (.+)$", text, re.MULTILINE))
}
PROGRAMS = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}
"""What Debian calls the programs of images that are not ours."""
LAG_ALERT = "FreshetLag"
LIMIT_S = 240.0


def test_the_file_follows_the_compose_schema() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yml",
    ]

    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_one_that_the_settings_know(name: str) -> None:
    given = {key: str(value) for key, value in SERVICES[name]["environment"].items()}

    assert given
    assert settings.read(given).brokers == given["FRESHET_BROKERS"]


def test_ports_are_on_loopback_and_dependencies_are_services() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for dependency, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[dependency]
    assert "password" not in json.dumps(COMPOSE).lower()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits_and_writes_to_its_volumes_alone(name: str) -> None:
    service = SERVICES[name]

    assert service["mem_limit"]
    assert service.get("read_only") or name == "kafka"  # which writes its configuration beside its programs


def test_only_the_long_running_processes_are_asked_for_their_health_each_by_its_image() -> None:
    lasting = [name for name in OURS if "stop_grace_period" in SERVICES[name]]

    assert ["materializer", "validator", "server"] == [name for name in lasting if "healthcheck" not in SERVICES[name]]
    for name in ("materializer", "validator", "server"):
        assert name == SERVICES[name]["build"]["target"]
        assert name in HEALTHCHECKS
        assert ["run", name] == " ".join(SERVICES[name]["command"]).split()[-2:]


def test_the_server_has_a_token_that_is_its_own_and_is_not_made_where_one_is_set(tmp_path: Path) -> None:
    [script], said = SERVICES["server"]["command"], SERVICES["server"]["environment"]
    shown = 'printf %s "$FRESHET_SERVER_TOKEN"'
    script = interpolated(script).replace("exec freshet run server", shown).replace("/state", str(tmp_path))
    assert shown in script

    def token(**environment: str) -> str:
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "-ec", script], env={**path, **environment}, capture_output=True, text=True, check=True
        ).stdout

    assert token(FRESHET_SERVER_TOKEN="the user's") == "the user's"
    assert [] == [*tmp_path.iterdir()]
    made = token(FRESHET_SERVER_TOKEN=interpolated(said["FRESHET_SERVER_TOKEN"]))
    assert re.fullmatch("[0-9a-f]{64}", made)
    assert made == token()
    assert (tmp_path / "server.token").stat().st_mode & 0o777 == 0o600


def test_images_of_others_are_pinned() -> None:
    for name in {*SERVICES} - {*OURS}:
        assert re.search(r":v?\d+\.\d+", SERVICES[name]["image"]), name


def test_grafana_has_no_user_whose_password_could_be_known() -> None:
    said = SERVICES["grafana"]["environment"]

    assert ("true", "false", "true") == (
        said["GF_AUTH_DISABLE_LOGIN_FORM"], said["GF_AUTH_BASIC_ENABLED"], said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"]
    )  # fmt: skip
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_what_grafana_reads_is_what_apply_writes() -> None:
    said = SERVICES["grafana"]["environment"]
    assert "project:/project:ro" in SERVICES["grafana"]["volumes"]
    here = {key: REPO / value.removeprefix("/project/") for key, value in said.items() if value.startswith("/project/")}

    home = json.loads(here["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].read_text(encoding="utf-8"))
    assert home["uid"] == "freshet-overview"
    read = [yaml.safe_load(path.read_text()) for path in sorted(here["GF_PATHS_PROVISIONING"].rglob("*.yml"))]
    assert [["apiVersion", "providers"], ["apiVersion", "datasources"]] == [[*one] for one in read]
    addresses = [source["url"].removeprefix("http://") for source in read[1]["datasources"]]
    for name, _, port in (address.partition(":") for address in addresses):
        assert SERVICES[name]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_prometheus_reaches_the_processes_where_they_listen() -> None:
    said = yaml.safe_load((REPO / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))

    for job in said["scrape_configs"]:
        ((name, _, port),) = [target.partition(":") for target in job["static_configs"][0]["targets"]]
        assert SERVICES[name]["environment"]["FRESHET_METRICS_ADDRESS"] == f"0.0.0.0:{port}"
        assert not [shown for shown in SERVICES[name].get("ports", []) if port in shown]  # nobody outside reaches it
        assert f":{port}/healthz" in HEALTHCHECKS[name][-1]


def test_volumes_are_declared() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_the_images_are_built_of_what_is_there() -> None:
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (REPO / source).exists(), source
    targets = set(re.findall(r"^FROM .+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert {SERVICES[name]["build"]["target"] for name in OURS} <= targets
    assert re.findall(r"USER (\S+)", DOCKERFILE) == ["freshet"] * 3


def test_the_entry_point_is_a_command_of_the_package() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert ["tini", "--", *project["scripts"]] == ENTRYPOINT


def test_what_the_images_install_is_locked() -> None:
    for line in re.findall(r"pip (?:install|wheel) .+$", DOCKERFILE, re.MULTILINE):
        assert "--require-hashes" in line or "--no-index" in line or "--no-build-isolation" in line, line
    assert "setuptools==" in (REPO / "deploy" / "build.lock").read_text(encoding="utf-8")


def test_great_expectations_is_in_the_validator_s_image_alone() -> None:
    locks = {name: (REPO / "deploy" / f"{name}.lock").read_text() for name in ("materializer", "validator")}

    assert "great-expectations==1.24.1" in locks["validator"]
    assert "great-expectations" not in locks["materializer"]
    pinned = {name: set(re.findall(r"^(\S+==\S+)", lock, re.MULTILINE)) for name, lock in locks.items()}
    assert pinned["materializer"] <= pinned["validator"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What stands in for the containers' addresses and folders."""
    root = tmp_path_factory.mktemp("compose")
    (root / "project").mkdir()
    with Broker.start() as broker, Valkey.start() as valkey:
        broker.create_topic("wiki_edits", 4)
        yield {
            "kafka:19092": broker.address,
            "redis://valkey:6379/0": valkey.url,
            "/state": str(root / "state"),
            "/project": str(root / "project"),
            "=/prometheus": f"={root}/prometheus",
            "=/alertmanager": f"={root}/alertmanager",
            "=:9090": f"=127.0.0.1:{free_port()}",
            "=:9093": f"=127.0.0.1:{free_port()}",
        }


def started(name: str, deployment: dict[str, str], **more: str) -> "subprocess.Popen[str]":
    """Start a service's command as a process, with its environment; its home, too, cannot be written."""

    def replaced(text: str) -> str:
        text = interpolated(text)
        for there, here in deployment.items():
            text = text.replace(there, here)
        return text.replace("python -m", f"{sys.executable} -m")

    service = SERVICES[name]
    entry = [PROGRAMS[name]] if name in PROGRAMS else service.get("entrypoint", ENTRYPOINT)
    words = [replaced(word) for word in [*entry, *service["command"]]]
    words = words[words.index("--") + 1 :] if "--" in words else words
    words = [sys.executable if word == "python" else word for word in words]
    image = dict(re.findall(r"(FRESHET_\w+)=(\S+)", DOCKERFILE))
    own = {key: replaced(str(value)) for key, value in {**image, **service.get("environment", {}), **more}.items()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**{key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}, **own}
    return subprocess.Popen(
        words,
        env={**environment, "PATH": path, "HOME": "/dev/null"},
        cwd=deployment["/project"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interpolated(text: str) -> str:
    """Return a text of the compose file as Compose hands it on where the environment says nothing."""
    return re.sub(r"\$\$|\$\{\w+:-([^}]*)\}", lambda found: "$" if found[1] is None else found[1], text)


def ended(process: "subprocess.Popen[str]", limit_s: float = LIMIT_S) -> str:
    out, err = process.communicate(timeout=limit_s)
    assert process.returncode == 0, out + err
    return out + err


def values(address: str, name: str) -> list[float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line)]


def metric(address: str, name: str) -> float:
    return sum(values(address, name))


def causes(address: str) -> set[str]:
    """Return the causes of confirmed findings."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        found = re.findall(
            r'^freshet_skew_confirmed_total\{cause="(\w+)",.*\} (\S+)$', answer.read().decode(), re.MULTILINE
        )
    assert found
    return {cause for cause, count in found if float(count)}


@dataclass(frozen=True)
class Watching:
    """Prometheus and Alertmanager, as the compose file starts them, but asking every second, of these addresses.

    No alert waits for longer than a second, that no test does.
    """

    prometheus: str
    alertmanager: str
    processes: Sequence["subprocess.Popen[str]"]

    @classmethod
    def start(cls, deployment: Mapping[str, str], materializer: str, validator: str, server: str) -> "Watching":
        prometheus, alertmanager = (deployment[f"=:{port}"].removeprefix("=") for port in (9090, 9093))
        folder = Path(deployment["/project"], "deploy", "prometheus")
        said = (folder / "prometheus.yml").read_text(encoding="utf-8")
        for there, here in (
            ("materializer:9308", materializer),
            ("validator:9307", validator),
            ("server:9306", server),
            ("alertmanager:9093", alertmanager),
        ):
            assert there in said
            said = said.replace(there, here)
        (folder / "prometheus.yml").write_text(re.sub(r"(_interval|_timeout): \ds", r"\1: 1s", said), encoding="utf-8")
        rules = (folder / "rules.yml").read_text(encoding="utf-8")
        (folder / "rules.yml").write_text(re.sub(r"for: \w+", "for: 1s", rules), encoding="utf-8")
        return cls(prometheus, alertmanager, [started(name, deployment) for name in ("alertmanager", "prometheus")])

    def reached(self) -> set[str]:
        """Return the jobs that Prometheus reaches."""
        found = self._asked(f"{self.prometheus}/api/v1/query?query=up==1")["data"]["result"]
        return {one["metric"]["job"] for one in found}

    def firing(self) -> set[str]:
        """Return the alerts that fire."""
        found = self._asked(f"{self.prometheus}/api/v1/alerts")["data"]["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}

    def told(self) -> set[str]:
        """Return the alerts that Alertmanager knows to fire."""
        return {one["labels"]["alertname"] for one in self._asked(f"{self.alertmanager}/api/v2/alerts?active=true")}

    def broken(self) -> list[str]:
        """Return the rules that cannot be evaluated."""
        groups = self._asked(f"{self.prometheus}/api/v1/rules")["data"]["groups"]
        assert groups
        return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]

    def _asked(self, address: str) -> Any:
        with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
            return json.load(answer)


def wait(done: Callable[[], bool], *living: "subprocess.Popen[str]") -> None:
    """Wait until it is so, while these live; whoever is asked may not listen yet."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(OSError):
            if done():
                return
        for process in living:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_deployment_does_its_work_and_stops_when_told(deployment: dict[str, str], prometheus: str | None) -> None:
    """While the materializer is stopped events wait, and Alertmanager hears of it; no longer when it is there again."""
    ended(started("project", deployment))
    assert "registry" in ended(started("apply", deployment))
    address, looking_at, serving_at, served_at = (f"127.0.0.1:{free_port()}" for _ in range(4))
    watching = Watching.start(deployment, address, looking_at, serving_at) if prometheus else None
    materializer = started("materializer", deployment, FRESHET_METRICS_ADDRESS=address)
    validator = started("validator", deployment, FRESHET_METRICS_ADDRESS=looking_at)
    producer = started("producer", deployment)
    others = [started("server", deployment, FRESHET_METRICS_ADDRESS=serving_at, FRESHET_SERVER_ADDRESS=served_at)]
    others += watching.processes if watching else ()
    processes = [materializer, validator, producer, *others]
    try:
        wait(lambda: metric(address, "freshet_rows_total") > 20, *processes)
        assert healthy("materializer", address)
        wait(lambda: metric(address, "freshet_offline_bytes_total") > 0, *processes)
        wait(lambda: metric(looking_at, "freshet_validator_last_success_timestamp_seconds") > 0, *processes)
        wait(lambda: healthy("validator", looking_at) and answers(served_at, "readyz") == 200, *processes)
        serves_who_has_the_token(deployment, served_at, serving_at)
        assert shape(status(deployment, address, looking_at, served_at)) == shape(README_STATUS)
        if watching:
            wait(lambda: watching.reached() == {MATERIALIZER_JOB, VALIDATOR_JOB, SERVER_JOB}, *processes)
            assert watching.broken() == []
        materializer.send_signal(signal.SIGTERM)
        assert "stopped" in ended(materializer, grace_s("materializer"))
        if watching:
            wait(lambda: LAG_ALERT in watching.firing() & watching.told(), *processes[1:])
        materializer = started("materializer", deployment, FRESHET_METRICS_ADDRESS=address)
        processes[0] = materializer
        os.killpg(producer.pid, signal.SIGTERM)  # as tini -g does
        assert ", 0 refused" in ended(producer, grace_s("producer"))
        sent_at = time.time()
        wait(lambda: is_caught_up(looking_at, sent_at), materializer, validator)
        if watching:
            wait(lambda: LAG_ALERT not in watching.firing() | watching.told(), materializer, validator)
        materializer.send_signal(signal.SIGTERM)

        assert "stopped" in ended(materializer, grace_s("materializer"))
        wait(lambda: metric(looking_at, "freshet_skew_compared_total") > 0, validator)
        assert healthy("validator", looking_at)
        assert causes(looking_at) <= {"stale_online"}  # it was, if the materializer was away for long
        validator.send_signal(signal.SIGTERM)
        assert "stopped" in ended(validator, grace_s("validator"))
        assert (Path(deployment["/project"]) / ".freshet" / "docs" / "index.html").is_file()
        assert ended(started("check", deployment)).count(": ok, ") == 3
        for process in others:
            process.send_signal(signal.SIGTERM)
            ended(process, grace_s("server"))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def healthy(name: str, address: str) -> bool:
    default = {"materializer": "127.0.0.1:9308", "validator": "127.0.0.1:9307", "server": "127.0.0.1:9306"}[name]
    command = [word.replace(default, address) for word in HEALTHCHECKS[name]]
    assert command != HEALTHCHECKS[name]
    return subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False).returncode == 0


QUESTION = {"features": ["wiki_edits_by_user:user_edits_10m"], "entities": {"user": ["Bot0", "Bot1", "nobody"]}}


def answers(address: str, path: str, token: str = "") -> int:
    """Return the status with which the server answers; a question where there is one to ask."""
    posted = None if path == "readyz" else json.dumps(QUESTION).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}/{path}", posted, headers), timeout=10
        ) as told:
            return int(told.status)
    except urllib.error.HTTPError as error:
        return error.code


def serves_who_has_the_token(deployment: Mapping[str, str], address: str, metrics_address: str) -> None:
    assert healthy("server", metrics_address)
    token = Path(deployment["/state"], "server.token").read_text(encoding="utf-8").strip()

    assert [401, 200] == [answers(address, "get-online-features", token=one) for one in ("", token)]
    assert metric(metrics_address, "freshet_served_values_total") == len(QUESTION["entities"]["user"])


def status(deployment: dict[str, str], *addresses: str) -> str:
    """Return the screen, once every part answers within the seconds that it is given, or as it is at last."""
    deadline = time.monotonic() + LIMIT_S
    while " DOWN " in (shown := status_now(deployment, *addresses)) and time.monotonic() < deadline:
        pass
    return shown


def status_now(deployment: dict[str, str], *addresses: str) -> str:
    names = (f"FRESHET_{name}_ADDRESS" for name in ("MATERIALIZER", "VALIDATOR", "SERVER"))
    shown, said = started("status", deployment, **dict(zip(names, addresses, strict=True))).communicate(timeout=LIMIT_S)
    return shown or said


def shape(shown: str) -> list[str]:
    """Return the lines of a status screen that are the same in every run: numbers, times, places, ids and states apart."""
    lines = [re.sub(r"\b[0-9a-f]{12}\b", "ID", line) for line in shown.splitlines()[1:]]
    lines = [re.sub(r"(^| )[\w.]+:\S+|\S*/\S*", " WHERE", line) for line in lines]
    lines = [re.sub(r"[\d,.]+ (ms|s|min|h|days)\b|never|-", "SPAN", line) for line in lines]
    states = "ok|warn|stop|stall|rewind|idle|fresh|lagging|stalled|breached|unknown"
    return [re.sub(r"\s+", " ", re.sub(rf"[\d,]+|\b({states})\b", "N", line, flags=re.IGNORECASE)) for line in lines]


def is_caught_up(address: str, since: float) -> bool:
    """Say whether a process exports lag, seen since a time, and there is none."""
    seen_at = values(address, "freshet_lag_sampled_timestamp_seconds")
    return bool(seen_at) and seen_at[0] > since and not any(values(address, "kafka_consumergroup_lag_sum"))


README_STATUS = next(
    block.partition("\n")[2]
    for block in re.findall(r"```console\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    if block.startswith("$ freshet status")
)


def grace_s(name: str) -> float:
    return float(SERVICES[name]["stop_grace_period"].removesuffix("s"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
