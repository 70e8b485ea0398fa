"""What is beside the rules: who is told of which alert, what silences it, and a runbook whose commands exist."""

import contextlib
import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from listener import Listener
from stack import free_ports, until

from freshet.flows import settings
from freshet.flows.steps.alertmanager import ALERTMANAGER, INHIBITIONS, RECEIVERS, read_receivers
from freshet.flows.steps.alerts import RULES
from freshet.flows.steps.dashboards import DASHBOARDS
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Refused
from freshet.schemas.finding import Cause
from freshet.schemas.rejects import Reason
from freshet.scripts.apply import generated, write_files
from freshet.scripts.cli import parser

REPO = Path(__file__).parent.parent
SECTIONS = ["Meaning", "Impact", "Check", "Mitigate", "Verify"]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return generated(Workspace.open(settings.Settings(project=REPO)))


@pytest.fixture(scope="module")
def rules(files: Mapping[str, str]) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(files[RULES])["groups"] for rule in group["rules"]]


def test_every_alert_stands_in_the_readme_with_its_severities(rules: Sequence[dict[str, Any]]) -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    said = {}
    for names, severities in re.findall(r"^\| ((?:`Freshet\w+`(?:, )?)+) \| ([a-z, ]+) \|", readme, re.MULTILINE):
        said.update(dict.fromkeys(re.findall(r"\w+", names), {*severities.split(", ")}))

    assert {*said} == {rule["alert"] for rule in rules}
    for rule in rules:
        assert rule["labels"]["severity"] in said[rule["alert"]]


# --- runbooks ---------------------------------------------------------------------------------------------------------


def runbooks(files: Mapping[str, str]) -> dict[str, str]:
    return {Path(path).stem: text for path, text in files.items() if path.startswith("deploy/runbooks/")}


def commands(text: str) -> Iterator[list[str]]:
    """Yield every `freshet …` of a page, in its text and in its blocks."""
    for said in (*re.findall(r"`(freshet [^`]+)`", text), *re.findall(r"^ {4}(freshet .+)$", text, re.MULTILINE)):
        yield shlex.split(said)[1:]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert(
    files: Mapping[str, str], rules: Sequence[dict[str, Any]]
) -> None:
    assert {rule["annotations"]["runbook_url"] for rule in rules} == {
        f"deploy/runbooks/{n}.md" for n in runbooks(files)
    }
    assert {rule["alert"] for rule in rules} == {*runbooks(files)}


def test_every_alert_names_a_dashboard_that_is_made(files: Mapping[str, str], rules: Sequence[dict[str, Any]]) -> None:
    named = {rule["annotations"]["dashboard_url"].removeprefix("/d/") for rule in rules}

    assert named
    assert {f"{DASHBOARDS}/{uid}.json" for uid in named} <= {*files}


def test_a_runbook_says_what_it_means_whom_it_concerns_and_what_to_do(
    files: Mapping[str, str], rules: Sequence[dict[str, Any]]
) -> None:
    for name, text in runbooks(files).items():
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, name
        assert not re.search(r"{\w+}", text), name
        impact = text.split("## Impact")[1].split("## Check")[0]
        for rule in rules:
            if rule["alert"] == name:
                for concerned in (
                    *rule["annotations"]["views"].split(", "),
                    *rule["annotations"]["features"].split(", "),
                ):
                    assert concerned in impact, (name, concerned)


def test_every_command_of_every_runbook_exists(files: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in runbooks(files).items():
        found = list(commands(text))
        assert found, f"{name} names no command"
        for words in found:
            try:
                parser(words).parse_args(words)
            except SystemExit:
                pytest.fail(f"{name}: freshet {shlex.join(words)}: {capsys.readouterr().err}")


def test_a_command_that_does_not_exist_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("go on with `freshet mend --all`", "    freshet run materializer --faster"):
        (words,) = commands(line)
        with pytest.raises(SystemExit):
            parser(words).parse_args(words)
    assert "invalid choice" in capsys.readouterr().err


def test_a_runbook_leads_to_runbooks_that_are_there(files: Mapping[str, str]) -> None:
    for name, text in runbooks(files).items():
        for other in re.findall(r"(\w+)\.md", text):
            assert other in runbooks(files), f"{name} leads to {other}"


def test_runbooks_go_by_every_cause_and_every_reason(files: Mapping[str, str]) -> None:
    for cause in Cause:
        assert f"- **{cause}**: " in runbooks(files)["FreshetSkew"]
    for reason in Reason:
        assert f"`{reason}`" in runbooks(files)["FreshetRejects"]


def test_runbooks_name_settings_that_there_are(files: Mapping[str, str]) -> None:
    assert settings.__doc__ is not None
    for name, text in runbooks(files).items():
        for variable in re.findall(r"FRESHET_[A-Z_]+", text):
            assert f"| {variable} |" in settings.__doc__, f"{name} names {variable}"


def test_runbooks_name_services_that_there_are(files: Mapping[str, str]) -> None:
    services = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]
    for name, text in runbooks(files).items():
        said = [words.split() for words in re.findall(r"`docker compose ([^`]+)`", text)]
        assert said, name
        for words in said:
            assert services.keys() & {*words}, f"{name}: docker compose {' '.join(words)}"


