"""The demo breaks on purpose, and the validator finds what it broke."""

import re
import subprocess
import sys

import pytest

from freshet.scripts.cli import main

DEMO = [sys.executable, "-m", "freshet.scripts.cli", "demo"]


@pytest.mark.parametrize("cause", ["lost_online_write", "partial_batch"])
def test_what_the_demo_breaks_is_found_by_its_cause(cause: str) -> None:
    command = [*DEMO, "--break", cause, "--seconds", "1", "--rate", "50"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)

    assert done.returncode == 1, done.stderr + done.stdout
    found = done.stdout[done.stdout.index("\nfound ") :]
    assert re.search(rf"^  {cause}: wiki_edits_by_", found, re.MULTILINE), found
    assert f"the fault says that it did {cause} " in found
    struck = re.search(r"of the (\d+) entities in evidence it struck (\d+)", found)
    assert struck is None if cause == "partial_batch" else (struck is not None and struck[1] == struck[2]), found


def test_an_unknown_cause_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--break", "gremlins"]) == 2

    said = capsys.readouterr().err
    assert "lost_online_write" in said
    assert "schema_drift" in said
