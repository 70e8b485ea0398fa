"""The demo breaks on purpose, and the validator finds what it broke."""

import re
import subprocess
import sys

import pytest

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


def test_an_unknown_cause_is_refused_with_those_that_there_are() -> None:
    done = subprocess.run([*DEMO, "--break", "gremlins"], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 2
    assert "lost_online_write" in done.stderr
    assert "schema_drift" in done.stderr
