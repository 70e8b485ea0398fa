"""The command, as people and scripts meet it: what is wrong is named, nothing is half done, and what `plan` says is there."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
import yaml
from confluent_kafka.admin import AdminClient
from feast import FeatureStore
from prometheus_client.exposition import generate_latest
from stack import free_ports

from freshet.flows import settings
from freshet.flows.edges import feast
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.compaction import CompactionFolder
from freshet.flows.edges.metrics import ServerMetrics
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.project import PACKAGED
from freshet.flows.edges.store_config import store_config
from freshet.flows.observer import Seen
from freshet.flows.validator import judged
from freshet.flows.workspace import Workspace
from freshet.schemas.finding import Frame, Outcome, Question, Verdict
from freshet.scripts import cli

OUTPUT = {
    "type": "object",
    "required": ["featureStoreConfig", "servingSetup", "monitoringConfig"],
    "properties": {
        "featureStoreConfig": {
            "type": "object",
            "properties": {"provider": {"type": "string"}}
            | dict.fromkeys(["onlineStore", "offlineStore", "registry"], {"type": "object"}),
        },
        "featureViews": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "features": {"type": "array"},
                    "entities": {"type": "array"},
                    "ttl": {"type": "string"},
                },
            },
        },
        "servingSetup": {
            "type": "object",
            "properties": {
                "onlineEndpoint": {"type": "string"},
                "materializationSchedule": {"type": "string"},
                "latencyMetrics": {"type": "object"},
            },
        },
        "monitoringConfig": {
            "type": "object",
            "properties": dict.fromkeys(["freshnessAlerts", "consistencyChecks", "dashboards"], {"type": "array"}),
        },
    },
}
"""What the user's own schema asks of a deployment, written out anew."""


@dataclass(frozen=True)
class Freshet:
    """The command as a process, in a project."""

    project: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "freshet.scripts.cli", "-C", str(self.project), *words]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")}
        environment = clean | self.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


# --- bad declarations -------------------------------------------------------------------------------------------------

W = "OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW)"


def declared(**changes: str) -> str:
    feature = {"name": "edits", "dtype": "int64", "source": "wiki_edits", "transformation": f"count(*) {W}", **changes}
    return yaml.safe_dump({"featureDefinitions": [feature], "servingRequirements": {}}, width=1000)


BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "a misspelt key": (
        declared(transfromation="x"),
        ('key "transfromation" is unknown', "did you mean transformation?"),
    ),
    "a misspelt column": (
        declared(transformation=f"sum(aded) {W}"),
        ('feature "edits" names an unknown column; got aded', "did you mean added?"),
    ),
    "a type that does not fit": (
        declared(dtype="int64", transformation=f"avg(added) {W}"),
        ('feature "edits" has dtype int64, but another type comes out; got DOUBLE', "write dtype: float64"),
    ),
    "two features of one name": (
        re.sub(r"(featureDefinitions:\n)(.*)(servingRequirements)", r"\1\2\2\3", declared(), flags=re.DOTALL),
        ('feature "edits" is declared twice, first at feature_repo/features.yaml:3', "rename one of them"),
    ),
    "an unknown source": (
        declared(source="wiki_edit"),
        ('stream "wiki_edit" has no event contract', "did you mean wiki_edits?"),
    ),
    "a window without ORDER BY": (
        declared(transformation="count(*) OVER (PARTITION BY user)"),
        ('feature "edits" has a window without ORDER BY', "write ORDER BY event_timestamp RANGE BETWEEN"),
    ),
    "a file": (
        declared(dtype="string", transformation="read_text('/etc/passwd')"),
        ('feature "edits" calls a function that is not on the list of allowed ones; got read_text',),
    ),
    "a file as a table": (
        declared(transformation="(SELECT count(*) FROM '/etc/passwd')"),
        ('feature "edits" has a subquery',),
    ),
    "a subquery": (
        declared(transformation="(SELECT 1)"),
        ('feature "edits" has a subquery', "name columns of the event"),
    ),
    "a requirement that is none": (
        declared().replace("{}", "{onlineLatency: soon}"),
        ("key \"onlineLatency\" cannot be read; got 'soon'", "write a duration such as"),
    ),
    "text that is not YAML": ("featureDefinitions: [\n", ("is not YAML",)),
    "nothing": ("", ("is not a mapping of keys; got nothing", "start with `featureDefinitions:`")),
    "no features": (
        "featureDefinitions: []\nservingRequirements: {}\n",
        ("declares no feature", "add a definition with name, dtype, source, transformation"),
    ),
    "an environment that is not set": (
        declared() + "infrastructure: {onlineStore: 'redis://:${NO_SUCH_PASSWORD}@localhost'}\n",
        ("names environment variables that are not set: NO_SUCH_PASSWORD",),
    ),
    "a store that is none": (
        declared() + "infrastructure: {onlineStore: 'mysql://localhost'}\n",
        ('key "onlineStore" is not an online store that Freshet knows', "write redis://host:6379/0"),
    ),
}