# --- Alertmanager -----------------------------------------------------------------------------------------------------


def test_every_inhibition_is_of_alerts_that_there_are(rules: Sequence[dict[str, Any]]) -> None:
    names = {rule["alert"] for rule in rules}
    for one in INHIBITIONS:
        assert {*one.sources, *one.targets} <= names
        assert not {*one.sources} & {*one.targets}
    assert {one.cause for one in INHIBITIONS} - {None} <= {*map(str, Cause)}


def test_amtool_takes_the_configuration_and_routes_by_severity(
    amtool: str, files: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "alertmanager.yml").write_text(files[ALERTMANAGER])

    def told(*words: str) -> str:
        done = subprocess.run([amtool, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    told("check-config", "alertmanager.yml")
    for severity in ("page", "ticket"):
        assert told("config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}") == severity
    assert told("config", "routes", "test", "--config.file=alertmanager.yml", "severity=unheard_of") == "page"


def test_the_receivers_are_the_user_s_and_stay(project: Path, amtool: str) -> None:
    workspace = Workspace.open(settings.Settings(project=project))
    assert RECEIVERS in write_files(workspace, generated(workspace))
    own = "[{name: page, webhook_configs: [{url: 'http://pager.example/alerts'}]}, {name: ticket}]"
    (project / RECEIVERS).write_text(own)

    assert RECEIVERS not in write_files(workspace, generated(workspace))

    assert (project / RECEIVERS).read_text() == own
    assert yaml.safe_load((project / ALERTMANAGER).read_text())["receivers"] == yaml.safe_load(own)
    subprocess.run([amtool, "check-config", project / ALERTMANAGER], capture_output=True, check=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{name: page}]", 'receiver "ticket" is missing; got page. Hint: add `- name: ticket`'),
        ("page", "is no list of receivers"),
        ("- {name: page", "is not YAML"),
    ],
)
def test_receivers_that_cannot_be_used_are_refused(text: str, said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        read_receivers(text)


@contextlib.contextmanager
def running(program: str, config: Path) -> Iterator[str]:
    """Yield the address of an Alertmanager."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    words = [f"--config.file={config}", f"--storage.path={config.parent / 'data'}", f"--web.listen-address={address}"]
    process = subprocess.Popen([program, *words, "--cluster.listen-address="], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: answer(f"http://{address}/-/ready") is not None or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield address
    finally:
        process.kill()
        process.communicate()


def answer(url: str, posted: object = None) -> bytes | None:
    data = None if posted is None else json.dumps(posted).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as told:
            return told.read()
    except urllib.error.URLError:
        return None


def test_a_cause_silences_its_consequences_and_nothing_else(
    alertmanager: str, files: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "alertmanager.yml").write_text(files[ALERTMANAGER])
    here, there = {"project": "wikipedia", "topic": "wiki_edits"}, {"project": "wikipedia", "topic": "other"}
    here_too, other_view = {"project": "wikipedia"}, {"project": "another", "feature_view": "by_item"}
    firing = {
        "stopped": {"alertname": "FreshetStopped", "severity": "page", **here, "partition": "1"},
        "late": {"alertname": "FreshetLag", "severity": "page", **here},
        "late elsewhere": {"alertname": "FreshetLag", "severity": "page", **there},
        "stale": {"alertname": "FreshetSkew", "severity": "page", **here, "cause": "stale_online"},
        "wrong": {"alertname": "FreshetSkew", "severity": "page", **here, "cause": "value_mismatch"},
        "many rejects": {"alertname": "FreshetRejects", "severity": "page", **here, "reason": "contract"},
        "some rejects": {"alertname": "FreshetRejects", "severity": "ticket", **here, "reason": "contract"},
        "late events": {"alertname": "FreshetRejects", "severity": "ticket", **here, "reason": "late"},
        "failing": {"alertname": "FreshetValidatorFailing", "severity": "page", "project": "wikipedia"},
        "unknown": {"alertname": "FreshetLagUnknown", "severity": "page", "project": "another"},
        "served old": {"alertname": "FreshetServedStale", "severity": "page", **here, "feature_view": "by_user"},
        "served old elsewhere": {"alertname": "FreshetServedStale", "severity": "page", **other_view},
        "many errors": {"alertname": "FreshetServerErrors", "severity": "page", **here_too, "endpoint": "features"},
        "some errors": {"alertname": "FreshetServerErrors", "severity": "ticket", **here_too, "endpoint": "events"},
        "slow": {"alertname": "FreshetOnlineLatency", "severity": "page", **here_too},
        "ended": {"alertname": "FreshetMaterializerDead", "severity": "page", "project": "third"},
        "unknown, too": {"alertname": "FreshetLagUnknown", "severity": "page", "project": "third"},
        "failing, too": {"alertname": "FreshetValidatorFailing", "severity": "page", "project": "third"},
        "wrong, too": {"alertname": "FreshetSkew", "severity": "page", "project": "third", "cause": "value_mismatch"},
    }
    with running(alertmanager, tmp_path / "alertmanager.yml") as address:
        assert answer(f"http://{address}/api/v2/alerts", [{"labels": labels} for labels in firing.values()]) is not None

        def told(query: str) -> set[str]:
            found = json.loads(answer(f"http://{address}/api/v2/alerts?{query}") or b"[]")
            return {name for name, labels in firing.items() if labels in [one["labels"] for one in found]}

        until(lambda: told("") == {*firing})
        silenced = {"late", "stale", "some rejects", "served old", "slow", "unknown, too", "failing, too"}
        assert {*firing} - told("inhibited=false") == silenced


def test_a_receiver_is_sent_what_fires_with_its_features_and_runbook_and_no_consequence(
    alertmanager: str, project: Path, tmp_path: Path
) -> None:
    listener = Listener()
    runbooks_url = "https://git.example/shop/runbooks"
    workspace = Workspace.open(settings.Settings(project=project, runbook_url=runbooks_url))
    own = {name: f"http://{listener.host}/{name}" for name in ("page", "ticket")}
    (project / "deploy" / "alertmanager").mkdir(parents=True)
    (project / RECEIVERS).write_text(
        yaml.safe_dump([{"name": name, "webhook_configs": [{"url": url}]} for name, url in own.items()])
    )
    made = generated(workspace)
    (tmp_path / "alertmanager.yml").write_text(made[ALERTMANAGER].replace("group_wait: 30s", "group_wait: 2s"))
    of_all = [rule for group in yaml.safe_load(made[RULES])["groups"] for rule in group["rules"]]
    firing = [
        next(rule for rule in of_all if (rule["alert"], rule["labels"]["severity"]) == wanted)
        for wanted in (("FreshetStopped", "page"), ("FreshetLag", "page"), ("FreshetRewound", "ticket"))
    ]
    posted = [
        {"labels": {**rule["labels"], "alertname": rule["alert"]}, "annotations": rule["annotations"]}
        for rule in firing
    ]

    try:
        with running(alertmanager, tmp_path / "alertmanager.yml") as address:
            assert answer(f"http://{address}/api/v2/alerts", posted) is not None
            until(lambda: len(listener.requests) == 2)
            suppressed = json.loads(answer(f"http://{address}/api/v2/alerts?active=false&inhibited=true") or b"[]")
    finally:
        listener.close()

    assert [one["labels"]["alertname"] for one in suppressed] == ["FreshetLag"]
    told = {path.strip("/"): json.loads(body)["alerts"] for _, path, _, body in listener.requests}
    assert {name: [one["labels"]["alertname"] for one in alerts] for name, alerts in told.items()} == {
        "page": ["FreshetStopped"],  # of which FreshetLag is a consequence
        "ticket": ["FreshetRewound"],
    }
    for alerts in told.values():
        (one,) = alerts
        assert one["status"] == "firing"
        assert one["annotations"]["runbook_url"] == f"{runbooks_url}/{one['labels']['alertname']}.md"
        features = [feature.name for view in workspace.pipeline.views for feature in view.features]
        assert one["annotations"]["features"].split(", ") == features
