"""Kill -9 of `apply` and `backfill` at every step, on a real Kafka, Redis server and disk, beside a running materializer.

What a step leaves on the disk is waited for, and then the process is killed: how far it is by then, the machine decides.
The same command again completes it.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stack import FRESHET, LIMIT_S, Stack, check, prepared, until

from freshet.flows.edges.parquet import GENERATIONS
from freshet.flows.workspace import Workspace

pytestmark = pytest.mark.kafka

STEPS = ("a folder is begun", "it is decided", "folders are switched", "it is in force", "Feast knows")
TRIES = 8
"""A process may be through before it is killed: then there is another one."""


@pytest.fixture
def stack(real_kafka: str, valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(real_kafka, valkey_url, tmp_path)
    yield made
    made.close()


def mark_of(step: str, stack: Stack) -> Callable[[], object]:
    """Return what tells what a step leaves behind, in no time: the last one leaves it just before its process ends."""
    root, registry = stack.workspace.offline_root, stack.workspace.project.registry
    if step == STEPS[0]:
        return lambda: sorted(path.name for path in root.iterdir() if not path.name.startswith((".", "_")))
    if step == STEPS[1]:
        return lambda: stack.ledger().pending
    file = dict(zip(STEPS[2:], (root / GENERATIONS, root / "_applied.json", registry), strict=True))[step]
    return lambda: file.stat().st_mtime_ns if file.exists() else 0


def is_killed_at(step: str, stack: Stack, command: list[str]) -> bool:
    """Run a command, kill it once a step has left its mark, and say whether it was not through by then."""
    mark = mark_of(step, stack)
    before, process = mark(), stack.spawn(command)
    until(lambda: mark() != before or process.poll() is not None, pause_s=0.0)
    process.kill()
    process.wait(LIMIT_S)
    return process.returncode == -9


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", ["apply", "backfill"])
def test_a_change_that_is_killed_at_any_step_is_completed_by_the_same_command(stack: Stack, verb: str) -> None:
    declared = stack.workspace.project.root / "feature_repo" / "features.yaml"
    view, length, killed = stack.workspace.pipeline.views[0].name, 10, set[str]()
    command = [*FRESHET, verb, *(["user_edits_10m"] if verb == "backfill" else [])]
    stack.produce(300)
    running = stack.start()
    until(lambda: stack.ledger().rows_counts.get(view, 0) > 0)
    for step in (step for step in STEPS for _ in range(TRIES)):
        if step in killed:
            continue
        if verb == "apply":
            text = declared.read_text()
            assert f"INTERVAL '{length} minutes'" in text
            declared.write_text(text.replace(f"INTERVAL '{length} minutes'", f"INTERVAL '{length + 1} minutes'"))
            length += 1
        stack.produce(30)
        if is_killed_at(step, stack, command):
            killed.add(step)
        stack.produce(30)
        stack.ended(stack.spawn(command), 0)
    until(stack.is_done)
    stack.stop(running)
    stack.workspace = Workspace.applied(stack.workspace.settings)
    stack.done()
    checked = subprocess.run([*FRESHET, "check"], env=stack.environment, capture_output=True, text=True, check=False)

    assert killed == {*STEPS}
    assert stack.ledger().pending is None
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert stack.workspace.declared.text == declared.read_text()
    check(stack.workspace, stack.sent_count)