@pytest.mark.parametrize("verb", ["plan", "apply"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_declaration_is_refused_by_what_is_wrong_with_it(
    case: str, verb: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, messages = BAD[case]
    (project / "feature_repo" / "features.yaml").write_text(text)
    before = files_in(project)

    code = cli.main(["-C", str(project), verb])

    said = capsys.readouterr()
    assert code == 2, said.err
    for message in messages:
        assert message in said.err
    assert all(line.startswith("freshet: ") for line in said.err.splitlines())
    assert said.out == ""
    assert files_in(project) == before


def test_all_that_is_wrong_is_said_at_once_and_without_a_traceback(project: Path) -> None:
    features = [
        {"name": "a", "dtype": "int64", "source": "wiki_edits", "transformation": f"sum(aded) {W}"},
        {"name": "b", "dtype": "int64", "source": "wiki_edits", "transformation": f"avg(added) {W}"},
        {"name": "c", "dtype": "int64", "source": "wiki_edits", "transformation": "count(*) OVER (PARTITION BY user)"},
        {"name": "d", "dtype": "int64", "source": "wiki_edits", "transformation": "(SELECT 1)"},
    ]
    text = json.dumps({"featureDefinitions": features, "servingRequirements": {}})
    (project / "feature_repo" / "features.yaml").write_text(text)

    done = Freshet(project)("plan")

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [re.findall(r'feature "(\w)"', line) for line in done.stderr.splitlines()] == [["a"], ["b"], ["c"], ["d"]]


@pytest.mark.parametrize("words", [(), ("plam",), ("plan", "--jsn"), ("replay",), ("run", "server_of_nothing")])
def test_wrong_words_are_wrong_use(words: tuple[str, ...], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["-C", str(project), *words])

    assert ended.value.code == 2
    assert "usage: freshet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("produce", "events.jsonl", "--rate", "0"), "write a number above 0"),
        (("apply", "--from", "2100-01-01T00:00Z"), "is 2100-01-01T00:00Z, which is still to come"),
        (("backfill", "user_edits_10m", "--from", "2100-01-01T00:00Z"), "write a time that is past"),
        (("compact",), "is not there yet. Hint: run `freshet apply`"),
    ],
)
def test_what_cannot_be_meant_or_comes_too_early_is_refused_with_what_to_do(
    words: tuple[str, ...], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-C", str(project), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_a_project_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-C", str(tmp_path / "none"), "plan"]) == 2
    assert "has no feature_repo/features.yaml. Hint: run `freshet init DIR`" in capsys.readouterr().err


def test_a_variable_that_is_misspelt_is_refused(project: Path) -> None:
    done = Freshet(project, {"FRESHET_BROKER": "localhost:1", "FRESHET_EPOCH": "soon"})("plan")

    assert done.returncode == 2
    assert 'variable "FRESHET_BROKER" is unknown. Hint: did you mean FRESHET_BROKERS?' in done.stderr
    assert "variable \"FRESHET_EPOCH\" cannot be read; got 'soon'" in done.stderr


# --- outside systems --------------------------------------------------------------------------------------------------


def test_a_broker_that_is_not_there_is_named_and_nothing_is_made(project: Path, valkey_url: str) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    before = files_in(project)

    done = Freshet(project, {"FRESHET_BROKERS": address, "FRESHET_ONLINE_STORE": valkey_url})("apply")

    assert done.returncode == 5
    assert f'kafka "{address}" is not available' in done.stderr
    assert "Traceback" not in done.stderr
    assert files_in(project) == before


