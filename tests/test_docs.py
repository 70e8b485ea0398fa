"""README.md says what is so: its commands run, its tables are the code's, the demo prints what it shows."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from freshet.flows import settings
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.kafka import Kafka, Producer, partitions_count
from freshet.flows.edges.project import Project
from freshet.flows.live_validator import templates_of
from freshet.flows.steps.sql.functions import ALLOWED, WINDOWED
from freshet.flows.workspace import Workspace
from freshet.scripts.apply import generated, write_files, write_store_config
from freshet.scripts.cli import VERBS, main

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def test_the_commands_for_a_project_of_ones_own_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = next(block for block in CONSOLE if "freshet init" in block)
    monkeypatch.chdir(tmp_path)
    commands = [line.removeprefix("$ .venv/bin/freshet ").split() for line in block.splitlines()]

    codes = [main(command) for command in commands]

    assert [["init", "shop"], 0] == [commands[0], codes[0]]
    assert [0, 0, 0] == codes
    assert "4 events of page_views" in capsys.readouterr().out


def test_the_producer_example_delivers_its_event(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = next(block for block in PYTHON if "Producer(" in block)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "shop"]) == 0
    broker.create_topic("page_views", 2)

    exec(example.replace("localhost:9092", broker.address), {})

    assert partitions_count(Kafka(broker.address), "page_views") == 2
    contract = Project(tmp_path / "shop").contracts(["page_views"])["page_views"]
    assert Producer(Kafka(broker.address), contract).flush().count == 0


def test_the_contract_shown_evolves_and_its_finding_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = next(block for block in PYTHON if "upcasts=" in block)
    shown = next(block for block in CONSOLE if "schema check" in block)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "shop"]) == 0
    schemas = tmp_path / "shop" / "schemas"
    samples, snapshots = schemas / "samples" / "page_views", schemas / "snapshots" / "page_views"
    sample = json.loads((samples / "good-view.json").read_text())
    (samples / "1").mkdir()
    (samples / "1" / "good-view.json").write_text(json.dumps(sample | {"milliseconds": sample.pop("seconds") * 1000}))
    (samples / "good-view.json").write_text(json.dumps(sample | {"seconds": 1.0, "device": "app"}))
    (snapshots / "1.json").unlink()
    second = re.sub("    device: .*\n", "", newest.replace("version=3", "version=2").replace(", 2: as_is", ""))
    first = second.replace("version=2, upcasts={1: in_seconds}", "version=1").replace(
        "seconds: float", "milliseconds: int"
    )

    def run(contract: str, *words: str) -> int:
        (schemas / "events" / "page_views.py").write_text(contract)
        for name in [name for name in sys.modules if name.startswith("freshet_contract_page_views")]:
            del sys.modules[name]  # a contract is imported once in a process
        capsys.readouterr()
        return main(["-C", "shop", "schema", *words])

    assert [0, 0] == [run(first, "snapshot"), run(second, "snapshot")]
    assert [0, 0] == [run(newest, "snapshot"), run(newest, "check")]
    assert run(newest.replace(' = "web"', ""), "snapshot") == 1
    (snapshots / "3.json").unlink()

    assert run(newest.replace(' = "web"', ""), "check") == 1

    assert shown.split("\n", 1)[1] == capsys.readouterr().out


def test_the_canaries_shown_can_be_agreed_to(tmp_path: Path) -> None:
    shown = re.search(r"### Canaries.*?```yaml\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert main(["init", str(tmp_path / "shop")]) == 0
    (tmp_path / "shop" / "canaries.yaml").write_text(shown[1])
    known = settings.Settings(project=tmp_path / "shop", canaries=Path("canaries.yaml"))

    (template,) = templates_of(Workspace.open(known))

    assert template.contract.name == "page_views"


def test_every_verb_stands_in_the_table_of_commands() -> None:
    for verb in VERBS:
        assert f"| `freshet {verb}" in README or verb == "init", verb


def test_the_table_of_settings_is_the_code_s() -> None:
    assert settings.__doc__ is not None
    for line in settings.__doc__.splitlines():
        if line.startswith("| FRESHET_"):
            assert line in README


def test_the_functions_listed_are_the_ones_allowed() -> None:
    details = README.split("<details>")[1].split("</details>")[0]
    listed = {word for line in details.splitlines() for word in re.findall(r"`(\S+?)`(?=\s|$)", line)}

    assert listed == ALLOWED
    for aggregate in WINDOWED:
        assert f"`{aggregate}`" in README


def test_the_generated_files_in_the_repository_are_what_the_declaration_gives(project: Path) -> None:
    workspace = Workspace.open(settings.Settings(project=project))
    write_store_config(workspace)
    written = write_files(workspace, generated(workspace))

    for path in ["feature_repo/feature_store.yaml", *written]:
        assert (REPO / path).read_text() == (project / path).read_text(), f"{path}: run `freshet apply`"
    for folder in {Path(path).parent for path in written}:
        names = {path.name for path in (project / folder).iterdir()}
        assert {path.name for path in (REPO / folder).iterdir()} == names, f"{folder}: what is no longer made is to go"


def test_feast_apply_works_by_itself(project: Path) -> None:
    shutil.copy(REPO / "feature_repo" / "feature_store.yaml", project / "feature_repo")
    feast = Path(sys.executable).with_name("feast")

    done = subprocess.run([feast, "apply"], cwd=project / "feature_repo", capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for view in ("wiki_edits_by_user", "wiki_edits_by_page", "wiki_edits_by_channel"):
        assert view in done.stdout


def test_a_feature_is_tested_as_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = next(block for block in README.split("```python\n") if "freshet.flows.testing" in block).split("```")[0]
    (tmp_path / "test_shop.py").write_text(shown)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "freshet.scripts.cli", "init", "shop"], check=True, capture_output=True)

    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, check=False)

    assert done.stdout.strip().splitlines()[-1].startswith("1 passed"), done.stdout


def test_the_demo_prints_what_the_readme_shows() -> None:
    shown = next(block for block in CONSOLE if block.startswith("$ ./scripts/demo"))
    command = [sys.executable, "-m", "freshet.scripts.cli", "demo", "--seconds", "2", "--rate", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr + done.stdout
    assert "mismatches: 0" in done.stdout
    assert _shape(shown.split("\n", 1)[1]) == _shape(done.stdout)


def _shape(printed: str) -> list[str]:
    """Return the lines that say the same in every run, numbers apart."""
    lines = [re.sub(r"\d+", "N", line).strip() for line in printed.splitlines()]
    return [line for line in lines if line and not line.startswith(("Ns ", "making "))]
