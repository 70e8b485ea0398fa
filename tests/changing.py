"""How tests put another declaration in force while processes of a project run, without the rest of what apply does."""

import time
from collections.abc import Callable

from stack import Stack

from freshet.flows.edges.applied import AppliedFile
from freshet.flows.workspace import Workspace
from freshet.schemas.applied import Applied


def edited(stack: Stack, change: Callable[[str], str]) -> Workspace:
    """Change the text of a project's declaration; return the project as it is written then."""
    path = stack.workspace.project.feature_repo / "features.yaml"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before, "nothing was changed"
    return Workspace.open(stack.workspace.settings)


def put_in_force(workspace: Workspace) -> None:
    """Put a declaration in force, as it is written."""
    files, now_us = AppliedFile(workspace.offline_root), time.time_ns() // 1000
    applied = files.read()
    following = Applied(declared=workspace.declared, since_us=now_us)
    files.write(following if applied is None else applied.followed_by(workspace.declared, now_us))


def with_feature(line: str) -> Callable[[str], str]:
    """Return what adds a feature to a declaration."""
    return lambda text: text.replace("featureDefinitions:\n", f"featureDefinitions:\n  - {{{line}}}\n")


def without_feature(name: str) -> Callable[[str], str]:
    """Return what drops a feature that is declared in one line."""
    return lambda text: "".join(line for line in text.splitlines(True) if f"name: {name}," not in line)