@pytest.mark.parametrize("verb", [("run", "materializer", "--until-end"), ("check",)])
def test_a_broker_that_is_not_there_ends_every_process(verb: tuple[str, ...], project: Path, valkey_url: str) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"

    done = Freshet(project, {"FRESHET_BROKERS": address, "FRESHET_ONLINE_STORE": valkey_url})(*verb)

    assert done.returncode == 5, done.stderr
    assert f'kafka "{address}" is not available' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_redis_that_is_not_there_is_named_without_its_password_and_nothing_is_made(project: Path) -> None:
    (port,) = free_ports(1)
    url = f"redis://app:${{APP_PASSWORD}}@127.0.0.1:{port}/0"
    before = files_in(project)

    with Broker.start() as empty:
        own = {"FRESHET_BROKERS": empty.address, "FRESHET_ONLINE_STORE": url, "APP_PASSWORD": "hunter2"}
        done = Freshet(project, own)("apply")
        topics = AdminClient({"bootstrap.servers": empty.address}).list_topics(timeout=10).topics

    assert done.returncode == 5, done.stderr + done.stdout
    assert f"127.0.0.1:{port}" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert files_in(project) == before
    assert topics == {}


def test_a_password_in_clear_is_refused_before_it_would_be_written(project: Path) -> None:
    before = files_in(project)

    done = Freshet(project, {"FRESHET_ONLINE_STORE": "redis://app:hunter2@127.0.0.1:1/0"})("apply")

    assert done.returncode == 2
    assert 'key "onlineStore" has a password in it, which would be written to feature_store.yaml' in done.stderr
    assert "Hint: write ${NAME} in its place" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert files_in(project) == before


def test_a_flag_is_a_setting_and_one_that_is_none_is_refused(project: Path) -> None:
    freshet = Freshet(project, {"FRESHET_SHARDS": "4"})

    assert "flag \"--set shards\" cannot be read; got 'x'" in freshet("--set", "shards=x", "plan").stderr
    assert 'argument "--set" is given shards. Hint: write --set NAME=VALUE' in freshet("--set", "shards", "plan").stderr
    assert freshet("--set", "shards=8", "plan").returncode == 0


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_named_with_what_makes_it(project: Path, real_kafka: str, valkey_url: str) -> None:
    contract = project / "schemas" / "events" / "wiki_edits.py"
    contract.write_text(contract.read_text().replace('topic="wiki_edits"', 'topic="no_such_topic"'))
    freshet = Freshet(project, {"FRESHET_BROKERS": real_kafka, "FRESHET_ONLINE_STORE": valkey_url})

    done = freshet("run", "materializer", "--until-end")

    assert done.returncode == 2
    assert f'topic "no_such_topic" cannot be read at {real_kafka}' in done.stderr
    assert "run `freshet apply`" in done.stderr


def test_an_output_folder_that_cannot_be_written_is_named(project: Path, broker: Broker, valkey_url: str) -> None:
    (project / "taken").write_text("a file")
    environment = {
        "FRESHET_BROKERS": broker.address,
        "FRESHET_ONLINE_STORE": valkey_url,
        "FRESHET_OFFLINE_STORE": "taken/offline",
    }
    before = files_in(project)

    done = Freshet(project, environment)("apply")

    assert done.returncode in (2, 5), done.stderr
    assert "taken" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_in(project) == before


def test_replay_does_not_write_into_what_is_there(project: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")

    for out in (tmp_path / "full", events, events / "below"):
        done = Freshet(project)("replay", str(events), "--out", str(out))
        assert done.returncode == 2, (out, done.stderr)
        assert str(out) in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_a_file_of_events_that_is_not_there_is_named_and_no_folder_is_left(project: Path, tmp_path: Path) -> None:
    done = Freshet(project)("replay", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "rows"))

    assert done.returncode == 2, done.stderr
    assert f'file "{tmp_path / "none.jsonl"}" is not there' in done.stderr
    assert "Traceback" not in done.stderr


# --- the deployment ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Applied:
    freshet: Freshet
    planned: dict[str, Any]

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(settings.read({**self.freshet.environment, "FRESHET_PROJECT": str(self.freshet.project)}))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Broker]:
    with Broker.start() as started:
        started.create_topic("wiki_edits", 8)  # it makes topics by itself, but with partitions of its own number
        yield started


