"""`freshet schema`, as people and CI meet it: a project's contracts from their first version to the next."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from freshet.scripts.cli import main

REPO = Path(__file__).parent.parent


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    assert main(["init", str(root)]) == 0
    return root


def change(shop: Path, *changes: tuple[str, str]) -> None:
    """Change the contract's text."""
    path = shop / "schemas" / "events" / "page_views.py"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture
def run(shop: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the verb in the shop; contracts are read anew, as by another process."""
    import sys  # noqa: PLC0415  # only to forget what it imported

    def ask(*words: str) -> tuple[int, str]:
        for name in [name for name in sys.modules if name.startswith("freshet_contract_page_views")]:
            del sys.modules[name]
        capsys.readouterr()
        code = main(["-C", str(shop), "schema", *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return ask


STREAM = ('event_time="left_at")', 'event_time="left_at", version=2, upcasts={1: as_is})')
IMPORT = ("import Event, Stream", "import Event, Stream, as_is")
DEVICE = ("    seconds: float\n", "    seconds: float\n    device: str | None = None\n")


def test_our_own_contracts_have_evolved_as_they_promise(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["-C", str(REPO), "schema", "check"])

    assert (code, capsys.readouterr().out) == (
        0,
        "wiki_edits: version 1, BACKWARD_TRANSITIVE with nothing: no findings\n",
    )


def test_a_new_project_has_its_first_snapshot(shop: Path, run: Any) -> None:
    assert json.loads((shop / "schemas" / "snapshots" / "page_views" / "1.json").read_text())["x-freshet-version"] == 1
    assert run("check") == (0, "page_views: version 1, BACKWARD_TRANSITIVE with nothing: no findings\n")
    assert run("snapshot") == (0, "page_views: version 1 has its snapshot\n")


def test_a_contract_evolves_by_a_new_version_and_its_snapshot(shop: Path, run: Any) -> None:
    change(shop, DEVICE)
    code, said = run("check")
    assert code == 1
    assert "differs in $.device [changed_in_place]. Hint: set `version=2`" in said
    assert run("snapshot")[0] == 1

    change(shop, IMPORT, STREAM)
    assert "version 2 has no snapshot [no_snapshot]" in run("check")[1]
    assert run("snapshot") == (0, "page_views: wrote schemas/snapshots/page_views/2.json; commit it\n")
    assert run("check") == (0, "page_views: version 2, BACKWARD_TRANSITIVE with 1: no findings\n")


def test_an_incompatible_version_gets_no_snapshot_and_is_told_what_to_do(shop: Path, run: Any) -> None:
    change(shop, IMPORT, STREAM, ("seconds: float", "seconds: int"))

    code, said = run("snapshot")

    assert code == 1
    assert said == (
        "page_views $.seconds: version 1 may have number, and version 2 takes integer only [type_narrowed]. "
        "Hint: take both types, give the new field another name, or write an upcast from version 1 that makes it so\n"
        "page_views: nothing is written\n"
    )
    assert not (shop / "schemas" / "snapshots" / "page_views" / "2.json").exists()


def test_another_mode_may_be_asked_for(shop: Path, run: Any) -> None:
    change(shop, IMPORT, STREAM, ("    path: str\n", ""))

    assert run("snapshot")[0] == 0
    assert run("check", "--mode", "backward")[0] == 0
    code, said = run("check", "--mode", "FULL_TRANSITIVE")
    assert code == 1
    assert "$.path: version 1 needs it, and version 2 may leave it out [field_required]" in said


def test_findings_are_printed_as_json(shop: Path, run: Any) -> None:
    (shop / "schemas" / "samples" / "page_views" / "good-broken.json").write_text("{")

    code, said = run("check", "--json")

    ((found),) = json.loads(said)["findings"]
    assert code == 1
    assert {"stream", "path", "rule", "fact", "fix"} == found.keys()
    assert (found["path"], found["rule"]) == ("schemas/samples/page_views/good-broken.json", "sample_rejected")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "--stream", "page_view"], 'argument "--stream" is page_view. Hint: did you mean page_views?'),
        (["check"], 'snapshot "1.json" of page_views is no JSON'),
    ],
)
def test_wrong_use_is_refused(shop: Path, run: Any, words: list[str], said: str) -> None:
    (shop / "schemas" / "snapshots" / "page_views" / "1.json").write_text("{")

    code, out = run(*words)

    assert code == 2
    assert said in out


@pytest.mark.parametrize(("name", "text"), [("one.json", "{}"), ("0.json", "{}"), ("2.json", "[]")])
def test_a_snapshot_that_is_none_is_refused(shop: Path, run: Any, name: str, text: str) -> None:
    (shop / "schemas" / "snapshots" / "page_views" / name).write_text(text)

    code, out = run("check")

    assert code == 2
    assert f'snapshot "{name}" of page_views' in out


def test_a_folder_without_contracts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-C", str(tmp_path), "schema", "check"]) == 2
    assert "has no event contract in schemas/events. Hint: name the project's folder" in capsys.readouterr().err


def test_what_is_exported_is_whole_and_its_example_follows_it(shop: Path, run: Any, tmp_path: Path) -> None:
    code, _ = run("export", "--out", str(tmp_path / "out"))

    assert code == 0
    document = json.loads((tmp_path / "out" / "asyncapi.json").read_text())
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        found = document
        for word in reference.split("/"):
            found = found[word]
        assert found, reference
    schema = json.loads((tmp_path / "out" / "page_views.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    message = document["components"]["messages"]["page_views"]
    (example,) = message["examples"]
    jsonschema.Draft202012Validator(schema).validate(example["payload"])
    jsonschema.Draft202012Validator(message["headers"]).validate(example["headers"])
    assert document["channels"]["page_views"]["address"] == "page_views"
    assert document["servers"] == {"kafka": {"host": "localhost:9092", "protocol": "kafka"}}
    assert document["components"]["schemas"]["page_views"]["properties"].keys() == schema["properties"].keys()
    payload = document["components"]["schemas"]["page_views"]
    bad = json.loads((shop / "schemas" / "samples" / "page_views" / "bad-seconds-in-quotes.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(payload).validate(bad)