@pytest.fixture(scope="module")
def applied(cluster: Broker, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Applied:
    root = tmp_path_factory.mktemp("applied") / "project"
    repo = Path(__file__).parent.parent
    ignore = shutil.ignore_patterns("feature_store.yaml", "__pycache__")
    shutil.copytree(repo / "feature_repo", root / "feature_repo", ignore=ignore)
    shutil.copytree(repo / "schemas" / "events", root / "schemas" / "events", ignore=ignore)
    freshet = Freshet(
        root,
        {
            "FRESHET_BROKERS": cluster.address,
            "FRESHET_ONLINE_STORE": valkey_url,
            "FRESHET_METRICS_ADDRESS": "127.0.0.1:0",
        },
    )
    planned = json.loads(freshet.ok("plan", "--json"))
    freshet.ok("apply")
    return Applied(freshet, planned)


def test_the_plan_is_what_the_users_schema_asks_for(applied: Applied) -> None:
    jsonschema.Draft202012Validator(OUTPUT).validate(applied.planned)

    assert {"featureStoreConfig", "featureViews", "servingSetup", "monitoringConfig"} <= applied.planned.keys()
    assert [view["name"] for view in applied.planned["featureViews"]] == [
        "wiki_edits_by_user", "wiki_edits_by_page", "wiki_edits_by_channel",
    ]  # fmt: skip


def test_the_plan_holds_the_parquet_of_all_views_against_the_declared_volume(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "that is more parquet than declared"

    assert cli.main(["-C", str(project), "plan"]) == 0
    room = capsys.readouterr().out
    assert cli.main(["-C", str(project), "plan", "--rate", "150"]) == 0
    more = capsys.readouterr().out

    assert "at 131.1 events/s" in room
    assert "10 GB of parquet a day, all views before compression; 10GB/1d is declared" in room
    assert warning not in room
    assert warning in more  # though no view by itself makes as much


def test_planning_again_after_applying_finds_nothing_to_do(applied: Applied) -> None:
    assert "nothing to apply" in applied.freshet.ok("plan")
    again = applied.freshet.ok("apply")
    assert "no change" in again
    assert json.loads(applied.freshet.ok("plan", "--json")) == applied.planned


def test_every_planned_topic_is_there(applied: Applied, cluster: Broker) -> None:
    topics = AdminClient({"bootstrap.servers": cluster.address}).list_topics(timeout=10).topics

    for topic in applied.planned["topics"]:
        assert len(topics[topic["name"]].partitions) == topic["partitions"]
        assert topics[topic["deadLetterTopic"]].partitions


def test_every_planned_alert_stands_in_the_file_it_names_and_leads_to_a_runbook(applied: Applied) -> None:
    alerts, root = applied.planned["monitoringConfig"]["freshnessAlerts"], applied.freshet.project
    files = {alert["file"]: yaml.safe_load((root / alert["file"]).read_text()) for alert in alerts[:1]}

    for alert in alerts:
        found = {rule["expr"]: rule for group in files[alert["file"]]["groups"] for rule in group["rules"]}
        assert found[alert["expr"]]["alert"] == alert["name"]
        assert found[alert["expr"]]["for"] == alert["for"]
        assert (root / alert["runbook"]).exists()


def test_promtool_takes_the_applied_rules(applied: Applied, promtool: str) -> None:
    folder = applied.freshet.project / "deploy" / "prometheus"
    for words in (["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_planned_dashboard_stands_in_the_file_it_names(applied: Applied) -> None:
    planned = applied.planned["monitoringConfig"]["dashboards"]
    made = [json.loads((applied.freshet.project / one["file"]).read_text()) for one in planned]

    assert [(one["name"], one["uid"]) for one in planned] == [(one["title"], one["uid"]) for one in made]
    assert len(made) == len(applied.planned["featureViews"]) + 4


@dataclass
class Recording:
    """A judge that only notes what it is asked to evaluate."""

    names: set[str] = field(default_factory=set)

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        self.names |= {check.name for question in questions for check in question.checks}
        return [Verdict(question.view, Outcome.OK, len(question.lines)) for question in questions]


def test_every_planned_check_is_one_that_the_judge_is_given(applied: Applied) -> None:
    workspace, judge = applied.workspace, Recording()
    target = workspace.source.declaration.servingRequirements.freshnessTarget

    frames = {frame: pd.DataFrame(columns=["offline_row"]) for frame in Frame}
    judged(judge, [Seen(view, datetime.now(UTC), frames) for view in workspace.pipeline.views], target)

    assert {check["name"] for check in applied.planned["monitoringConfig"]["consistencyChecks"]} == judge.names


def test_the_planned_topic_of_findings_is_there(applied: Applied, cluster: Broker) -> None:
    topics = AdminClient({"bootstrap.servers": cluster.address}).list_topics(timeout=10).topics

    assert topics[applied.planned["monitoringConfig"]["findingsTopic"]].partitions


def test_a_check_as_json_is_one_round(applied: Applied) -> None:
    done = applied.freshet("check", "--json", "--sample", "5")

    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    assert ("wikipedia", "inconclusive") == (said["project"], said["outcome"])
    assert said.keys() == {"project", "at", "outcome", "verdicts"}
    assert [view["name"] for view in applied.planned["featureViews"]] == [
        one["feature_view"] for one in said["verdicts"]
    ]
    for verdict in said["verdicts"]:
        assert ("inconclusive", 0, []) == (verdict["outcome"], verdict["compared_count"], verdict["findings"])
        assert verdict["reasons"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--workers", "2"), "--workers"), (("--processes", "2"), "--processes"), (("--rebuild",), "--rebuild"),
        (("--accept-gap",), "--accept-gap"), (("--until-end",), "--until-end"),
    ],
)  # fmt: skip
def test_what_is_the_materializer_s_is_refused_for_the_validator(words: tuple[str, ...], named: str) -> None:
    command = [sys.executable, "-m", "freshet.scripts.cli", "run", "validator", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith(f'freshet: argument "{named}" is the materializer\'s')


def test_every_planned_view_is_in_feasts_registry(applied: Applied) -> None:
    workspace = applied.workspace
    config = store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry)
    registered = {view.name: view for view in feast.open_store(config).list_feature_views()}

    for planned in applied.planned["featureViews"]:
        view = registered[planned["name"]]
        assert [field.name for field in view.features] == [feature["name"] for feature in planned["features"]]
        assert view.entities == [view.entities[0]]


def metrics_of(freshet: Freshet, ask: Callable[[str], None]) -> int:
    """Run the materializer, ask its /metrics, end it; return its exit code."""
    command = [sys.executable, "-m", "freshet.scripts.cli", "-C", str(freshet.project), "run", "materializer"]
    environment = {**os.environ, **freshet.environment}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = ""
        for line in running.stderr:
            said += line
            if found := re.search(r"metrics at (http://\S+)", line):
                try:
                    with urllib.request.urlopen(found[1], timeout=30) as answer:
                        ask(answer.read().decode())
                finally:
                    running.send_signal(signal.SIGTERM)
        assert "metrics at" in said, said
        return running.wait(60)


def test_every_planned_metric_is_served_and_sigterm_ends_with_zero(applied: Applied) -> None:
    served: list[str] = []

    exporting = {**applied.freshet.environment, "FRESHET_LAG_EXPORT": "materializer"}  # else the validator serves lag
    assert metrics_of(Freshet(applied.freshet.project, exporting), served.append) == 0

    by_server = generate_latest(ServerMetrics([], timedelta(milliseconds=10)).registry).decode()
    for name in applied.planned["servingSetup"]["latencyMetrics"]:
        assert re.search(rf"^# TYPE {name} ", served[0] + by_server, re.MULTILINE), name


def test_feasts_own_apply_works_in_the_feature_repo(applied: Applied) -> None:
    repo = applied.freshet.project / "feature_repo"
    command = [str(Path(sys.executable).with_name("feast")), "apply"]
    environment = {**os.environ, **applied.freshet.environment}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    names = {view.name for view in FeatureStore(repo_path=str(repo)).list_feature_views()}
    assert names == {view["name"] for view in applied.planned["featureViews"]}


def test_a_breaking_change_is_refused_and_leaves_what_was_applied(applied: Applied, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(applied.freshet.project, root)
    features = root / "feature_repo" / "features.yaml"
    features.write_text(
        features.read_text().replace("name: user_edits_1h, dtype: int64", "name: user_edits_1h, dtype: float64")
    )
    before = (root / ".freshet" / "applied.json").read_bytes()

    done = Freshet(root, applied.freshet.environment)("apply")

    assert done.returncode == 2
    assert 'feature "user_edits_1h" would change its type in place, from int64; got float64' in done.stderr
    assert "wiki_edits_by_user_v2" in done.stderr
    assert (root / ".freshet" / "applied.json").read_bytes() == before


def test_a_contract_is_in_force_once_it_is_applied_and_refused_if_it_does_not_read_old_events(
    applied: Applied, tmp_path: Path
) -> None:
    root = tmp_path / "changed"
    shutil.copytree(applied.freshet.project, root)
    shutil.copytree(PACKAGED / "schemas" / "snapshots", root / "schemas" / "snapshots", dirs_exist_ok=True)
    freshet, contract = Freshet(root, applied.freshet.environment), root / "schemas" / "events" / "wiki_edits.py"
    text = contract.read_text()

    contract.write_text(text.replace("    added: int\n", "    added: int\n    tool: str\n"))
    refused = freshet("apply")
    contract.write_text(text + "\n\n# for a colleague\n")
    planned, applied_, planned_after = freshet("plan"), freshet("apply"), freshet("plan")

    assert refused.returncode == 2
    assert 'stream "wiki_edits" does not read its events: version 1 as it is now needs it' in refused.stderr
    assert "got $.tool. Hint: set `version=2`" in refused.stderr
    assert "~ contract wiki_edits: version 1 as it is written now" in planned.stdout
    assert "~ contract wiki_edits: version 1 as it is written now" in applied_.stdout
    assert "nothing to apply" in planned_after.stdout


def test_a_backfill_puts_nothing_in_force_that_was_not_applied(applied: Applied, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(applied.freshet.project, root)
    freshet, contract = Freshet(root, applied.freshet.environment), root / "schemas" / "events" / "wiki_edits.py"
    text = contract.read_text()

    contract.write_text(text.replace("    added: int\n", "    added: int\n    tool: str\n"))
    edited = freshet("backfill", "user_edits_1h")
    contract.write_text(text)
    unknown = freshet("backfill", "user_edits_1d")
    (root / "data" / "offline" / "_applied.json").unlink()
    never = freshet("backfill", "user_edits_1h")

    assert [done.returncode for done in (edited, unknown, never)] == [2, 2, 2]
    assert 'contract "schemas/events/wiki_edits.py" was edited and not applied' in edited.stderr
    assert 'feature "user_edits_1d" is not in force. Hint: did you mean user_edits_1h?' in unknown.stderr
    assert 'declaration "feature_repo/features.yaml" was never applied' in never.stderr


def test_what_makes_folders_is_done_one_at_a_time(applied: Applied) -> None:
    folders = CompactionFolder(OfflineStore(applied.freshet.project / "data" / "offline"))
    folders.lock()
    try:
        done = applied.freshet("apply")
    finally:
        folders.unlock()

    assert done.returncode == 2
    assert "is being compacted or purged already" in done.stderr
    assert applied.freshet("apply").returncode == 0


# --- a new project ----------------------------------------------------------------------------------------------------


def test_a_new_project_plans_and_replays_as_it_stands(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    freshet = Freshet(root)
    freshet.ok("init", str(root))

    jsonschema.Draft202012Validator(OUTPUT).validate(json.loads(freshet.ok("plan", "--json")))
    said = json.loads(freshet.ok("replay", str(root / "events.jsonl"), "--out", str(tmp_path / "rows"), "--json"))

    assert said["events"]["page_views"] == {"accepted": 4, "rejected": 0, "duplicate": 0}
    assert said["rows"] == {"page_views_by_visitor": 4}
    view = Workspace.open(settings.read({"FRESHET_PROJECT": str(root)})).pipeline.plan("page_views_by_visitor").view
    rows = OfflineStore(tmp_path / "rows").final(view).to_pylist()
    ada = [
        row["visitor_views_10m"]
        for row in sorted(rows, key=lambda row: row["event_timestamp"])
        if row["visitor"] == "ada"
    ]
    assert ada == [1, 2, 3]


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    done = Freshet(tmp_path)("init", str(tmp_path))

    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert files_in(tmp_path) == {"mine.txt"}


@pytest.mark.parametrize(
    ("words", "code"), [("plan", 0), ("--help", 0), ("plan --nonsense", 2), ("-C /none plan", 2)], ids=str
)
@pytest.mark.parametrize("out", [">&-", "> /dev/null"], ids=["closed", "nowhere"])
def test_an_exit_code_is_its_own_whatever_becomes_of_the_output(project: Path, words: str, code: int, out: str) -> None:
    command = f'cd "{project}"; "{sys.executable}" -m freshet.scripts.cli {words} {out}'

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


PRINTS = """
import sys
from freshet.scripts import cli, plan
is_cut_off = sys.argv.pop() == "before"
plan.act = lambda words, settings: (print("found", flush=is_cut_off), 1)[1]
cli.command()
"""


@pytest.mark.parametrize(("when", "code"), [("after", 1), ("before", 141)])
def test_a_verb_whose_reader_goes_before_it_is_done_has_found_nothing_and_after_that_what_it_found(
    project: Path, when: str, code: int
) -> None:
    gone, out = os.pipe()
    os.close(gone)
    try:
        command = [sys.executable, "-c", PRINTS, "-C", str(project), "plan", when]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, env=buffered, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(out)

    assert (done.returncode, done.stderr) == (code, "")
